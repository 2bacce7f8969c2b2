//! The head of a lead: what is known of all its activities without reading them.

use std::collections::BTreeMap;

use prost::Message;

use super::tables::micros;
use crate::fold::effect::{CountDeltas, Extremes, add_count, add_messages};
use crate::lead::{Activity, MessageCount};
use crate::store::StoreError;
use crate::store::record::{pack, unpack};
use crate::time::Timestamp;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Head {
    pub(super) version: u64,
    /// Empty if not known.
    pub(super) workspace_id: String,
    pub(super) first: Option<Timestamp>,
    /// The greatest by [`Activity::order`].
    pub(super) latest: Option<(Timestamp, String)>,
    pub(super) counts: BTreeMap<(String, String), u64>,
    pub(super) messages: BTreeMap<(String, String), MessageCount>,
    /// How many activities are kept.
    pub(super) kept: u64,
    /// The greatest time of an activity that is not kept any more.
    pub(super) floor: Option<Timestamp>,
    /// The greatest version of an activity that is not kept any more.
    pub(super) trimmed_version: u64,
}

#[derive(Clone, PartialEq, Message)]
struct HeadRecord {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(string, tag = "2")]
    workspace_id: String,
    #[prost(int64, optional, tag = "3")]
    first: Option<i64>,
    #[prost(int64, optional, tag = "4")]
    latest: Option<i64>,
    #[prost(bytes = "vec", tag = "5")]
    latest_action: Vec<u8>,
    #[prost(message, repeated, tag = "6")]
    counts: Vec<CountRecord>,
    #[prost(message, repeated, tag = "7")]
    messages: Vec<CountRecord>,
    #[prost(uint64, tag = "8")]
    kept: u64,
    #[prost(int64, optional, tag = "9")]
    floor: Option<i64>,
    #[prost(uint64, tag = "10")]
    trimmed_version: u64,
}

/// A count by two words: (type, status) or (channel, direction).
#[derive(Clone, PartialEq, Message)]
struct CountRecord {
    #[prost(string, tag = "1")]
    first: String,
    #[prost(string, tag = "2")]
    second: String,
    #[prost(uint64, tag = "3")]
    count: u64,
    #[prost(int64, tag = "4")]
    latest: i64,
}

impl Head {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let record = HeadRecord::decode(bytes).map_err(|error| StoreError::Corrupt(format!("a head: {error}")))?;
        let latest = match record.latest {
            Some(time) => Some((Timestamp::from_micros(time), unpack(&record.latest_action)?)),
            None => None,
        };
        let message = |message: CountRecord| {
            let latest = Timestamp::from_micros(message.latest);
            ((message.first, message.second), MessageCount { count: message.count, latest })
        };
        Ok(Self {
            version: record.version,
            workspace_id: record.workspace_id,
            first: record.first.map(Timestamp::from_micros),
            latest,
            counts: record.counts.into_iter().map(|count| ((count.first, count.second), count.count)).collect(),
            messages: record.messages.into_iter().map(message).collect(),
            kept: record.kept,
            floor: record.floor.map(Timestamp::from_micros),
            trimmed_version: record.trimmed_version,
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let count = |((first, second), count): (&(String, String), &u64)| CountRecord {
            first: first.clone(),
            second: second.clone(),
            count: *count,
            latest: 0,
        };
        let message = |((first, second), message): (&(String, String), &MessageCount)| CountRecord {
            first: first.clone(),
            second: second.clone(),
            count: message.count,
            latest: micros(message.latest),
        };
        let record = HeadRecord {
            version: self.version,
            workspace_id: self.workspace_id.clone(),
            first: self.first.map(micros),
            latest: self.latest.as_ref().map(|(time, _)| micros(*time)),
            latest_action: self.latest.as_ref().map(|(_, action)| pack(action)).unwrap_or_default(),
            counts: self.counts.iter().map(count).collect(),
            messages: self.messages.iter().map(message).collect(),
            kept: self.kept,
            floor: self.floor.map(micros),
            trimmed_version: self.trimmed_version,
        };
        record.encode_to_vec()
    }

    /// Where the index has the lead: (workspace, latest activity or zero). `None`: nowhere.
    pub(super) fn place(&self) -> Option<(&str, i64)> {
        let time = self.latest.as_ref().map_or(0, |(time, _)| micros(*time));
        (!self.workspace_id.is_empty()).then_some((&*self.workspace_id, time))
    }

    /// Counts an activity in place of `old`, and lets it push the extremes outwards.
    pub(super) fn add(&mut self, new: &Activity, old: Option<&Activity>) {
        let deltas = CountDeltas::of(new, old);
        for (key, delta) in deltas.activities {
            add_count(&mut self.counts, key, delta);
        }
        for (key, delta) in deltas.messages {
            let told = new.counted_messages().iter().any(|tally| (&*tally.channel, &*tally.direction) == key);
            add_messages(&mut self.messages, key, delta, if told { new.time } else { Timestamp::default() });
        }
        self.first = Some(self.first.map_or(new.time, |first| first.min(new.time)));
        if self.latest.as_ref().is_none_or(|(time, action)| new.order() > (*time, action)) {
            self.latest = Some((new.time, new.action_id.clone()));
        }
        if old.is_none() {
            self.kept += 1;
        }
    }

    /// Whether an extreme is lost when `new` takes the place of `old`: then only the whole history tells them.
    pub(super) fn recedes(&self, old: &Activity, new: &Activity) -> bool {
        let holds_latest = self.latest.as_ref().is_some_and(|(time, action)| old.order() == (*time, action));
        let holds_messages = |head: &Self| {
            let latest =
                |channel: &str, direction: &str| head.messages.get(&(channel.to_owned(), direction.to_owned())).map(|count| count.latest);
            old.counted_messages().iter().any(|tally| latest(&tally.channel, &tally.direction) == Some(old.time))
        };
        self.first == Some(old.time) || (Extremes::may_recede(old, new) && (holds_latest || holds_messages(self)))
    }

    /// Takes the extremes of the activities that are kept. Of those that are not, it is known that none is
    /// above the floor.
    pub(super) fn set_extremes(&mut self, kept: Extremes) {
        self.first = match self.floor {
            Some(_) => self.first.into_iter().chain(kept.first).min(),
            None => kept.first,
        };
        self.latest = kept.latest;
        for (key, count) in &mut self.messages {
            count.latest = match (kept.messages.get(key), self.floor) {
                (Some(latest), _) => *latest,
                (None, Some(floor)) => count.latest.min(floor),
                (None, None) => count.latest,
            };
        }
    }
}
