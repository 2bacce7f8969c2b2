//! The circuit breaker: a store that fails is not asked for every event.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Failures in a row, after which the store is no longer asked.
const FAILURES: u32 = 3;
/// While it is not, one event in this time finds out whether it works again.
const PROBE: Duration = Duration::from_secs(1);

/// One for each part of the store that may fail by itself.
#[derive(Debug)]
pub struct Breaker {
    epoch: Instant,
    parts: Vec<Gate>,
    /// How many parts are not asked.
    open: AtomicUsize,
}

#[derive(Debug, Default)]
struct Gate {
    failures: AtomicU32,
    /// When to ask again, in ms since the epoch.
    again: AtomicU64,
}

impl Breaker {
    /// For a store of so many parts: one, or the partitions of a cluster, whose servers fail one by one.
    pub fn new(parts: u16) -> Self {
        let parts = std::iter::repeat_with(Gate::default).take(usize::from(parts.max(1))).collect();
        Self { epoch: Instant::now(), parts, open: AtomicUsize::new(0) }
    }

    /// Whether the store is to be asked now. Where it fails, that is so once in a while.
    pub fn admits(&self, partition: u16) -> bool {
        self.part(partition).admits(self.now())
    }

    /// The store did what it was asked.
    pub fn succeeded(&self, partition: u16) {
        if self.part(partition).clear() >= FAILURES && self.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!("the store takes events again");
        }
    }

    /// The store could not do what it was asked.
    pub fn failed(&self, partition: u16) {
        let again = self.now() + u64::try_from(PROBE.as_millis()).unwrap_or(u64::MAX);
        if self.part(partition).fail(again) + 1 == FAILURES && self.open.fetch_add(1, Ordering::Relaxed) == 0 {
            let part = if self.parts.len() > 1 { "a part of the store" } else { "the store" };
            tracing::warn!("{part} cannot take events: they are spooled until it can");
        }
    }

    /// Whether no part of the store is asked for every event.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.parts.len()
    }

    /// Whether the store, or a part of it, is no longer asked.
    pub fn is_open_anywhere(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    fn part(&self, partition: u16) -> &Gate {
        // There is one at least.
        &self.parts[usize::from(partition) % self.parts.len()]
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Gate {
    fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
    }

    fn admits(&self, now: u64) -> bool {
        if !self.is_open() {
            return true;
        }
        let again = self.again.load(Ordering::Relaxed);
        let next = now + u64::try_from(PROBE.as_millis()).unwrap_or(u64::MAX);
        // Of those who come at the same time one is let through.
        now >= again && self.again.compare_exchange(again, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// How many failures there were. Nearly always none: then nothing is written that others read.
    fn clear(&self) -> u32 {
        if self.failures.load(Ordering::Relaxed) == 0 { 0 } else { self.failures.swap(0, Ordering::Relaxed) }
    }

    /// How many failures there were before.
    fn fail(&self, again: u64) -> u32 {
        self.again.store(again, Ordering::Relaxed);
        self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |failures| failures.checked_add(1)).unwrap_or(u32::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_fails_is_asked_once_in_a_while() {
        let breaker = Breaker::new(1);
        for _ in 0..FAILURES {
            assert!(breaker.admits(0) && !breaker.is_open());
            breaker.failed(7);
        }
        assert!(breaker.is_open() && !breaker.admits(0) && !breaker.admits(1));
        breaker.parts[0].again.store(0, Ordering::Relaxed);
        assert!(breaker.admits(1) && !breaker.admits(1), "one finds out");
        breaker.succeeded(1);
        assert!(!breaker.is_open_anywhere() && breaker.admits(1) && breaker.admits(2));
    }

    #[test]
    fn a_part_that_fails_does_not_stop_the_others() {
        let breaker = Breaker::new(4);
        for _ in 0..10 {
            breaker.failed(2);
        }
        assert!(!breaker.is_open() && breaker.is_open_anywhere());
        assert!(!breaker.admits(2) && breaker.admits(3) && breaker.admits(0));
        breaker.succeeded(2);
        assert!(breaker.admits(2) && !breaker.is_open_anywhere());
    }
}
