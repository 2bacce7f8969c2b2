//! Messages as protobuf's own JSON, one line each.

use anyhow::Context as _;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

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
        Ok(serde_json::to_string(&dynamic)?)
    }
}
