#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::ReadableDatabase;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::fold::effect::Extremes;
use crate::lead::{
    Addition, ChecklistItem, Completion, Document, Extraction, Mention, MessageCount, MessageTally, ProfileField, ProfileKey,
};
use crate::store::TOMBSTONE;

const T: i64 = 1_700_000_000_000_000;

fn store(directory: &TempDir, max_history: usize) -> EmbeddedStore {
    EmbeddedStore::open(&directory.path().join("data/leads.redb"), max_history).unwrap()
}

fn fresh(max_history: usize) -> (TempDir, EmbeddedStore) {
    let directory = TempDir::new().unwrap();
    let store = store(&directory, max_history);
    (directory, store)
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(T + seconds * 1_000_000)
}

fn action(id: &str, status: &str, seconds: i64) -> Activity {
    let tally = MessageTally { channel: "SMS".into(), direction: "OUTBOUND".into(), count: 2 };
    Activity {
        action_id: id.into(),
        kind: "MESSAGE".into(),
        status: status.into(),
        time: at(seconds),
        timed: true,
        messages: vec![tally],
        ..Activity::default()
    }
}

fn change(lead: &str, activity: Option<Activity>) -> Change {
    Change { lead_id: lead.into(), workspace_id: Some("w".into()), received: at(0), activity, additions: Vec::new() }
}

async fn acted(store: &EmbeddedStore, lead: &str, id: &str, status: &str, seconds: i64) -> Outcome {
    store.apply(change(lead, Some(action(id, status, seconds)))).await.unwrap()
}

async fn read(store: &EmbeddedStore, lead: &str, since: Option<u64>) -> Read {
    store.read(lead, since).await.unwrap().unwrap()
}

async fn history(store: &EmbeddedStore, lead: &str, behind: Option<&ActivityPlace>, limit: usize) -> Vec<String> {
    store.activities(lead, behind, limit).await.unwrap().unwrap().into_iter().map(|activity| activity.action_id).collect()
}

async fn listed(store: &EmbeddedStore, query: ListQuery) -> Vec<String> {
    store.list(&query).await.unwrap().into_iter().map(|place| place.lead_id).collect()
}

fn query() -> ListQuery {
    ListQuery { workspace_id: "w".into(), after: None, before: None, cursor: None, limit: 100 }
}

fn sms(read: &Read) -> Option<MessageCount> {
    read.lead.message_counts.get(&("SMS".into(), "OUTBOUND".into())).copied()
}

fn count(read: &Read, status: &str) -> Option<u64> {
    read.lead.activity_counts.get(&("MESSAGE".into(), status.into())).copied()
}

#[tokio::test]
async fn the_file_is_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, _store) = fresh(10);
    let mode = std::fs::metadata(directory.path().join("data/leads.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let (directory, first) = fresh(100);
    let mention = Mention { filename: "a.pdf".into(), time: at(3), ..Mention::default() };
    let mut everything = change("f47ac10b-58cc-4372-a567-0e02b2c3d479", Some(action("a", "COMPLETED", 1)));
    everything.additions = vec![
        Addition::Document(Document {
            document_id: "d".into(),
            mentions: vec![mention],
            extraction: Some(Extraction::default()),
            version: 0,
        }),
        Addition::SetProfile(ProfileKey::Email, ProfileField { value: "a@b.c".into(), version: 0 }),
        Addition::ChecklistItem(ChecklistItem { item_id: "i".into(), ..ChecklistItem::default() }),
        Addition::Completion(Completion { time: at(9), version: 0 }),
    ];
    let lead = everything.lead_id.clone();
    let Outcome::Applied { version } = first.apply(everything.clone()).await.unwrap() else { panic!("not applied") };
    assert!(version >= at(0).millis() && version <= Timestamp::now().millis(), "the store's time: {version}");
    let before = read(&first, &lead, Some(0)).await;
    assert_eq!((before.missed.len(), before.complete), (1, true));
    assert_eq!(before.lead.latest_activity.as_ref(), before.missed.first());
    assert_eq!(before.lead.documents[0].version, version);
    assert!(first.check().await.is_usable());
    drop(first);

    let second = store(&directory, 100);
    assert_eq!(read(&second, &lead, None).await.lead, before.lead);
    assert_eq!(second.apply(everything).await.unwrap(), Outcome::Duplicate { version });
    assert_eq!(listed(&second, query()).await, [lead]);
}

#[tokio::test]
async fn a_file_in_use_or_damaged_is_refused() {
    let (directory, store) = fresh(100);
    let path = directory.path().join("data/leads.redb");
    assert!(matches!(EmbeddedStore::open(&path, 100), Err(StoreError::Unavailable(why)) if why.contains("another process")));
    drop(store);
    std::fs::write(&path, vec![0x5A; 100_000]).unwrap();
    assert!(matches!(EmbeddedStore::open(&path, 100), Err(StoreError::Corrupt(why)) if why.contains("leads.redb")));
}

/// Clears every leaf of a B-tree that holds something of the lead, where keys and values are of any length.
fn damage(path: &std::path::Path, lead: &str) {
    const PAGE: usize = 4096;
    const LEAF: u8 = 1;
    let bytes = std::fs::read(path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let mut cleared = 0;
    for (number, page) in bytes.chunks_exact(PAGE).enumerate().skip(1) {
        // One byte, the number of entries, and where each key and each value ends. What is behind the last is of an older page.
        let entries = usize::from(u16::from_le_bytes([page[2], page[3]]));
        let last = 8 * entries;
        let end = page.get(last..last + 4).map_or(0, |end| u32::from_le_bytes(end.try_into().unwrap()) as usize);
        let used = page.get(last + 4..end).unwrap_or_default();
        if page[0] == LEAF && entries > 0 && used.windows(lead.len()).any(|window| window == lead.as_bytes()) {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; PAGE], u64::try_from(number * PAGE).unwrap()).unwrap();
            cleared += 1;
        }
    }
    assert!(cleared > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_that_is_damaged_costs_no_other_lead_anything() {
    let (directory, first) = fresh(100);
    let lead = |number: usize| format!("lead-{number:04}");
    for number in 0..400 {
        acted(&first, &lead(number), "a", "COMPLETED", 1).await;
    }
    drop(first);
    // What it has in memory is not read from the file.
    let store = store(&directory, 100);
    damage(&directory.path().join("data/leads.redb"), &lead(100));
    for round in 0..3 {
        let event = |number| change(&lead(number), Some(action(&format!("b{round}"), "COMPLETED", 2)));
        let applies = [100].into_iter().chain(200..400).map(|number| store.apply(event(number)));
        let mut outcomes = futures::future::join_all(applies).await.into_iter();
        let damaged = outcomes.next().unwrap();
        assert!(matches!(&damaged, Err(StoreError::Corrupt(why)) if why.contains("backup")), "{damaged:?}");
        let failed: Vec<_> = outcomes.enumerate().filter(|(_, outcome)| !matches!(outcome, Ok(Outcome::Applied { .. }))).collect();
        assert!(failed.is_empty(), "in round {round}: {failed:?}");
    }
    assert!(store.read(&lead(100), None).await.is_err());
    assert_eq!(count(&read(&store, &lead(300), None).await, "COMPLETED"), Some(4));
    assert!(store.check().await.is_usable() && store.check_writes().await.is_usable(), "of that, a restart would not cure anything");
    drop(store);
    let refused = EmbeddedStore::open(&directory.path().join("data/leads.redb"), 100);
    assert!(matches!(&refused, Err(StoreError::Corrupt(why)) if why.contains("backup")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_at_the_same_time_share_commits_and_each_counts() {
    let (_directory, store) = fresh(1000);
    let store = Arc::new(store);
    let mut feed = store.feed();
    let writers: Vec<_> = (0..200)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { acted(&store, "lead", &format!("action-{n}"), "COMPLETED", n).await })
        })
        .collect();
    let mut versions = Vec::new();
    for writer in writers {
        let Outcome::Applied { version } = writer.await.unwrap() else { panic!("not applied") };
        versions.push(version);
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 200);
    let whole = read(&store, "lead", Some(versions[99])).await;
    assert_eq!((count(&whole, "COMPLETED"), sms(&whole).map(|count| count.count)), (Some(200), Some(400)));
    assert_eq!(whole.missed.iter().map(|activity| activity.version).collect::<Vec<_>>(), versions[100..]);
    let mut told = Vec::new();
    while told.len() < 200 {
        if let FeedEvent::Changed { version, .. } = feed.recv().await.unwrap() {
            told.push(version);
        }
    }
    assert_eq!(told, versions, "in commit order");
}

#[tokio::test]
async fn history_is_capped_and_what_is_older_is_too_old() {
    let (_directory, store) = fresh(16); // two more gather before two are dropped
    for n in 0..18 {
        acted(&store, "lead", &format!("a{n:02}"), "COMPLETED", n).await;
    }
    assert_eq!(history(&store, "lead", None, 100).await.len(), 18);
    let before = read(&store, "lead", Some(0)).await;
    assert!(before.complete && before.missed.len() == 18);
    acted(&store, "lead", "a18", "COMPLETED", 18).await;
    assert_eq!(history(&store, "lead", None, 100).await.last().map(String::as_str), Some("a02"));

    let after = read(&store, "lead", Some(0)).await;
    assert_eq!((after.complete, after.missed.len()), (false, 17));
    assert!(read(&store, "lead", Some(before.missed[1].version)).await.complete, "none of those above it was dropped");
    assert_eq!((count(&after, "COMPLETED"), after.lead.first_activity), (Some(19), Some(at(0))));

    let mut old = change("lead", Some(action("a01", "COMPLETED", 1)));
    old.additions = vec![Addition::Completion(Completion::default())];
    assert_eq!(store.apply(old).await.unwrap(), Outcome::TooOld);
    assert_eq!(read(&store, "lead", Some(0)).await.lead, after.lead, "nothing of it was written");
    assert!(matches!(acted(&store, "lead", "new", "COMPLETED", 2).await, Outcome::Applied { .. }));
    assert!(matches!(acted(&store, "lead", "a02", "COMPLETED", 2).await, Outcome::Duplicate { .. }));

    // The one that gives way held `first` of what is kept, but not of what was.
    acted(&store, "lead", "a02", "COMPLETED", 30).await;
    assert_eq!(read(&store, "lead", None).await.lead.first_activity, Some(at(0)));
}

#[tokio::test]
async fn a_deleted_lead_leaves_nothing_but_its_tombstone() {
    let (_directory, store) = fresh(100);
    let mut feed = store.feed();
    acted(&store, "lead", "a", "COMPLETED", 1).await;
    acted(&store, "lead2", "a", "COMPLETED", 1).await;
    assert!(store.delete("lead").await.unwrap());
    assert!(!store.delete("lead").await.unwrap());
    assert!(store.read("lead", None).await.unwrap().is_none() && store.activities("lead", None, 9).await.unwrap().is_none());
    assert_eq!(listed(&store, query()).await, ["lead2"]);
    assert_eq!(history(&store, "lead2", None, 9).await, ["a"]);
    assert_eq!(acted(&store, "lead", "b", "COMPLETED", 2).await, Outcome::Deleted);
    while !matches!(feed.recv().await.unwrap(), FeedEvent::Changed { version: 0, previous: 1.., lead_id, .. } if lead_id == "lead") {}
    assert!(store.is_deleted("lead").await.unwrap() && !store.is_deleted("lead2").await.unwrap());

    let long_ago = Timestamp::from_micros(Timestamp::now().micros() - i64::try_from(TOMBSTONE.as_micros()).unwrap());
    assert!(store.delete_at("lead2", long_ago).await.unwrap());
    assert!(matches!(acted(&store, "lead2", "b", "COMPLETED", 2).await, Outcome::Applied { .. }));
    assert_eq!(history(&store, "lead2", None, 9).await, ["b"]);
    let tombstone = store.file.read(|database| {
        let tombstones = database.begin_read()?.open_table(tables::TOMBSTONES)?;
        Ok::<_, StoreError>(tombstones.get(&b"lead2"[..])?.map(|expiry| expiry.value()))
    });
    assert_eq!(tombstone.unwrap(), None);
}

#[tokio::test]
async fn tombstones_expire_by_time_alone() {
    let (_directory, store) = fresh(100);
    let long_ago = Timestamp::from_micros(Timestamp::now().micros() - i64::try_from(TOMBSTONE.as_micros()).unwrap());
    // More than one look sees, of which most have expired.
    let leads: Vec<_> = (0..2500).map(|lead| format!("lead{lead:04}")).collect();
    futures::future::join_all(leads.iter().map(|lead| acted(&store, lead, "a", "COMPLETED", 1))).await;
    let time = |at: usize| if at.is_multiple_of(100) { Timestamp::now() } else { long_ago };
    let deleted = futures::future::join_all(leads.iter().enumerate().map(|(at, lead)| store.delete_at(lead, time(at)))).await;
    assert!(deleted.into_iter().all(|deleted| deleted.unwrap()));
    let count = || {
        let count = store.file.read(|database| {
            let tombstones = database.begin_read()?.open_table(tables::TOMBSTONES)?;
            Ok::<_, StoreError>(redb::ReadableTableMetadata::len(&tombstones)?)
        });
        count.unwrap()
    };
    // Some at a time.
    let (mut from, mut looks) = (Some(Vec::new()), 0);
    while let Some(at) = from {
        let task = writer::Task::Expire { from: at, now: Timestamp::now() };
        let Done::Expired(next) = store.command(task, WRITE_TIMEOUT).await.unwrap() else { panic!("expired") };
        (from, looks) = (next, looks + 1);
    }
    assert!(looks >= 3 && count() == 25, "{looks} {}", count());
    assert!(store.is_deleted("lead0000").await.unwrap());
    // And nobody need ask for it.
    acted(&store, "late", "a", "COMPLETED", 1).await;
    assert!(store.delete_at("late", long_ago).await.unwrap());
    let began = std::time::Instant::now();
    while count() > 25 {
        assert!(began.elapsed() < Duration::from_secs(60), "it stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn leads_are_listed_by_latest_activity() {
    let (_directory, store) = fresh(100);
    for (lead, seconds) in [("a", 1), ("b", 3), ("c", 2), ("d", 2)] {
        acted(&store, lead, "x", "COMPLETED", seconds).await;
    }
    store.apply(change("none", None)).await.unwrap();
    let elsewhere = Change { workspace_id: Some("w2".into()), ..change("elsewhere", None) };
    store.apply(elsewhere).await.unwrap();
    store.apply(Change { workspace_id: None, ..change("nowhere", None) }).await.unwrap();
    assert_eq!(listed(&store, query()).await, ["b", "d", "c", "a", "none"]);

    acted(&store, "a", "y", "COMPLETED", 4).await;
    let first = store.list(&ListQuery { limit: 2, ..query() }).await.unwrap();
    assert_eq!(first.iter().map(|place| &*place.lead_id).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(listed(&store, ListQuery { cursor: first.last().cloned(), ..query() }).await, ["d", "c", "none"]);
    let bounds = |after: Option<i64>, before: Option<i64>| ListQuery { after: after.map(at), before: before.map(at), ..query() };
    assert_eq!(listed(&store, bounds(Some(2), None)).await, ["a", "b"]);
    assert_eq!(listed(&store, bounds(None, Some(3))).await, ["d", "c"]);
    assert_eq!(listed(&store, bounds(Some(2), Some(4))).await, ["b"]);
    assert_eq!(listed(&store, bounds(Some(4), Some(1))).await, [""; 0]);

    acted(&store, "nowhere", "x", "COMPLETED", 9).await;
    assert_eq!(listed(&store, ListQuery { limit: 1, ..query() }).await, ["nowhere"], "a workspace learned later counts");
}

#[tokio::test]
async fn history_is_newest_first_behind_a_place() {
    let (_directory, store) = fresh(100);
    for (id, seconds) in [("c", 1), ("a", 2), ("b", 2), ("d", 0)] {
        acted(&store, "lead", id, "COMPLETED", seconds).await;
    }
    assert_eq!(history(&store, "lead", None, 3).await, ["b", "a", "c"]);
    let behind = ActivityPlace { time: at(2), action_id: "a".into() };
    assert_eq!(history(&store, "lead", Some(&behind), 9).await, ["c", "d"]);
}

#[tokio::test]
async fn of_many_missed_the_newest_are_told() {
    let (_directory, store) = fresh(1000);
    let applies = (0..300).map(|n| store.apply(change("lead", Some(action(&format!("{n}"), "COMPLETED", 0)))));
    futures::future::join_all(applies).await;
    let all = read(&store, "lead", Some(0)).await;
    assert_eq!((all.missed.len(), all.complete), (super::super::MAX_MISSED, false));
    assert!(all.missed.is_sorted_by_key(|activity| activity.version));
    assert_eq!(all.missed.last().unwrap().version, all.lead.version);
    let few = read(&store, "lead", Some(all.lead.version - 256)).await;
    assert_eq!((few.missed.len(), few.complete), (256, true));
    assert!(read(&store, "lead", Some(u64::MAX)).await.missed.is_empty());
}

#[tokio::test]
async fn another_workspace_leaves_nothing() {
    let (_directory, store) = fresh(100);
    acted(&store, "lead", "a", "COMPLETED", 1).await;
    let before = read(&store, "lead", Some(0)).await;
    let mut foreign = change("lead", Some(action("b", "COMPLETED", 2)));
    foreign.workspace_id = Some("other".into());
    let mut fine = change("fine", Some(action("b", "COMPLETED", 2)));
    fine.additions = vec![Addition::FillProfile(ProfileKey::Source, ProfileField::default())];
    let (refused, taken) = tokio::join!(store.apply(foreign), store.apply(fine));
    assert!(matches!(refused, Err(StoreError::OtherWorkspace)) && matches!(taken, Ok(Outcome::Applied { .. })));
    let after = read(&store, "lead", Some(0)).await;
    assert_eq!((after.lead, after.missed), (before.lead, before.missed));
    assert_eq!(listed(&store, ListQuery { workspace_id: "other".into(), ..query() }).await, [""; 0]);
}

#[tokio::test]
async fn a_retry_that_went_well_moves_the_counts() {
    let (_directory, store) = fresh(100);
    acted(&store, "lead", "a", "FAILED", 1).await;
    let failed = read(&store, "lead", None).await;
    assert_eq!((count(&failed, "FAILED"), sms(&failed)), (Some(1), None));
    acted(&store, "lead", "a", "COMPLETED", 5).await;
    let retried = read(&store, "lead", Some(0)).await;
    assert_eq!((count(&retried, "FAILED"), count(&retried, "COMPLETED")), (None, Some(1)));
    assert_eq!(sms(&retried), Some(MessageCount { count: 2, latest: at(5) }));
    assert_eq!((retried.lead.first_activity, retried.missed.len()), (Some(at(5)), 1));
    assert_eq!(history(&store, "lead", None, 9).await, ["a"]);
    assert!(matches!(acted(&store, "lead", "a", "FAILED", 1).await, Outcome::Duplicate { .. }));
}

#[tokio::test]
async fn extremes_recede_with_the_one_that_held_them() {
    let (_directory, store) = fresh(100);
    acted(&store, "lead", "a", "COMPLETED", 1).await;
    acted(&store, "lead", "b", "COMPLETED", 3).await;
    // Told without a time first, "c" stands at its receipt until an earlier receipt of it turns up.
    let untimed = |seconds| Activity { timed: false, ..action("c", "COMPLETED", seconds) };
    store.apply(change("lead", Some(untimed(9)))).await.unwrap();
    assert_eq!(read(&store, "lead", None).await.lead.latest_time(), Some(at(9)));
    store.apply(change("lead", Some(untimed(2)))).await.unwrap();
    let receded = read(&store, "lead", None).await;
    assert_eq!(receded.lead.latest_activity.as_ref().map(|latest| &*latest.action_id), Some("b"));
    assert_eq!(sms(&receded), Some(MessageCount { count: 6, latest: at(3) }));
    assert_eq!(store.list(&query()).await.unwrap(), [Place { time: at(3), lead_id: "lead".into() }]);
    acted(&store, "lead", "a", "COMPLETED", 7).await;
    let moved = read(&store, "lead", None).await;
    assert_eq!((moved.lead.first_activity, moved.lead.latest_time()), (Some(at(2)), Some(at(7))));
}

#[tokio::test]
async fn a_feed_says_when_it_has_told_everything_and_when_it_could_not() {
    let (_directory, store) = fresh(100);
    let mut feed = store.feed();
    for _ in 0..2 {
        assert_eq!(timeout(Duration::from_secs(1), feed.recv()).await.unwrap(), Some(FeedEvent::Alive { part: 0 }));
    }
    acted(&store, "lead", "a", "COMPLETED", 1).await;
    assert!(matches!(feed.recv().await, Some(FeedEvent::Changed { .. })));
    assert_eq!(feed.recv().await, Some(FeedEvent::Alive { part: 0 }));
    for _ in 0..FEED_BACKLOG + FEED_QUEUE + 10 {
        store.feed.send(FeedEvent::Changed { lead_id: String::new(), workspace_id: String::new(), version: 1, previous: 0 }).unwrap();
    }
    assert_eq!(feed.recv().await, Some(FeedEvent::Gap));
    drop(feed);
    timeout(Duration::from_secs(1), async {
        while store.feed.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the feed ends with its listener");
}

/// The head is moved step by step; here it is worked out from the whole history after every step.
#[tokio::test]
async fn the_head_is_what_the_history_tells() {
    let mut random = StdRng::seed_from_u64(7);
    let (_directory, store) = fresh(1000);
    for n in 0..600 {
        let lead = format!("{}", n / 100);
        let status = ["COMPLETED", "FAILED", "PENDING"][random.random_range(0..3)];
        let mut activity = action(&random.random_range(0..12).to_string(), status, random.random_range(0..20));
        activity.timed = random.random_bool(0.6);
        activity.messages[0].channel = ["SMS", "EMAIL"][random.random_range(0..2)].into();
        store.apply(change(&lead, Some(activity))).await.unwrap();

        let (mut expected, mut extremes) = (head::Head::default(), Extremes::default());
        let all = store.activities(&lead, None, 1000).await.unwrap().unwrap();
        for activity in &all {
            expected.add(activity, None);
            extremes.add(activity);
        }
        expected.set_extremes(extremes);
        let whole = read(&store, &lead, Some(0)).await;
        assert_eq!((&whole.lead.activity_counts, &whole.lead.message_counts), (&expected.counts, &expected.messages));
        assert_eq!(whole.lead.first_activity, expected.first);
        assert_eq!(whole.lead.latest_activity.map(|latest| (latest.time, latest.action_id)), expected.latest);
        assert_eq!(whole.missed.len(), all.len());
        assert_eq!(listed(&store, query()).await.iter().filter(|listed| **listed == lead).count(), 1);
    }
}
