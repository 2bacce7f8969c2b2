//! One state of a watched lead, and the bytes that were made of it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::lead::{Activity, ChecklistItem, Document, Lead, ProfileKey};
use crate::store::Read;

/// Changes that are kept for watchers that are a little behind.
const RECENT: usize = 256;

/// One thing that happened to a lead.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The version that came with it.
    pub version: u64,
    /// What it was.
    pub what: What,
}

/// The kinds of change.
#[derive(Clone, Debug)]
pub enum What {
    /// A new activity, or one that took another's place.
    Activity(Activity),
    /// A new document, or one of which more is known.
    Document(Document),
    /// A field of the profile.
    Profile(ProfileKey),
    /// The application was completed.
    Completion,
    /// A checklist item.
    ChecklistItem(ChecklistItem),
}

/// Why a state does not continue the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// The store is behind what was told.
    StoreLostWrites,
    /// The lead was deleted.
    Deleted,
}

/// Which message of a state is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// A whole lead; the number says why, in the API's terms.
    Snapshot(i32),
    /// The lead, and what changed since this version.
    Update(u64),
}

/// One state of a lead.
#[derive(Debug)]
pub struct State {
    /// The lead; version 0 if it does not exist.
    pub lead: Lead,
    /// Counts the breaks in this lead's versions since it is watched.
    pub generation: u32,
    /// Why the last break was.
    pub reset: Option<ResetReason>,
    /// What happened lately, oldest first.
    recent: Vec<Arc<Changed>>,
    /// `recent` holds all that happened after this version.
    complete_after: u64,
    /// Messages made of this state. Watchers that are in step share one.
    encoded: Mutex<Vec<(MessageKind, Bytes)>>,
}

impl State {
    /// The first state that is known: `complete_after` is the version since which `read` tells the changes.
    pub(super) fn first(lead_id: &str, read: Option<Read>, since: Option<u64>) -> Self {
        let Some(read) = read else { return Self::absent(lead_id, 0, None) };
        let complete_after = since.filter(|_| read.complete).unwrap_or(read.lead.version);
        let recent = changes(&read, since.unwrap_or(read.lead.version)).map(Arc::new).collect();
        Self { recent, complete_after, ..Self::of(read.lead) }
    }

    fn of(lead: Lead) -> Self {
        Self { lead, generation: 0, reset: None, recent: Vec::new(), complete_after: 0, encoded: Mutex::default() }
    }

    /// How a lead looks of which nobody has heard.
    pub fn never_heard_of(lead_id: &str) -> Self {
        Self::absent(lead_id, 0, None)
    }

    /// How a lead looks that was there and is not, to a watcher of any generation.
    pub fn gone(lead_id: &str) -> Self {
        Self::absent(lead_id, u32::MAX, Some(ResetReason::Deleted))
    }

    fn absent(lead_id: &str, generation: u32, reset: Option<ResetReason>) -> Self {
        let lead = Lead { lead_id: lead_id.to_owned(), ..Lead::default() };
        Self { generation, reset, ..Self::of(lead) }
    }

    /// The state after this one; `None` if nothing changed.
    pub(super) fn next(&self, read: Option<Read>, deleted: bool) -> Option<Self> {
        let Some(read) = read else {
            let reset = if deleted { ResetReason::Deleted } else { ResetReason::StoreLostWrites };
            return (self.lead.version > 0).then(|| Self::absent(&self.lead.lead_id, self.generation + 1, Some(reset)));
        };
        match read.lead.version.cmp(&self.lead.version) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => {
                let version = read.lead.version;
                let state = Self::of(read.lead);
                Some(Self { generation: self.generation + 1, reset: Some(ResetReason::StoreLostWrites), complete_after: version, ..state })
            }
            std::cmp::Ordering::Greater => {
                let mut recent = self.recent.clone();
                let mut complete_after = self.complete_after;
                if !read.complete {
                    recent.clear();
                    complete_after = read.lead.version;
                }
                recent.extend(changes(&read, self.lead.version).map(Arc::new));
                if recent.len() > RECENT {
                    let mut dropped = recent.drain(..recent.len() - RECENT);
                    complete_after = dropped.next_back().map_or(complete_after, |last| last.version.max(complete_after));
                }
                Some(Self { generation: self.generation, reset: self.reset, recent, complete_after, ..Self::of(read.lead) })
            }
        }
    }

    /// What happened after `version`, oldest first, and whether that is all.
    pub fn changes_after(&self, version: u64) -> (impl Iterator<Item = &Changed>, bool) {
        let changes = self.recent.iter().map(Arc::as_ref).filter(move |changed| changed.version > version);
        (changes, version >= self.complete_after)
    }

    /// The message of a kind, encoded by the first that asks for it.
    pub fn encoded(&self, kind: MessageKind, encode: impl FnOnce() -> Bytes) -> Bytes {
        // The lock is held while encoding: 10,000 watchers would else do it at the same time.
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = encoded.iter().find(|(known, _)| *known == kind) {
            return bytes.clone();
        }
        let bytes = encode();
        // Watchers are in step, or few: more kinds than these are not worth a place.
        if encoded.len() < 8 {
            encoded.push((kind, bytes.clone()));
        }
        bytes
    }
}

/// All that has a version above `since`, oldest first.
pub(super) fn changes(read: &Read, since: u64) -> impl Iterator<Item = Changed> {
    let lead = &read.lead;
    let mut changes: Vec<Changed> = Vec::new();
    let mut add = |version: u64, what: &dyn Fn() -> What| {
        if version > since {
            changes.push(Changed { version, what: what() });
        }
    };
    for activity in &read.missed {
        add(activity.version, &|| What::Activity(activity.clone()));
    }
    for document in &lead.documents {
        add(document.version, &|| What::Document(document.clone()));
    }
    for (key, field) in &lead.profile {
        add(field.version, &|| What::Profile(*key));
    }
    for item in lead.checklist.values() {
        add(item.version, &|| What::ChecklistItem(item.clone()));
    }
    if let Some(completion) = &lead.completion {
        add(completion.version, &|| What::Completion);
    }
    changes.sort_by_key(|changed| changed.version);
    changes.into_iter()
}

impl State {
    /// This lead as a resuming watcher gets it: with what it missed after `since`, read for it alone.
    pub fn resumed(read: Read, since: u64) -> Self {
        let lead_id = read.lead.lead_id.clone();
        Self::first(&lead_id, Some(read), Some(since))
    }
}
