//! Histories: all seven events, several leads, and everything that goes wrong on the way.

use leadfold::time::Timestamp;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use serde_json::{Map, Value, json};

const LEADS: usize = 3;
/// When the first delivery arrives.
const START: i64 = 1_790_000_000_000_000;

/// One delivery of an event.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub event: Value,
    pub received: Timestamp,
    pub workspace_id: String,
}

/// What happened, as the sender's platform would tell it.
#[derive(Clone, Debug)]
pub struct History {
    pub workspace_id: String,
    lead_ids: Vec<String>,
    happenings: Vec<Happening>,
    order: u64,
}

#[derive(Clone, Debug)]
struct Happening {
    lead: usize,
    kind: Kind,
    /// How often it is delivered.
    deliveries: usize,
}

#[derive(Clone, Debug)]
enum Kind {
    Action {
        id: u8,
        failed: bool,
        time: Time,
        content: Content,
    },
    Received {
        document: u8,
        time: Time,
        fields: u8,
    },
    Extracted {
        document: u8,
        failed: bool,
        external: bool,
    },
    Created,
    /// Sets one profile field; a history sets each field of a lead to one value only, for patches have no order.
    Updated {
        field: u8,
        clear: bool,
    },
    Checklist {
        item: u8,
        time: Time,
        status: u8,
        document: Option<u8>,
    },
    Completed,
}

#[derive(Clone, Debug)]
struct Content {
    kind: u8,
    summary: u8,
    messages: Vec<Message>,
    payload_documents: Vec<(u8, u8)>,
}

#[derive(Clone, Debug)]
struct Message {
    id: Option<u8>,
    channel: Option<u8>,
    inbound: Option<bool>,
    documents: Vec<(u8, u8)>,
}

#[derive(Clone, Copy, Debug)]
enum Time {
    Missing,
    /// One of a few, so that equal ones are common.
    At(u8),
    Unbelievable(bool),
}

fn times() -> impl Strategy<Value = Time> {
    prop_oneof![2 => Just(Time::Missing), 7 => (0u8..6).prop_map(Time::At), 1 => any::<bool>().prop_map(Time::Unbelievable)]
}

fn contents() -> impl Strategy<Value = Content> {
    let documents = || prop::collection::vec((0u8..5, any::<u8>()), 0..3);
    let message = (prop::option::of(0u8..3), prop::option::of(0u8..4), prop::option::of(any::<bool>()), documents())
        .prop_map(|(id, channel, inbound, documents)| Message { id, channel, inbound, documents });
    (0u8..4, 0u8..3, prop::collection::vec(message, 0..3), documents()).prop_map(|(kind, summary, messages, payload_documents)| Content {
        kind,
        summary,
        messages,
        payload_documents,
    })
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        8 => (0u8..8, any::<bool>(), times(), contents()).prop_map(|(id, failed, time, content)| Kind::Action { id, failed, time, content }),
        2 => (0u8..5, times(), any::<u8>()).prop_map(|(document, time, fields)| Kind::Received { document, time, fields }),
        2 => (0u8..5, any::<bool>(), any::<bool>()).prop_map(|(document, failed, external)| Kind::Extracted { document, failed, external }),
        1 => Just(Kind::Created),
        1 => (0u8..3, any::<bool>()).prop_map(|(field, clear)| Kind::Updated { field, clear }),
        2 => (0u8..3, times(), 0u8..5, prop::option::of(0u8..5)).prop_map(|(item, time, status, document)| Kind::Checklist { item, time, status, document }),
        1 => Just(Kind::Completed),
    ]
}

pub fn histories() -> impl Strategy<Value = History> {
    let happening = (0..LEADS, kinds(), prop_oneof![3 => Just(1usize), 1 => 2usize..4]).prop_map(|(lead, kind, deliveries)| Happening {
        lead,
        kind,
        deliveries,
    });
    (prop::collection::vec(happening, 1..24), any::<u64>()).prop_map(|(mut happenings, order)| {
        let mut patched: Vec<(usize, u8)> = Vec::new();
        happenings.retain(|happening| match happening.kind {
            Kind::Updated { field, .. } => {
                let first = !patched.contains(&(happening.lead, field));
                patched.push((happening.lead, field));
                first
            }
            _ => true,
        });
        History { workspace_id: String::new(), lead_ids: Vec::new(), happenings, order }
    })
}

impl History {
    /// Gives the history leads of its own in a store that others use too. Some ids are UUIDs, some are not.
    pub fn make_unique(&mut self, case: usize) {
        self.workspace_id = format!("workspace {case}");
        self.lead_ids =
            (0..LEADS).map(|lead| if lead == 0 { uuid("0bad", case, lead) } else { format!("{{lead}}:{case} {lead}\n*") }).collect();
    }

    pub fn lead_ids(&self) -> &[String] {
        &self.lead_ids
    }

    /// Every delivery, in the order of receipt.
    pub fn deliveries(&self) -> Vec<Delivery> {
        let each = self.happenings.iter().flat_map(|happening| std::iter::repeat_n(happening, happening.deliveries));
        let delivery = |(index, happening): (usize, &Happening)| Delivery {
            event: self.event(happening),
            received: Timestamp::from_micros(START + index as i64 * 1_000_003),
            workspace_id: self.workspace_id.clone(),
        };
        each.enumerate().map(delivery).collect()
    }

    /// Every delivery in another order, the same one each time.
    pub fn shuffled(&self) -> Vec<Delivery> {
        let mut deliveries = self.deliveries();
        deliveries.shuffle(&mut rand::rngs::StdRng::seed_from_u64(self.order));
        deliveries
    }

    fn event(&self, happening: &Happening) -> Value {
        let lead_id = &self.lead_ids[happening.lead];
        let uuids = happening.lead == 0;
        match &happening.kind {
            Kind::Action { id, failed, time, content } => {
                let action_id = if uuids { uuid("ac70", *id as usize, 0) } else { format!("action {id}") };
                action(lead_id, &self.workspace_id, &action_id, *failed, *time, content)
            }
            Kind::Received { document, time, fields } => {
                let mut received = document_fields(*document, *fields);
                received.insert("leadId".into(), json!(lead_id));
                received.insert("signedUrl".into(), json!("https://files.example/secret"));
                insert_time(&mut received, "createdAt", *time);
                json!({"event": "document.received", "workspaceId": self.workspace_id, "document": received})
            }
            Kind::Extracted { document, failed, external } => json!({
                "event": "document.extracted", "workspaceId": self.workspace_id, "leadId": lead_id, "documentId": document_id(*document),
                "status": if *failed { "failed" } else { "completed" }, "summary": "Three months of statements.", "type": "Bank Statement",
                "externalId": external.then_some("external document"), "externalLeadId": external.then_some("external lead"),
            }),
            Kind::Created => json!({"event": "lead.created", "data": profile(lead_id)}),
            Kind::Updated { field, clear } => {
                let name = ["firstName", "email", "website"][*field as usize];
                json!({"event": "lead.updated", "data": {"leadId": lead_id, name: (!clear).then_some("changed")}})
            }
            Kind::Checklist { item, time, status, document } => {
                let mut update = Map::new();
                update.insert("checklistItemId".into(), json!(format!("item {item}")));
                update.insert("checklistItemCode".into(), json!("BANK_STATEMENTS"));
                update.insert("status".into(), json!(["TODO", "COMPLETED", "INVALID", "SKIPPED", "NEEDS_REVIEW"][*status as usize]));
                update.insert("value".into(), json!({"street": "Main", "number": status}));
                insert_time(&mut update, "updatedAt", *time);
                if let Some(document) = document {
                    update.insert(
                        "documents".into(),
                        json!([{"documentId": document_id(*document), "filename": "from the checklist.pdf", "size": 12}]),
                    );
                }
                json!({"event": "lead.updated", "data": {"leadId": lead_id, "checklistItems": [update]}})
            }
            Kind::Completed => json!({"event": "lead.completed", "data": profile(lead_id)}),
        }
    }
}

fn uuid(kind: &str, number: usize, variant: usize) -> String {
    format!("00000000-{kind}-4000-8000-{variant:04x}{number:08x}")
}

fn document_id(document: u8) -> String {
    if document == 0 { "text document".into() } else { uuid("d0c5", document as usize, 0) }
}

fn profile(lead_id: &str) -> Value {
    json!({"leadId": lead_id, "firstName": "Ada", "lastName": "Lovelace", "email": "ada@example.com", "website": null, "externalId": "external lead"})
}

fn insert_time(into: &mut Map<String, Value>, field: &str, time: Time) {
    let text = match time {
        Time::Missing => return,
        Time::At(at) => Timestamp::from_micros(START - 3_600_000_000 + i64::from(at) * 60_000_000).to_rfc3339(),
        Time::Unbelievable(far) => if far { "9999-12-31T23:59:59Z" } else { "0001-01-01T00:00:00Z" }.to_owned(),
    };
    into.insert(field.into(), json!(text));
}

/// A document with some of its fields.
fn document_fields(document: u8, fields: u8) -> Map<String, Value> {
    let mut told = Map::new();
    told.insert("id".into(), json!(document_id(document)));
    let options = [
        ("filename", json!(format!("name {}.pdf", fields % 5))),
        ("mimeType", json!(if fields.is_multiple_of(2) { "application/pdf" } else { "application/x-other" })),
        ("size", json!(f64::from(fields))),
    ];
    for (bit, (name, value)) in options.into_iter().enumerate() {
        if fields & (1 << bit) != 0 {
            told.insert(name.into(), value);
        }
    }
    told
}

fn action(lead_id: &str, workspace_id: &str, action_id: &str, failed: bool, time: Time, content: &Content) -> Value {
    const CHANNELS: [&str; 4] = ["EMAIL", "SMS", "WHATSAPP", "PIGEON|%"];
    let documents = |documents: &[(u8, u8)]| -> Vec<Value> {
        documents.iter().map(|(document, fields)| document_fields(*document, *fields).into()).collect()
    };
    let message = |message: &Message| {
        json!({
            "id": message.id.map(|id| format!("message {id}")), "channel": message.channel.map(|channel| CHANNELS[channel as usize]),
            "direction": message.inbound.map(|inbound| if inbound { "INBOUND" } else { "OUTBOUND" }), "body": "never stored", "documents": documents(&message.documents),
        })
    };
    let mut log = Map::new();
    log.insert("id".into(), json!(action_id));
    log.insert("leadId".into(), json!(lead_id));
    log.insert("type".into(), json!(["MESSAGE", "TOOL_CALL", "PORTAL_UPDATE", "A NEW ONE"][content.kind as usize]));
    log.insert("status".into(), json!(if failed { "FAILED" } else { "COMPLETED" }));
    log.insert("summary".into(), json!(["", "short", &"long ".repeat(100)][content.summary as usize]));
    log.insert(
        "input".into(),
        json!({"channel": (content.kind == 0).then_some("EMAIL"), "documents": documents(&content.payload_documents)}),
    );
    log.insert("messages".into(), content.messages.iter().map(message).collect());
    insert_time(&mut log, "completedAt", time);
    json!({"event": if failed { "action_log.failed" } else { "action_log.completed" }, "workspaceId": workspace_id, "actionLog": log})
}
