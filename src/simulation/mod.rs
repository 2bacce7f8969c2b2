//! Histories that never happened, told the way the platform tells them: leads that write, send documents, are looked
//! into and complete their applications, by all seven events, some late and some twice.
//!
//! [`World::next`] makes one event after another. Each says what it adds to what a server must know once it has them
//! all: the sum is a [`Ledger`], which owes nothing to the code that it is held against.

mod json;
mod ledger;
mod story;
mod words;

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use ledger::{Facts, Ledger};
use story::Story;

/// One event in so many is sent again later.
const DUPLICATES: f64 = 0.04;
/// One in so many arrives after others that came after it.
const LATE: f64 = 0.05;
/// How many other events a late one lets pass, at most.
const LATENESS: u64 = 60;
/// Leads that are busy at a time: people write in bursts.
const BUSY: usize = 6;

/// An event, ready to be sent.
#[derive(Clone, Debug)]
pub struct SimulatedEvent {
    /// The name of the event.
    pub name: &'static str,
    /// The lead that it is about.
    pub lead_id: String,
    /// The workspace of the lead.
    pub workspace_id: String,
    /// Whether the body names the workspace: events about leads do not.
    pub names_workspace: bool,
    /// The body of the request.
    pub body: String,
    /// What it adds; nothing, if it was sent before.
    pub facts: Facts,
    /// It was sent before.
    pub is_repeated: bool,
    /// Others that happened later were sent before it.
    pub is_late: bool,
}

/// What a world consists of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The same seed makes the same leads with the same stories.
    pub seed: u64,
    /// How many leads.
    pub leads: u32,
    /// How many workspaces they are spread over.
    pub workspaces: u32,
    /// The only workspace, instead of made-up ones.
    pub workspace_id: Option<String>,
    /// The first lead has a part of all events, as if everybody looked at it.
    pub has_star: bool,
}

/// All leads and what is still to be told of them.
#[derive(Debug)]
pub struct World {
    random: StdRng,
    stories: Vec<Story>,
    busy: VecDeque<usize>,
    has_star: bool,
    /// Events made so far: the clock that lateness goes by.
    made: u64,
    held: VecDeque<(u64, SimulatedEvent)>,
}

impl World {
    /// Before anything has happened.
    pub fn new(settings: &Settings) -> Self {
        let mut random = StdRng::seed_from_u64(settings.seed);
        let workspaces: Vec<_> = match &settings.workspace_id {
            Some(workspace_id) => vec![workspace_id.clone()],
            None => (0..settings.workspaces.max(1)).map(|_| words::id(&mut random)).collect(),
        };
        let stories = (0..settings.leads.max(1) as usize).map(|at| Story::new(&mut random, &workspaces[at % workspaces.len()])).collect();
        Self { random, stories, busy: VecDeque::new(), has_star: settings.has_star, made: 0, held: VecDeque::new() }
    }

    /// The first lead: its id and its workspace.
    pub fn first_lead(&self) -> (&str, &str) {
        (self.stories[0].lead_id(), self.stories[0].workspace_id())
    }

    /// The next event.
    pub fn next(&mut self, now: DateTime<Utc>) -> SimulatedEvent {
        loop {
            self.made += 1;
            if let Some(at) = self.held.iter().position(|(due, _)| *due <= self.made)
                && let Some((_, event)) = self.held.remove(at)
            {
                return event;
            }
            let lead = self.choose();
            let mut event = self.stories[lead].next(&mut self.random, now);
            let due = self.made + self.random.random_range(5..=LATENESS);
            if self.random.random_bool(DUPLICATES) {
                self.held.push_back((due, SimulatedEvent { facts: Facts::default(), is_repeated: true, ..event.clone() }));
            }
            // A patch that comes late would rightly undo what came after it: nothing in it tells when it was.
            if event.name != "lead.updated" && self.random.random_bool(LATE) {
                event.is_late = true;
                self.held.push_back((due, event));
                continue;
            }
            return event;
        }
    }

    /// What is still held back: the late and the repeated ones.
    pub fn rest(&mut self) -> impl Iterator<Item = SimulatedEvent> {
        std::mem::take(&mut self.held).into_iter().map(|(_, event)| event)
    }

    fn choose(&mut self) -> usize {
        if self.has_star && self.random.random_bool(0.08) {
            return 0;
        }
        if self.busy.len() < BUSY.min(self.stories.len()) || self.random.random_bool(0.25) {
            let lead = self.random.random_range(0..self.stories.len());
            self.busy.push_back(lead);
            if self.busy.len() > BUSY {
                self.busy.pop_front();
            }
            return lead;
        }
        self.busy[self.random.random_range(0..self.busy.len())]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn events(seed: u64) -> Vec<SimulatedEvent> {
        let mut world = World::new(&Settings { seed, leads: 20, workspaces: 2, workspace_id: None, has_star: false });
        let mut events: Vec<_> = (0..3000).map(|_| world.next(DateTime::UNIX_EPOCH)).collect();
        events.extend(world.rest());
        events
    }

    #[test]
    fn the_same_seed_tells_the_same() {
        let bodies = |seed| events(seed).into_iter().map(|event| event.body).collect::<Vec<_>>();
        assert_eq!(bodies(1), bodies(1));
        assert_ne!(bodies(1), bodies(2));
    }

    #[test]
    fn all_that_can_happen_happens_and_is_well_formed() {
        let events = events(3);
        let names: HashSet<_> = events.iter().map(|event| event.name).collect();
        assert_eq!(names, crate::event::KNOWN_EVENTS.into());
        assert!(events.iter().any(|event| event.is_late) && events.iter().any(|event| event.is_repeated));
        for event in &events {
            let body = crate::event::Body::new(event.body.as_bytes());
            let parsed = crate::event::parse(&body).expect(&event.body);
            assert_eq!(parsed.label(), event.name);
            let workspace_id = (!event.names_workspace).then_some(&*event.workspace_id);
            let receipt = crate::fold::Receipt { at: crate::time::Timestamp::now(), workspace_id };
            crate::fold::fold(&parsed, receipt).unwrap_or_else(|refusal| panic!("{refusal}: {}", event.body));
        }
    }
}
