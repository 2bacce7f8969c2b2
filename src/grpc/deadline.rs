//! Deadlines that callers set by `grpc-timeout`: calls that take longer, streams too, end with `DEADLINE_EXCEEDED`.
//!
//! tonic looks after deadlines in its own server, and there only until an answer begins. A client ends its call by
//! itself when the time is over, but one behind a proxy may not be able to tell.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

/// When a call with these headers has to end, if its caller said so.
pub(super) fn of(headers: &HeaderMap) -> Option<Instant> {
    allowed(headers).map(|allowed| Instant::now() + allowed)
}

pub(super) fn exceeded() -> Status {
    Status::deadline_exceeded("the call took longer than its grpc-timeout allows")
}

/// `grpc-timeout`: at most eight digits and a unit. One that is broken, or further off than anyone waits, is none.
fn allowed(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    let allowed = match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    (allowed < Duration::from_secs(365 * 24 * 3600)).then_some(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let read =
            |text: &str| allowed(&HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), text.parse().expect(text))]));
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5), ("6000000n", 6), ("0m", 0)] {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "m", "5", "-5m", "+5m", "5 m", "5x", "123456789m", "99999999H", "\u{e4}"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
