//! The flags of the spool and of dead letters.

use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::validate::number;

/// The flags, as given.
#[derive(Clone, Debug, Args)]
pub struct SpoolArgs {
    /// Bytes on disk for events that Redis cannot take (0: no spool; at least 1 MiB)
    #[arg(long, env = "LEADFOLD_SPOOL_MAX_BYTES", value_name = "BYTES", default_value_t = 1 << 30)]
    pub spool_max_bytes: u64,
    /// Spooled events applied per second at most, when Redis is back
    #[arg(long, env = "LEADFOLD_SPOOL_DRAIN_RATE", value_name = "N", default_value_t = 5000)]
    pub spool_drain_rate: u64,
    /// Refused events kept as dead letters (0: none); the oldest give way
    #[arg(long, env = "LEADFOLD_DEAD_LETTER_MAX", value_name = "N", default_value_t = 10_000)]
    pub dead_letter_max: u64,
    /// Bytes of dead letters kept; the oldest give way
    #[arg(long, env = "LEADFOLD_DEAD_LETTER_MAX_BYTES", value_name = "BYTES", default_value_t = 256 << 20)]
    pub dead_letter_max_bytes: u64,
    /// Days that a dead letter is kept
    #[arg(long, env = "LEADFOLD_DEAD_LETTER_DAYS", value_name = "DAYS", default_value_t = 30)]
    pub dead_letter_days: u64,
    /// Keep bodies that are not JSON as dead letters, with everything that is in them [default: false]
    #[arg(long, env = "LEADFOLD_DEAD_LETTER_KEEP_RAW", value_parser = BoolishValueParser::new())]
    pub dead_letter_keep_raw: bool,
}

/// What they come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// Bytes of the spool; none: no spool.
    pub max_bytes: Option<u64>,
    /// Events per second that are drained at most.
    pub drain_rate: u32,
    /// How many dead letters are kept; none: no dead letters.
    pub dead_letters: Option<DeadLetterConfig>,
}

/// What is kept of events that were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterConfig {
    /// Letters.
    pub count: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How long a letter is kept.
    pub age: Duration,
    /// Whether bodies that cannot be parsed are kept as they came.
    pub keep_raw: bool,
}

impl SpoolArgs {
    pub(super) fn validate(self, wrong: &mut Vec<String>) -> SpoolConfig {
        let max_bytes = match self.spool_max_bytes {
            0 => None,
            bytes => Some(number("--spool-max-bytes", bytes, 1 << 20, 1 << 50, wrong)),
        };
        let days: u64 = number("--dead-letter-days", self.dead_letter_days, 1, 3650, wrong);
        let limits = DeadLetterConfig {
            count: number("--dead-letter-max", self.dead_letter_max, 0, 10_000_000, wrong),
            bytes: number("--dead-letter-max-bytes", self.dead_letter_max_bytes, 64 << 10, 1 << 50, wrong),
            age: Duration::from_secs(days * 24 * 60 * 60),
            keep_raw: self.dead_letter_keep_raw,
        };
        SpoolConfig {
            max_bytes,
            drain_rate: number("--spool-drain-rate", self.spool_drain_rate, 1, 1_000_000, wrong),
            dead_letters: (limits.count > 0).then_some(limits),
        }
    }
}
