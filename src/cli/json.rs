//! Messages as protobuf's own JSON, one line each.

use anyhow::Context as _;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::text::is_unprintable;
use crate::api;

/// Writes messages of the API.
#[derive(Debug)]
pub(super) struct Json {
    descriptors: DescriptorPool,
}

impl Json {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { descriptors: DescriptorPool::decode(api::DESCRIPTORS).context("the API's descriptors")? })
    }

    /// A message of `leadfold.v1`, by its name there.
    pub(super) fn line(&self, name: &str, message: &impl Message) -> anyhow::Result<String> {
        let descriptor = self.descriptors.get_message_by_name(&format!("leadfold.v1.{name}")).with_context(|| name.to_owned())?;
        let dynamic = DynamicMessage::decode(descriptor, &*message.encode_to_vec())?;
        Ok(escaped(&serde_json::to_string(&dynamic)?))
    }
}

/// JSON for a terminal: what would move the cursor, reorder the line or hide in it is written as `\\u….`, which means the same.
pub(super) fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        // Outside of strings JSON has none of these.
        if is_unprintable(character) {
            let mut units = [0; 2];
            escaped.extend(character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_terminals_obey_is_escaped_and_means_the_same() {
        let words = "a\u{9b}31m\u{7f}\u{202e}\u{200b}\u{feff}\u{e0041}\u{1b}é\u{1f600}";
        let json = escaped(&serde_json::json!({ "a": words }).to_string());
        assert!(json.chars().all(|character| !is_unprintable(character)) && json.contains("é\u{1f600}"), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(read["a"], words);
    }
}
