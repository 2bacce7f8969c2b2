//! Processes die, or hang.

use tokio::time::sleep;

use super::{DURABLE, Scene, fault};
use crate::support::redis::RedisServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_is_killed() {
    let mut scene = Scene::begin(RedisServer::start_with(&DURABLE)).await;
    for _ in 0..2 {
        scene.redis.kill();
        scene.ledger.until("queued", 200).await;
        scene.redis.restart();
        scene.ledger.until("applied", 50).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_leadfold_is_killed() {
    let mut scene = Scene::begin(RedisServer::start_with(&DURABLE)).await;
    for _ in 0..3 {
        scene.kill_server();
        scene.start_server();
        scene.ledger.until("applied", 50).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_both_are_killed() {
    let mut scene = Scene::begin(RedisServer::start_with(&DURABLE)).await;
    scene.redis.kill();
    scene.ledger.until("queued", 200).await;
    // In the middle of writing to the spool, and once more while Redis is still away.
    for _ in 0..2 {
        scene.kill_server();
        scene.start_server();
        scene.ledger.until("queued", 200).await;
    }
    scene.kill_server();
    scene.redis.restart();
    scene.start_server();
    // In the middle of draining.
    scene.ledger.until("applied", 5).await;
    scene.kill_server();
    scene.start_server();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_hangs() {
    let scene = Scene::begin(RedisServer::start_with(&DURABLE)).await;
    scene.redis.signal("STOP");
    scene.ledger.until("queued", 100).await;
    sleep(fault(6)).await;
    let queued = scene.ledger.count("queued");
    scene.redis.signal("CONT");
    assert!(queued > 1000, "a hung Redis costs no event a timeout: {queued} were queued");
    scene.end().await;
}
