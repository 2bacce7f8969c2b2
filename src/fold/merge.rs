//! How an addition joins what is there: each rule a maximum or a union, so that order does not matter.

use std::cmp::Ordering;

use crate::lead::{Activity, Addition, COMPLETED, ChecklistItem, Completion, Detail, Document, Extraction, FAILED, Mention};

/// Whether `new` takes the place of `old`, an activity of the same id.
///
/// The greatest of these, in this order, is kept:
/// - the status: `COMPLETED` over `FAILED` over any other. An action that was completed does not fail later: a failure
///   that says so came late, or its clock was wrong.
/// - whether the event told a time: a sender that knows when it happened is right, and a time of receipt is not.
/// - the time that was told; or of two times of receipt the earlier one, so that a second delivery changes nothing.
pub fn supersedes(new: &Activity, old: &Activity) -> bool {
    precedence(new, old) == Ordering::Greater
}

fn precedence(new: &Activity, old: &Activity) -> Ordering {
    let rank = |activity: &Activity| match &*activity.status {
        COMPLETED => 2,
        FAILED => 1,
        _ => 0,
    };
    let time = if new.timed { new.time.cmp(&old.time) } else { old.time.cmp(&new.time) };
    (rank(new), new.timed)
        .cmp(&(rank(old), old.timed))
        .then(time)
        // The same action told differently: any rule will do that does not depend on order.
        .then_with(|| content(new).cmp(&content(old)))
}

fn content(activity: &Activity) -> impl Ord + '_ {
    let Activity {
        kind, status, summary, error, channel, direction, messages, document_ids, tool_name, agent_id, parent_action_id, ..
    } = activity;
    ((kind, status, summary, error, channel, direction), (messages, document_ids, tool_name, agent_id, parent_action_id))
}

/// Joins an addition with what is stored under its key. `None`: it adds nothing.
pub fn detail(existing: Option<&Detail>, addition: &Addition) -> Option<Detail> {
    match (existing, addition) {
        (None, Addition::Document(new)) => Some(Detail::Document(joined(None, new))),
        (Some(Detail::Document(old)), Addition::Document(new)) => {
            let joined = joined(Some(old), new);
            (joined.mentions != old.mentions || joined.extraction != old.extraction).then_some(Detail::Document(joined))
        }
        (Some(Detail::Profile(_, old)), Addition::SetProfile(key, new)) => {
            (old.value != new.value).then(|| Detail::Profile(*key, new.clone()))
        }
        (Some(Detail::Profile(..)), Addition::FillProfile(..)) => None,
        (_, Addition::SetProfile(key, new) | Addition::FillProfile(key, new)) => Some(Detail::Profile(*key, new.clone())),
        (Some(Detail::ChecklistItem(old)), Addition::ChecklistItem(new)) => {
            item_stands_over(new, old).then(|| Detail::ChecklistItem(new.clone()))
        }
        (_, Addition::ChecklistItem(new)) => Some(Detail::ChecklistItem(new.clone())),
        (Some(Detail::Completion(old)), Addition::Completion(new)) => {
            (new.time < old.time).then_some(Detail::Completion(Completion { time: new.time, version: 0 }))
        }
        (_, Addition::Completion(new)) => Some(Detail::Completion(*new)),
        (Some(_), Addition::Document(new)) => Some(Detail::Document(joined(None, new))),
    }
}

/// Whether `new` takes the place of `old`, an item of the same id.
pub(super) fn item_stands_over(new: &ChecklistItem, old: &ChecklistItem) -> bool {
    item_content(new) > item_content(old)
}

/// The newest `updatedAt` stands; equal ones are decided by content, in any fixed way.
fn item_content(item: &ChecklistItem) -> impl Ord + '_ {
    (item.time, &item.status, &item.value, &item.code, &item.document_ids)
}

fn joined(old: Option<&Document>, new: &Document) -> Document {
    let mut mentions: Vec<&Mention> = old.into_iter().flat_map(|old| &old.mentions).chain(&new.mentions).collect();
    mentions.sort();
    mentions.dedup();
    Document {
        document_id: new.document_id.clone(),
        mentions: telling(&mentions),
        extraction: better(old.and_then(|old| old.extraction.as_ref()), new.extraction.as_ref()).cloned(),
        version: 0,
    }
}

/// What is kept of all that one event said of a document.
pub(super) fn mentions(mut all: Vec<Mention>) -> Vec<Mention> {
    all.sort();
    all.dedup();
    telling(&all.iter().collect::<Vec<_>>())
}

/// Those mentions from which some field is taken; and the earliest one where none tells a creation time, for
/// it dates the document. A mention that is dropped could never count again: what outranks it only gets better.
fn telling(in_precedence: &[&Mention]) -> Vec<Mention> {
    let dated = in_precedence.iter().any(|mention| mention.create_time.is_some());
    let earliest = in_precedence.iter().copied().min_by_key(|mention| (mention.time, *mention)).filter(|_| !dated);
    let mut told = [false; 7];
    let mut kept = Vec::new();
    for mention in in_precedence.iter().copied() {
        let tells = tells(mention);
        if tells.iter().zip(&told).any(|(tells, told)| *tells && !*told) || earliest == Some(mention) {
            kept.push(mention.clone());
        }
        for (told, tells) in told.iter_mut().zip(tells) {
            *told |= tells;
        }
    }
    kept
}

fn tells(mention: &Mention) -> [bool; 7] {
    [
        !mention.action_id.is_empty(),
        !mention.message_id.is_empty(),
        !mention.external_id.is_empty(),
        !mention.filename.is_empty(),
        !mention.mime_type.is_empty(),
        mention.size.is_some(),
        mention.create_time.is_some(),
    ]
}

/// A completed extraction stands over a failed one; of equals the first received, so that a second delivery
/// changes nothing.
fn better<'a>(a: Option<&'a Extraction>, b: Option<&'a Extraction>) -> Option<&'a Extraction> {
    fn order(extraction: &Extraction) -> impl Ord + '_ {
        let Extraction { status, document_type, summary, time } = extraction;
        (status != "completed", time, status, document_type, summary)
    }
    a.into_iter().chain(b).min_by(|a, b| order(a).cmp(&order(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lead::Source;
    use crate::time::Timestamp;

    fn activity(status: &str, time: i64, timed: bool) -> Activity {
        Activity { status: status.to_owned(), time: Timestamp::from_micros(time), timed, ..Activity::default() }
    }

    #[test]
    fn the_status_decides_first() {
        for (timed, of_failed) in [(true, true), (true, false), (false, true), (false, false)] {
            for time in [5, 10, 20] {
                let (completed, failed) = (activity(COMPLETED, time, timed), activity(FAILED, 10, of_failed));
                assert!(supersedes(&completed, &failed) && !supersedes(&failed, &completed), "{completed:?} {failed:?}");
                let other = activity("PENDING", time, timed);
                assert!(supersedes(&failed, &other) && !supersedes(&other, &failed), "{other:?} {failed:?}");
            }
        }
    }

    #[test]
    fn of_one_status_a_time_that_was_told_stands_over_one_of_receipt() {
        for status in [COMPLETED, FAILED, "PENDING"] {
            for received in [5, 10, 20] {
                let (told, untold) = (activity(status, 10, true), activity(status, received, false));
                assert!(supersedes(&told, &untold), "a right time repairs one of receipt");
                assert!(!supersedes(&untold, &told), "a delivery that lacks its time does not overwrite it");
            }
        }
        assert!(supersedes(&activity(COMPLETED, 11, true), &activity(COMPLETED, 10, true)), "the later one");
    }

    #[test]
    fn of_untimed_deliveries_the_first_received_stands() {
        assert!(!supersedes(&activity(COMPLETED, 11, false), &activity(COMPLETED, 10, false)));
        assert!(supersedes(&activity(COMPLETED, 9, false), &activity(COMPLETED, 10, false)));
    }

    #[test]
    fn precedence_is_a_total_order() {
        let mut all = Vec::new();
        for status in [COMPLETED, FAILED, "PENDING", "RUNNING"] {
            for time in [1, 2] {
                for summary in ["", "other"] {
                    all.extend([true, false].map(|timed| Activity { summary: summary.to_owned(), ..activity(status, time, timed) }));
                }
            }
        }
        for a in &all {
            for b in &all {
                assert_eq!(precedence(a, b), precedence(b, a).reverse());
                assert_eq!(precedence(a, b).is_eq(), a == b, "{a:?} {b:?}");
                for c in &all {
                    if precedence(a, b).is_ge() && precedence(b, c).is_ge() {
                        assert!(precedence(a, c).is_ge(), "{a:?} {b:?} {c:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn later_mentions_fill_what_is_missing_and_received_outranks() {
        let message = Mention { source: Source::Message, filename: "scan.pdf".into(), message_id: "m".into(), ..Mention::default() };
        let received = Mention { source: Source::Received, filename: "statement.pdf".into(), size: Some(7), ..Mention::default() };
        let document = |mention: &Mention| Document { document_id: "d".into(), mentions: vec![mention.clone()], ..Document::default() };
        let one = joined(Some(&document(&message)), &document(&received));
        let other = joined(Some(&document(&received)), &document(&message));
        assert_eq!(one, other);
        assert_eq!(one.text(|mention| &mention.filename), "statement.pdf");
        assert_eq!(one.text(|mention| &mention.message_id), "m");
        assert_eq!(joined(Some(&one), &document(&message)), one, "a second delivery adds nothing");
    }
}
