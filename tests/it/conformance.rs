//! What every store promises, asked of both through the same interface.

use std::sync::Arc;

use leadfold::lead::{Activity, Addition, Change, Completion, MessageTally, ProfileField, ProfileKey};
use leadfold::store::{ActivityPlace, FeedEvent, ListQuery, Outcome, Place, Store, StoreError, embedded::EmbeddedStore, redis::RedisStore};
use leadfold::time::Timestamp;
use tempfile::TempDir;

use crate::support::{PATIENCE, fresh_id, redis::RedisServer};

/// Kept activities of a lead: small, so that it is reached.
const MAX_HISTORY: usize = 256;
const BASE: i64 = 1_790_000_000_000_000;

/// A store, and what it lives on.
pub struct Kept {
    store: Arc<dyn Store>,
    _directory: TempDir,
    redis: Option<RedisServer>,
}

impl Kept {
    async fn embedded() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = EmbeddedStore::open(&directory.path().join("leads.redb"), MAX_HISTORY).expect("a store");
        Self { store: Arc::new(store), _directory: directory, redis: None }
    }

    async fn redis() -> Self {
        let redis = RedisServer::start();
        let store = Self::at(&redis.url(), "leadfold").await;
        Self { redis: Some(redis), ..store }
    }

    async fn at(url: &str, key_prefix: &str) -> Self {
        let options = leadfold::store::redis::Options {
            key_prefix: key_prefix.into(),
            partitions: 4,
            max_history: MAX_HISTORY,
            feed_length: 100_000,
            tls: None,
        };
        let store = RedisStore::connect(url, &options).await.expect("Redis");
        Self { store: Arc::new(store), _directory: tempfile::tempdir().expect("a directory"), redis: None }
    }
}

macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod on_the_embedded_store {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(super::Kept::embedded().await).await;
            })+
        }
        mod on_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(super::Kept::redis().await).await;
            })+
        }

        /// All of it, one after the other, on a cluster that is there.
        pub async fn on_a_cluster(url: &str) {
            $(
                println!(stringify!($test));
                $test(Kept::at(url, concat!("leadfold:", stringify!($test))).await).await;
            )+
        }
    };
}

on_both!(
    a_history_beyond_every_threshold_reads_the_same,
    what_is_older_than_the_kept_history_is_not_counted_twice,
    missed_activities_are_told_or_said_to_be_incomplete,
    a_deleted_lead_is_gone_and_stays_out,
    a_refused_change_leaves_nothing,
    a_workspace_can_be_learned_later,
    lists_are_in_order_and_page_exactly,
    extremes_recede_with_what_they_came_from,
    extremes_recede_whoever_moves_first,
    every_change_is_told_once_in_order,
    a_hot_lead_takes_many_writers,
);

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(BASE + micros)
}

fn activity(action_id: &str, status: &str, time: i64) -> Activity {
    let messages = vec![MessageTally { channel: "SMS".into(), direction: "INBOUND".into(), count: 1 }];
    Activity {
        action_id: action_id.into(),
        kind: "MESSAGE".into(),
        status: status.into(),
        time: at(time),
        timed: true,
        messages,
        ..Activity::default()
    }
}

fn change(lead_id: &str, activity: Activity) -> Change {
    Change { lead_id: lead_id.into(), workspace_id: Some("w".into()), received: at(0), activity: Some(activity), additions: Vec::new() }
}

async fn act(kept: &Kept, lead_id: &str, action_id: &str, time: i64) -> Outcome {
    kept.store.apply(change(lead_id, activity(action_id, "COMPLETED", time))).await.expect("an outcome")
}

async fn version(kept: &Kept, lead_id: &str) -> u64 {
    let version = kept.store.read(lead_id, None).await.expect("a read").expect("a lead").lead.version;
    assert_eq!(kept.store.version(lead_id).await.expect("a read"), Some(version), "told alone and with the lead");
    version
}

fn action(number: i64) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Walks the whole history in pages.
async fn history(kept: &Kept, lead_id: &str, page: usize) -> Vec<(Timestamp, String)> {
    let mut all: Vec<(Timestamp, String)> = Vec::new();
    loop {
        let behind = all.last().map(|(time, action_id)| ActivityPlace { time: *time, action_id: action_id.clone() });
        let activities = kept.store.activities(lead_id, behind.as_ref(), page).await.expect("a list").expect("a lead");
        let end = activities.len() < page;
        all.extend(activities.into_iter().map(|activity| (activity.time, activity.action_id)));
        if end {
            return all;
        }
    }
}

async fn a_history_beyond_every_threshold_reads_the_same(kept: Kept) {
    // In Redis a small history becomes a large one at 128; equal times are common; every other one comes late.
    let total = 200;
    for number in 0..total {
        let time = if number % 2 == 0 { number / 4 } else { 1000 - number / 4 };
        assert!(matches!(act(&kept, "lead", &action(number), time).await, Outcome::Applied { .. }));
        assert!(matches!(act(&kept, "lead", &action(number), time).await, Outcome::Duplicate { .. }), "again");
    }
    let mut expected: Vec<_> =
        (0..total).map(|number| (at(if number % 2 == 0 { number / 4 } else { 1000 - number / 4 }), action(number))).collect();
    expected.sort_by(|a, b| b.cmp(a));
    for page in [1, 7, 100, 500] {
        assert_eq!(history(&kept, "lead", page).await, expected, "in pages of {page}");
    }
    let lead = kept.store.read("lead", None).await.expect("a read").expect("a lead").lead;
    assert_eq!(lead.activity_counts.values().sum::<u64>(), 200);
    assert_eq!(lead.latest_activity.map(|activity| activity.action_id), expected.first().map(|(_, id)| id.clone()));
    assert_eq!(lead.first_activity, expected.last().map(|(time, _)| *time));
}

async fn what_is_older_than_the_kept_history_is_not_counted_twice(kept: Kept) {
    let total = 400;
    for number in 0..total {
        act(&kept, "lead", &action(number), number).await;
    }
    let kept_now = history(&kept, "lead", 1000).await;
    assert!((MAX_HISTORY..=MAX_HISTORY + 65).contains(&kept_now.len()), "{} activities are kept", kept_now.len());
    assert_eq!(kept_now.first().map(|(_, id)| id.clone()), Some(action(total - 1)), "the newest");
    assert_eq!(act(&kept, "lead", &action(0), 0).await, Outcome::TooOld, "it may have been counted");
    assert_eq!(act(&kept, "lead", "an unknown one", 1).await, Outcome::TooOld);
    let oldest = kept_now.last().expect("some").1.clone();
    let oldest_number: i64 = oldest[24..].parse().expect("a number");
    assert!(matches!(act(&kept, "lead", &oldest, oldest_number).await, Outcome::Duplicate { .. }));
    let lead = kept.store.read("lead", None).await.expect("a read").expect("a lead").lead;
    assert_eq!(lead.activity_counts.values().sum::<u64>(), 400, "all that were ever counted");
    assert_eq!(lead.first_activity, Some(at(0)));
}

async fn missed_activities_are_told_or_said_to_be_incomplete(kept: Kept) {
    let mut versions = Vec::new();
    for number in 0..180 {
        act(&kept, "lead", &action(number), number).await;
        versions.push(version(&kept, "lead").await);
    }
    for since in [0usize, 100, 170, 178, 179] {
        let read = kept.store.read("lead", Some(versions[since])).await.expect("a read").expect("a lead");
        let missed: Vec<_> = read.missed.iter().map(|activity| activity.action_id.clone()).collect();
        let expected: Vec<_> = (since as i64 + 1..180).map(action).collect();
        assert!(read.complete, "since {since}");
        assert_eq!(missed, expected, "since {since}");
    }
    // One that comes late is found, or the answer says that it may be missing.
    act(&kept, "lead", "late", -5).await;
    let read = kept.store.read("lead", Some(versions[179])).await.expect("a read").expect("a lead");
    assert!(!read.complete || read.missed.iter().any(|activity| activity.action_id == "late"));
    // More than is ever told.
    for number in 180..500 {
        act(&kept, "lead", &action(number), number).await;
    }
    let read = kept.store.read("lead", Some(versions[0])).await.expect("a read").expect("a lead");
    assert!(!read.complete && read.missed.len() <= leadfold::store::MAX_MISSED);
}

async fn a_deleted_lead_is_gone_and_stays_out(kept: Kept) {
    act(&kept, "lead", "a", 1).await;
    act(&kept, "other", "a", 2).await;
    assert!(kept.store.delete("lead").await.expect("an answer"));
    assert!(!kept.store.delete("lead").await.expect("an answer"), "only once");
    assert!(!kept.store.delete("unheard of").await.expect("an answer"));
    assert!(kept.store.is_deleted("lead").await.expect("an answer"));
    assert!(!kept.store.is_deleted("other").await.expect("an answer"));
    assert!(kept.store.read("lead", None).await.expect("a read").is_none());
    assert_eq!(kept.store.version("lead").await.expect("a read"), None);
    assert_eq!(kept.store.version("unheard of").await.expect("a read"), None);
    assert!(kept.store.activities("lead", None, 9).await.expect("a list").is_none());
    assert_eq!(act(&kept, "lead", "a", 1).await, Outcome::Deleted);
    assert_eq!(act(&kept, "lead", "b", 9).await, Outcome::Deleted);
    assert_eq!(listed(&kept, None, None, 10).await, ["other"]);
    if let Some(redis) = &kept.redis {
        let keys: Vec<String> = redis::cmd("KEYS").arg("*:lead").query(&mut redis.connection()).expect("KEYS");
        assert_eq!(keys.len(), 1, "only the tombstone is left: {keys:?}");
        let ttl: i64 = redis::cmd("TTL").arg(&keys[0]).query(&mut redis.connection()).expect("TTL");
        assert!((29 * 86_400..=30 * 86_400).contains(&ttl), "and not for ever: {ttl} s");
    }
}

async fn a_refused_change_leaves_nothing(kept: Kept) {
    act(&kept, "lead", "a", 1).await;
    let before = kept.store.read("lead", Some(0)).await.expect("a read").expect("a lead").lead;
    let mut foreign = change("lead", activity("b", "COMPLETED", 2));
    foreign.workspace_id = Some("another".into());
    foreign.additions.push(Addition::Completion(Completion { time: at(5), version: 0 }));
    assert!(matches!(kept.store.apply(foreign).await, Err(StoreError::OtherWorkspace)));
    let after = kept.store.read("lead", Some(0)).await.expect("a read").expect("a lead").lead;
    assert_eq!(before, after);
    assert!(listed_of(&kept, "another").await.is_empty());
}

async fn a_workspace_can_be_learned_later(kept: Kept) {
    let field = |value: &str| ProfileField { value: value.into(), version: 0 };
    let created = |value: &str| Change {
        lead_id: "lead".into(),
        received: at(0),
        additions: vec![Addition::FillProfile(ProfileKey::FirstName, field(value))],
        ..Change::default()
    };
    assert!(matches!(kept.store.apply(created("Ada")).await.expect("an outcome"), Outcome::Applied { .. }));
    assert!(listed(&kept, None, None, 10).await.is_empty());
    let mut named = created("Ada");
    named.workspace_id = Some("w".into());
    assert!(matches!(kept.store.apply(named.clone()).await.expect("an outcome"), Outcome::Applied { .. }), "the workspace is new");
    assert!(matches!(kept.store.apply(named).await.expect("an outcome"), Outcome::Duplicate { .. }));
    assert!(matches!(kept.store.apply(created("Grace")).await.expect("an outcome"), Outcome::Duplicate { .. }), "a fill never overwrites");
    assert_eq!(listed(&kept, None, None, 10).await, ["lead"]);
    act(&kept, "lead", "a", 7).await;
    let query = ListQuery { workspace_id: "w".into(), after: None, before: None, cursor: None, limit: 10 };
    assert_eq!(kept.store.list(&query).await.expect("a list"), [Place { time: at(7), lead_id: "lead".into() }]);
}

async fn listed(kept: &Kept, after: Option<i64>, before: Option<i64>, page: usize) -> Vec<String> {
    let mut all: Vec<Place> = Vec::new();
    loop {
        let query =
            ListQuery { workspace_id: "w".into(), after: after.map(at), before: before.map(at), cursor: all.last().cloned(), limit: page };
        let places = kept.store.list(&query).await.expect("a list");
        let end = places.len() < page;
        all.extend(places);
        if end {
            return all.into_iter().map(|place| place.lead_id).collect();
        }
    }
}

async fn listed_of(kept: &Kept, workspace_id: &str) -> Vec<Place> {
    let query = ListQuery { workspace_id: workspace_id.into(), after: None, before: None, cursor: None, limit: 100 };
    kept.store.list(&query).await.expect("a list")
}

async fn lists_are_in_order_and_page_exactly(kept: Kept) {
    // Thirty leads on ten times, five without any activity.
    let mut expected = Vec::new();
    for number in 0..30 {
        let lead_id = format!("lead {number:02}");
        act(&kept, &lead_id, "old", -100).await;
        act(&kept, &lead_id, "new", number % 10).await;
        expected.push((number % 10, lead_id));
    }
    for number in 0..5 {
        let lead_id = format!("quiet {number}");
        let created = Change { lead_id: lead_id.clone(), workspace_id: Some("w".into()), received: at(0), ..Change::default() };
        kept.store.apply(created).await.expect("an outcome");
        expected.push((i64::MIN, lead_id));
    }
    expected.sort_by(|a, b| b.cmp(a));
    let ids = |from: i64, to: i64| -> Vec<String> {
        expected.iter().filter(|(time, _)| (from..=to).contains(time)).map(|(_, id)| id.clone()).collect()
    };
    for page in [1, 4, 100] {
        assert_eq!(listed(&kept, None, None, page).await, ids(i64::MIN, i64::MAX), "in pages of {page}");
        assert_eq!(listed(&kept, Some(3), None, page).await, ids(4, 9));
        assert_eq!(listed(&kept, None, Some(3), page).await, ids(-200, 2));
        assert_eq!(listed(&kept, Some(3), Some(6), page).await, ids(4, 5));
        assert!(listed(&kept, Some(6), Some(3), page).await.is_empty());
    }
}

async fn extremes_recede_with_what_they_came_from(kept: Kept) {
    for extra in 0..140 {
        act(&kept, "large", &action(extra), 50).await;
    }
    for lead_id in ["small", "large"] {
        act(&kept, lead_id, "early", 40).await;
        act(&kept, lead_id, "middle", 60).await;
        // The latest action was told without a time, and stands at its receipt until its time is told.
        let mut untimed = activity("last", "COMPLETED", 90);
        untimed.timed = false;
        kept.store.apply(change(lead_id, untimed)).await.expect("an outcome");
        let lead = kept.store.read(lead_id, None).await.expect("a read").expect("a lead").lead;
        assert_eq!(lead.latest_activity.as_ref().map(|activity| activity.time), Some(at(90)));
        kept.store.apply(change(lead_id, activity("last", "COMPLETED", 55))).await.expect("an outcome");
        let lead = kept.store.read(lead_id, None).await.expect("a read").expect("a lead").lead;
        assert_eq!(lead.latest_activity.as_ref().map(|activity| (activity.time, &*activity.action_id)), Some((at(60), "middle")));
        let messages = lead.message_counts.values().next().expect("messages");
        assert_eq!(messages.latest, at(60), "its message is of its time too");
        // That it failed, later even, does not undo that it was completed.
        let outcome = kept.store.apply(change(lead_id, activity("last", "FAILED", 95))).await.expect("an outcome");
        assert!(matches!(outcome, Outcome::Duplicate { .. }), "{outcome:?}");
        // The first one was reported as failed without a time, at a receipt which made it the first; now it has one.
        let mut untimed = activity("first", "FAILED", -500);
        untimed.timed = false;
        kept.store.apply(change(lead_id, untimed)).await.expect("an outcome");
        assert_eq!(kept.store.read(lead_id, None).await.expect("a read").expect("a lead").lead.first_activity, Some(at(-500)));
        kept.store.apply(change(lead_id, activity("first", "COMPLETED", 70))).await.expect("an outcome");
        let lead = kept.store.read(lead_id, None).await.expect("a read").expect("a lead").lead;
        assert_eq!(lead.first_activity, Some(at(40)));
        assert_eq!(history(&kept, lead_id, 500).await.len() as u64, lead.activity_counts.values().sum::<u64>());
    }
}

/// Each completion moves what was the first activity when it looked, or becomes it while it looks.
async fn extremes_recede_whoever_moves_first(kept: Kept) {
    const ACTIONS: i64 = 8;
    for number in 0..100 {
        let lead_id = format!("lead {number}");
        for at in 0..ACTIONS {
            kept.store.apply(change(&lead_id, activity(&action(at), "FAILED", at))).await.expect("an outcome");
        }
        let completed = (0..ACTIONS).map(|at| {
            let (store, change) = (Arc::clone(&kept.store), change(&lead_id, activity(&action(at), "COMPLETED", 100 - at)));
            tokio::spawn(async move { store.apply(change).await })
        });
        for outcome in futures::future::join_all(completed).await {
            outcome.expect("a writer").expect("an outcome");
        }
        let lead = kept.store.read(&lead_id, None).await.expect("a read").expect("a lead").lead;
        assert_eq!(lead.first_activity, Some(at(100 - (ACTIONS - 1))), "{lead_id}");
        assert_eq!(lead.latest_time(), Some(at(100)), "{lead_id}");
    }
}

async fn every_change_is_told_once_in_order(kept: Kept) {
    let mut feed = kept.store.feed();
    // The feed begins when it has said that it is complete.
    let heard = tokio::time::timeout(PATIENCE, async { while !matches!(feed.recv().await, Some(FeedEvent::Alive { .. })) {} });
    heard.await.expect("a living feed");
    for number in 0..50 {
        act(&kept, "lead", &action(number), number).await;
        act(&kept, "lead", &action(number), number).await;
    }
    kept.store.delete("lead").await.expect("an answer");
    let (mut last, mut told) = (0, 0);
    loop {
        let event = tokio::time::timeout(PATIENCE, feed.recv()).await.expect("in time").expect("a feed");
        match event {
            FeedEvent::Changed { lead_id, workspace_id, version, previous } => {
                assert_eq!((&*lead_id, &*workspace_id, previous), ("lead", "w", last));
                told += 1;
                last = version;
                if version == 0 {
                    break;
                }
                assert!(version > previous);
            }
            FeedEvent::Alive { .. } | FeedEvent::Unconfirmed { .. } => {}
            FeedEvent::Gap => panic!("nothing was lost"),
        }
    }
    assert_eq!(told, 51);
}

async fn a_hot_lead_takes_many_writers(kept: Kept) {
    let writers = (0..12).map(|writer| {
        let store = Arc::clone(&kept.store);
        tokio::spawn(async move {
            for number in 0..20 {
                let mut change = change("lead", activity(&fresh_id(), "COMPLETED", number));
                // All of them speak of the same few fields too.
                change.additions.push(Addition::SetProfile(
                    ProfileKey::ALL[number as usize % 9],
                    ProfileField { value: format!("{writer} {number}"), version: 0 },
                ));
                store.apply(change).await.expect("an outcome");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    let lead = kept.store.read("lead", None).await.expect("a read").expect("a lead").lead;
    assert_eq!(lead.activity_counts.values().sum::<u64>(), 240, "none lost, none twice");
    assert_eq!(lead.message_counts.values().map(|messages| messages.count).sum::<u64>(), 240);
    assert_eq!(lead.profile.len(), 9);
}

/// A key of the wrong type, put there by a stranger, stops one lead and no other; nothing is half done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_the_wrong_type_leaves_nothing_half_done() {
    let kept = Kept::redis().await;
    let redis = kept.redis.as_ref().expect("a Redis");
    act(&kept, "lead", "a", 1).await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*}:lead:lead").query(&mut redis.connection()).expect("KEYS");
    let tag = keys[0].split(":lead:").next().expect("a prefix").to_owned();
    let mut full = change("lead", activity("b", "COMPLETED", 2));
    full.additions.push(Addition::Completion(Completion { time: at(5), version: 0 }));
    let before = kept.store.read("lead", Some(0)).await.expect("a read").expect("a lead");
    for key in [format!("{tag}:index:w"), format!("{tag}:feed"), format!("{tag}:details:lead")] {
        let backup = format!("{tag}:backup");
        let _: Result<(), _> = redis::cmd("RENAME").arg(&key).arg(&backup).query(&mut redis.connection());
        let () = redis::cmd("SET").arg(&key).arg("a stranger's").query(&mut redis.connection()).expect("SET");
        assert!(matches!(kept.store.apply(full.clone()).await, Err(StoreError::Corrupt(_))), "{key}");
        assert!(matches!(act(&kept, "other lead", &fresh_id(), 1).await, Outcome::Applied { .. }) || kept.store.check().await.is_usable());
        let () = redis::cmd("DEL").arg(&key).query(&mut redis.connection()).expect("DEL");
        let _: Result<(), _> = redis::cmd("RENAME").arg(&backup).arg(&key).query(&mut redis.connection());
        let after = kept.store.read("lead", Some(0)).await.expect("a read").expect("a lead");
        assert_eq!((after.lead, after.missed.len()), (before.lead.clone(), before.missed.len()), "{key}");
    }
    assert!(
        matches!(kept.store.apply(full).await.expect("an outcome"), Outcome::Applied { .. }),
        "a retry is neither lost nor taken for a duplicate"
    );
}
