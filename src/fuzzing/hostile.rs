//! Bodies that are made to cost as much as they can: one part of an event blown up until it fills the body.
//!
//! Every part of every event has its turn: each value becomes a long text, a long number, deep nesting or many fields; each
//! array gets as many entries as fit, the same or distinct in each of their fields; each object as many fields.

use std::fmt::Write;

use serde_json::{Value, json};

/// Stands where the filling goes.
const PLACE: &str = "the filling goes here";
/// Distinct parts of an event that are taken; one more is refused, which is cheap.
const TAKEN: usize = 499;

/// A body that is made of an event and of what fills it.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// What it is, for people.
    pub(super) name: String,
    event: String,
    filling: Filling,
}

#[derive(Clone, Debug)]
enum Filling {
    /// Parts one after the other: what stands before, each part, what separates them, what stands behind.
    Parts(&'static str, &'static str, &'static str, &'static str),
    /// Nesting: what opens a level, what closes it.
    Levels(&'static str, &'static str),
    /// Entries of an array, whose `@` is a number that grows up to a greatest one and begins again.
    Entries { first: String, entry: String, distinct: usize },
}

impl Shape {
    /// The body, of this many bytes or few less.
    pub(super) fn body(&self, size: usize) -> Vec<u8> {
        let (before, behind) = self.event.split_once(&format!("\"{PLACE}\"")).expect("a place for the filling");
        let room = size.saturating_sub(before.len() + behind.len());
        let mut body = String::with_capacity(size);
        body += before;
        match &self.filling {
            Filling::Parts(first, part, separator, last) => {
                body += first;
                let mut number = 0;
                let end = size.saturating_sub(behind.len() + last.len() + 16);
                while body.len() + part.len() + separator.len() < end {
                    if number > 0 {
                        body += separator;
                    }
                    numbered(&mut body, part, number);
                    number += 1;
                }
                body += last;
            }
            Filling::Levels(open, close) => {
                let levels = (room.saturating_sub(1)) / (open.len() + close.len());
                body += &open.repeat(levels);
                body.push('0');
                body += &close.repeat(levels);
            }
            Filling::Entries { first, entry, distinct } => {
                body.push('[');
                numbered(&mut body, first, 0);
                let mut number = 1;
                while body.len() + entry.len() + 32 < size.saturating_sub(behind.len()) {
                    body.push(',');
                    numbered(&mut body, entry, number % distinct);
                    number += 1;
                }
                body.push(']');
            }
        }
        body += behind;
        body.into_bytes()
    }
}

/// Adds a part with a number for each `@` in it.
fn numbered(body: &mut String, part: &str, number: usize) {
    let mut rest = part;
    while let Some((before, behind)) = rest.split_once('@') {
        // Writing to a string cannot fail.
        let _ = write!(body, "{before}{number}");
        rest = behind;
    }
    *body += rest;
}

/// What any value may be.
const VALUES: [(&str, Filling); 14] = [
    ("a long text", Filling::Parts("\"", "x", "", "\"")),
    ("a text of escapes", Filling::Parts("\"", "\\u00e9", "", "\"")),
    ("a text of halves of surrogate pairs", Filling::Parts("\"", "\\ud83d", "", "\"")),
    ("a text of wrong escapes", Filling::Parts("\"", "\\x", "", "\"")),
    ("a text of quotes", Filling::Parts("\"", "\\\"", "", "\"")),
    ("a text of control characters", Filling::Parts("\"", "\t", "", "\"")),
    ("a text of times", Filling::Parts("\"", "2025-10-30T20:07:17.", "", "\"")),
    ("a long number", Filling::Parts("", "9", "", "")),
    ("a number with a long fraction", Filling::Parts("0.", "9", "", "")),
    ("deep arrays", Filling::Levels("[", "]")),
    ("deep objects", Filling::Levels("{\"documents\":", "}")),
    ("an array of zeros", Filling::Parts("[", "0", ",", "]")),
    ("an array that is no JSON", Filling::Parts("[", "NaN", ",", "]")),
    ("many fields", Filling::Parts("{", "\"k@\":0", ",", "}")),
];

/// Fields that an object has beside its own. The names of the last are known in some objects.
const FIELDS: [(&str, &str); 6] = [
    ("distinct fields", "\"k@\":@"),
    ("the same unknown field", "\"k\":\"TEXT\""),
    ("fields with empty objects", "\"k@\":{}"),
    ("fields with long names", "\"a name that is long and only differs at its end, as that of a generated field does @\":0"),
    ("fields with escapes in their names", "\"\\u0061\\ud83d@\":0"),
    ("the same known field", "\"id\":@"),
];

/// Every shape.
pub(super) fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (event_name, event) in events() {
        let mut pointers = Vec::new();
        walk(&event, "", &mut pointers);
        for pointer in pointers {
            let at = event.pointer(&pointer).expect("a value");
            let shape = |what: &str, place: Value, filling: Filling| {
                let mut event = event.clone();
                *event.pointer_mut(&pointer).expect("a value") = place;
                Shape { name: format!("{event_name} {pointer}: {what}"), event: event.to_string(), filling }
            };
            if !pointer.is_empty() {
                shapes.extend(VALUES.iter().map(|(what, filling)| shape(what, json!(PLACE), filling.clone())));
            }
            match at {
                Value::Array(entries) => {
                    for (what, first, entry) in entries.first().into_iter().flat_map(variants) {
                        for distinct in [1, TAKEN, usize::MAX] {
                            let filling = Filling::Entries { first: first.clone(), entry: entry.clone(), distinct };
                            shapes.push(shape(&format!("{what}, {distinct} distinct"), json!(PLACE), filling));
                        }
                    }
                }
                Value::Object(fields) => {
                    for (what, field) in FIELDS {
                        let mut fields = fields.clone();
                        fields.insert("~".into(), json!(PLACE));
                        // The filling takes the place of a field's value, so that other fields can follow it.
                        shapes.push(shape(what, Value::Object(fields), Filling::Parts("0,", field, ",", "")));
                    }
                }
                _ => {}
            }
        }
    }
    shapes
}

/// Entries of an array: their names, the first one, and the others.
fn variants(entry: &Value) -> Vec<(String, String, String)> {
    let whole = entry.to_string();
    let mut variants: Vec<(String, String, String)> =
        ["null", "{}", "[]", "0", "\"@\""].iter().map(|entry| (format!("entries {entry}"), whole.clone(), (*entry).to_owned())).collect();
    let mut pointers = Vec::new();
    walk(entry, "", &mut pointers);
    let mut all = entry.clone();
    for pointer in &pointers {
        let Some(text) = entry.pointer(pointer).and_then(Value::as_str) else { continue };
        // Alone, so that as many as can be fit, and beside the others.
        let mut one = entry.clone();
        *one.pointer_mut(pointer).expect("a value") = json!(format!("{text}@"));
        variants.push((format!("entries that differ in {pointer}"), one.to_string(), one.to_string()));
        if let Some((parent, name)) = pointer.rsplit_once('/').filter(|(parent, _)| parent.is_empty()) {
            let _ = parent;
            variants.push((format!("entries of {name} only"), one.to_string(), json!({name: "@"}).to_string()));
            variants.push((format!("entries of {name} behind a large one"), large(entry).to_string(), json!({name: "@"}).to_string()));
        }
        *all.pointer_mut(pointer).expect("a value") = json!(format!("{text}@"));
    }
    variants.push(("entries that differ in everything".to_owned(), all.to_string(), all.to_string()));
    variants
}

/// An entry with everything that it may hold, so that each copy of it costs.
fn large(entry: &Value) -> Value {
    let mut large = entry.clone();
    for text in large.as_object_mut().into_iter().flat_map(|fields| fields.values_mut()) {
        match text {
            Value::String(text) => *text = format!("{text}@"),
            Value::Array(entries) => {
                let Some(first) = entries.first().cloned() else { continue };
                *entries = (0..TAKEN)
                    .map(|number| serde_json::from_str(&first.to_string().replace("ID", &format!("ID{number}"))).expect("JSON"))
                    .collect();
            }
            _ => {}
        }
    }
    large
}

/// An event, with some of its values replaced.
#[cfg(test)]
pub(super) fn with_values(event: usize, values: &[(proptest::sample::Index, &str)]) -> String {
    let (_, mut event) = events().swap_remove(event);
    let mut pointers = Vec::new();
    walk(&event, "", &mut pointers);
    for (number, (at, _)) in values.iter().enumerate() {
        // One that stood within another may be gone.
        if let Some(value) = event.pointer_mut(&pointers[1 + at.index(pointers.len() - 1)]) {
            *value = json!(format!("{PLACE}{number}"));
        }
    }
    let event = event.to_string();
    values.iter().enumerate().fold(event, |event, (number, (_, value))| event.replace(&format!("\"{PLACE}{number}\""), value))
}

fn walk(value: &Value, pointer: &str, into: &mut Vec<String>) {
    into.push(pointer.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| walk(value, &format!("{pointer}/{name}"), into)),
        // One entry stands for all.
        Value::Array(entries) => entries.iter().take(1).for_each(|value| walk(value, &format!("{pointer}/0"), into)),
        _ => {}
    }
}

/// The events, with every field that is read and one that is not.
fn events() -> Vec<(&'static str, Value)> {
    let document = json!({"id": "ID", "filename": "F", "mimeType": "M", "size": 1000});
    let action = json!({"event": "action_log.completed", "workspaceId": "W", "occurredAt": "2025-10-30T20:07:17Z", "actionLog": {
        "id": "A", "type": "MESSAGE", "status": "COMPLETED", "leadId": "L", "summary": "S", "error": "E", "agentId": "G",
        "parentActionId": "P", "tool": {"name": "T"}, "completedAt": "2025-10-30T20:07:17Z",
        "input": {"channel": "EMAIL", "direction": "INBOUND", "documents": [document]}, "output": {"documents": [document]},
        "messages": [{"id": "ID", "channel": "C", "direction": "D", "body": "B", "documents": [document]}]}});
    let received = json!({"event": "document.received", "workspaceId": "W", "occurredAt": "", "document": {"id": "ID", "leadId": "L",
        "filename": "F", "mimeType": "M", "size": 5, "createdAt": "2025-10-31T08:00:00Z", "messageId": "M", "metadata": {"n": "n"}}});
    let extracted = json!({"event": "document.extracted", "workspaceId": "W", "leadId": "L", "externalLeadId": "X", "documentId": "ID",
        "externalId": "E", "status": "completed", "summary": "S", "type": "T", "extractionResult": {"r": "r"}});
    let lead = json!({"event": "lead.updated", "workspaceId": "W", "data": {"leadId": "L", "externalId": "X", "firstName": "F", "email": "E",
        "phoneNumber": "P", "checklistItems": [{"checklistItemId": "ID", "checklistItemCode": "C", "value": {"v": "v"}, "status": "TODO",
        "updatedAt": "2025-11-01T10:00:00Z", "alternateValues": ["x"],
        "documents": [{"documentId": "ID", "externalId": "E", "filename": "F", "mimeType": "M", "size": 7, "validationResult": {}}]}]}});
    let unknown = json!({"event": "action_log.reopened", "x": [{"y": "z"}]});
    vec![("action", action), ("received", received), ("extracted", extracted), ("lead", lead), ("unknown", unknown)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{self, Body};
    use crate::fold::{self, Folded, Receipt};
    use crate::time::Timestamp;

    #[test]
    fn the_events_are_taken_as_they_are() {
        for (name, event) in events() {
            let body = event.to_string();
            let receipt = Receipt { at: Timestamp::now(), workspace_id: None };
            let mut unread = fold::Unread::default();
            let body = Body::new(body.as_bytes());
            let folded = fold::fold_and_note(&event::parse(&body).expect(name), receipt, &mut unread).expect(name);
            assert_eq!(matches!(folded, Folded::UnknownEvent(_)), name == "unknown");
            assert_eq!(unread.fields().count(), 0, "{name}");
        }
    }

    #[test]
    fn shapes_fill_the_body() {
        let shapes = shapes();
        for shape in &shapes {
            let (size, body) = (128 << 10, shape.body(128 << 10));
            assert!(body.len() <= size && body.len() > size * 9 / 10, "{}: {}", shape.name, body.len());
        }
        assert!(shapes.len() > 500, "{}", shapes.len());
    }
}
