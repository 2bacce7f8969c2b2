//! The spool's disk returns other bytes than were written, or none.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leadfold::api::{GetLeadRequest, ListActivitiesRequest};
use serde_json::{Value, json};

use crate::dead_letters::dead_letters;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::{eventually, fresh_id};

/// Bytes of a record's header, and where its length is.
const HEADER: usize = 50;
const LENGTH: usize = 4;

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir.join("spool")).expect("the spool").map(|entry| entry.expect("an entry").path());
    let mut names: Vec<_> = names.filter(|path| path.to_string_lossy().ends_with(extension)).collect();
    names.sort();
    names
}

/// Queues so many events of a lead.
async fn queue(server: &Server, lead_id: &str, events: usize) {
    for number in 0..events {
        let answer = server.post(message(lead_id, &format!("action-{number:03}"), SAMPLE_TIME).to_string()).await;
        assert_eq!(answer.outcome(), "queued", "{number}");
    }
}

/// Where the record of an action begins in a segment, and where its change does.
fn record(bytes: &[u8], number: usize) -> (usize, usize) {
    let action = format!("action-{number:03}");
    let find = |text: &[u8], in_front: usize| bytes[..in_front].windows(text.len()).rposition(|window| window == text);
    let body = find(br#"{"lead_id""#, find(action.as_bytes(), bytes.len()).expect("the action")).expect("its change");
    (body - HEADER, body)
}

/// Flips bits of the segment on disk: of the length of one record, of the changes of the others.
fn damage(segment: &Path, length_of: usize, changes_of: &[usize]) -> Vec<u8> {
    let mut bytes = std::fs::read(segment).expect("the segment");
    let at = record(&bytes, length_of).0 + LENGTH;
    let places: Vec<usize> = changes_of.iter().map(|number| record(&bytes, *number).1 + 30).chain([at]).collect();
    let file = std::fs::OpenOptions::new().write(true).open(segment).expect("the segment");
    for at in places {
        bytes[at] ^= 0x04;
        file.write_all_at(&bytes[at..=at], at as u64).expect("written");
    }
    bytes
}

async fn actions(server: &Server, lead_id: &str) -> BTreeSet<String> {
    let request = || ListActivitiesRequest { lead_id: lead_id.to_owned(), page_size: 1000, ..Default::default() };
    let page = eventually("activities", async || server.client().list_activities(request()).await.ok()).await.into_inner();
    assert_eq!(page.next_page_token, "");
    page.activities.into_iter().map(|activity| activity.action_id).collect()
}

/// All events were applied but those that were damaged, and these are known.
async fn assert_only_these_are_lost(server: &Server, dir: &Path, lead_id: &str, events: usize, lost: &[usize], segment: &[u8]) {
    server.eventually_metric("leadfold_spool_events", 0.0).await;
    server.eventually_metric("leadfold_spool_bytes", 0.0).await;
    let expected: BTreeSet<_> = (0..events).filter(|number| !lost.contains(number)).map(|number| format!("action-{number:03}")).collect();
    assert_eq!(actions(server, lead_id).await, expected);
    assert_eq!(server.lead(lead_id).await.message_count, expected.len() as u64);
    assert_eq!(server.metric("leadfold_spool_damaged_total").await, lost.len() as f64);
    assert_eq!(server.metric("leadfold_spool_applied_total").await, expected.len() as f64);
    assert_eq!(server.metric("leadfold_spool_oldest_age_seconds").await, 0.0);

    let output = dead_letters(server, &["list", "--json", "--payloads"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let letters: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(letters.len(), lost.len(), "{letters:#?}");
    for letter in &letters {
        assert_eq!(letter["reason"], json!("unreadable"), "{letter}");
        assert!(letter["error"].as_str().is_some_and(|error| error.contains(".damaged.log")), "{letter}");
    }
    // What is wrong with the bytes does not become right by trying again.
    let retried = dead_letters(server, &["retry", "--all"]);
    assert!(String::from_utf8_lossy(&retried.stdout).contains(&format!("{} refused", lost.len())), "{retried:?}");

    eventually("the segment is done", async || files(dir, ".log").is_empty().then_some(())).await;
    let kept = files(dir, ".damaged");
    let [evidence] = &kept[..] else { panic!("not one file is kept: {kept:?}") };
    assert!(std::fs::read(evidence).expect("the evidence") == segment, "what is kept is not what was there");
    let logs = server.logs();
    let told: Vec<_> = logs.lines().filter(|line| line.contains("a segment of the spool is damaged")).collect();
    assert_eq!(told.len(), lost.len(), "{logs}");
    assert!(told.iter().all(|line| line.contains("ERROR") && line.contains("offset") && line.contains(".damaged.log")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_damaged_while_leadfold_is_away_cost_nothing_but_themselves() {
    let mut redis = RedisServer::start_with(&super::DURABLE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options::on(&redis).data_dir(dir.path());
    redis.kill();
    let server = Server::start(&options);
    let lead_id = fresh_id();
    queue(&server, &lead_id, 30).await;
    // Dropped, it is killed: nothing is written any more.
    drop(server);
    let segments = files(dir.path(), ".log");
    let damaged = damage(&segments[0], 12, &[5, 6, 29]);
    let server = Server::start(&options);
    redis.restart();
    assert_only_these_are_lost(&server, dir.path(), &lead_id, 30, &[5, 6, 12, 29], &damaged).await;
}

/// Before they are read: leadfold holds some in memory, and these are not lost at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_damaged_while_leadfold_runs_cost_nothing_but_themselves() {
    let mut redis = RedisServer::start_with(&super::DURABLE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(&Options::on(&redis).data_dir(dir.path()));
    redis.kill();
    let lead_id = fresh_id();
    queue(&server, &lead_id, 30).await;
    let segments = files(dir.path(), ".log");
    let damaged = damage(&segments[0], 20, &[25, 29]);
    redis.restart();
    assert_only_these_are_lost(&server, dir.path(), &lead_id, 30, &[20, 25, 29], &damaged).await;
}

/// A directory stands where a segment was: it can be opened, and cannot be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_read_is_waited_for_quietly() {
    const EVENTS: usize = 700;
    let mut redis = RedisServer::start_with(&super::DURABLE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Segments of 128 KiB.
    let server = Server::start(&Options::on(&redis).data_dir(dir.path()).env("LEADFOLD_SPOOL_MAX_BYTES", "1048576"));
    redis.kill();
    let lead_id = fresh_id();
    queue(&server, &lead_id, EVENTS).await;
    let segments = files(dir.path(), ".log");
    assert!(segments.len() >= 3, "{segments:?}");
    let aside = dir.path().join("aside");
    std::fs::rename(&segments[1], &aside).expect("renamed");
    std::fs::create_dir(&segments[1]).expect("a directory");
    redis.restart();
    let complaints = || server.logs().lines().filter(|line| line.contains("the spool cannot be read")).count();
    eventually("it is said", async || (complaints() > 0).then_some(())).await;
    // All of the first segment is applied.
    let first: u32 = segments[1].file_stem().and_then(|stem| stem.to_str()).expect("a name").parse().expect("a number");
    let waiting = EVENTS as f64 - f64::from(first);
    server.eventually_metric("leadfold_spool_events", waiting).await;
    let before = server.cpu();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = server.cpu() - before;
    assert!(used < Duration::from_millis(900), "{used:?} of CPU in 3 s");
    assert_eq!(complaints(), 1, "{}", server.logs());
    assert_eq!(server.metric("leadfold_spool_events").await, waiting, "nothing is given up");

    std::fs::remove_dir(&segments[1]).expect("removed");
    std::fs::rename(&aside, &segments[1]).expect("renamed");
    server.eventually_metric("leadfold_spool_events", 0.0).await;
    assert_eq!(actions(&server, &lead_id).await.len(), EVENTS);
    assert_eq!(server.metric("leadfold_spool_damaged_total").await, 0.0);
    let lead = server.client().get_lead(GetLeadRequest { lead_id }).await.expect("the lead").into_inner().lead.expect("the lead");
    assert_eq!(lead.message_count, EVENTS as u64);
}
