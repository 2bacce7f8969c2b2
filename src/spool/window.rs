//! Which spooled entries are held in memory, and which of these are tried next.
//!
//! An entry goes through a lane: the partition of the store that its lead is in, or the dead letters. A lane that fails
//! may hold only its share of the window. What comes behind that is skipped: not held, but remembered by the sequence
//! number of the first. So the entries of the other lanes go on, however many wait for a part of the store that is
//! away. When the lane works again its skipped entries are read from the disk once more, from the first on, in order.
//! Until that has caught up with the reading of new entries, new ones of this lane are skipped too. So the entries of a
//! lead, which are all in one partition, stay in their order.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::reader::{Entry, Unreadable};
use crate::time::Timestamp;

/// Entries that are held.
pub(super) const ENTRIES: usize = 8192;
/// And their bytes.
pub(super) const BYTES: usize = 32 << 20;
/// Lanes that fail and are tried at the same time.
const PROBES: usize = 64;
/// The first and the longest wait after a failure; it doubles.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What an entry needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Partition(u16),
    DeadLetters,
}

/// Entries that are tried one after the other: those of one lead.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) entries: Vec<Arc<Entry>>,
    /// The lane that fails, and of which this finds out whether it still does.
    probe: Option<Lane>,
}

/// How many entries may be tried at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Most {
    Entries(usize),
    /// One: while the whole store fails, it finds out whether it still does.
    One,
}

/// Whether skipped entries are to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    No,
    /// Where that was left off.
    GoOn,
    /// From this sequence number on.
    From(u64),
}

#[derive(Debug, Default)]
pub(super) struct Window {
    held: BTreeMap<u64, Held>,
    bytes: usize,
    /// How many of them are being tried.
    in_flight: usize,
    lanes: HashMap<Lane, LaneState>,
    /// Lanes whose skipped entries are being read again: each from its first on.
    again: HashSet<Lane>,
    done: Done,
}

#[derive(Debug)]
struct Held {
    entry: Arc<Entry>,
    lane: Lane,
    in_flight: bool,
}

#[derive(Debug, Default)]
struct LaneState {
    failing: Option<Failing>,
    skipped: Option<Skipped>,
    held: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    /// When it is tried again.
    again: Instant,
    wait: Duration,
    /// It is being tried.
    probing: bool,
}

/// All entries of a lane from a sequence number on that are neither held nor done.
#[derive(Clone, Copy, Debug)]
struct Skipped {
    from: u64,
    /// When the first of them was received; not later than it.
    received: Option<Timestamp>,
}

impl Window {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether more may be read.
    pub(super) fn has_room(&self) -> bool {
        self.held.len() < ENTRIES && self.bytes < BYTES
    }

    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Takes an entry that was read for the first time, or skips it.
    pub(super) fn take(&mut self, entry: Entry, lane: Lane) {
        let share = self.share();
        let state = self.lanes.entry(lane).or_default();
        if state.skipped.is_some() {
            return;
        }
        let is_full = state.held >= share.0 || state.held > 0 && state.bytes + entry.bytes > share.1;
        if state.failing.is_some() && is_full && lane != Lane::DeadLetters {
            state.skipped = Some(Skipped { from: entry.sequence, received: entry.meta.map(|meta| meta.received) });
            return;
        }
        self.hold(entry, lane);
    }

    /// Takes an entry that was skipped and has been read again. All others that are read beside it are known.
    pub(super) fn take_again(&mut self, entry: Entry, lane: Lane) {
        if let Err(unreadable) = &entry.change
            && lane == Lane::DeadLetters
        {
            return self.take_damaged(&entry, unreadable);
        }
        if !self.again.contains(&lane) || self.is_known(entry.sequence) {
            return;
        }
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.skipped = Some(Skipped { from: entry.sequence + 1, received: entry.meta.map(|meta| meta.received) });
        }
        self.hold(entry, lane);
    }

    /// What was damaged since it was read first: of these records, those that had been skipped are lost.
    fn take_damaged(&mut self, entry: &Entry, unreadable: &Unreadable) {
        let end = entry.sequence + entry.count;
        let mut from = entry.sequence;
        while from < end {
            if self.is_known(from) {
                from += 1;
                continue;
            }
            let to = (from..end).find(|sequence| self.is_known(*sequence)).unwrap_or(end);
            let change = Err(unreadable.clone());
            self.hold(Entry { sequence: from, count: to - from, meta: entry.meta, bytes: entry.bytes, change }, Lane::DeadLetters);
            from = to;
        }
    }

    /// Whether an entry is held or done.
    fn is_known(&self, sequence: u64) -> bool {
        let held = self.held.range(..=sequence).next_back().map(|(_, held)| &held.entry);
        self.done.contains(sequence) || held.is_some_and(|entry| sequence < entry.sequence + entry.count)
    }

    fn hold(&mut self, entry: Entry, lane: Lane) {
        let state = self.lanes.entry(lane).or_default();
        state.held += 1;
        state.bytes += entry.bytes;
        self.bytes += entry.bytes;
        self.held.insert(entry.sequence, Held { entry: Arc::new(entry), lane, in_flight: false });
    }

    fn remove(&mut self, sequence: u64) -> Option<Held> {
        let held = self.held.remove(&sequence)?;
        let bytes = held.entry.bytes;
        self.bytes -= bytes;
        if let Some(state) = self.lanes.get_mut(&held.lane) {
            state.held -= 1;
            state.bytes -= bytes;
        }
        Some(held)
    }

    /// What each lane that fails may hold: entries, and bytes. All of them together may hold a half of the window.
    fn share(&self) -> (usize, usize) {
        let failing = self.lanes.values().filter(|state| state.failing.is_some()).count().max(1);
        ((ENTRIES / 2 / failing).max(1), BYTES / 2 / failing)
    }

    /// What is tried next, and is in flight from now on. Entries of one lead are in their order.
    pub(super) fn choose(&mut self, now: Instant, most: Most) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut left = match most {
            Most::Entries(most) => most.saturating_sub(self.in_flight),
            Most::One => usize::from(self.in_flight == 0),
        };
        let mut probes =
            PROBES.saturating_sub(self.lanes.values().filter(|state| state.failing.is_some_and(|failing| failing.probing)).count());
        if most == Most::One {
            probes = left;
        }
        // Leads of which an entry must be done before others.
        let mut blocked: HashSet<u64> = HashSet::new();
        let mut of_lead: HashMap<u64, usize> = HashMap::new();
        for held in self.held.values_mut() {
            if left == 0 && probes == 0 {
                break;
            }
            let lead = held.entry.meta.map(|meta| meta.lead);
            if lead.is_some_and(|lead| blocked.contains(&lead)) {
                continue;
            }
            let failing = self.lanes.get_mut(&held.lane).and_then(|state| state.failing.as_mut());
            let is_probe = failing.is_some();
            let may =
                !held.in_flight && failing.as_ref().map_or(left > 0, |failing| probes > 0 && failing.again <= now && !failing.probing);
            if !may {
                blocked.extend(lead);
                continue;
            }
            held.in_flight = true;
            self.in_flight += 1;
            let entry = Arc::clone(&held.entry);
            if let Some(failing) = failing {
                failing.probing = true;
                probes -= 1;
                blocked.extend(lead);
            } else {
                left -= 1;
            }
            if most == Most::One {
                (left, probes) = (0, 0);
            }
            let own = lead.and_then(|lead| of_lead.get(&lead).copied());
            if let Some(group) = own.and_then(|at| groups.get_mut(at)) {
                group.entries.push(entry);
                continue;
            }
            if let Some(lead) = lead.filter(|_| !is_probe) {
                of_lead.insert(lead, groups.len());
            }
            groups.push(Group { entries: vec![entry], probe: is_probe.then_some(held.lane) });
        }
        groups
    }

    /// A group was tried: so many of it are done, and the next one was stopped by a lane that fails. `evict`: whether
    /// what is beyond the share of lanes that fail is given up. Says whether the lane has failed just now.
    pub(super) fn tried(&mut self, group: &Group, done: usize, failed: Option<Lane>, now: Instant, evict: bool) -> bool {
        self.in_flight -= group.entries.len();
        if let Some(failing) = group.probe.and_then(|lane| self.lanes.get_mut(&lane)?.failing.as_mut()) {
            failing.probing = false;
        }
        for (at, entry) in group.entries.iter().enumerate() {
            if at >= done {
                if let Some(held) = self.held.get_mut(&entry.sequence) {
                    held.in_flight = false;
                }
            } else if let Some(held) = self.remove(entry.sequence) {
                self.done.add(entry.sequence, entry.count);
                if let Some(state) = self.lanes.get_mut(&held.lane) {
                    state.failing = None;
                }
            }
        }
        let Some(lane) = failed else { return false };
        if lane == Lane::DeadLetters
            && let Some(held) = group.entries.get(done).and_then(|entry| self.remove(entry.sequence))
        {
            // The store has answered: its part does not wait for the dead letters.
            let state = self.lanes.entry(lane).or_default();
            state.held += 1;
            state.bytes += held.entry.bytes;
            self.bytes += held.entry.bytes;
            self.held.insert(held.entry.sequence, Held { lane, ..held });
        }
        self.fail(lane, group.probe == Some(lane), now, evict)
    }

    fn fail(&mut self, lane: Lane, probe: bool, now: Instant, evict: bool) -> bool {
        self.again.remove(&lane);
        let state = self.lanes.entry(lane).or_default();
        let wait = match state.failing {
            None => BACKOFF.0,
            Some(failing) if probe => (failing.wait * 2).min(BACKOFF.1),
            // It was on its way already when another one failed.
            Some(_) => return false,
        };
        let is_new = state.failing.is_none();
        let again = now + wait.mul_f64(rand::random_range(0.5..1.0));
        state.failing = Some(Failing { again, wait, probing: false });
        if evict {
            self.evict();
        }
        is_new
    }

    /// Gives up what lanes that fail hold beyond their share: the last of their entries, to be read again later.
    fn evict(&mut self) {
        let share = self.share();
        let mut counts: HashMap<Lane, (usize, usize, bool)> = HashMap::new();
        let mut beyond = Vec::new();
        for (sequence, held) in &self.held {
            let is_failing = self.lanes.get(&held.lane).is_some_and(|state| state.failing.is_some());
            // Which entries need the dead letters is not known before they are tried.
            if !is_failing || held.lane == Lane::DeadLetters {
                continue;
            }
            let (count, bytes, is_full) = counts.entry(held.lane).or_default();
            *is_full |= *count >= share.0 || *count > 0 && *bytes + held.entry.bytes > share.1;
            *count += 1;
            *bytes += held.entry.bytes;
            // What is in flight is the first of its lead.
            if *is_full && !held.in_flight {
                beyond.push(*sequence);
            }
        }
        for sequence in beyond {
            let Some(held) = self.remove(sequence) else { continue };
            let state = self.lanes.entry(held.lane).or_default();
            if state.skipped.is_none_or(|skipped| skipped.from > sequence) {
                state.skipped = Some(Skipped { from: sequence, received: held.entry.meta.map(|meta| meta.received) });
            }
        }
    }

    /// Whether skipped entries are to be read again now: those of lanes that work again.
    pub(super) fn again(&mut self) -> Again {
        let wanted =
            || self.lanes.iter().filter(|(_, state)| state.failing.is_none()).filter_map(|(lane, state)| Some((*lane, state.skipped?)));
        let Some(from) = wanted().map(|(_, skipped)| skipped.from).min() else { return Again::No };
        if wanted().all(|(lane, _)| self.again.contains(&lane)) {
            return Again::GoOn;
        }
        self.again = wanted().map(|(lane, _)| lane).collect();
        Again::From(from)
    }

    /// Skipped entries were read again up to a sequence number. Where this has caught up with the first reading,
    /// nothing is skipped any more.
    pub(super) fn read_again(&mut self, up_to: u64, read: u64) {
        if up_to < read {
            return;
        }
        for lane in std::mem::take(&mut self.again) {
            if let Some(state) = self.lanes.get_mut(&lane) {
                state.skipped = None;
            }
        }
    }

    /// The first sequence number that is not done, where all below `read` were read. What is done below it is forgotten.
    pub(super) fn all_done_below(&mut self, read: u64) -> u64 {
        let skipped = self.lanes.values().filter_map(|state| state.skipped).map(|skipped| skipped.from);
        let below = skipped.chain(self.held.keys().next().copied()).min().unwrap_or(read).min(read);
        self.done.forget(below);
        below
    }

    /// When the oldest was received that is not done, of those that were read.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        let skipped = self.lanes.values().filter_map(|state| state.skipped).map(|skipped| (skipped.from, skipped.received));
        let held = self.held.iter().map(|(sequence, held)| (*sequence, held.entry.meta.map(|meta| meta.received)));
        let held = held.filter(|(_, received)| received.is_some()).take(1);
        skipped
            .chain(held)
            .filter_map(|(sequence, received)| Some((sequence, received?)))
            .min_by_key(|(sequence, _)| *sequence)
            .map(|(_, received)| received)
    }

    /// When the next lane that fails is to be tried again. Those that are being tried are left out.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let idle = self.lanes.values().filter(|state| state.held > 0);
        idle.filter_map(|state| state.failing).filter(|failing| !failing.probing).map(|failing| failing.again).min()
    }
}

/// The sequence numbers that are done, from the first that is not: a bit for each.
#[derive(Debug, Default)]
struct Done {
    /// Number of the first bit; all below are done. A multiple of 64.
    base: u64,
    words: VecDeque<u64>,
}

impl Done {
    fn add(&mut self, from: u64, count: u64) {
        for sequence in from..from + count {
            let Some(bit) = sequence.checked_sub(self.base) else { continue };
            let word = usize::try_from(bit / 64).unwrap_or(usize::MAX);
            if word >= self.words.len() {
                self.words.resize(word + 1, 0);
            }
            self.words[word] |= 1 << (bit % 64);
        }
    }

    fn contains(&self, sequence: u64) -> bool {
        let Some(bit) = sequence.checked_sub(self.base) else { return true };
        let word = usize::try_from(bit / 64).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    fn forget(&mut self, below: u64) {
        let base = below / 64 * 64;
        if base <= self.base {
            return;
        }
        let words = usize::try_from((base - self.base) / 64).unwrap_or(usize::MAX).min(self.words.len());
        self.words.drain(..words);
        self.base = base;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::lead::Change;
    use crate::spool::record::Meta;

    const PARTITIONS: u64 = 8;

    /// Entry `sequence` of a spool in which each lead is in the partition of its number.
    fn entry(lead: u64, sequence: u64, bytes: usize) -> (Entry, Lane) {
        let received = Timestamp::from_millis(sequence.cast_signed());
        let meta = Meta { received, lead, ordered: true };
        let lane = Lane::Partition(u16::try_from(lead % PARTITIONS).expect("a partition"));
        (Entry { sequence, count: 1, meta: Some(meta), bytes, change: Ok(Change::default()) }, lane)
    }

    fn sequences(groups: &[Group]) -> Vec<u64> {
        let mut sequences: Vec<u64> = groups.iter().flat_map(|group| &group.entries).map(|entry| entry.sequence).collect();
        sequences.sort_unstable();
        sequences
    }

    #[test]
    fn entries_of_a_part_that_works_pass_any_number_of_those_that_wait_for_another() {
        let now = Instant::now();
        let mut window = Window::default();
        for sequence in 0..ENTRIES as u64 {
            let (entry, lane) = entry(0, sequence, 100);
            window.take(entry, lane);
        }
        assert!(!window.has_room(), "full of what waits for partition 0");
        let mut groups = window.choose(now, Most::Entries(128));
        let group = groups.pop().expect("the lead");
        assert!(groups.is_empty() && group.entries.len() == 128);
        assert!(window.tried(&group, 0, Some(Lane::Partition(0)), now, true));
        assert!(window.has_room());
        for sequence in ENTRIES as u64..100_000 {
            let lead = if sequence.is_multiple_of(100) { 1 } else { 0 };
            let (entry, lane) = entry(lead, sequence, 100);
            window.take(entry, lane);
        }
        assert!(window.has_room() && window.held.len() < ENTRIES);
        let groups = window.choose(now, Most::Entries(10_000));
        assert_eq!(sequences(&groups), (82..1000).map(|hundred| hundred * 100).collect::<Vec<_>>());
        for group in groups {
            window.tried(&group, group.entries.len(), None, now, true);
        }
        assert_eq!((window.all_done_below(100_000), window.oldest()), (0, Some(Timestamp::from_millis(0))));
    }

    #[test]
    fn a_lane_that_fails_is_tried_with_one_entry_and_less_and_less_often() {
        let mut now = Instant::now();
        let mut window = Window::default();
        for sequence in 0..100 {
            let (entry, lane) = entry(PARTITIONS * sequence, sequence, 100);
            window.take(entry, lane);
        }
        let groups = window.choose(now, Most::Entries(128));
        assert_eq!(groups.len(), 100);
        for group in &groups {
            window.tried(group, 0, Some(Lane::Partition(0)), now, true);
        }
        let mut waited = Vec::new();
        for _ in 0..10 {
            assert!(window.choose(now, Most::Entries(128)).is_empty());
            let again = window.next_probe().expect("a time");
            waited.push(again - now);
            now = again;
            let groups = window.choose(now, Most::Entries(128));
            assert_eq!(sequences(&groups), [0]);
            assert!(window.choose(now, Most::Entries(128)).is_empty(), "while it is being tried");
            assert!(!window.tried(&groups[0], 0, Some(Lane::Partition(0)), now, true));
        }
        assert!(waited[0] <= BACKOFF.0 && waited[9] >= BACKOFF.1 / 2 && waited.iter().all(|wait| *wait <= BACKOFF.1), "{waited:?}");
    }

    #[test]
    fn what_cannot_be_a_dead_letter_yet_holds_up_its_lead_and_no_other() {
        let mut now = Instant::now();
        let mut window = Window::default();
        for (sequence, lead) in [(0, 0), (1, PARTITIONS), (2, 0)] {
            let (entry, lane) = entry(lead, sequence, 100);
            window.take(entry, lane);
        }
        let groups = window.choose(now, Most::Entries(1));
        window.tried(&groups[0], 0, Some(Lane::DeadLetters), now, true);
        let groups = window.choose(now, Most::Entries(128));
        assert_eq!(sequences(&groups), [1]);
        window.tried(&groups[0], 1, None, now, true);
        now = window.next_probe().expect("a time");
        let groups = window.choose(now, Most::Entries(128));
        assert_eq!(sequences(&groups), [0]);
        window.tried(&groups[0], 1, None, now, true);
        assert_eq!(sequences(&window.choose(now, Most::Entries(128))), [2]);
    }

    #[test]
    fn records_that_are_damaged_after_they_were_skipped_are_accounted_for_once() {
        let now = Instant::now();
        let mut window = Window::default();
        for sequence in 0..10_000 {
            let (entry, lane) = entry(sequence % 2, sequence, 100);
            window.take(entry, lane);
            if sequence == 99 {
                for group in window.choose(now, Most::Entries(50)) {
                    // The odd ones are done, the even ones wait for partition 0.
                    let is_odd = group.entries[0].sequence % 2 == 1;
                    let (done, failed) = if is_odd { (group.entries.len(), None) } else { (0, Some(Lane::Partition(0))) };
                    window.tried(&group, done, failed, now, true);
                }
            }
        }
        let skipped = window.lanes[&Lane::Partition(0)].skipped.expect("skipped").from;
        let count = window.held.len();
        let bytes = Err(Unreadable { why: String::new(), bytes: vec![1] });
        window.take_again(Entry { sequence: skipped - 4, count: 7, meta: None, bytes: 1, change: bytes }, Lane::DeadLetters);
        let damaged: Vec<_> = window.held.values().filter(|held| held.lane == Lane::DeadLetters).map(|held| held.entry.sequence).collect();
        assert_eq!((damaged, window.held.len()), (vec![skipped, skipped + 2], count + 2));
    }

    /// Any number of partitions fail and work again at any time: every entry is done once, those of a lead in their
    /// order, what is held stays bounded, and nothing is acknowledged that is not done.
    #[test]
    fn whatever_fails_everything_is_done_once_and_in_order() {
        let mut skipped = 0;
        for seed in 0..12 {
            let mut random = StdRng::seed_from_u64(seed);
            let total = 20_000_u64;
            let leads: Vec<u64> = (0..total).map(|_| random.random_range(0..if seed % 2 == 0 { 30 } else { 3000 })).collect();
            let size = if seed % 3 == 0 { 20_000 } else { 500 };
            let mut window = Window::default();
            let (mut read, mut again_at) = (0_u64, 0_u64);
            let mut away: HashSet<u16> = HashSet::new();
            let mut done: BTreeSet<u64> = BTreeSet::new();
            // The first that is not done.
            let mut first = 0;
            let mut last_of_lead: HashMap<u64, u64> = HashMap::new();
            let mut flying: Vec<Group> = Vec::new();
            let mut now = Instant::now();
            let mut rounds = 0;
            while window.all_done_below(read) < total {
                rounds += 1;
                assert!(rounds < 100_000, "seed {seed} does not end: {} of {total}", done.len());
                if random.random_range(0..20) == 0 && rounds < 3000 {
                    let partition = random.random_range(0..u16::try_from(PARTITIONS).expect("few"));
                    if !away.remove(&partition) {
                        away.insert(partition);
                    }
                }
                if rounds == 3000 {
                    away.clear();
                }
                for _ in 0..random.random_range(0..4) {
                    if !window.has_room() {
                        break;
                    }
                    let again = window.again();
                    if let Again::From(from) = again {
                        again_at = from;
                    }
                    if again != Again::No && random.random() {
                        for _ in 0..random.random_range(1..500) {
                            if again_at < read {
                                let (entry, lane) = entry(leads[usize::try_from(again_at).expect("small")], again_at, size);
                                window.take_again(entry, lane);
                                again_at += 1;
                            }
                        }
                        window.read_again(again_at, read);
                    } else {
                        for _ in 0..random.random_range(1..500) {
                            if read < total {
                                let (entry, lane) = entry(leads[usize::try_from(read).expect("small")], read, size);
                                window.take(entry, lane);
                                read += 1;
                            }
                        }
                    }
                }
                assert!(window.held.len() < ENTRIES + 500 && window.bytes < BYTES + 500 * size, "{} entries are held", window.held.len());
                flying.extend(window.choose(now, Most::Entries(128)));
                now += Duration::from_millis(random.random_range(0..200));
                for _ in 0..random.random_range(0..100) {
                    if flying.is_empty() {
                        break;
                    }
                    let group = flying.swap_remove(random.random_range(0..flying.len()));
                    let mut applied = 0;
                    let mut failed = None;
                    for entry in &group.entries {
                        let lead = entry.meta.expect("a lead").lead;
                        let partition = u16::try_from(lead % PARTITIONS).expect("few");
                        if away.contains(&partition) {
                            failed = Some(Lane::Partition(partition));
                            break;
                        }
                        assert!(done.insert(entry.sequence), "seed {seed}: {} is done twice", entry.sequence);
                        let before = last_of_lead.insert(lead, entry.sequence);
                        assert!(before < Some(entry.sequence), "seed {seed}: {before:?} before {}", entry.sequence);
                        applied += 1;
                    }
                    window.tried(&group, applied, failed, now, true);
                }
                skipped += u32::from(window.lanes.values().any(|state| state.skipped.is_some()));
                let below = window.all_done_below(read);
                while done.contains(&first) {
                    first += 1;
                }
                // While skipped entries are read again, it may be a little behind.
                assert!(below <= first.min(read), "seed {seed}: {below} is acknowledged, and {first} is not done");
                if rounds % 50 == 0 {
                    if window.again.is_empty() {
                        assert_eq!(below, first.min(read), "seed {seed}");
                    }
                    if below < read {
                        let oldest = window.oldest().expect("one waits").micros();
                        assert!(oldest <= Timestamp::from_millis(below.cast_signed()).micros(), "seed {seed}");
                    }
                }
            }
            assert_eq!((done.len() as u64, window.held.len(), window.bytes, window.in_flight), (total, 0, 0, 0));
        }
        assert!(skipped > 1000, "nothing was ever skipped");
    }
}
