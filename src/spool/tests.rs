//! The spool without a store: what is on disk, after a crash at the worst moments too.

use std::path::Path;

use super::reader::Entry;
use super::*;
use crate::lead::{Activity, Addition, ProfileField, ProfileKey};

pub(super) fn change(lead: &str, action: u64) -> Change {
    let activity = Activity { action_id: action.to_string(), summary: "x".repeat(100), ..Activity::default() };
    Change {
        lead_id: lead.to_owned(),
        received: Timestamp::from_millis(action.cast_signed()),
        activity: Some(activity),
        ..Change::default()
    }
}

pub(super) fn patch(lead: &str) -> Change {
    let addition = Addition::SetProfile(ProfileKey::Email, ProfileField::default());
    Change { lead_id: lead.to_owned(), additions: vec![addition], ..Change::default() }
}

pub(super) fn open(dir: &Path) -> Spool {
    Spool::open(dir, 1 << 20).expect("a spool")
}

/// The actions that wait, in order. All of them are readable.
pub(super) fn waiting(spool: &Spool) -> Vec<u64> {
    read_all(spool).iter().map(|entry| action(entry).expect("readable")).collect()
}

pub(super) fn read_all(spool: &Spool) -> Vec<Entry> {
    let mut reader = spool.reader.lock().expect("the reader");
    let reader = reader.as_mut().expect("the reader");
    let mut all = Vec::new();
    loop {
        let entries = reader.read().expect("entries");
        if entries.is_empty() {
            return all;
        }
        all.extend(entries);
    }
}

/// The action of an entry; none where it is damaged.
pub(super) fn action(entry: &Entry) -> Option<u64> {
    let activity = entry.change.as_ref().ok()?.activity.as_ref().expect("an activity");
    Some(activity.action_id.parse().expect("a number"))
}

/// Reads all that waits, and does with it what the drain does. Says which actions came, and how many records did not.
pub(super) fn drain(spool: &Spool) -> (Vec<u64>, u64) {
    let entries = read_all(spool);
    for entry in &entries {
        spool.shared.done(entry.sequence, entry.count, entry.meta.filter(|_| entry.change.is_ok()));
    }
    let read = spool.reader.lock().expect("the reader").as_ref().expect("the reader").next();
    spool.shared.all_done(read);
    let commands = spool.commands.as_ref().expect("a writer");
    commands.try_send(Command::Done(read)).unwrap_or_else(|_| panic!("the writer has stopped"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while spool.status().bytes > 0 || !segments(&spool.shared.directory).is_empty() {
        assert!(Instant::now() < deadline, "segments are not removed: {:?}", spool.shared.state());
        std::thread::sleep(Duration::from_micros(100));
    }
    let status = spool.status();
    assert_eq!((status.events, status.oldest), (0, None));
    let state = spool.shared.state();
    assert!(state.ordered.is_empty() && state.damaged.is_empty(), "{state:?}");
    let damaged = entries.iter().filter(|entry| entry.change.is_err()).map(|entry| entry.count).sum();
    (entries.iter().filter_map(action).collect(), damaged)
}

pub(super) async fn push(spool: &Spool, actions: std::ops::Range<u64>) {
    let commands = spool.commands.as_ref().expect("a writer");
    let mut answers = Vec::new();
    // Without waiting for each, so that they share fsyncs.
    for action in actions {
        let (change, (answer, answered)) = (change("lead", action), oneshot::channel());
        let meta = Meta::of(&change);
        let bytes = record::encode(&change, meta).expect("bytes");
        commands.send(Command::Append { bytes, meta, answer, permit: None }).await.expect("sent");
        answers.push(answered);
        if action % 100 == 99 {
            for answered in answers.drain(..) {
                answered.await.expect("an answer").expect("kept");
            }
        }
    }
    for answered in answers {
        answered.await.expect("an answer").expect("kept");
    }
}

pub(super) async fn done(spool: &Spool, below: u64) {
    spool.commands.as_ref().expect("a writer").send(Command::Done(below)).await.expect("sent");
    // What comes after it is written after it.
    spool.push(&change("lead", 999)).await.expect("kept");
}

pub(super) fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let names = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut names: Vec<_> = names.filter(|name| name.extension().is_some_and(|extension| extension == "log")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_was_kept_is_there_after_any_number_of_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    for start in 0..5 {
        let spool = open(dir.path());
        assert_eq!(spool.status().events, start * 10);
        push(&spool, start * 10..start * 10 + 10).await;
    }
    let spool = open(dir.path());
    assert_eq!(waiting(&spool), (0..50).collect::<Vec<_>>());
    assert_eq!(spool.status().oldest, Some(Timestamp::from_millis(0)));
}

#[tokio::test]
async fn what_is_done_is_not_told_again_and_gives_its_space_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..2000).await;
    let full = spool.status().bytes;
    assert!(segments(dir.path()).len() > 2);
    done(&spool, 1990).await;
    assert!(spool.status().bytes < full / 2 && segments(dir.path()).len() <= 2, "{:?}", spool.status());
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(waiting(&spool), (1990..2000).chain([999]).collect::<Vec<_>>());
    done(&spool, 2001).await;
    done(&spool, 2002).await;
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(waiting(&spool), [999], "numbers go on where they were");
}

#[tokio::test]
async fn a_cursor_that_is_lost_makes_changes_come_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..10).await;
    done(&spool, 5).await;
    drop(spool);
    std::fs::write(dir.path().join("cursor"), [0xAB; 48]).expect("written");
    assert_eq!(waiting(&open(dir.path())).len(), 11);
}

#[tokio::test]
async fn a_full_spool_says_so_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..2000).await;
    let mut kept = 2000;
    let error = loop {
        match spool.push(&change("lead", kept)).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full(_)), "{error}");
    assert!(spool.status().bytes <= 1 << 20 && spool.status().events == kept && kept > 1000, "{:?}", spool.status());
    assert_eq!(waiting(&spool).len() as u64, kept);
    spool.commands.as_ref().expect("a writer").send(Command::Done(kept / 2)).await.expect("sent");
    while spool.push(&change("lead", kept)).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_patch_does_not_overtake_an_older_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    assert!(!spool.holds_back(&patch("lead")));
    spool.push(&patch("lead")).await.expect("kept");
    assert!(spool.holds_back(&patch("lead")) && !spool.holds_back(&patch("other")));
    assert!(!spool.holds_back(&change("lead", 1)), "an activity may come in any order");
    drop(spool);
    let spool = open(dir.path());
    assert!(spool.holds_back(&patch("lead")), "after a restart too");
    spool.shared.done(0, 1, Some(Meta::of(&patch("lead"))));
    assert!(!spool.holds_back(&patch("lead")));
}

#[tokio::test]
async fn a_directory_is_one_process_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let _spool = open(dir.path());
    assert_eq!(Spool::open(dir.path(), 1 << 20).expect_err("in use").kind(), io::ErrorKind::ResourceBusy);
}
