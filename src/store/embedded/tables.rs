//! The tables, and what is read from them while changes are applied. Leads are named as they are, other ids are packed, times are
//! microseconds.

use std::ops::Range;

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::head::Head;
use crate::lead::Activity;
use crate::store::StoreError;
use crate::store::record::{corrupt, decode_activity};
use crate::time::Timestamp;

/// (lead, time, action): the key of an activity, so that a history reads in one sweep.
pub(super) type ActivityKey = (&'static [u8], i64, &'static [u8]);
/// (lead, version).
pub(super) type VersionKey = (&'static [u8], u64);
/// (time, action).
pub(super) type ActionPlace = (i64, &'static [u8]);
/// (lead, something of it).
pub(super) type PartKey = (&'static [u8], &'static [u8]);
/// (workspace, latest activity or zero, lead).
pub(super) type IndexKey = (&'static str, i64, &'static [u8]);

/// By lead: counts, extremes and the version.
pub(super) const HEADS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("heads");
/// By (lead, time, action): the activity.
pub(super) const ACTIVITIES: TableDefinition<ActivityKey, &[u8]> = TableDefinition::new("activities");
/// By (lead, action): the time that its activity is kept under. This is what an action counts once by.
pub(super) const TIMES: TableDefinition<PartKey, i64> = TableDefinition::new("times");
/// By (lead, version): the (time, action) that was written with it.
pub(super) const VERSIONS: TableDefinition<VersionKey, ActionPlace> = TableDefinition::new("versions");
/// By (lead, detail key): the detail.
pub(super) const DETAILS: TableDefinition<PartKey, &[u8]> = TableDefinition::new("details");
/// Every lead of a known workspace, once.
pub(super) const INDEX: TableDefinition<IndexKey, ()> = TableDefinition::new("index");
/// By lead: until when late events of a deleted one stay out.
pub(super) const TOMBSTONES: TableDefinition<&[u8], i64> = TableDefinition::new("tombstones");

/// A time as it is kept: what `record` writes knows no time before the epoch.
pub(super) fn micros(time: Timestamp) -> i64 {
    time.micros().max(0)
}

/// All of a lead's activities. No time reaches the upper bound, which is exclusive.
pub(super) fn history(lead: &[u8]) -> Range<(&[u8], i64, &[u8])> {
    (lead, i64::MIN, &[])..(lead, i64::MAX, &[])
}

/// The least byte string above all that share a key's first part: exclusive upper bound of its parts.
pub(super) fn successor(lead: &[u8]) -> Vec<u8> {
    [lead, &[0]].concat()
}

/// The tables of one write transaction.
pub(super) struct Tables<'t> {
    pub(super) heads: Table<'t, &'static [u8], &'static [u8]>,
    pub(super) activities: Table<'t, ActivityKey, &'static [u8]>,
    pub(super) times: Table<'t, PartKey, i64>,
    pub(super) versions: Table<'t, VersionKey, ActionPlace>,
    pub(super) details: Table<'t, PartKey, &'static [u8]>,
    pub(super) index: Table<'t, IndexKey, ()>,
    pub(super) tombstones: Table<'t, &'static [u8], i64>,
}

impl<'t> Tables<'t> {
    /// Opens them all, creating those that are missing.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            heads: transaction.open_table(HEADS)?,
            activities: transaction.open_table(ACTIVITIES)?,
            times: transaction.open_table(TIMES)?,
            versions: transaction.open_table(VERSIONS)?,
            details: transaction.open_table(DETAILS)?,
            index: transaction.open_table(INDEX)?,
            tombstones: transaction.open_table(TOMBSTONES)?,
        })
    }

    pub(super) fn head(&self, lead: &[u8]) -> Result<Option<Head>, StoreError> {
        self.heads.get(lead)?.map(|bytes| Head::decode(bytes.value())).transpose()
    }

    /// The stored activity of an action.
    pub(super) fn activity(&self, lead: &[u8], action_id: &str, action: &[u8]) -> Result<Option<Activity>, StoreError> {
        let Some(time) = self.times.get((lead, action))? else { return Ok(None) };
        let bytes = self.activities.get((lead, time.value(), action))?.ok_or_else(|| corrupt("an action without its activity"))?;
        decode_activity(action_id.to_owned(), bytes.value()).map(Some)
    }
}
