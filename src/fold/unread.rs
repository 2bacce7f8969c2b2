//! The optional fields of an event that could not be read: they count as absent, and are counted.

/// Declares the fields, and the name of each in metrics.
macro_rules! fields {
    ($($field:ident = $name:literal,)*) => {
        /// An optional field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field {
            $($field,)*
        }

        /// The names of the fields: few enough to be labels of a metric.
        pub const FIELDS: &[&str] = &[$($name,)*];
    };
}

fields! {
    OccurredAt = "occurredAt",
    CompletedAt = "actionLog.completedAt",
    ActionSummary = "actionLog.summary",
    ActionError = "actionLog.error",
    AgentId = "actionLog.agentId",
    ParentActionId = "actionLog.parentActionId",
    Tool = "actionLog.tool",
    Input = "actionLog.input",
    Output = "actionLog.output",
    MessageId = "actionLog.messages[].id",
    Channel = "actionLog.messages[].channel",
    Direction = "actionLog.messages[].direction",
    MessageDocumentId = "actionLog.messages[].documents[].id",
    MessageDocumentFilename = "actionLog.messages[].documents[].filename",
    MessageDocumentMimeType = "actionLog.messages[].documents[].mimeType",
    MessageDocumentSize = "actionLog.messages[].documents[].size",
    ReceivedFilename = "document.filename",
    ReceivedMimeType = "document.mimeType",
    ReceivedSize = "document.size",
    ReceivedCreatedAt = "document.createdAt",
    ReceivedMessageId = "document.messageId",
    ExtractedExternalId = "externalId",
    ExtractedExternalLeadId = "externalLeadId",
    ExtractedSummary = "summary",
    ExtractedType = "type",
    LeadExternalId = "data.externalId",
    FirstName = "data.firstName",
    MiddleName = "data.middleName",
    LastName = "data.lastName",
    PhoneNumber = "data.phoneNumber",
    Email = "data.email",
    BusinessName = "data.businessName",
    Website = "data.website",
    LeadSource = "data.source",
    ItemId = "data.checklistItems[].checklistItemId",
    ItemCode = "data.checklistItems[].checklistItemCode",
    ItemStatus = "data.checklistItems[].status",
    ItemValue = "data.checklistItems[].value",
    ItemUpdatedAt = "data.checklistItems[].updatedAt",
    ItemDocumentId = "data.checklistItems[].documents[].documentId",
    ItemDocumentExternalId = "data.checklistItems[].documents[].externalId",
    ItemDocumentFilename = "data.checklistItems[].documents[].filename",
    ItemDocumentMimeType = "data.checklistItems[].documents[].mimeType",
    ItemDocumentSize = "data.checklistItems[].documents[].size",
}

/// Optional fields that could not be read, each once: one event may hold one of them a hundred thousand times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread(u64);

const _: () = assert!(FIELDS.len() <= u64::BITS as usize);

impl Unread {
    pub(super) fn note(&mut self, field: Field) {
        self.0 |= 1 << field as u32;
    }

    /// Their names.
    pub fn fields(self) -> impl Iterator<Item = &'static str> {
        FIELDS.iter().enumerate().filter(move |(at, _)| self.0 >> at & 1 == 1).map(|(_, name)| *name)
    }
}
