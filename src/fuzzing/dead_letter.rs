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
