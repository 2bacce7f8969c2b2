//! Reads the ways in which senders write a point in time.
//!
//! Every ISO 8601 form that names one instant is read: calendar, week and ordinal dates, the extended and the basic form,
//! reduced and fractional times, every spelling of an offset. A time without an offset is not read, since it names no
//! instant. Numbers are read as time since 1970, in the unit that puts them into this century.

use chrono::{NaiveDate, Weekday};

use super::{DAY_MICROS, Timestamp};

/// Longer texts are not a time.
const MAX_BYTES: usize = 128;
const SECOND: i64 = 1_000_000;
const HOUR_SECONDS: i64 = 3600;

/// 2000-01-01 and 2100-01-01, in seconds since 1970. A number of seconds, milliseconds, microseconds or nanoseconds
/// between them can be no other of the four.
const EPOCH_SECONDS: std::ops::Range<i64> = 946_684_800..4_102_444_800;

/// Reads an ISO 8601 date with a time of day and an offset.
pub(super) fn iso(text: &str) -> Option<Timestamp> {
    let text = without_suffix(text.trim_ascii());
    if text.len() > MAX_BYTES || !text.is_ascii() && !text.contains('\u{2212}') {
        return None;
    }
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let days = days_since_1970(date)?;
    let rest = rest.trim_ascii_start();
    // ISO 8601 prefers the true minus sign, which RFC 3339 allows too.
    let zone_at = rest.find(['Z', 'z', '+', '-', '\u{2212}', ' ', 'U', 'G'])?;
    let (time, zone) = rest.split_at(zone_at);
    let micros = micros_of_day(time)?;
    let offset = offset_seconds(zone.trim_ascii_start())?;
    let midnight = days.checked_mul(DAY_MICROS)?;
    Some(Timestamp(midnight.checked_add(micros)?.checked_sub(offset * SECOND)?))
}

/// Reads a number, with or without a fraction, as seconds, milliseconds, microseconds or nanoseconds since 1970.
pub(super) fn epoch(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if whole.len() > 19 || fraction.is_empty() || !is_digits(fraction) {
        return None;
    }
    let number = digits(whole)?;
    let within = |unit: i64| (EPOCH_SECONDS.start * unit..EPOCH_SECONDS.end.saturating_mul(unit)).contains(&number);
    let micros = if within(1) {
        number * SECOND + fraction_of(fraction, SECOND)
    } else if within(1000) {
        number * 1000 + fraction_of(fraction, 1000)
    } else if within(SECOND) {
        number
    } else if within(1000 * SECOND) {
        number / 1000
    } else {
        return None;
    };
    Some(Timestamp(micros))
}

/// Takes off what RFC 9557 puts behind the offset, such as `[Europe/Paris]`: the offset says it all.
pub(super) fn without_suffix(text: &str) -> &str {
    let Some((time, suffix)) = text.split_once('[') else { return text };
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_/+-=.:![]".contains(&byte);
    if suffix.ends_with(']') && suffix.len() <= MAX_BYTES && suffix.bytes().all(is_allowed) { time } else { text }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn digits(text: &str) -> Option<i64> {
    if text.is_empty() || !is_digits(text) { None } else { text.parse().ok() }
}

/// A number of exactly so many digits.
fn fixed(text: &str, length: usize) -> Option<i64> {
    if text.len() == length { digits(text) } else { None }
}

/// `2025-10-30`, `20251030`, `2025-W44-4`, `2025W444`, `2025-303`, `2025303`.
fn days_since_1970(date: &str) -> Option<i64> {
    let year = i32::try_from(fixed(date.get(..4)?, 4)?).ok()?;
    let rest = &date[4..];
    let rest = rest.strip_prefix('-').unwrap_or(rest);
    let date = if let Some(week) = rest.strip_prefix(['W', 'w']) {
        let (week, day) = week.split_at_checked(2)?;
        let day = fixed(day.strip_prefix('-').unwrap_or(day), 1)?;
        let day = Weekday::try_from(u8::try_from(day - 1).ok()?).ok()?;
        NaiveDate::from_isoywd_opt(year, u32::try_from(fixed(week, 2)?).ok()?, day)?
    } else if rest.len() == 3 {
        NaiveDate::from_yo_opt(year, u32::try_from(fixed(rest, 3)?).ok()?)?
    } else {
        let (month, day) = rest.split_at_checked(2)?;
        let day = fixed(day.strip_prefix('-').unwrap_or(day), 2)?;
        NaiveDate::from_ymd_opt(year, u32::try_from(fixed(month, 2)?).ok()?, u32::try_from(day).ok()?)?
    };
    Some(date.signed_duration_since(NaiveDate::default()).num_days())
}

/// `20:07:17.553`, `200717`, `20:07`, `2007`, `20`, each with a fraction of its last part if need be.
fn micros_of_day(time: &str) -> Option<i64> {
    let (whole, fraction) = match time.split_once(['.', ',']) {
        Some((whole, fraction)) if !fraction.is_empty() && is_digits(fraction) => (whole, fraction),
        Some(_) => return None,
        None => (time, ""),
    };
    let ([hour, minute, second], parts) = two_digit_parts(whole)?;
    let unit = [HOUR_SECONDS, 60, 1][parts - 1] * SECOND;
    let fraction = fraction_of(fraction, unit);
    let micros = (hour * HOUR_SECONDS + minute * 60 + second) * SECOND + fraction;
    // 24:00 is the end of its day. Second 60 is a leap second, which ends where the next minute begins.
    let is_end = micros == DAY_MICROS && hour == 24;
    (is_end || hour < 24 && minute < 60 && second <= 60).then_some(micros)
}

/// `Z`, `UTC`, `GMT`, `+02`, `+0200`, `+02:00`, with seconds too: seconds east of Greenwich.
fn offset_seconds(zone: &str) -> Option<i64> {
    if ["Z", "UTC", "GMT"].iter().any(|utc| zone.eq_ignore_ascii_case(utc)) {
        return Some(0);
    }
    let sign = match zone.chars().next()? {
        '+' => 1,
        '-' | '\u{2212}' => -1,
        _ => return None,
    };
    let digits = zone.strip_prefix(['+', '-', '\u{2212}'])?;
    let ([hour, minute, second], _) = two_digit_parts(digits)?;
    (hour < 24 && minute < 60 && second < 60).then_some(sign * (hour * HOUR_SECONDS + minute * 60 + second))
}

/// One to three numbers of two digits, with a colon between each two of them or with none at all, and how many there are.
fn two_digit_parts(text: &str) -> Option<([i64; 3], usize)> {
    let step = if text.contains(':') { 3 } else { 2 };
    let count = (text.len() + step - 2) / step;
    if !(1..=3).contains(&count) || text.len() != count * step + 2 - step {
        return None;
    }
    let mut parts = [0; 3];
    for (index, part) in parts.iter_mut().enumerate().take(count) {
        let at = index * step;
        if step == 3 && index > 0 && text.as_bytes().get(at - 1) != Some(&b':') {
            return None;
        }
        *part = fixed(text.get(at..at + 2)?, 2)?;
    }
    Some((parts, count))
}

/// The fraction of a unit that these decimals stand for, cut to whole microseconds.
fn fraction_of(decimals: &str, unit_micros: i64) -> i64 {
    // Beyond 16 digits nothing is left of a microsecond, not even of an hour's.
    let decimals = &decimals[..decimals.len().min(16)];
    let number: i128 = decimals.parse().unwrap_or(0);
    let scale = 10_i128.pow(u32::try_from(decimals.len()).unwrap_or(0));
    i64::try_from(number * i128::from(unit_micros) / scale).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Duration};
    use proptest::prelude::*;

    use super::*;

    fn base() -> Timestamp {
        iso("2025-10-30T20:07:17Z").expect("a time")
    }

    #[test]
    fn every_spelling_of_an_instant_is_that_instant() {
        for same in [
            "2025-10-30t20:07:17z",
            "2025-10-30 20:07:17Z",
            " 2025-10-30T20:07:17Z\n",
            "2025-10-30T20:07:17+0000",
            "2025-10-30T20:07:17+00",
            "2025-10-30T20:07:17-00:00",
            "2025-10-30T22:07:17+02",
            "2025-10-30T22:07:17+0200",
            "2025-10-30T22:07:17+02:00",
            "2025-10-30T22:07:17+02:00:00",
            "2025-10-30T14:37:17-05:30",
            "2025-10-30T14:37:17\u{2212}05:30",
            "2025-10-30 22:07:17 +0200",
            "2025-10-30 20:07:17 UTC",
            "2025-10-30 20:07:17GMT",
            "20251030T200717Z",
            "20251030T220717+0200",
            "20251030T20:07:17Z",
            "2025-10-30T20:07:17.000000000000000000001Z",
            "2025-10-30T20:07:17,0Z",
            "2025-10-30T20:07:17Z[UTC]",
            "2025-10-30T21:07:17+01:00[Europe/Paris]",
            "2025-10-30T21:07:17+01:00[!Europe/Paris][u-ca=gregory]",
            "2025-W44-4T20:07:17Z",
            "2025W444T200717Z",
            "2025-303T20:07:17Z",
            "2025303T200717Z",
        ] {
            assert_eq!(iso(same), Some(base()), "{same}");
        }
    }

    #[test]
    fn reduced_and_fractional_times_and_the_ends_of_days_are_read() {
        let is = |text: &str, same: &str| assert_eq!(iso(text), Some(iso(same).expect(same)), "{text}");
        is("2025-10-30T20:07Z", "2025-10-30T20:07:00Z");
        is("2025-10-30T2007Z", "2025-10-30T20:07:00Z");
        is("2025-10-30T20Z", "2025-10-30T20:00:00Z");
        is("2025-10-30T20:07,5Z", "2025-10-30T20:07:30Z");
        is("2025-10-30T20.25Z", "2025-10-30T20:15:00Z");
        is("2025-10-30T24:00:00Z", "2025-10-31T00:00:00Z");
        is("2025-12-31T24:00Z", "2026-01-01T00:00:00Z");
        is("20251030T240000,000+0200", "2025-10-30T22:00:00Z");
        is("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z");
        is("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00.5Z");
        is("2025-10-30T20:07:17.553123999999999Z", "2025-10-30T20:07:17.553123Z");
        is("2024-02-29T00:00:00Z", "2024-060T00:00:00Z");
    }

    #[test]
    fn what_names_no_instant_is_not_read() {
        for bad in [
            "",
            "yesterday",
            "2025-10-30",
            "2025-10-30T20:07:17",
            "2025-10-30T20:07:17[Europe/Paris]",
            "2025-10-30TZ",
            "T20:07:17Z",
            "2025-13-01T00:00:00Z",
            "2025-02-30T00:00:00Z",
            "2025-10-30T25:00:00Z",
            "2025-10-30T24:00:01Z",
            "2025-10-30T24:30Z",
            "2025-10-30T20:60:00Z",
            "2025-10-30T20:07:61Z",
            "2025-10-30T20:07:17.Z",
            "2025-10-30T20:7:17Z",
            "2025-10-30T200Z",
            "2025-10-30T20:07:17+",
            "2025-10-30T20:07:17+25:00",
            "2025-10-30T20:07:17+02:00:00:00",
            "2025-10-30T20:07:17+-02:00",
            "2025-10-30T20:07:17CET",
            "2025-10-30T20:07:17Z[text with blanks]",
            "2025-10-30T20:07:17Z and more",
            "2025-W54-1T00:00:00Z",
            "2025-W44-8T00:00:00Z",
            "2025-366T00:00:00Z",
            "30.10.2025 20:07:17Z",
            "10/30/2025T20:07:17Z",
            "1761854837",
            "２０25-10-30T20:07:17Z",
            "202\u{2212}-10-30T20:07:17Z",
        ] {
            assert_eq!(iso(bad), None, "{bad}");
        }
        assert_eq!(iso(&format!("2025-10-30T20:07:17.{}Z", "0".repeat(MAX_BYTES))), None);
    }

    #[test]
    fn numbers_are_read_in_the_unit_that_fits() {
        for same in ["1761854837", "1761854837.0", "1761854837000", "1761854837000.0", "1761854837000000", "1761854837000000000"] {
            assert_eq!(epoch(same), Some(base()), "{same}");
        }
        assert_eq!(epoch("1761854837.553"), iso("2025-10-30T20:07:17.553Z"));
        assert_eq!(epoch("1761854837553.25"), iso("2025-10-30T20:07:17.55325Z"));
        for bad in [
            "",
            "0",
            "5",
            "-1761854837",
            "20251030",
            "20251030200717",
            "1e9",
            "1761854837.",
            ".5",
            "9223372036854775807",
            "99999999999999999999",
        ] {
            assert_eq!(epoch(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn rfc_3339_is_read_as_chrono_reads_it(micros in -62_135_596_800_000_000..253_402_300_799_000_000_i64, offset in -1439..1440_i32) {
            let offset = chrono::FixedOffset::east_opt(offset * 60).expect("an offset");
            let time = DateTime::from_timestamp_micros(micros).expect("a time").with_timezone(&offset);
            let within = |time: DateTime<_>| (1..=9998).contains(&chrono::Datelike::year(&time));
            prop_assume!(within(time) && within(time + Duration::days(1)));
            let text = time.to_rfc3339();
            prop_assert_eq!(iso(&text), Some(Timestamp(micros)), "{}", text);
        }

        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,40}", time in "[0-9TtZzWw:.,+\\- \u{2212}\\[\\]]{0,40}") {
            let _ = (iso(&text), epoch(&text), iso(&time), epoch(&time));
        }
    }
}
