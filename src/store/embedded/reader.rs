//! Reads: each in one read transaction, which sees one commit and waits for no writer.

use redb::{Database, ReadOnlyTable, ReadableDatabase};

use super::head::Head;
use super::tables::{ACTIVITIES, ActivityKey, DETAILS, HEADS, INDEX, TOMBSTONES, VERSIONS, micros, successor};
use crate::database::{FORMAT_KEY, META};
use crate::lead::{Activity, Lead};
use crate::store::record::{corrupt, decode_activity, decode_detail, pack, unpack};
use crate::store::{ActivityPlace, ListQuery, MAX_MISSED, Place, Read, StoreError};
use crate::time::Timestamp;

type Activities = ReadOnlyTable<ActivityKey, &'static [u8]>;

pub(super) fn read(database: &Database, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError> {
    let transaction = database.begin_read()?;
    let lead = lead_id.as_bytes();
    let Some(head) = transaction.open_table(HEADS)?.get(lead)? else { return Ok(None) };
    let head = Head::decode(head.value())?;
    let activities = transaction.open_table(ACTIVITIES)?;

    let mut missed = Vec::new();
    let mut complete = true;
    if let Some(since) = since.filter(|since| *since < head.version) {
        complete = head.trimmed_version <= since;
        let versions = transaction.open_table(VERSIONS)?;
        for entry in versions.range((lead, since + 1)..=(lead, u64::MAX))?.rev() {
            if missed.len() == MAX_MISSED {
                complete = false;
                break;
            }
            let (_, key) = entry?;
            let (time, action) = key.value();
            missed.push(activity(&activities, lead, time, unpack(action)?, action)?);
        }
        missed.reverse();
    }

    let latest_activity = match head.latest {
        Some((time, action_id)) => {
            let action = pack(&action_id);
            Some(activity(&activities, lead, micros(time), action_id, &action)?)
        }
        None => None,
    };
    let mut whole = Lead {
        lead_id: lead_id.to_owned(),
        workspace_id: head.workspace_id,
        version: head.version,
        first_activity: head.first,
        latest_activity,
        activity_counts: head.counts,
        message_counts: head.messages,
        ..Lead::default()
    };
    for entry in transaction.open_table(DETAILS)?.range((lead, &[][..])..(&*successor(lead), &[][..]))? {
        let (key, bytes) = entry?;
        whole.insert(decode_detail(key.value().1, bytes.value())?);
    }
    whole.sort_documents();
    Ok(Some(Read { lead: whole, missed, complete }))
}

pub(super) fn version(database: &Database, lead_id: &str) -> Result<Option<u64>, StoreError> {
    let head = database.begin_read()?.open_table(HEADS)?.get(lead_id.as_bytes())?;
    head.map(|head| Head::decode(head.value()).map(|head| head.version)).transpose()
}

fn activity(activities: &Activities, lead: &[u8], time: i64, action_id: String, action: &[u8]) -> Result<Activity, StoreError> {
    let bytes = activities.get((lead, time, action))?.ok_or_else(|| corrupt("an action without its activity"))?;
    decode_activity(action_id, bytes.value())
}

pub(super) fn list(database: &Database, query: &ListQuery) -> Result<Vec<Place>, StoreError> {
    let workspace = &*query.workspace_id;
    let cursor = query.cursor.as_ref().map(|place| (micros(place.time), place.lead_id.as_bytes().to_vec()));
    let cursor = cursor.as_ref().map(|(time, lead)| (*time, &**lead));
    let before = query.before.map(|before| (before.micros(), &[][..]));
    let (time, lead) = cursor.into_iter().chain(before).min().unwrap_or((i64::MAX, &[]));
    let end = (workspace, time, lead);
    // Zero is the place of leads without an activity: neither before nor after anything.
    let start = match (query.after, query.before) {
        (Some(after), _) => micros(after).saturating_add(1),
        (None, Some(_)) => 1,
        (None, None) => 0,
    };
    let start = (workspace, start, &[][..]);
    if start >= end {
        return Ok(Vec::new());
    }
    let transaction = database.begin_read()?;
    let index = transaction.open_table(INDEX)?;
    let mut places = Vec::new();
    for entry in index.range(start..end)?.rev().take(query.limit) {
        let (key, _) = entry?;
        let (_, time, lead) = key.value();
        places.push(Place { time: Timestamp::from_micros(time), lead_id: text(lead)? });
    }
    Ok(places)
}

pub(super) fn activities(
    database: &Database,
    lead_id: &str,
    behind: Option<&ActivityPlace>,
    limit: usize,
) -> Result<Option<Vec<Activity>>, StoreError> {
    let transaction = database.begin_read()?;
    let lead = lead_id.as_bytes();
    if transaction.open_table(HEADS)?.get(lead)?.is_none() {
        return Ok(None);
    }
    let behind = behind.map(|place| (micros(place.time), pack(&place.action_id)));
    let (time, action) = behind.as_ref().map_or((i64::MAX, &[][..]), |(time, action)| (*time, action));
    let mut found = Vec::new();
    let table = transaction.open_table(ACTIVITIES)?;
    for entry in table.range((lead, i64::MIN, &[][..])..(lead, time, action))?.rev().take(limit) {
        let (key, bytes) = entry?;
        found.push(decode_activity(unpack(key.value().2)?, bytes.value())?);
    }
    Ok(Some(found))
}

fn text(lead: &[u8]) -> Result<String, StoreError> {
    String::from_utf8(lead.to_vec()).map_err(|_| corrupt("a lead's id that is not UTF-8"))
}

/// Whether a lead was deleted less than 30 days ago.
/// A number about the store itself.
pub(super) fn number(database: &Database, key: &str) -> Result<Option<u64>, StoreError> {
    Ok(database.begin_read()?.open_table(META)?.get(key)?.map(|number| number.value()))
}

pub(super) fn is_deleted(database: &Database, lead_id: &str, now: Timestamp) -> Result<bool, StoreError> {
    let expiry = database.begin_read()?.open_table(TOMBSTONES)?.get(lead_id.as_bytes())?.map(|expiry| expiry.value());
    Ok(expiry.is_some_and(|expiry| now.micros() < expiry))
}

/// Reads something, however little.
pub(super) fn check(database: &Database) -> Result<(), StoreError> {
    database.begin_read()?.open_table(META)?.get(FORMAT_KEY)?;
    Ok(())
}
