//! A Redis that answers and cannot be used: that is said at once, in words that say what to do.

use leadfold::api::GetLeadRequest;
use serde_json::Value;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::{PASSWORD, RedisServer, USER, USERS};
use crate::support::redis_cluster::{RedisCluster, tell};
use crate::support::sentinels::{NAME, Sentinels};
use crate::support::server::{Options, Server};
use crate::support::{eventually, fresh_id};

use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn refused(url: &str, reason: &str, advice: &str) {
    let said = Options::at(url).refused();
    assert!(said.contains(reason) && said.contains(advice) && !said.contains(PASSWORD), "{url}: {said}");
}

#[test]
fn another_kind_of_server_than_the_address_says_is_refused_at_the_start() {
    let single = RedisServer::start();
    let cluster = RedisCluster::start(LONG);
    let sentinels = Sentinels::start(LONG);
    let url = |scheme: &str, port: u16, rest: &str| format!("{scheme}://{USER}:{PASSWORD}@127.0.0.1:{port}{rest}");
    refused(&url("redis-cluster", single.port(), ""), "not part of a cluster", "use redis://");
    refused(&url("redis", cluster.nodes[0].port(), ""), "node of a cluster", "use redis-cluster://");
    refused(&url("redis", single.port(), "/99"), "no database of the number", "--redis-url");
    refused(&url("redis-sentinel", single.port(), &format!("/{NAME}")), "no sentinel", "use redis://");
    refused(&format!("redis://127.0.0.1:{}", sentinels.ports()[0]), "this is a sentinel", "use redis-sentinel://");
    let other_name = sentinels.url().replace(&format!("/{NAME}"), "/another");
    refused(&other_name, "knows no primary of the name \"another\"", "sentinels");
}

#[test]
fn another_layout_is_refused_in_words_that_do_not_contradict_themselves() {
    let redis = RedisServer::start();
    let () = redis::cmd("HSET").arg("leadfold:config").arg("layout").arg("77").query(&mut redis.connection()).expect("HSET");
    let said = Options::on(&redis).refused();
    assert!(said.contains("has layout 77") && said.contains("use the version that wrote it, or another --key-prefix"), "{said}");
    assert!(!said.contains("start it with"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_evicts_is_refused_whenever_it_comes() {
    let mut redis = RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    refused(&redis.url(), "evicts keys", "noeviction");
    redis.kill();
    let server = Server::start(&Options::on(&redis));
    redis.restart();
    eventually("it is reported", async || server.logs().contains("evicts keys").then_some(())).await;
    let answer = server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await;
    assert_eq!((answer.status, answer.outcome()), (200, "queued"));
    tell(&redis, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.eventually_metric("leadfold_spool_events", 0.0).await;
}

/// What is written at the first start is gone when Redis comes back empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_agree_on_the_layout_of_a_redis_that_came_back_empty() {
    let mut redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    server.apply(&message(&fresh_id(), "a1", SAMPLE_TIME)).await;
    redis.restart();
    eventually("it is used again", async || {
        (server.post(message(&fresh_id(), "a2", SAMPLE_TIME).to_string()).await.outcome() == "applied").then_some(())
    })
    .await;
    let said = Options::on(&redis).env("LEADFOLD_PARTITIONS", "8").refused();
    assert!(said.contains("has partitions 64, this instance wants 8: start it with --partitions 64"), "{said}");
}

#[test]
fn missing_persistence_is_said_at_the_start() {
    for (appendonly, warned) in [("no", true), ("yes", false)] {
        let redis = RedisServer::start_with(&["--appendonly", appendonly]);
        let mut server = Server::start(&Options::on(&redis));
        server.terminate();
        assert_eq!(server.logs().contains("writes no append-only file"), warned, "{appendonly}: {}", server.logs());
    }
}

async fn part(server: &Server, name: &str) -> Value {
    // What is told was seen at most this long ago: several who ask share one look.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let (_, text) = server.admin("/readyz").await;
    let report: Value = serde_json::from_str(&text).expect("JSON");
    report["parts"][name].clone()
}

/// Nothing is half written where a right is missing, whichever it is: events wait, and are there once when it is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_taken_away_leaves_nothing_half_written() {
    let redis = RedisServer::start();
    let rights: Vec<&str> = USERS.split_whitespace().filter_map(|word| word.strip_prefix('+')).collect();
    let connecting = ["ping", "info", "role", "select", "cluster|slots", "cluster|info", "asking"];
    let server = Server::start(&Options::on(&redis));
    let lead_id = fresh_id();
    let mut sent = 0;
    for number in 0..130 {
        server.apply(&message(&lead_id, &format!("before{number}"), SAMPLE_TIME)).await;
        sent += 1;
    }
    for right in rights.iter().filter(|right| !connecting.contains(*right)) {
        tell(&redis, &["ACL", "SETUSER", USER, &format!("-{right}")]);
        for event in [message(&lead_id, right, SAMPLE_TIME), message(&fresh_id(), right, SAMPLE_TIME)] {
            let answer = server.post(event.to_string()).await;
            assert_eq!(answer.status, 200, "-{right}: {answer:?}");
            assert!(["applied", "queued"].contains(&answer.outcome()), "-{right}: {answer:?}");
        }
        sent += 1;
        tell(&redis, &["ACL", "SETUSER", USER, &format!("+{right}")]);
        server.eventually_metric("leadfold_spool_events", 0.0).await;
        let lead = eventually("a read", async || {
            server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead
        })
        .await;
        let counted: u64 = lead.activity_counts.iter().map(|count| count.count).sum();
        assert_eq!((counted, lead.message_count), (sent, sent), "-{right}");
    }
}

/// A right that is taken away while leadfold runs: the probe tries what a change needs, and names what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_named_by_health() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    assert_eq!(part(&server, "writes").await["ok"], true);
    for command in ["hset", "zadd", "xadd", "hmget", "hgetall"] {
        tell(&redis, &["ACL", "SETUSER", USER, &format!("-{command}")]);
        let writes = part(&server, "writes").await;
        let reason = writes["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("NOPERM") && reason.contains(&command.to_uppercase()), "{writes}");
        assert_eq!(part(&server, "store").await["ok"], !command.starts_with("hm") && !command.starts_with("hg"));
        tell(&redis, &["ACL", "SETUSER", USER, &format!("+{command}")]);
        assert_eq!(part(&server, "writes").await["ok"], true);
    }
}

/// Redis takes no writes while it cannot save, and refuses even a PING then: reads are served all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_cannot_save_is_ready_for_reads() {
    let gone = tempfile::tempdir().expect("a directory");
    let redis = RedisServer::start_with(&["--enable-protected-configs", "yes"]);
    let server = Server::start(&Options::on(&redis));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let before = redis_dir(&redis);
    tell(&redis, &["CONFIG", "SET", "dir", gone.path().to_str().expect("a path")]);
    tell(&redis, &["CONFIG", "SET", "save", "1 1"]);
    drop(gone);
    eventually("Redis refuses writes", async || {
        let answer = redis::cmd("SET").arg("x").arg("y").query::<()>(&mut redis.connection());
        answer.is_err_and(|error| error.code() == Some("MISCONF")).then_some(())
    })
    .await;
    let writes = part(&server, "writes").await;
    assert!(writes["reason"].as_str().is_some_and(|reason| reason.contains("MISCONF")), "{writes}");
    assert_eq!(part(&server, "store").await["ok"], true);
    assert_eq!(server.admin("/readyz?for=reads").await.0, 200);
    assert_eq!(server.lead(&lead_id).await.message_count, 1);
    let answer = server.post(message(&lead_id, "a2", SAMPLE_TIME).to_string()).await;
    assert_eq!((answer.status, answer.outcome()), (200, "queued"));
    tell(&redis, &["CONFIG", "SET", "save", ""]);
    tell(&redis, &["CONFIG", "SET", "dir", &before]);
    tell(&redis, &["BGSAVE"]);
    server.eventually_metric("leadfold_spool_events", 0.0).await;
}

fn redis_dir(redis: &RedisServer) -> String {
    let told: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("dir").query(&mut redis.connection()).expect("CONFIG GET");
    told[1].clone()
}
