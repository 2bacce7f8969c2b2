//! How an addition joins what is there: each rule a maximum or a union, so that order does not matter.

use std::cmp::Ordering;

use crate::lead::{Activity, Addition, COMPLETED, ChecklistItem, Completion, Detail, Document, Extraction, FAILED, Mention};
use crate::time::Timestamp;

/// Whether `new` stands in place of `old`, an activity of the same id.
///
/// The greater of (time, `COMPLETED` over `FAILED`) stands. An activity whose time the event did not tell
/// stands over every timed one if it is completed and under every timed one if not: a retry that went well is
/// the later one. Among untimed equals the first received stands, so that a second delivery changes nothing.
pub fn supersedes(new: &Activity, old: &Activity) -> bool {
    standing(new, old) == Ordering::Greater
}

fn standing(new: &Activity, old: &Activity) -> Ordering {
    fn effective(activity: &Activity) -> Timestamp {
        match (activity.timed, activity.status == COMPLETED) {
            (true, _) => activity.time,
            (false, true) => Timestamp::from_micros(i64::MAX),
            (false, false) => Timestamp::from_micros(i64::MIN),
        }
    }
    let rank = |activity: &Activity| match &*activity.status {
        COMPLETED => 2,
        FAILED => 1,
        _ => 0,
    };
    (effective(new), rank(new))
        .cmp(&(effective(old), rank(old)))
        // Both timed: their times are equal here. Both untimed: the earlier receipt stands.
        .then_with(|| old.time.cmp(&new.time))
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
            (item_content(new) > item_content(old)).then(|| Detail::ChecklistItem(new.clone()))
        }
        (_, Addition::ChecklistItem(new)) => Some(Detail::ChecklistItem(new.clone())),
        (Some(Detail::Completion(old)), Addition::Completion(new)) => {
            (new.time < old.time).then_some(Detail::Completion(Completion { time: new.time, version: 0 }))
        }
        (_, Addition::Completion(new)) => Some(Detail::Completion(*new)),
        (Some(_), Addition::Document(new)) => Some(Detail::Document(joined(None, new))),
    }
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

    fn activity(status: &str, time: i64, timed: bool) -> Activity {
        Activity { status: status.to_owned(), time: Timestamp::from_micros(time), timed, ..Activity::default() }
    }

    #[test]
    fn a_retry_that_went_well_stands_over_the_failure() {
        let failed = activity(FAILED, 10, true);
        assert!(supersedes(&activity(COMPLETED, 20, true), &failed));
        assert!(supersedes(&activity(COMPLETED, 10, true), &failed), "at the same time too");
        assert!(supersedes(&activity(COMPLETED, 5, false), &failed), "without a time too");
        assert!(!supersedes(&activity(COMPLETED, 9, true), &failed), "but not from before it");
        assert!(!supersedes(&activity(FAILED, 99, false), &activity(COMPLETED, 20, true)));
    }

    #[test]
    fn of_untimed_deliveries_the_first_received_stands() {
        assert!(!supersedes(&activity(COMPLETED, 11, false), &activity(COMPLETED, 10, false)));
        assert!(supersedes(&activity(COMPLETED, 9, false), &activity(COMPLETED, 10, false)));
    }

    #[test]
    fn standing_is_a_total_order() {
        let mut all = Vec::new();
        for status in [COMPLETED, FAILED, "PENDING"] {
            for time in [1, 2] {
                all.extend([activity(status, time, true), activity(status, time, false)]);
            }
        }
        for a in &all {
            for b in &all {
                assert_eq!(standing(a, b), standing(b, a).reverse());
                for c in &all {
                    if standing(a, b).is_ge() && standing(b, c).is_ge() {
                        assert!(standing(a, c).is_ge(), "{a:?} {b:?} {c:?}");
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
