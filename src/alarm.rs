//! Alarms: what an operator must know and do, said once in a while however often it happens.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the same alarm is not logged again.
const SILENCE: Duration = Duration::from_secs(30);

/// What alarms are about: the label of `leadfold_alarms_total`.
pub const CAUSES: [&str; 6] = ["store_unavailable", "store_refuses", "store_corrupt", "spool", "dead_letters", "clock"];

/// Remembers what was said.
#[derive(Debug, Default)]
pub struct Alarm {
    said: Mutex<HashMap<&'static str, Instant>>,
}

impl Alarm {
    /// Counts an alarm, and logs it unless its cause was logged just now. The cause is one of [`CAUSES`].
    pub fn raise(&self, cause: &'static str, what: &dyn Display) {
        debug_assert!(CAUSES.contains(&cause), "add {cause:?} to CAUSES: its count has to begin at zero");
        metrics::counter!("leadfold_alarms_total", "cause" => cause).increment(1);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if said.get(cause).is_none_or(|last| now.duration_since(*last) >= SILENCE) {
            said.insert(cause, now);
            drop(said);
            tracing::error!(cause, "{what}");
        }
    }
}
