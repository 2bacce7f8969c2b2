//! Clocks that are wrong, by `faketime`: the local clock is not believed over the store's, nor over what an event says.

use std::path::Path;
use std::process::Command;

use crate::support::events::{SAMPLE_TIME, lead_updated, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::{eventually, fresh_id, is_about_now, time};

/// Options of a server whose clock is off. `None`: there is no faketime here.
fn at(options: Options, clock: &str) -> Option<Options> {
    Some(faked(options)?.env("FAKETIME", clock))
}

/// Options of a server whose clock is off by what a file says, which may change while it runs.
fn by_file(options: Options, file: &Path) -> Option<Options> {
    Some(faked(options)?.env("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("a path")).env("FAKETIME_NO_CACHE", "1"))
}

fn faked(options: Options) -> Option<Options> {
    let library = Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | head -1"]).output().ok()?;
    let library = String::from_utf8(library.stdout).ok()?;
    let library = library.trim();
    if library.is_empty() {
        eprintln!("SKIPPED: faketime is not installed");
        return None;
    }
    Some(
        options
            .env("LD_PRELOAD", library)
            // Timers run as always.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1"),
    )
}

/// A time that is right looks far ahead to a clock that is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_tells_the_time() {
    let redis = RedisServer::start();
    for clock in ["-2d", "+2d", "-400d"] {
        let Some(options) = at(Options::on(&redis), clock) else { return };
        let server = Server::start(&options);
        let lead_id = fresh_id();
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let version = server.apply(&message(&lead_id, "now", &now)).await;
        let lead = server.lead(&lead_id).await;
        assert_eq!(lead.latest_activity_time, Some(time(&now)), "{clock}: a right time is believed");
        assert!(is_about_now(lead.update_time.as_ref()), "{clock}: {:?}", lead.update_time);
        assert!(version.abs_diff(u64::try_from(chrono::Utc::now().timestamp_millis()).expect("ms")) < 60_000, "{clock}: {version}");
        // An event without a time has that of its receipt, which is Redis's.
        let mut untimed = message(&lead_id, "untimed", &now);
        untimed["actionLog"]["completedAt"] = serde_json::Value::Null;
        server.apply(&untimed).await;
        let lead = server.lead(&lead_id).await;
        assert!(is_about_now(lead.latest_activity_time.as_ref()), "{clock}: {:?}", lead.latest_activity_time);
        // A deletion keeps late events away.
        let request = leadfold::api::DeleteLeadRequest { lead_id: lead_id.clone() };
        server.client().delete_lead(request).await.expect("deleted");
        let late = server.post(message(&lead_id, "late", &now).to_string()).await;
        assert_eq!((late.status, late.outcome()), (200, "ignored"), "{clock}: {late:?}");
    }
}

/// Before the program was built: the clock of a machine whose battery is empty. And nobody has told it the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_time_only_events_with_a_time_are_taken() {
    let mut redis = RedisServer::start();
    redis.kill();
    let Some(options) = at(Options::on(&redis), "@2001-01-01 00:00:00") else { return };
    let server = Server::start(&options);
    let lead_id = fresh_id();
    let (status, report) = server.admin("/readyz?for=webhooks").await;
    assert!(status == 503 && report.contains("clock"), "{report}");
    let refused = server.post(lead_updated(&lead_id).to_string()).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let mut untimed = message(&lead_id, "untimed", SAMPLE_TIME);
    untimed["actionLog"]["completedAt"] = serde_json::Value::Null;
    assert_eq!(server.post(untimed.to_string()).await.status, 503);
    redis.restart();
    eventually("Redis has told the time", async || (server.admin("/readyz?for=webhooks").await.0 == 200).then_some(())).await;
    eventually("events are taken", async || (server.post(untimed.to_string()).await.outcome() == "applied").then_some(())).await;
    assert!(is_about_now(server.lead_eventually(&lead_id).await.latest_activity_time.as_ref()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_s_clock_never_goes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let lead_id = fresh_id();
    let mut server = Server::start(&Options::default().data_dir(dir.path()));
    let first = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    assert!(server.terminate().status.success());
    let Some(options) = at(Options::default().data_dir(dir.path()), "-365d") else { return };
    let server = Server::start(&options);
    let second = server.apply(&message(&fresh_id(), "a2", SAMPLE_TIME)).await;
    assert!(second >= first, "{second} {first}");
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    server.apply(&message(&lead_id, "a3", &now)).await;
    assert_eq!(server.lead(&lead_id).await.latest_activity_time, Some(time(&now)), "a right time is believed");
}

/// Letters expire by the store's time alone: no other letter comes, and nobody asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_expire_by_the_clock_of_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = dir.path().join("clock");
    std::fs::write(&clock, "+0d").expect("a clock");
    let Some(options) = by_file(Options::default(), &clock) else { return };
    let server = Server::start(&options);
    let refused =
        || async { server.post(r#"{"event": "lead.created", "data": {"firstName": "A"}}"#).await.assert_refused(400, "data.leadId") };
    refused().await;
    assert_eq!(server.metric("leadfold_dead_letters").await, 1.0);
    // Half an age: it comes again, so its age begins anew.
    std::fs::write(&clock, "+20d").expect("a clock");
    refused().await;
    std::fs::write(&clock, "+45d").expect("a clock");
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(server.metric("leadfold_dead_letters").await, 1.0, "it came 25 days ago");
    std::fs::write(&clock, "+51d").expect("a clock");
    eventually("it has expired", async || (server.metric("leadfold_dead_letters").await == 0.0).then_some(())).await;

    // With Redis the local clock says nothing.
    let redis = RedisServer::start();
    std::fs::write(&clock, "+0d").expect("a clock");
    let Some(options) = by_file(Options::on(&redis).data_dir(dir.path()), &clock) else { return };
    let mut server = Server::start(&options);
    server.post(r#"{"event": "lead.created", "data": {"firstName": "A"}}"#).await.assert_refused(400, "data.leadId");
    assert!(server.terminate().status.success());
    std::fs::write(&clock, "+400d").expect("a clock");
    let server = Server::start(&options);
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(crate::dead_letters::listed(&server).len(), 1, "Redis knows the time");
}
