//! What a body costs: no body of 1 MiB takes more than 250 ms of CPU, and none more than in proportion to its length.

use std::time::{Duration, Instant};

use super::hostile::{Shape, shapes};
use crate::dead_letters::redact;
use crate::event::{self, Body};
use crate::fold::effect::{CountDeltas, Effect, Extremes};
use crate::fold::{self, Folded, Receipt};
use crate::lead::{Change, Lead};
use crate::spool::record as spool;
use crate::store::record;
use crate::time::Timestamp;

/// The greatest body that is taken.
const MEBIBYTE: usize = 1 << 20;
/// What it may cost in a program that is built for release.
const MOST: Duration = Duration::from_millis(250);
/// How much slower this build may be: it is neither optimised nor free of checks, or counts what the fuzzer has covered.
const SLOWER: u32 = if cfg!(fuzzing) {
    4
} else if cfg!(debug_assertions) {
    5
} else {
    1
};

/// Takes a number that chooses a shape, and its length. The rest is put into the filled body, wherever that may be.
pub fn cost(data: &[u8]) {
    use std::sync::LazyLock;
    static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(shapes);
    let [one, two, length, at @ ..] = data else { return };
    let shape = &SHAPES[usize::from(u16::from_be_bytes([*one, *two])) % SHAPES.len()];
    let mut body = shape.body((usize::from(*length) + 1) * (MEBIBYTE / 256) - at.len());
    let place = at.first().map_or(0, |at| usize::from(*at) * body.len() / 256);
    body.splice(place..place, at.iter().copied());
    let took = cpu_of(&body);
    assert!(took < MOST * SLOWER, "{took:?} for {}", shape.name);
}

/// How much CPU it takes to do all that is done with a body.
fn cpu_of(body: &[u8]) -> Duration {
    let began = ThreadTime::now();
    work(body);
    began.elapsed()
}

/// All that is done with a body, whatever becomes of it.
fn work(body: &[u8]) {
    let receipt = Receipt { at: Timestamp::from_millis(1_790_000_000_000), workspace_id: None };
    let body_read = Body::new(body);
    let folded = event::parse(&body_read).and_then(|event| fold::fold(&event, receipt));
    if let Ok(Folded::Change(change)) = &folded {
        store(change);
        spool::encode(change, spool::Meta::of(change)).expect("JSON");
        std::hint::black_box(change.memory());
    }
    // A refused event becomes a dead letter, and so does one of a lead that belongs to another workspace.
    std::hint::black_box(redact::event(body));
}

/// What stores do with a change, apart from reading and writing: on a new lead, and on one that holds all of it but the
/// profile and the activity, which give way.
fn store(change: &Change) {
    let mut details = vec![None; change.additions.len()];
    for _ in 0..2 {
        let effect = Effect::of(change, None, &details);
        let mut lead = Lead::default();
        for (index, detail) in effect.details {
            record::encode_detail_key(detail.key());
            record::encode_detail(&detail, 1);
            lead.insert(detail.clone());
            details[index] = Some(detail);
        }
        lead.sort_documents();
        if let Some(activity) = &change.activity {
            record::encode_activity(activity, 1);
            std::hint::black_box(CountDeltas::of(activity, None));
            Extremes::default().add(activity);
        }
    }
}

/// The CPU time of this thread: other processes do not count.
enum ThreadTime {
    /// As Linux tells it.
    Cpu(Duration),
    /// Elsewhere the clock has to do.
    Wall(Instant),
}

impl ThreadTime {
    fn now() -> Self {
        Self::cpu().map_or_else(|| Self::Wall(Instant::now()), Self::Cpu)
    }

    fn cpu() -> Option<Duration> {
        let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(Duration::from_nanos(schedstat.split(' ').next()?.parse().ok()?))
    }

    fn elapsed(&self) -> Duration {
        match self {
            Self::Cpu(began) => Self::cpu().unwrap_or_default().saturating_sub(*began),
            Self::Wall(began) => began.elapsed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes that are looked at more closely: those that cost most of those that are filled with the same.
    const COSTLY: usize = 12;

    /// Each shape at a size at which more than linear cost shows already, and those that cost most at full size.
    ///
    /// Tests are not optimised, so the bound is that of the release times [`SLOWER`]; `cargo test --release` knows none.
    #[test]
    fn no_body_costs_much_and_none_more_than_in_proportion() {
        let sample = if cfg!(debug_assertions) { MEBIBYTE / 16 } else { MEBIBYTE };
        let mut costs: Vec<(Duration, Shape)> = shapes().into_iter().map(|shape| (cpu_of(&shape.body(sample)), shape)).collect();
        costs.sort_by(|(one, _), (other, _)| other.cmp(one));
        let count = costs.len();
        let mut fillings = std::collections::HashSet::new();
        costs.retain(|(_, shape)| fillings.insert(shape.name.split_once(": ").map(|(_, filling)| filling.to_owned())));
        for (took, shape) in costs.into_iter().take(COSTLY) {
            let least = |size: usize| (0..3).map(|_| cpu_of(&shape.body(size))).min().unwrap_or_default();
            let (half, whole) = (least(MEBIBYTE / 2), least(MEBIBYTE));
            println!("{took:?} for {sample} bytes, {half:?} for half a MiB, {whole:?} for one: {}", shape.name);
            assert!(whole < MOST * SLOWER, "{whole:?} for {}", shape.name);
            // The clock of a thread may move in steps of some milliseconds.
            assert!(whole < half.mul_f64(2.6) + Duration::from_millis(10), "{half:?}, then {whole:?} for {}", shape.name);
        }
        println!("{count} shapes");
    }

    /// The measure would see what it is there for.
    #[test]
    fn quadratic_work_is_noticed() {
        let quadratic = |count: u64| {
            let began = ThreadTime::now();
            let pairs = (0..count).map(|one| (0..count).filter(|other| std::hint::black_box(one ^ other) == 7).count()).sum::<usize>();
            assert_eq!(pairs as u64, count);
            began.elapsed()
        };
        let (half, whole) = (quadratic(2000), quadratic(4000));
        assert!(whole > half.mul_f64(2.6), "{half:?}, then {whole:?}");
    }
}
