//! A first start that is killed at any moment leaves nothing that the next start stumbles over.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::fresh_id;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};

const TRIES: u32 = 40;

/// How often it is killed: more on demand.
fn tries() -> u32 {
    std::env::var("LEADFOLD_TEST_FIRST_STARTS").ok().and_then(|tries| tries.parse().ok()).unwrap_or(TRIES)
}

fn seed() -> u64 {
    let seed = std::env::var("LEADFOLD_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("LEADFOLD_TEST_SEED={seed}");
    seed
}

async fn starts_after_kills(options: Options, file: &str) {
    let mut random = StdRng::seed_from_u64(seed());
    // How long it takes here until the files are there.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let began = Instant::now();
    let server = Server::start(&options.clone().data_dir(dir.path()));
    let whole = began.elapsed();
    drop(server);
    let (mut before, mut after) = (0, 0);
    for number in 0..tries() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = options.clone().data_dir(dir.path());
        // Some are killed again and again.
        for _ in 0..random.random_range(1..=3) {
            options.killed_after(Duration::from_micros(random.random_range(0..u64::try_from(whole.as_micros()).expect("a short time"))));
        }
        *(if dir.path().join(file).exists() { &mut after } else { &mut before }) += 1;
        let server = Server::try_start(&options).unwrap_or_else(|said| panic!("start {number} after a kill is refused: {said}"));
        if number % 10 == 0 {
            server.apply(&message(&fresh_id(), "a1", SAMPLE_TIME)).await;
        }
        drop(server);
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("the directory").map(|entry| entry.expect("a name").file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{left:?}");
    }
    println!("killed before {file} was there: {before}, after: {after}");
    assert!(before > 0 && after > 0, "the kills came all too early or all too late: {before} and {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_store_whose_first_start_was_killed_starts() {
    starts_after_kills(Options::default(), "leads.redb").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_on_redis_whose_first_start_was_killed_starts() {
    let redis = RedisServer::start();
    starts_after_kills(Options::on(&redis), "dead-letters.redb").await;
}
