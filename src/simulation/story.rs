//! One lead's way: it comes in, talks, sends documents, is looked into, completes, and goes on talking.

use std::collections::VecDeque;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::json::{self as told, Action, Sent};
use super::words::{self, CHECKLIST, DOCUMENTS, Person, TOOLS, one};
use super::{Facts, SimulatedEvent};

/// Something that is still to happen.
#[derive(Clone, Debug)]
enum Step {
    Created,
    Greeted,
    Documents(usize),
    Received(Sent),
    Extracted(Sent),
    Uploaded,
    Tool,
    ToolAgain(Action),
    Checklist(usize),
    Portal,
    Submission,
    Completed,
    Note,
}

#[derive(Debug)]
pub(super) struct Story {
    lead_id: String,
    workspace_id: String,
    person: Person,
    channel: &'static str,
    steps: VecDeque<Step>,
    is_known: bool,
}

impl Story {
    pub(super) fn new(random: &mut StdRng, workspace_id: &str) -> Self {
        let mut steps =
            VecDeque::from([Step::Created, Step::Greeted, Step::Documents(random.random_range(1..=3)), Step::Tool, Step::Checklist(3)]);
        for step in [Step::Documents(1), Step::Portal, Step::Tool, Step::Uploaded, Step::Note] {
            if random.random_bool(0.7) {
                steps.push_back(step);
            }
        }
        steps.extend([Step::Checklist(CHECKLIST.len()), Step::Submission, Step::Completed]);
        Self {
            lead_id: words::id(random),
            workspace_id: workspace_id.to_owned(),
            person: words::person(random),
            channel: one(random, &["EMAIL", "EMAIL", "SMS", "SMS", "WHATSAPP"]),
            steps,
            is_known: false,
        }
    }

    pub(super) fn lead_id(&self) -> &str {
        &self.lead_id
    }

    pub(super) fn workspace_id(&self) -> &str {
        &self.workspace_id
    }

    pub(super) fn next(&mut self, random: &mut StdRng, now: DateTime<Utc>) -> SimulatedEvent {
        let at = now - TimeDelta::milliseconds(random.random_range(0..1500));
        // Between the steps people talk.
        let step = if self.is_known && random.random_bool(0.35) { None } else { self.steps.pop_front() };
        let (body, mut facts) = match step {
            None => self.talk(random, at),
            Some(step) => self.step(step, random, at),
        };
        facts.leads = u64::from(!std::mem::replace(&mut self.is_known, true));
        let name = crate::event::KNOWN_EVENTS.into_iter().find(|name| body["event"] == **name).unwrap_or("unknown");
        SimulatedEvent {
            name,
            lead_id: self.lead_id.clone(),
            workspace_id: self.workspace_id.clone(),
            names_workspace: body.get("workspaceId").is_some(),
            body: body.to_string(),
            facts,
            is_repeated: false,
            is_late: false,
        }
    }

    fn step(&mut self, step: Step, random: &mut StdRng, at: DateTime<Utc>) -> (Value, Facts) {
        match step {
            Step::Created => (self.lead("lead.created", Some(one(random, &words::SOURCES)), &[]), Facts::default()),
            Step::Greeted => {
                let summary = format!("Welcomed {} and asked about the business", self.person.first_name);
                self.message(random, at, "FOLLOW_UP_MESSAGE", "OUTBOUND", summary, &[])
            }
            Step::Documents(count) => {
                let sent = self.documents(random, at, count);
                let summary = format!("{} sent {}", self.person.first_name, listed(&sent));
                let (body, facts) = self.message(random, at, "MESSAGE", "INBOUND", summary, &sent);
                let action_id = body["actionLog"]["id"].as_str().unwrap_or_default().to_owned();
                let message_id = body["actionLog"]["messages"][0]["id"].as_str().map(str::to_owned);
                self.then_processed(random, sent, &action_id, message_id.as_deref());
                (body, facts)
            }
            Step::Received(sent) => (told::document_received(&sent, &self.lead_id, &self.workspace_id, at), Facts::default()),
            Step::Extracted(sent) => {
                (told::document_extracted(&sent, &self.lead_id, &self.workspace_id, random.random_bool(0.88)), Facts::default())
            }
            Step::Uploaded | Step::Submission => {
                let sent = self.documents(random, at, 1);
                let (kind, summary) = match step {
                    Step::Uploaded => ("DOCUMENT_UPLOAD", format!("Uploaded {}", listed(&sent))),
                    _ => ("PORTAL_SUBMISSION", format!("{} submitted the application in the portal", self.person.first_name)),
                };
                let documents: Vec<_> = sent.iter().map(Sent::within_a_message).collect();
                let action = Action { id: words::id(random), kind, summary, input: json!({"documents": documents}), ..Action::default() };
                self.then_processed(random, sent, &action.id.clone(), None);
                let facts = Facts { documents: 1, ..completed(kind) };
                (told::action(&action, &self.lead_id, &self.workspace_id, at), facts)
            }
            Step::Tool => {
                let (id, name, summary, error) = one(random, &TOOLS);
                let mut action = Action {
                    id: words::id(random),
                    kind: "TOOL_CALL",
                    summary: summary.to_owned(),
                    tool: Some((id, name)),
                    ..Action::default()
                };
                let mut facts = completed("TOOL_CALL");
                if random.random_bool(0.3) {
                    self.steps.insert(self.steps.len().min(2), Step::ToolAgain(action.clone()));
                    action.error = Some(error);
                    facts.action = Some(("TOOL_CALL", "FAILED"));
                }
                (told::action(&action, &self.lead_id, &self.workspace_id, at), facts)
            }
            Step::ToolAgain(action) => {
                let facts = Facts { in_place_of: Some(("TOOL_CALL", "FAILED")), ..completed("TOOL_CALL") };
                // Not within the time that the first attempt may have been dated to.
                (told::action(&action, &self.lead_id, &self.workspace_id, at + TimeDelta::milliseconds(1500)), facts)
            }
            Step::Checklist(count) => (self.lead("lead.updated", None, &self.checklist(random, at, count)), Facts::default()),
            Step::Completed => (self.lead("lead.completed", None, &self.checklist(random, at, CHECKLIST.len())), Facts::default()),
            Step::Portal | Step::Note => {
                let (kind, summary) = match step {
                    Step::Portal => ("PORTAL_UPDATE", format!("{} filled in the ownership page", self.person.first_name)),
                    _ => ("SYSTEM_NOTE", "Assigned to the small business team".to_owned()),
                };
                self.plain(random, at, kind, summary)
            }
        }
    }

    fn talk(&mut self, random: &mut StdRng, at: DateTime<Utc>) -> (Value, Facts) {
        let roll = random.random_range(0..20);
        let (kind, direction, said) = match roll {
            0..8 => ("MESSAGE", "INBOUND", one(random, &words::INBOUND)),
            8..15 => ("MESSAGE", "OUTBOUND", one(random, &words::OUTBOUND)),
            _ => ("FOLLOW_UP_MESSAGE", "OUTBOUND", one(random, &words::FOLLOW_UPS)),
        };
        match roll {
            0..18 => self.message(random, at, kind, direction, said.to_owned(), &[]),
            18 => self.plain(random, at, "MANUAL_UPDATE", "An underwriter corrected the annual revenue".to_owned()),
            _ => {
                self.steps.push_back(if random.random_bool(0.5) { Step::Documents(1) } else { Step::Tool });
                self.plain(random, at, "SYSTEM_NOTE", "Looked at the file again".to_owned())
            }
        }
    }

    fn plain(&self, random: &mut StdRng, at: DateTime<Utc>, kind: &'static str, summary: String) -> (Value, Facts) {
        let action = Action { id: words::id(random), kind, summary, ..Action::default() };
        (told::action(&action, &self.lead_id, &self.workspace_id, at), completed(kind))
    }

    fn message(
        &self,
        random: &mut StdRng,
        at: DateTime<Utc>,
        kind: &'static str,
        direction: &'static str,
        summary: String,
        sent: &[Sent],
    ) -> (Value, Facts) {
        // Most people stay with one channel.
        let channel = if random.random_bool(0.85) { self.channel } else { one(random, &["EMAIL", "SMS", "WHATSAPP"]) };
        let message = told::message(&words::id(random), channel, direction, &summary, sent);
        let input = json!({"channel": channel, "direction": direction});
        let action = Action { id: words::id(random), kind, summary, input, messages: vec![message], ..Action::default() };
        let facts = Facts { documents: sent.len() as u64, messages: vec![(channel, direction)], ..completed(kind) };
        (told::action(&action, &self.lead_id, &self.workspace_id, at), facts)
    }

    fn documents(&self, random: &mut StdRng, at: DateTime<Utc>, count: usize) -> Vec<Sent> {
        let sent = |_| {
            let (kind, pattern, mime_type, size) = one(random, &DOCUMENTS);
            let filename = words::filename(random, pattern, &self.person.business, at.year());
            let size = size * random.random_range(40..160) / 100;
            Sent { id: words::id(random), kind, filename, mime_type, size, action_id: String::new(), message_id: None }
        };
        (0..count).map(sent).collect()
    }

    /// Each document is reported and read; the reader is sometimes the quicker one.
    fn then_processed(&mut self, random: &mut StdRng, sent: Vec<Sent>, action_id: &str, message_id: Option<&str>) {
        for document in sent {
            let document = Sent { action_id: action_id.to_owned(), message_id: message_id.map(str::to_owned), ..document };
            let mut steps = [Step::Received(document.clone()), Step::Extracted(document)];
            if random.random_bool(0.25) {
                steps.reverse();
            }
            for step in steps.into_iter().rev() {
                self.steps.push_front(step);
            }
        }
    }

    fn lead(&self, event: &'static str, source: Option<&str>, items: &[Value]) -> Value {
        let mut data = json!({"leadId": self.lead_id});
        if let Some(source) = source {
            let Person { first_name, last_name, email, phone, business } = &self.person;
            data = json!({
                "leadId": self.lead_id, "externalId": null, "firstName": first_name, "middleName": null, "lastName": last_name,
                "phoneNumber": phone, "email": email, "businessName": business, "website": null, "source": source,
            });
        }
        if !items.is_empty() {
            data["checklistItems"] = json!(items);
        }
        json!({"event": event, "data": data})
    }

    fn checklist(&self, random: &mut StdRng, at: DateTime<Utc>, count: usize) -> Vec<Value> {
        let item = |(at_index, (code, kind)): (usize, &(&str, &str))| {
            let value = match *kind {
                "number" => json!(random.random_range(2..400) * 1000),
                "address" => json!({"street": format!("{} Main St", random.random_range(1..900)), "city": "Springfield", "state": "IL"}),
                "text" => json!(self.person.business),
                _ => Value::Null,
            };
            let status = if random.random_bool(0.85) { "COMPLETED" } else { "NEEDS_REVIEW" };
            json!({
                "checklistItemId": format!("item-{at_index}"), "checklistItemCode": code, "value": value, "alternateValues": [],
                "status": status, "updatedAt": told::time(at),
            })
        };
        CHECKLIST.iter().take(count).enumerate().map(item).collect()
    }
}

fn completed(kind: &'static str) -> Facts {
    Facts { action: Some((kind, "COMPLETED")), ..Facts::default() }
}

fn listed(sent: &[Sent]) -> String {
    match sent {
        [one] => one.filename.clone(),
        [first, rest @ ..] => format!("{} and {} more", first.filename, rest.len()),
        [] => "nothing".to_owned(),
    }
}
