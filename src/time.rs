//! Points in time, to the microsecond, and the clock that tells the present.

mod clock;
mod parse;

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

pub use clock::Clock;

/// A point in time: microseconds since 1970-01-01T00:00:00Z.
///
/// Microseconds fit a Redis score (an integer up to 2^53) until the year 2255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// 2000-01-01T00:00:00Z: the product is younger than that, so an earlier time is a sender's mistake.
const EARLIEST_BELIEVED: Timestamp = Timestamp(946_684_800_000_000);
const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

impl Timestamp {
    /// The present, to the millisecond: versions are times too, and tell no more.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From milliseconds since the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since the epoch; zero for times before it.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0 / 1000).unwrap_or(0)
    }

    /// Reads a time as senders write it: any ISO 8601 form that names one instant, cut to microseconds, or a number of
    /// seconds, milliseconds, microseconds or nanoseconds since 1970.
    pub fn parse(text: &str) -> Option<Self> {
        parse::iso(text).or_else(|| parse::epoch(text))
    }

    /// Reads ISO 8601 only: any number may be something else than a time.
    pub fn parse_iso(text: &str) -> Option<Self> {
        parse::iso(text)
    }

    /// A time as it was written, without the annotations of RFC 9557 behind its offset, which are of no use.
    pub fn without_annotations(text: &str) -> &str {
        parse::without_suffix(text)
    }

    /// Whether an event received at `received` may have happened now: a time before 2000 or more than 24 h
    /// ahead would stand as the earliest or latest for ever.
    pub fn is_believed_at(self, received: Timestamp) -> bool {
        self >= EARLIEST_BELIEVED && self.0 <= received.0.saturating_add(DAY_MICROS)
    }

    /// RFC 3339 in UTC, with as many digits as it needs.
    pub fn to_rfc3339(self) -> String {
        DateTime::<Utc>::from_timestamp_micros(self.0).map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_offset_and_any_fraction_is_the_same_instant() {
        let base = Timestamp::parse("2025-10-30T20:07:17.553Z").expect("base");
        for same in ["2025-10-30T22:07:17.553+02:00", "2025-10-30T20:07:17.553000000Z", "2025-10-30T14:37:17.5530009999999-05:30"] {
            assert_eq!(Timestamp::parse(same), Some(base), "{same}");
        }
        assert_eq!(base.to_rfc3339(), "2025-10-30T20:07:17.553Z");
    }

    #[test]
    fn times_far_off_are_not_believed() {
        let now = Timestamp::parse("2026-01-01T00:00:00Z").expect("now");
        let believed = |text: &str| Timestamp::parse(text).expect(text).is_believed_at(now);
        assert!(believed("2000-01-01T00:00:00Z") && believed("2026-01-02T00:00:00Z"));
        assert!(!believed("1999-12-31T23:59:59Z") && !believed("2026-01-02T00:00:00.000001Z"));
        assert!(!believed("0001-01-01T00:00:00Z") && !believed("9999-12-31T23:59:59Z"));
    }
}
