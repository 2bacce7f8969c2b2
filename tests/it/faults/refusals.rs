//! Redis answers, and refuses.

use super::{DURABLE, Scene};
use crate::support::eventually;
use crate::support::redis::RedisServer;

/// Sends a command that must succeed.
fn tell(redis: &RedisServer, command: &[&str]) {
    let mut told = redis::cmd(command[0]);
    told.arg(&command[1..]);
    let _: redis::Value = told.query(&mut redis.connection()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
}

/// Waits for one line of the log that says what is wrong and what to do.
async fn alarmed(scene: &Scene, what: &str, advice: &str) {
    eventually(what, async || {
        let logs = scene.server().logs();
        logs.lines().any(|line| line.contains("ERROR") && line.contains(what) && line.contains(advice)).then_some(())
    })
    .await;
    let lines = scene.server().logs().lines().filter(|line| line.contains("ERROR") && line.contains(what)).count();
    assert!(lines <= 2, "an alarm is not said for every event, but {lines} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_is_out_of_memory() {
    let scene = Scene::begin(RedisServer::start_with(&DURABLE)).await;
    tell(&scene.redis, &["CONFIG", "SET", "maxmemory", "1"]);
    scene.ledger.until("queued", 300).await;
    alarmed(&scene, "OOM", "maxmemory").await;
    tell(&scene.redis, &["CONFIG", "SET", "maxmemory", "0"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_becomes_a_replica() {
    let scene = Scene::begin(RedisServer::start_with(&DURABLE)).await;
    // Of a primary that is not there: it keeps what it has, and takes no writes.
    tell(&scene.redis, &["REPLICAOF", "127.0.0.1", "1"]);
    scene.ledger.until("queued", 300).await;
    alarmed(&scene, "READONLY", "primary").await;
    tell(&scene.redis, &["REPLICAOF", "NO", "ONE"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_no_longer_takes_the_password() {
    let redis = RedisServer::start_with(&DURABLE);
    tell(&redis, &["ACL", "SETUSER", "another", "on", ">old-secret", "~*", "&*", "+@all"]);
    let url = redis.url_as("another", "old-secret");
    let scene = Scene::begin_at(redis, url).await;
    tell(&scene.redis, &["ACL", "SETUSER", "another", "resetpass", ">new-secret"]);
    tell(&scene.redis, &["CLIENT", "KILL", "USER", "another"]);
    scene.ledger.until("queued", 300).await;
    alarmed(&scene, "WRONGPASS", "password").await;
    assert!(!scene.server().logs().contains("old-secret"));
    tell(&scene.redis, &["ACL", "SETUSER", "another", "resetpass", ">old-secret"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_redis_takes_a_right_away() {
    let redis = RedisServer::start_with(&DURABLE);
    tell(&redis, &["ACL", "SETUSER", "another", "on", ">secret", "~*", "&*", "+@all"]);
    let url = redis.url_as("another", "secret");
    let scene = Scene::begin_at(redis, url).await;
    tell(&scene.redis, &["ACL", "SETUSER", "another", "-evalsha", "-eval"]);
    scene.ledger.until("queued", 300).await;
    alarmed(&scene, "NOPERM", "right").await;
    tell(&scene.redis, &["ACL", "SETUSER", "another", "+@all"]);
    scene.end().await;
}
