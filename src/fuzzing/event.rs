//! Events: any body is taken or refused, the fold does not care for order or duplicates, and a refusal tells
//! nothing of what was in the body.

use super::split_at_first;
use crate::event::{self, Refusal};
use crate::fold::{self, Folded, Receipt, effect::Effect, merge};
use crate::lead::{Activity, Change, Detail, DetailKey};
use crate::spool::record as spool;
use crate::store::record;
use crate::time::Timestamp;

/// When the first of two events arrives: 2026-09-21.
const RECEIVED: Timestamp = Timestamp::from_millis(1_790_000_000_000);
/// And the second.
const RECEIVED_LATER: Timestamp = Timestamp::from_millis(1_790_000_000_500);

/// Takes two events, parted by a line feed.
pub fn event(data: &[u8]) {
    let (first, second) = split_at_first(data, b'\n');
    let first = change(first, RECEIVED, None);
    let second = change(second, RECEIVED_LATER, Some("workspace of the URL"));
    for change in first.iter().chain(&second) {
        let mut lead = Parts::default();
        lead.apply(change);
        lead.survive_storage();
        survives_the_spool(change);
        assert!(Effect::of(change, lead.activities.first(), &lead.under(change)).is_empty(), "a second delivery changes something");
    }
    if let (Some(first), Some(second)) = (&first, &second) {
        let one = Parts::of(&[first, second]);
        let other = Parts::of(&[second, first]);
        assert_eq!(one.without_profile(), other.without_profile(), "the order of two events shows");
        assert_eq!(one.without_profile(), Parts::of(&[first, second, first, second]).without_profile(), "duplicates show");
        one.survive_storage();
    }
}

fn change(body: &[u8], at: Timestamp, workspace_id: Option<&str>) -> Option<Change> {
    let receipt = Receipt { at, workspace_id };
    let fold = || fold::fold(&event::parse(&event::Body::new(body))?, receipt);
    let folded = fold();
    assert_eq!(folded, fold(), "the same bytes fold to the same");
    match folded {
        Ok(Folded::Change(change)) => Some(*change),
        Ok(Folded::UnknownEvent(_)) => None,
        Err(refusal) => {
            tells_nothing(&refusal, body.len());
            None
        }
    }
}

/// The parts of a lead, whose ids are not looked at: all events here are of one lead.
#[derive(Debug, Default, PartialEq)]
struct Parts {
    activities: Vec<Activity>,
    details: Vec<Detail>,
}

impl Parts {
    fn of(changes: &[&Change]) -> Self {
        let mut parts = Self::default();
        for change in changes {
            parts.apply(change);
        }
        parts
    }

    fn apply(&mut self, change: &Change) {
        if let Some(new) = &change.activity {
            match self.activities.iter_mut().find(|old| old.action_id == new.action_id) {
                Some(old) if merge::supersedes(new, old) => *old = new.clone(),
                Some(_) => {}
                None => self.activities.push(new.clone()),
            }
        }
        for addition in &change.additions {
            let at = self.details.iter().position(|detail| detail.key() == addition.key());
            let Some(new) = merge::detail(at.map(|at| &self.details[at]), addition) else { continue };
            match at {
                Some(at) => self.details[at] = new,
                None => self.details.push(new),
            }
        }
        self.activities.sort_by(|a, b| a.action_id.cmp(&b.action_id));
        self.details.sort_by(|a, b| a.key().cmp(&b.key()));
    }

    /// What is there under the keys of a change's additions.
    fn under(&self, change: &Change) -> Vec<Option<Detail>> {
        let stored = |key: DetailKey<'_>| self.details.iter().find(|detail| detail.key() == key).cloned();
        change.additions.iter().map(|addition| stored(addition.key())).collect()
    }

    /// Profile fields carry no time: the last to arrive wins.
    fn without_profile(&self) -> (Vec<&Activity>, Vec<&Detail>) {
        let details = self.details.iter().filter(|detail| !matches!(detail, Detail::Profile(..)));
        (self.activities.iter().collect(), details.collect())
    }

    /// What is read is what was written.
    fn survive_storage(&self) {
        const VERSION: u64 = (1 << 48) - 1;
        for activity in &self.activities {
            let bytes = record::encode_activity(activity, VERSION);
            let id = record::unpack(&record::pack(&activity.action_id)).expect("an id");
            let read = record::decode_activity(id, &bytes).expect("an activity");
            assert_eq!(read, Activity { version: VERSION, ..activity.clone() });
        }
        for detail in &self.details {
            let mut detail = detail.clone();
            detail.set_version(VERSION);
            let read = record::decode_detail(&record::encode_detail_key(detail.key()), &record::encode_detail(&detail, VERSION));
            assert_eq!(read.expect("a detail"), detail);
        }
    }
}

/// Nor does the way over the disk change it.
fn survives_the_spool(change: &Change) {
    let written = spool::encode(change, spool::Meta::of(change)).expect("JSON");
    let spool::Next::Record(header, body) = spool::next(&written) else { panic!("not a record") };
    assert_eq!(spool::decode(&header, body).as_ref(), Ok(change));
}

/// A refusal is answered to whoever sent the body, and may be logged anywhere: it is made of our own words, of
/// the names of known fields, and of numbers that say where in the body.
fn tells_nothing(refusal: &Refusal, body_length: usize) {
    let greatest = body_length.max(4096);
    for word in refusal.to_string().split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        let is_place = word.parse::<usize>().is_ok_and(|number| number <= greatest);
        assert!(is_place || OUR_WORDS.contains(&word), "{word:?} is told by: {refusal}");
    }
    assert!(refusal.to_string().is_ascii(), "told: {refusal}");
}

#[rustfmt::skip]
const OUR_WORDS: &[&str] = &[
    // Names of fields.
    "actionLog", "agentId", "channel", "checklistItemCode", "checklistItemId", "checklistItems", "completedAt", "createdAt", "data",
    "direction", "document", "documentId", "documents", "error", "event", "externalId", "externalLeadId", "filename", "id", "input",
    "leadId", "messageId", "messages", "mimeType", "name", "occurredAt", "output", "parentActionId", "size", "status", "summary", "tool",
    "type", "updatedAt", "value", "workspaceId", "businessName", "email", "firstName", "lastName", "middleName", "phoneNumber", "source",
    "website",
    // What is wrong with one.
    "required", "a", "an", "non", "empty", "string", "object", "array", "sequence", "number", "of", "bytes", "wrong", "expected",
    "duplicate", "missing", "field", "longer", "than", "more", "in", "one", "is", "not", "the", "workspace", "URL", "struct",
    "character", "it", "was", "lost", "on", "way", "there", "its", "place", "U", "FFFD", "stands", "twice", "clear", "which", "counts",
    // With the body.
    "body", "UTF", "JSON", "bad", "byte", "at", "offset", "line", "column", "EOF", "while", "parsing", "list", "or", "ident", "invalid",
    "escape", "out", "range", "unicode", "code", "point", "control", "character", "u0000", "u001F", "found", "key", "must", "be", "lone",
    "leading", "surrogate", "hex", "trailing", "comma", "characters", "unexpected", "end", "recursion", "limit", "exceeded", "any",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_words_tell_nothing() {
        tells_nothing(&Refusal::field("actionLog.messages[3].id", "longer than 256 bytes"), 0);
        tells_nothing(&Refusal::body("expected value at line 1 column 9000"), 9001);
    }

    #[test]
    #[should_panic(expected = "\"Lovelace\" is told by")]
    fn a_refusal_that_tells_of_the_body_is_noticed() {
        tells_nothing(&Refusal::field("data", "duplicate field Lovelace"), 4096);
    }

    #[test]
    #[should_panic(expected = "\"5550100\" is told by")]
    fn a_number_of_the_body_is_noticed() {
        tells_nothing(&Refusal::field("data.phoneNumber", "wrong type: number 5550100"), 4096);
    }
}
