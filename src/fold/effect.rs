//! What a change does to what is stored: the step between the rules and a store that only adds and writes.

use std::collections::BTreeMap;

use super::merge;
use crate::lead::{Activity, Change, Detail, MessageCount};
use crate::time::Timestamp;

/// What a change does, given what is stored under the ids that it touches.
#[derive(Debug, Default)]
pub struct Effect<'a> {
    /// The activity to write and the one that it takes the place of.
    pub activity: Option<(&'a Activity, Option<&'a Activity>)>,
    /// The details to write; the first of each pair is the position of the addition it comes from.
    pub details: Vec<(usize, Detail)>,
}

impl<'a> Effect<'a> {
    /// `details` are what is stored under the keys of the change's additions, in their order.
    pub fn of(change: &'a Change, activity: Option<&'a Activity>, details: &[Option<Detail>]) -> Self {
        let activity = match (&change.activity, activity) {
            (Some(new), Some(old)) => merge::supersedes(new, old).then_some((new, Some(old))),
            (new, _) => new.as_ref().map(|new| (new, None)),
        };
        let additions = change.additions.iter().enumerate();
        let joined = |(index, addition)| {
            let existing = details.get(index).and_then(Option::as_ref);
            Some((index, merge::detail(existing, addition)?))
        };
        Self { activity, details: additions.filter_map(joined).collect() }
    }

    /// Nothing is new.
    pub fn is_empty(&self) -> bool {
        self.activity.is_none() && self.details.is_empty()
    }
}

/// How an activity moves the counts, and those of the one it takes the place of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CountDeltas<'a> {
    /// By (type, status).
    pub activities: BTreeMap<(&'a str, &'a str), i64>,
    /// By (channel, direction).
    pub messages: BTreeMap<(&'a str, &'a str), i64>,
}

impl<'a> CountDeltas<'a> {
    /// The counts of `new` less those of `old`; pairs that do not move are left out.
    pub fn of(new: &'a Activity, old: Option<&'a Activity>) -> Self {
        let mut deltas = Self::default();
        for (activity, sign) in [(Some(new), 1), (old, -1)] {
            let Some(activity) = activity else { continue };
            *deltas.activities.entry((&activity.kind, &activity.status)).or_default() += sign;
            for tally in activity.counted_messages() {
                let count = i64::try_from(tally.count).unwrap_or(i64::MAX);
                *deltas.messages.entry((&tally.channel, &tally.direction)).or_default() += sign * count;
            }
        }
        deltas.activities.retain(|_, delta| *delta != 0);
        deltas
    }
}

/// What the greatest and least times of a lead are taken from: all its activities. Needed when one that may
/// have been the greatest or least gives way; otherwise a new activity can only push them outwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extremes {
    /// The earliest activity.
    pub first: Option<Timestamp>,
    /// The greatest (time, action id).
    pub latest: Option<(Timestamp, String)>,
    /// By (channel, direction).
    pub messages: BTreeMap<(String, String), Timestamp>,
}

impl Extremes {
    /// Takes one more activity into account.
    pub fn add(&mut self, activity: &Activity) {
        self.first = Some(self.first.map_or(activity.time, |first| first.min(activity.time)));
        if self.latest.as_ref().is_none_or(|(time, id)| activity.order() > (*time, id)) {
            self.latest = Some((activity.time, activity.action_id.clone()));
        }
        for tally in activity.counted_messages() {
            let latest = self.messages.entry((tally.channel.clone(), tally.direction.clone())).or_insert(activity.time);
            *latest = (*latest).max(activity.time);
        }
    }

    /// Whether replacing `old` by `new` can pull an extreme inwards.
    pub fn may_recede(old: &Activity, new: &Activity) -> bool {
        !old.counted_messages().is_empty() || new.order() < old.order()
    }
}

/// Adds a delta to a count, dropping it at zero.
pub fn add_count(counts: &mut BTreeMap<(String, String), u64>, key: (&str, &str), delta: i64) {
    let key = (key.0.to_owned(), key.1.to_owned());
    let count = counts.entry(key.clone()).or_default();
    *count = count.saturating_add_signed(delta);
    if *count == 0 {
        counts.remove(&key);
    }
}

/// Adds a delta to the messages of one channel and direction, dropping the entry at zero.
pub fn add_messages(counts: &mut BTreeMap<(String, String), MessageCount>, key: (&str, &str), delta: i64, time: Timestamp) {
    let key = (key.0.to_owned(), key.1.to_owned());
    let entry = counts.entry(key.clone()).or_default();
    entry.count = entry.count.saturating_add_signed(delta);
    entry.latest = entry.latest.max(time);
    if entry.count == 0 {
        counts.remove(&key);
    }
}
