//! The store's time, as well as this instance knows it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Timestamp;

/// When this program was built: see `build.rs`. A clock that says less is wrong.
const BUILT_AT: Timestamp = match i64::from_str_radix(env!("LEADFOLD_BUILT_AT"), 10) {
    Ok(seconds) => Timestamp::from_millis(seconds.saturating_mul(1000)),
    Err(_) => panic!("build.rs writes a number of seconds"),
};

/// How far two clocks may drift apart: the kernel's own limit for a clock that NTP corrects, 500 parts per million.
const MICROS_OF_ONE_DRIFTED: u128 = 2000;

/// A clock that follows the store's.
///
/// Several instances fold the events of one lead, and each has a local clock of its own, which may be wrong by days. So
/// times of receipt are the store's time: the local time plus an offset, which is learned from what the store says
/// of its clock. Until then, and with the embedded store, it is the local time.
///
/// Copies share what they learn. Reading it takes no lock.
#[derive(Clone)]
pub struct Clock(Arc<Shared>);

struct Shared {
    /// Microseconds that the store's clock is ahead of the local one.
    offset: AtomicI64,
    has_learned: AtomicBool,
    /// The latest time that it has told, where it must not go back.
    latest: Option<AtomicI64>,
    /// Where the offset comes from. Held by those who learn, one at a time.
    estimate: Mutex<Option<Estimate>>,
}

/// One measurement of the offset: the store read its clock at some time between question and answer. So the middle
/// is wrong by half of the round trip at most.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    offset: i64,
    error: u128,
    taken: Instant,
}

impl Estimate {
    /// How wrong it may be by now, in microseconds: clocks drift.
    fn error_at(&self, now: Instant) -> u128 {
        self.error + now.saturating_duration_since(self.taken).as_micros() / MICROS_OF_ONE_DRIFTED
    }
}

impl Clock {
    /// The local clock, until something is learned.
    pub fn local() -> Self {
        Self::new(None)
    }

    /// The local clock, which never goes back behind a time that it told, or behind `latest`, which it told before a restart.
    pub fn steady(latest: Option<Timestamp>) -> Self {
        let clock = Self::new(Some(latest.map_or(i64::MIN, Timestamp::micros)));
        clock.0.has_learned.store(latest.is_some_and(|latest| latest >= BUILT_AT), Ordering::Release);
        clock
    }

    fn new(latest: Option<i64>) -> Self {
        Self(Arc::new(Shared {
            offset: AtomicI64::new(0),
            has_learned: AtomicBool::new(false),
            latest: latest.map(AtomicI64::new),
            estimate: Mutex::new(None),
        }))
    }

    /// The present, to the millisecond, by the store's clock as far as it is known.
    pub fn now(&self) -> Timestamp {
        let now = self.at(local_micros());
        match &self.0.latest {
            Some(latest) => now.max(Timestamp::from_micros(latest.fetch_max(now.micros(), Ordering::Relaxed))),
            None => now,
        }
    }

    /// Learns from an answer of the store which said `store_time`, and which came `round_trip` after its question.
    /// Call it as soon as the answer is here: until then the present runs on.
    ///
    /// An estimate that contradicts the one before means that one of the clocks was set: it is believed at once. Of
    /// two that agree the more precise one stays, which is the one with the shorter round trip unless it is old.
    pub fn learn(&self, store_time: Timestamp, round_trip: Duration) {
        self.learn_at(Instant::now(), local_micros(), store_time, round_trip);
    }

    /// Whether the store's time was ever learned.
    pub fn has_learned(&self) -> bool {
        self.0.has_learned.load(Ordering::Acquire)
    }

    /// Whether this is the store's clock by now: the embedded store has the local one.
    pub fn is_of_the_store(&self) -> bool {
        self.0.latest.is_some() || self.has_learned()
    }

    /// Whether this clock can be right: it follows the store's, or is at least not before this program was built.
    pub fn is_credible(&self) -> bool {
        self.is_credible_at(local_micros())
    }

    fn at(&self, local: i64) -> Timestamp {
        let micros = local.saturating_add(self.0.offset.load(Ordering::Relaxed));
        Timestamp::from_millis(micros.div_euclid(1000))
    }

    fn is_credible_at(&self, local: i64) -> bool {
        self.has_learned() || local >= BUILT_AT.micros()
    }

    fn learn_at(&self, now: Instant, local: i64, store_time: Timestamp, round_trip: Duration) {
        let half = round_trip.as_micros() / 2;
        let middle = local.saturating_sub(i64::try_from(half).unwrap_or(i64::MAX));
        // A store that tells whole milliseconds must not seem to contradict itself.
        let new = Estimate { offset: store_time.micros().saturating_sub(middle), error: half + 1000, taken: now };
        let mut estimate = self.0.estimate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = *estimate {
            let error = old.error_at(now);
            let agree = u128::from(new.offset.abs_diff(old.offset)) <= error + new.error;
            if agree && error < new.error {
                return;
            }
        }
        *estimate = Some(new);
        self.0.offset.store(new.offset, Ordering::Relaxed);
        self.0.has_learned.store(true, Ordering::Release);
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::local()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.0.offset.load(Ordering::Relaxed);
        f.debug_struct("Clock").field("offset_micros", &offset).field("has_learned", &self.has_learned()).finish()
    }
}

/// The local clock, in microseconds since the epoch; a clock before the epoch stands at it.
fn local_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const HOUR: i64 = 3600 * SECOND;
    /// The local time of most tests.
    const LOCAL: i64 = 2_000_000_000 * SECOND;

    /// Learns as `learn` does, at a local time of the test's choice: the store reads its clock after half of the round trip.
    fn learn(clock: &Clock, now: Instant, local: i64, ahead: i64, round_trip: Duration) {
        let half = i64::try_from(round_trip.as_micros() / 2).expect("a short time");
        clock.learn_at(now, local, Timestamp::from_micros(local - half + ahead), round_trip);
    }

    fn offset(clock: &Clock) -> i64 {
        clock.at(LOCAL).micros() - LOCAL
    }

    #[test]
    fn a_steady_clock_never_goes_back() {
        let ahead = Timestamp::from_micros(local_micros() + HOUR);
        let clock = Clock::steady(Some(ahead));
        assert_eq!((clock.now(), clock.is_credible()), (ahead, true), "it told that time before");
        let behind = Clock::steady(Some(Timestamp::from_micros(local_micros() - HOUR)));
        assert!(behind.now().micros().abs_diff(local_micros()) < 10 * SECOND.unsigned_abs());
    }

    #[test]
    fn it_is_the_local_clock_until_it_learns() {
        let clock = Clock::local();
        let (before, now, after) = (Timestamp::now(), clock.now(), Timestamp::now());
        assert!(before <= now && now <= after, "{before:?} {now:?} {after:?}");
        assert!(!clock.has_learned());
        assert_eq!(now.micros() % 1000, 0, "to the millisecond, as versions are");
    }

    #[test]
    fn it_follows_the_store_and_so_do_its_copies() {
        let clock = Clock::local();
        let copy = clock.clone();
        clock.learn(Timestamp::from_micros(local_micros() + 48 * HOUR), Duration::from_millis(2));
        for clock in [clock, copy] {
            assert!(clock.has_learned());
            let ahead = clock.now().micros() - local_micros();
            assert!((ahead - 48 * HOUR).abs() < SECOND, "{ahead}");
        }
    }

    #[test]
    fn the_store_is_taken_to_have_answered_in_the_middle() {
        let clock = Clock::local();
        clock.learn_at(Instant::now(), LOCAL, Timestamp::from_micros(LOCAL), Duration::from_millis(500));
        assert_eq!(offset(&clock), SECOND / 4);
    }

    #[test]
    fn of_estimates_that_agree_the_one_with_the_shorter_round_trip_stands() {
        // The truth is 5 s. An answer that took nearly all of its time on the way back is wrong by nearly half of it.
        let precise = |clock: &Clock, now| learn(clock, now, LOCAL, 5 * SECOND, Duration::from_millis(2));
        let rough = |clock: &Clock, now| learn(clock, now, LOCAL, 5 * SECOND + 190_000, Duration::from_millis(400));
        let (clock, start) = (Clock::local(), Instant::now());
        let later = start + Duration::from_secs(1);
        rough(&clock, start);
        assert_eq!(offset(&clock), 5 * SECOND + 190_000);
        precise(&clock, later);
        assert_eq!(offset(&clock), 5 * SECOND);
        rough(&clock, later);
        assert_eq!(offset(&clock), 5 * SECOND, "a rough estimate takes the place of a precise one");
    }

    #[test]
    fn it_follows_a_clock_that_drifts() {
        let (clock, start) = (Clock::local(), Instant::now());
        // The first answer came sooner than any later one, so it would stay for ever if it did not age.
        learn(&clock, start, LOCAL, 0, Duration::from_micros(100));
        for minute in 1..=60_i64 {
            let ahead = minute * 6000;
            let now = start + Duration::from_secs(60 * minute.unsigned_abs());
            learn(&clock, now, LOCAL + minute * 60 * SECOND, ahead, Duration::from_millis(4));
            assert!((offset(&clock) - ahead).abs() <= 6000, "100 parts per million, after {minute} minutes: {}", offset(&clock));
        }
    }

    #[test]
    fn a_jump_of_either_clock_is_followed_at_once() {
        let start = Instant::now();
        for (local, ahead) in
            [(LOCAL - 400 * 24 * HOUR, 400 * 24 * HOUR), (LOCAL + 2 * HOUR, -2 * HOUR), (LOCAL, SECOND), (LOCAL, -5 * SECOND)]
        {
            let clock = Clock::local();
            learn(&clock, start, LOCAL, 0, Duration::from_micros(200));
            // Less precise than what is known: what contradicts it counts all the same.
            learn(&clock, start + Duration::from_secs(1), local, ahead, Duration::from_millis(20));
            assert_eq!(offset(&clock), ahead);
            assert_eq!(clock.at(local), Timestamp::from_micros(local + ahead));
        }
    }

    #[test]
    fn a_clock_before_the_build_is_not_credible_unless_it_has_learned() {
        let clock = Clock::local();
        assert!(clock.is_credible(), "this machine's clock is before the build of this test");
        assert!(clock.is_credible_at(BUILT_AT.micros()) && !clock.is_credible_at(BUILT_AT.micros() - 1) && !clock.is_credible_at(0));
        learn(&clock, Instant::now(), 0, LOCAL, Duration::from_millis(1));
        assert!(clock.is_credible_at(0));
        assert_eq!(clock.at(0), Timestamp::from_micros(LOCAL));
    }

    #[test]
    fn absurd_times_do_not_overflow() {
        let clock = Clock::local();
        for store in [i64::MIN, i64::MAX] {
            clock.learn(Timestamp::from_micros(store), Duration::MAX);
            clock.now();
        }
    }
}
