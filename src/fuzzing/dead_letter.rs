//! Dead letters: what is kept of an event means what the event meant, and holds nothing that is never stored.

use serde_json::Value;

use crate::dead_letters::redact;
use crate::event;
use crate::fold::{self, Folded, Receipt};
use crate::time::Timestamp;

const RECEIPT: Receipt<'static> = Receipt { at: Timestamp::from_millis(1_790_000_000_000), workspace_id: Some("w") };
/// Under these names stands what is never stored.
const NEVER: [&str; 6] = ["body", "subject", "signedUrl", "metadata", "extractionResult", "classification"];

/// Takes an event.
pub fn dead_letter(data: &[u8]) {
    let meant = folded(data);
    let Some(letter) = redact::event(data) else {
        assert!(meant.is_err_and(|refusal| refusal.field.is_none()), "nothing is kept of what can be read");
        return;
    };
    match serde_json::from_str(&letter.json) {
        Ok(value) => holds_nothing_private(&value),
        // Numbers of any size are kept, and `Value` does not hold all of them.
        Err(error) => assert!(error.to_string().contains("number out of range"), "{error}: {}", letter.json),
    }
    let again = redact::event(letter.json.as_bytes()).expect("an object");
    assert_eq!((again.json, again.lead_id), (letter.json.clone(), letter.lead_id), "less is kept of what was kept");
    let told = match folded(letter.json.as_bytes()) {
        // Of a long name less is kept.
        Ok(Folded::UnknownEvent(_)) if matches!(meant, Ok(Folded::UnknownEvent(_))) => return,
        told => told,
    };
    assert_eq!(told, meant, "it means something else now: {}", letter.json);
}

fn folded(body: &[u8]) -> Result<Folded, event::Refusal> {
    fold::fold(&event::parse(&event::Body::new(body))?, RECEIPT)
}

fn holds_nothing_private(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                // The value of a checklist item is stored, whatever it is.
                if name != "value" {
                    assert!(!NEVER.contains(&&**name) || !holds_text(value), "{name} is kept: {value}");
                    holds_nothing_private(value);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(holds_nothing_private),
        _ => {}
    }
}

/// Whether there may be a text in it: ids, times and words in capitals are none.
fn holds_text(value: &Value) -> bool {
    match value {
        Value::String(text) => text.bytes().any(|byte| byte.is_ascii_lowercase() && !byte.is_ascii_hexdigit() || !byte.is_ascii()),
        Value::Array(items) => items.iter().any(holds_text),
        // An object's fields are judged by their own names.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hostile;
    use super::*;

    /// Each body that is made to be odd can be kept, means the same again, and holds nothing private.
    #[test]
    fn letters_of_hostile_bodies_mean_the_same() {
        for shape in hostile::shapes() {
            for size in [1 << 10, 10 << 10] {
                let body = shape.body(size);
                let held = std::panic::catch_unwind(|| dead_letter(&body));
                assert!(held.is_ok(), "{} of {size} bytes", shape.name);
            }
        }
    }

    /// What may stand in the place of any value.
    const ODD: [&str; 40] = [
        "null",
        "true",
        "0",
        "-0",
        "7",
        "-7",
        "1.50",
        "1e3",
        "1e400",
        "-1e-400",
        "12345678901234567890123",
        "1761854837",
        "NaN",
        "-Infinity",
        "\"\"",
        "\"7\"",
        "\"text\"",
        "\"\\ud83d\"",
        "\"\\ud83d\\ude00\"",
        "\"\\x\"",
        "\"a\tb\"",
        "\"\u{fffd}\"",
        "\"completed\"",
        "\"2025-10-30T20:07Z\"",
        "\"2025-10-30T20:07:17Z[private]\"",
        "\"1761854837\"",
        "\"1e3\"",
        "\"yesterday\"",
        "\"4cc8af99-b313-4c1f-b98b-009f38a4721a\"",
        "[]",
        "{}",
        "[null]",
        "[7]",
        "[1e400]",
        "[\"text\"]",
        "[[{}]]",
        "{\"id\":7}",
        "{\"documents\":[{\"id\":\"d\",\"size\":\"1e3\"}],\"channel\":7}",
        "[{\"id\":\"m\",\"channel\":\"sms\"},{\"id\":\"m\"}]",
        "7,\"id\":\"again\",\"size\":1,\"status\":\"x\",\"summary\":\"y\"",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Events of which some values are odd: taken, or refused for a field, and so is what is kept of them.
        #[test]
        fn letters_of_odd_events_mean_the_same(event in 0..5_usize, odd in prop::collection::vec((any::<prop::sample::Index>(), 0..ODD.len()), 1..4)) {
            let body = hostile::with_values(event, &odd.iter().map(|(at, odd)| (*at, ODD[*odd])).collect::<Vec<_>>());
            dead_letter(body.as_bytes());
            // The fold does not mind the order in which they come, nor that they come twice.
            let plain = hostile::with_values(event, &[]);
            super::super::event(format!("{body}\n{plain}").as_bytes());
        }
    }
}
