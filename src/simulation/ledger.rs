//! What a server must know in the end.

use std::collections::BTreeMap;

use serde::Serialize;

/// What one event adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Leads that were never heard of.
    pub leads: u64,
    /// Documents that were never heard of.
    pub documents: u64,
    /// An action that stands from now on: its type and status.
    pub action: Option<(&'static str, &'static str)>,
    /// The action that it stands in place of: the same, before it was tried again.
    pub in_place_of: Option<(&'static str, &'static str)>,
    /// Messages, by channel and direction.
    pub messages: Vec<(&'static str, &'static str)>,
}

/// The sum of it. The same events in any order make the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Leads that were heard of.
    pub leads: u64,
    /// Their documents.
    pub documents: u64,
    /// Their messages.
    pub messages: u64,
    /// Their actions, by `TYPE STATUS`.
    pub activities: BTreeMap<String, i64>,
    /// Their messages, by `CHANNEL DIRECTION`.
    pub messages_by: BTreeMap<String, u64>,
}

impl Ledger {
    /// Adds what an event adds.
    pub fn add(&mut self, facts: &Facts) {
        self.leads += facts.leads;
        self.documents += facts.documents;
        for (action, by) in [(facts.action, 1), (facts.in_place_of, -1)] {
            if let Some((kind, status)) = action {
                let count = self.activities.entry(format!("{kind} {status}")).or_default();
                *count += by;
            }
        }
        self.activities.retain(|_, count| *count != 0);
        for (channel, direction) in &facts.messages {
            self.messages += 1;
            *self.messages_by.entry(format!("{channel} {direction}")).or_default() += 1;
        }
    }
}
