//! What a change writes: all of it is known before the first write, so that a change that fails leaves nothing
//! in the transaction that it shares with others.

use redb::ReadableTable;

use super::head::Head;
use super::tables::{Tables, history, micros};
use crate::fold::effect::{Effect, Extremes};
use crate::lead::{Activity, Addition, Change};
use crate::store::record::{
    VERSION_BYTES, corrupt, decode_activity, decode_detail, encode_activity, encode_detail, encode_detail_key, pack, unpack,
};
use crate::store::{Outcome, StoreError};
use crate::time::Timestamp;

/// How many activities beyond the cap gather before they are dropped together.
const TRIM: u64 = 64;

pub(super) enum Plan {
    /// There is nothing to write.
    Leave(Outcome),
    Write(Box<Writes>),
}

/// Everything to write for one change.
pub(super) struct Writes {
    lead: Vec<u8>,
    pub(super) head: Head,
    /// The version before.
    pub(super) previous: u64,
    /// The index has it under this workspace and time.
    place: Option<(String, i64)>,
    activity: Option<ActivityWrite>,
    details: Vec<(Vec<u8>, Vec<u8>)>,
    trimmed: Vec<Kept>,
    /// A tombstone that has expired.
    tombstone: bool,
}

struct ActivityWrite {
    time: i64,
    action: Vec<u8>,
    bytes: Vec<u8>,
    /// Time and version of the one whose place it takes.
    old: Option<(i64, u64)>,
}

/// An activity that is kept, in the order of the history.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    time: i64,
    action: Vec<u8>,
    version: u64,
}

/// Decides what a change does.
pub(super) fn plan(tables: &Tables<'_>, change: &Change, max_history: u64, now: Timestamp) -> Result<Plan, StoreError> {
    let lead = change.lead_id.as_bytes().to_vec();
    let expiry = tables.tombstones.get(&*lead)?.map(|expiry| expiry.value());
    if expiry.is_some_and(|expiry| now.micros() < expiry) {
        return Ok(Plan::Leave(Outcome::Deleted));
    }
    let stored = tables.head(&lead)?;
    let exists = stored.is_some();
    let mut head = stored.unwrap_or_default();
    let place = head.place().map(|(workspace, time)| (workspace.to_owned(), time));

    let named = change.workspace_id.as_deref().filter(|workspace| !workspace.is_empty());
    if named.is_some_and(|named| !head.workspace_id.is_empty() && head.workspace_id != named) {
        return Err(StoreError::OtherWorkspace);
    }
    let learned = named.filter(|_| head.workspace_id.is_empty());

    let action = change.activity.as_ref().map(|activity| pack(&activity.action_id));
    let existing = match (&change.activity, &action) {
        (Some(activity), Some(action)) => tables.activity(&lead, &activity.action_id, action)?,
        _ => None,
    };
    if let (Some(new), None, Some(floor)) = (&change.activity, &existing, head.floor)
        && new.time <= floor
    {
        return Ok(Plan::Leave(Outcome::TooOld));
    }
    let stored_detail = |addition: &Addition| {
        let key = encode_detail_key(addition.key());
        tables.details.get((&*lead, &*key))?.map(|bytes| decode_detail(&key, bytes.value())).transpose()
    };
    let details = change.additions.iter().map(stored_detail).collect::<Result<Vec<_>, StoreError>>()?;

    let effect = Effect::of(change, existing.as_ref(), &details);
    if effect.is_empty() && exists && learned.is_none() {
        return Ok(Plan::Leave(Outcome::Duplicate { version: head.version }));
    }

    let previous = head.version;
    head.version = (head.version + 1).max(now.millis());
    if let Some(workspace) = learned {
        workspace.clone_into(&mut head.workspace_id);
    }
    let mut trimmed = Vec::new();
    let mut activity = None;
    if let (Some((new, old)), Some(action)) = (effect.activity, action) {
        let recedes = old.is_some_and(|old| head.recedes(old, new));
        head.add(new, old);
        if recedes {
            head.set_extremes(extremes(tables, &lead, &action, new)?);
        }
        if old.is_none() {
            let kept = Kept { time: micros(new.time), action: action.clone(), version: head.version };
            trimmed = oldest(tables, &lead, &head, kept, max_history)?;
        }
        activity = Some(ActivityWrite {
            time: micros(new.time),
            action,
            bytes: encode_activity(new, head.version),
            old: old.map(|old| (micros(old.time), old.version)),
        });
    }
    for dropped in &trimmed {
        head.kept = head.kept.saturating_sub(1);
        head.floor = head.floor.max(Some(Timestamp::from_micros(dropped.time)));
        head.trimmed_version = head.trimmed_version.max(dropped.version);
    }
    let details = effect.details.iter().map(|(_, detail)| (encode_detail_key(detail.key()), encode_detail(detail, head.version))).collect();
    Ok(Plan::Write(Box::new(Writes { lead, place, activity, details, trimmed, tombstone: expiry.is_some(), head, previous })))
}

/// The extremes of all activities that are kept, with `new` under its action.
fn extremes(tables: &Tables<'_>, lead: &[u8], action: &[u8], new: &Activity) -> Result<Extremes, StoreError> {
    let mut extremes = Extremes::default();
    extremes.add(new);
    for entry in tables.activities.range(history(lead))? {
        let (key, bytes) = entry?;
        let (_, _, kept) = key.value();
        if kept != action {
            extremes.add(&decode_activity(unpack(kept)?, bytes.value())?);
        }
    }
    Ok(extremes)
}

/// The activities that the history gives up for `new`: none before so many have gathered that it is worth it.
fn oldest(tables: &Tables<'_>, lead: &[u8], head: &Head, new: Kept, max_history: u64) -> Result<Vec<Kept>, StoreError> {
    let count = if max_history < TRIM { (max_history / 8).max(1) } else { TRIM };
    if head.kept <= max_history + count {
        return Ok(Vec::new());
    }
    let count = usize::try_from(count).unwrap_or_default();
    let mut kept = vec![new];
    // One more than needed, for the latest activity stays: ids that are no UUIDs may put it before its equals.
    for entry in tables.activities.range(history(lead))?.take(count + 1) {
        let (key, bytes) = entry?;
        let (_, time, action) = key.value();
        kept.push(Kept { time, action: action.to_vec(), version: version(bytes.value())? });
    }
    let latest = head.latest.as_ref().map(|(_, action)| pack(action));
    kept.retain(|kept| Some(&kept.action) != latest.as_ref());
    kept.sort();
    kept.truncate(count);
    Ok(kept)
}

/// The version that a record starts with.
fn version(bytes: &[u8]) -> Result<u64, StoreError> {
    let version = bytes.get(..VERSION_BYTES).ok_or_else(|| corrupt("a record that is cut short"))?;
    Ok(version.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

impl Writes {
    /// Writes it all. An error here spoils the transaction.
    pub(super) fn write(&self, tables: &mut Tables<'_>) -> Result<(), StoreError> {
        let lead = &*self.lead;
        if self.tombstone {
            tables.tombstones.remove(lead)?;
        }
        if let Some(activity) = &self.activity {
            let action = &*activity.action;
            if let Some((time, version)) = activity.old {
                tables.versions.remove((lead, version))?;
                if time != activity.time {
                    tables.activities.remove((lead, time, action))?;
                }
            }
            tables.activities.insert((lead, activity.time, action), &*activity.bytes)?;
            tables.times.insert((lead, action), activity.time)?;
            tables.versions.insert((lead, self.head.version), (activity.time, action))?;
        }
        for dropped in &self.trimmed {
            tables.activities.remove((lead, dropped.time, &*dropped.action))?;
            tables.times.remove((lead, &*dropped.action))?;
            tables.versions.remove((lead, dropped.version))?;
        }
        for (key, bytes) in &self.details {
            tables.details.insert((lead, &**key), &**bytes)?;
        }
        let place = self.head.place();
        let before = self.place.as_ref().map(|(workspace, time)| (&**workspace, *time));
        if before != place {
            if let Some((workspace, time)) = before {
                tables.index.remove((workspace, time, lead))?;
            }
            if let Some((workspace, time)) = place {
                tables.index.insert((workspace, time, lead), ())?;
            }
        }
        tables.heads.insert(lead, &*self.head.encode())?;
        Ok(())
    }
}
