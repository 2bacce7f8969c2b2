//! The messages of the API for the page's decoder, made from the descriptors: so the two cannot disagree.
//!
//! ```json
//! {"Lead": {"1": {"name": "leadId", "kind": "string", "repeated": false, "optional": false}, "8": {"name": "latestActivity", "kind": "Activity", …}}}
//! ```
//!
//! A kind is one of protobuf's own, or the name of a message; times have the kind `time`, durations `duration`.

use anyhow::Context;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind};
use serde_json::{Map, Value, json};

use crate::api;

const PACKAGE: &str = "leadfold.v1";

/// A JavaScript module that exports `schema` and `service`.
pub(super) fn module() -> anyhow::Result<String> {
    let pool = DescriptorPool::decode(api::DESCRIPTORS).context("the API's descriptors")?;
    let messages = pool.all_messages().filter(|message| message.package_name() == PACKAGE);
    let schema: Map<_, _> = messages
        .map(|message| {
            let fields: Map<_, _> = message.fields().map(|field| (field.number().to_string(), describe(&field))).collect();
            (message.name().to_owned(), Value::Object(fields))
        })
        .collect();
    Ok(format!("export const service = {};\nexport const schema = {};\n", json!(crate::grpc::SERVICE_NAME), Value::Object(schema)))
}

fn describe(field: &FieldDescriptor) -> Value {
    let kind = match field.kind() {
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Timestamp" => "time".to_owned(),
            "google.protobuf.Duration" => "duration".to_owned(),
            _ => message.name().to_owned(),
        },
        Kind::Enum(_) => "enum".to_owned(),
        scalar => format!("{scalar:?}").to_ascii_lowercase(),
    };
    json!({
        "name": field.json_name(),
        "kind": kind,
        "repeated": field.is_list(),
        // Absent unless it was sent: messages, `optional` fields, and those of a oneof.
        "optional": field.supports_presence(),
    })
}
