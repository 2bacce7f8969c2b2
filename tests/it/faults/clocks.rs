//! Clocks that are wrong, by `faketime`: the local clock is not believed over the store's, nor over what an event says.

use std::process::Command;

use crate::support::events::{SAMPLE_TIME, lead_updated, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::{eventually, fresh_id, is_about_now, time};

/// Options of a server whose clock is off. `None`: there is no faketime here.
fn at(options: Options, clock: &str) -> Option<Options> {
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
            .env("FAKETIME", clock)
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
