//! The spool without a store: what is on disk, after a crash at the worst moments too.

use std::fs::OpenOptions;
use std::path::Path;

use super::*;
use crate::lead::{Activity, Addition, ProfileField, ProfileKey};

fn change(lead: &str, action: u64) -> Change {
    let activity = Activity { action_id: action.to_string(), summary: "x".repeat(100), ..Activity::default() };
    Change {
        lead_id: lead.to_owned(),
        received: Timestamp::from_millis(action.cast_signed()),
        activity: Some(activity),
        ..Change::default()
    }
}

fn patch(lead: &str) -> Change {
    let addition = Addition::SetProfile(ProfileKey::Email, ProfileField::default());
    Change { lead_id: lead.to_owned(), additions: vec![addition], ..Change::default() }
}

fn open(dir: &Path) -> Spool {
    Spool::open(dir, 1 << 20).expect("a spool")
}

/// The actions that wait, in order.
fn waiting(spool: &Spool) -> Vec<u64> {
    let mut reader = spool.reader.lock().expect("the reader");
    let reader = reader.as_mut().expect("the reader");
    let mut actions = Vec::new();
    loop {
        let entries = reader.read().expect("entries");
        if entries.is_empty() {
            return actions;
        }
        let action = |change: Change| change.activity.expect("an activity").action_id.parse::<u64>().expect("a number");
        actions.extend(entries.into_iter().map(|entry| action(entry.change.expect("readable"))));
    }
}

async fn push(spool: &Spool, actions: std::ops::Range<u64>) {
    let commands = spool.commands.as_ref().expect("a writer");
    let mut answers = Vec::new();
    // Without waiting for each, so that they share fsyncs.
    for action in actions {
        let (change, (answer, answered)) = (change("lead", action), oneshot::channel());
        let meta = Meta::of(&change);
        let bytes = record::encode(&change, meta).expect("bytes");
        commands.send(Command::Append { bytes, meta, answer }).await.expect("sent");
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

async fn done(spool: &Spool, below: u64) {
    spool.commands.as_ref().expect("a writer").send(Command::Done(below)).await.expect("sent");
    // What comes after it is written after it.
    spool.push(&change("lead", 999)).await.expect("kept");
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
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
async fn a_write_that_a_crash_cut_short_was_never_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..10).await;
    drop(spool);
    let segment = segments(dir.path()).pop().expect("a segment");
    let whole = std::fs::metadata(&segment).expect("its length").len();
    for cut in [1, 5, 11, 100] {
        let bytes = record::encode(&change("lead", 10), Meta::of(&change("lead", 10))).expect("bytes");
        let mut torn = std::fs::read(&segment).expect("the segment");
        torn.truncate(usize::try_from(whole).expect("a length"));
        torn.extend_from_slice(&bytes[..bytes.len() - cut]);
        std::fs::write(&segment, torn).expect("written");
        let spool = open(dir.path());
        assert_eq!(waiting(&spool), (0..10).collect::<Vec<_>>(), "{cut}");
    }
    // A file system may have given the length and not the bytes.
    OpenOptions::new().write(true).open(&segment).expect("the segment").set_len(whole + 4096).expect("longer");
    let spool = open(dir.path());
    assert_eq!(waiting(&spool), (0..10).collect::<Vec<_>>());
    push(&spool, 10..11).await;
    assert_eq!(waiting(&spool), [10]);
}

#[tokio::test]
async fn damage_takes_only_what_it_hit() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..2000).await;
    drop(spool);
    let first = segments(dir.path()).remove(0);
    let mut bytes = std::fs::read(&first).expect("the segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&first, bytes).expect("written");
    let spool = open(dir.path());
    let read = waiting(&spool);
    let missing = (0..2000).filter(|action| !read.contains(action)).count();
    assert!(read.contains(&0) && read.contains(&1999) && (1..500).contains(&missing), "{missing} are missing");
    done(&spool, 2001).await;
    assert!(first.with_extension("damaged").exists(), "what could not be read is left for people");
}

#[tokio::test]
async fn a_cursor_that_is_lost_makes_changes_come_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    push(&spool, 0..10).await;
    done(&spool, 5).await;
    drop(spool);
    std::fs::write(dir.path().join("cursor"), [0xAB; 32]).expect("written");
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
    spool.shared.done(Meta::of(&patch("lead")));
    assert!(!spool.holds_back(&patch("lead")));
}

#[tokio::test]
async fn a_directory_is_one_process_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let _spool = open(dir.path());
    assert_eq!(Spool::open(dir.path(), 1 << 20).expect_err("in use").kind(), io::ErrorKind::ResourceBusy);
}
