//! The fold does not care for order, duplicates or who writes: generated histories, applied in a shuffled
//! order by two concurrent writers, leave in both stores what a plain fold of them gives.

mod history;
mod reference;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use leadfold::event;
use leadfold::fold::{self, Folded, Receipt};
use leadfold::grpc::convert;
use leadfold::lead::Change;
use leadfold::store::{ListQuery, Outcome, Store, embedded::EmbeddedStore, redis::RedisStore};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::redis::RedisServer;
use history::{Delivery, History};
use reference::Reference;

/// Histories per store, unless `LEADFOLD_TEST_HISTORIES` says otherwise.
const HISTORIES: u32 = 2000;

fn runner() -> TestRunner {
    let cases = std::env::var("LEADFOLD_TEST_HISTORIES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(HISTORIES);
    let seed = std::env::var("LEADFOLD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 =
        seed.unwrap_or_else(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock").as_nanos() as u64);
    println!("{cases} histories, LEADFOLD_TEST_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() },
        TestRng::from_seed(RngAlgorithm::ChaCha, &bytes),
    )
}

fn change(delivery: &Delivery) -> Change {
    let body = serde_json::to_vec(&delivery.event).expect("JSON");
    let body = event::Body::new(&body);
    let event = event::parse(&body).expect("generated events are well formed");
    match fold::fold(&event, Receipt { at: delivery.received, workspace_id: Some(&delivery.workspace_id) }).expect("and complete") {
        Folded::Change(change) => *change,
        Folded::UnknownEvent(name) => panic!("unknown event {name}"),
    }
}

/// Applies every second delivery on each of two writers, at the same time.
async fn write(writers: &[Arc<dyn Store>; 2], deliveries: Vec<Delivery>) {
    let halves = [0, 1].map(|half| {
        let store = Arc::clone(&writers[half]);
        let deliveries: Vec<_> = deliveries.iter().skip(half).step_by(2).map(change).collect();
        tokio::spawn(async move {
            for change in deliveries {
                let outcome = store.apply(change).await.expect("the store is well");
                assert!(matches!(outcome, Outcome::Applied { .. } | Outcome::Duplicate { .. }), "{outcome:?}");
            }
        })
    });
    for half in halves {
        half.await.expect("a writer");
    }
}

async fn check(writers: &[Arc<dyn Store>; 2], history: &History) {
    let reference = Reference::of(history.deliveries().iter().map(change));
    write(writers, history.shuffled()).await;
    let mut versions = Vec::new();
    for lead_id in history.lead_ids() {
        let expected = reference.lead(lead_id);
        let read = writers[1].read(lead_id, None).await.expect("a read");
        assert_eq!(read.is_some(), expected.is_some(), "{lead_id} exists");
        let (Some(read), Some(expected)) = (read, expected) else { continue };
        versions.push((lead_id.clone(), read.lead.version));
        assert_eq!(without_version(convert::lead(&read.lead)), without_version(convert::lead(&expected)));
        let activities = writers[0].activities(lead_id, None, 1000).await.expect("a list").expect("the lead exists");
        let activities: Vec<_> =
            activities.iter().map(|activity| leadfold::api::Activity { version: 0, ..convert::activity(activity) }).collect();
        let expected: Vec<_> = reference.activities(lead_id).iter().map(convert::activity).collect();
        assert_eq!(activities, expected);
    }
    let query = ListQuery { workspace_id: history.workspace_id.clone(), after: None, before: None, cursor: None, limit: 100 };
    let listed: Vec<_> = writers[0].list(&query).await.expect("a list").into_iter().map(|place| place.lead_id).collect();
    assert_eq!(listed, reference.listed(), "latest activity first");

    // All of it once more: nothing is new.
    write(writers, history.shuffled()).await;
    for (lead_id, version) in versions {
        let read = writers[0].read(&lead_id, None).await.expect("a read").expect("the lead exists");
        assert_eq!(read.lead.version, version, "a duplicate changed {lead_id}");
    }
}

fn without_version(mut lead: leadfold::api::Lead) -> leadfold::api::Lead {
    lead.version = 0;
    lead.update_time = None;
    if let Some(activity) = &mut lead.latest_activity {
        activity.version = 0;
    }
    lead
}

fn prove(runtime: &tokio::runtime::Runtime, writers: &[Arc<dyn Store>; 2]) {
    let case = AtomicUsize::new(0);
    let outcome = runner().run(&history::histories(), |mut history| {
        history.make_unique(case.fetch_add(1, Ordering::Relaxed));
        // A panic inside is caught by proptest, which then shrinks the history.
        runtime.block_on(check(writers, &history));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{}", error.to_string().chars().take(20000).collect::<String>());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn redis_holds_what_a_plain_fold_gives() {
    let runtime = runtime();
    let redis = RedisServer::start();
    let options =
        leadfold::store::redis::Options { key_prefix: "leadfold".into(), partitions: 8, max_history: 10_000, feed_length: 100, tls: None };
    let writers = [(); 2].map(|()| runtime.block_on(RedisStore::connect(&redis.url(), &options)).expect("Redis"));
    prove(&runtime, &writers.map(|store| Arc::new(store) as Arc<dyn Store>));
}

#[test]
fn the_embedded_store_holds_what_a_plain_fold_gives() {
    let runtime = runtime();
    let directory = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Store> =
        Arc::new(runtime.block_on(async { EmbeddedStore::open(&directory.path().join("leads.redb"), 10_000) }).expect("a store"));
    prove(&runtime, &[Arc::clone(&store), store]);
}
