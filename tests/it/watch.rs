//! What a watch of one lead promises.

use std::time::{Duration, Instant};

use leadfold::api::watch_lead_response::Event;
use leadfold::api::{DeleteLeadRequest, LeadChange, LeadUpdate, SnapshotReason, lead_change::Change};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tonic::Code;

use crate::support::events::{
    SAMPLE_TIME, document_extracted, document_received, lead_created, lead_updated, message, message_with_document,
};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::watching::LeadWatch;
use crate::support::{PATIENCE, Setup, fresh_id, on_both_stores};

on_both_stores!(
    the_first_message_comes_at_once_even_for_a_lead_never_heard_of,
    every_change_ticks_and_a_duplicate_does_not,
    a_reader_that_is_up_to_date_gets_a_heartbeat,
    a_reader_that_is_behind_gets_what_it_missed,
    a_version_that_never_was_starts_over,
    heartbeats_come_as_often_as_asked,
    changes_of_every_kind_are_told,
    a_slow_reader_gets_the_newest_state_and_no_version_twice,
    a_deleted_lead_is_told_as_such_and_may_be_watched_on,
    shutdown_ends_streams_and_answers_what_is_under_way,
    a_reader_that_comes_back_after_a_restart_has_missed_nothing,
);

async fn the_first_message_comes_at_once_even_for_a_lead_never_heard_of(server: Setup) {
    let lead_id = fresh_id();
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    let (version, reason) = snapshot(watch.next().await);
    assert_eq!((version, reason), (0, SnapshotReason::Initial));

    let version = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let update = watch.next_update().await;
    assert_eq!((update.lead, version), (Some(server.lead(&lead_id).await), server.lead(&lead_id).await.version));

    let mut later = LeadWatch::open(&server, &lead_id, 0).await;
    assert_eq!(snapshot(later.next().await), (version, SnapshotReason::Initial));
}

async fn every_change_ticks_and_a_duplicate_does_not(server: Setup) {
    let lead_id = fresh_id();
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;
    for number in 0..5 {
        let event = message(&lead_id, &format!("a{number}"), SAMPLE_TIME);
        let version = server.apply(&event).await;
        assert_eq!(server.post(event.to_string()).await.outcome(), "duplicate");
        let update = watch.next_update().await;
        assert_eq!(update.lead.as_ref().map(|lead| (lead.version, lead.activity_counts[0].count)), Some((version, number + 1)));
        assert_eq!((activities(&update.changes), update.changes_truncated), (vec![(format!("a{number}"), version)], false));
    }
}

async fn a_reader_that_is_up_to_date_gets_a_heartbeat(server: Setup) {
    let lead_id = fresh_id();
    let version = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open(&server, &lead_id, version).await;
    let Event::Heartbeat(heartbeat) = watch.next().await else { panic!("not a heartbeat") };
    assert_eq!(heartbeat.version, version);
    let next = server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
    assert_eq!(activities(&watch.next_update().await.changes), [("a2".to_owned(), next)]);
}

async fn a_reader_that_is_behind_gets_what_it_missed(server: Setup) {
    let lead_id = fresh_id();
    let known = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let second = server.apply(&message(&lead_id, "a2", "2025-10-31T00:00:00Z")).await;
    // The later one happened earlier: it is told in the order of arrival all the same.
    let third = server.apply(&message(&lead_id, "a3", "2025-10-01T00:00:00Z")).await;
    let update = LeadWatch::open(&server, &lead_id, known).await.next_update().await;
    assert_eq!(activities(&update.changes), [("a2".to_owned(), second), ("a3".to_owned(), third)]);
    assert_eq!((update.changes_truncated, update.lead), (false, Some(server.lead(&lead_id).await)));
}

async fn a_version_that_never_was_starts_over(server: Setup) {
    let lead_id = fresh_id();
    let version = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open(&server, &lead_id, version + 1_000_000_000).await;
    assert_eq!(snapshot(watch.next().await), (version, SnapshotReason::ResumePositionUnknown));
    let next = server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
    assert_eq!(watch.next_update().await.lead.map(|lead| lead.version), Some(next), "and the stream goes on");

    let mut watch = LeadWatch::open(&server, &fresh_id(), version).await;
    assert_eq!(snapshot(watch.next().await), (0, SnapshotReason::ResumePositionUnknown), "of a lead never heard of");
}

async fn heartbeats_come_as_often_as_asked(server: Setup) {
    let lead_id = fresh_id();
    let version = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open_with(&server, &lead_id, 0, Some(Duration::from_secs(1))).await;
    watch.next().await;
    let began = Instant::now();
    for _ in 0..3 {
        let Event::Heartbeat(heartbeat) = watch.next().await else { panic!("nothing has changed") };
        assert_eq!(heartbeat.version, version);
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&took), "three heartbeats took {took:?}");
}

async fn changes_of_every_kind_are_told(server: Setup) {
    let lead_id = fresh_id();
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;
    let mut told = Vec::new();
    for event in [
        message_with_document(&lead_id, "a1", SAMPLE_TIME, "d1"),
        document_received(&lead_id, "d1"),
        document_extracted(&lead_id, "d1"),
        lead_created(&lead_id),
        lead_updated(&lead_id),
        crate::support::events::lead_completed(&lead_id),
    ] {
        let version = server.apply(&event).await;
        let update = watch.next_update().await;
        assert!(!update.changes_truncated, "{update:?}");
        assert!(update.changes.iter().all(|change| change.version == version), "{version}: {:?}", update.changes);
        let mut names: Vec<String> = update.changes.iter().map(name).collect();
        names.sort();
        told.push(names);
    }
    let expected: [&[&str]; 6] = [
        &["activity a1", "document d1"],
        &["document d1"],
        &["document d1", "external_id"],
        &["business_name", "email", "first_name", "last_name", "phone_number", "source", "website"],
        &["document document-of-item-2", "email", "item item-1", "item item-2", "website"],
        &["application_complete_time"],
    ];
    assert_eq!(told, expected);
}

async fn a_slow_reader_gets_the_newest_state_and_no_version_twice(server: Setup) {
    let lead_id = fresh_id();
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;
    let mut expected = Vec::new();
    for number in 0..200 {
        let action_id = format!("a{number:03}");
        let mut event = message(&lead_id, &action_id, SAMPLE_TIME);
        // Large enough that the stream's buffers do not hold them all.
        event["actionLog"]["summary"] = json!("x".repeat(2000));
        expected.push((action_id, server.apply(&event).await));
    }
    let newest = server.lead(&lead_id).await;
    let (mut told, mut version, mut truncated) = (Vec::new(), 0, false);
    while version < newest.version {
        let LeadUpdate { lead, changes, changes_truncated } = watch.next_update().await;
        let lead = lead.expect("the lead");
        assert!(lead.version > version, "versions on one stream only grow");
        assert!(changes.iter().all(|change| change.version > version && change.version <= lead.version), "{changes:?}");
        version = lead.version;
        truncated |= changes_truncated;
        told.extend(activities(&changes));
        if version == newest.version {
            assert_eq!(lead, newest);
        }
    }
    if truncated {
        told.dedup();
        assert!(told.iter().all(|change| expected.contains(change)), "{told:?}");
    } else {
        assert_eq!(told, expected, "each change once, in its order");
    }
}

async fn a_deleted_lead_is_told_as_such_and_may_be_watched_on(server: Setup) {
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open_with(&server, &lead_id, 0, Some(Duration::from_secs(1))).await;
    watch.next().await;
    server.client().delete_lead(DeleteLeadRequest { lead_id }).await.expect("it is deleted");
    loop {
        match watch.next().await {
            Event::Heartbeat(heartbeat) => assert!(heartbeat.version > 0),
            other => {
                assert_eq!(snapshot(other), (0, SnapshotReason::Deleted));
                break;
            }
        }
    }
    let Event::Heartbeat(heartbeat) = watch.next().await else { panic!("nothing has changed since") };
    assert_eq!(heartbeat.version, 0);
}

async fn shutdown_ends_streams_and_answers_what_is_under_way(mut server: Setup) {
    let mut ends = Vec::new();
    for number in 0..20 {
        let mut watch = LeadWatch::open(&server, &format!("lead-{number}"), 0).await;
        watch.next().await;
        ends.push(tokio::spawn(watch.end()));
    }
    // A webhook of which the head has arrived for certain: the server asks for the rest of it.
    let event = message(&fresh_id(), "a1", SAMPLE_TIME).to_string();
    let stream = tokio::net::TcpStream::connect(&server.http).await.expect("a connection");
    let mut stream = BufReader::new(stream);
    let head = format!(
        "POST {WEBHOOK} HTTP/1.1\r\nhost: leadfold\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        event.len()
    );
    stream.write_all(head.as_bytes()).await.expect("the head is sent");
    assert_eq!(line(&mut stream).await, "HTTP/1.1 100 Continue");

    server.signal_termination();
    for end in ends {
        let status = end.await.expect("the reader");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    stream.write_all(event.as_bytes()).await.expect("the body is sent");
    assert_eq!(line(&mut stream).await, "", "the end of the interim answer");
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("applied"), "{answer:?}");

    let exit = server.terminate();
    assert_eq!(exit.status.code(), Some(0), "{}", server.logs());
    assert!(exit.took < Duration::from_secs(10), "it took {:?}", exit.took);
}

async fn a_reader_that_comes_back_after_a_restart_has_missed_nothing(mut server: Setup) {
    let lead_id = fresh_id();
    let known = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let missed = server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
    server.restart();
    let update = LeadWatch::open(&server, &lead_id, known).await.next_update().await;
    assert_eq!(activities(&update.changes), [("a2".to_owned(), missed)]);
    let Event::Heartbeat(heartbeat) = LeadWatch::open(&server, &lead_id, missed).await.next().await else { panic!("not a heartbeat") };
    assert_eq!(heartbeat.version, missed);
    assert!(server.apply(&message(&lead_id, "a3", SAMPLE_TIME)).await > missed, "versions go on growing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_posted_to_one_instance_is_seen_on_the_other() {
    let redis = RedisServer::start();
    let (one, other) = (Server::start(&Options::on(&redis)), Server::start(&Options::on(&redis)));
    let lead_id = fresh_id();
    let mut watch = LeadWatch::open(&other, &lead_id, 0).await;
    watch.next().await;
    let mut took = Vec::new();
    for number in 0..9 {
        let began = Instant::now();
        let version = one.apply(&message(&lead_id, &format!("a{number}"), SAMPLE_TIME)).await;
        let update = watch.next_update().await;
        took.push(began.elapsed());
        assert_eq!(update.lead, Some(other.lead(&lead_id).await), "both read the same");
        assert_eq!(activities(&update.changes), [(format!("a{number}"), version)]);
    }
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_secs(1), "normally within a second, but it took {took:?}");
}

/// The version and reason of a message that must be a snapshot.
fn snapshot(event: Event) -> (u64, SnapshotReason) {
    match event {
        Event::Snapshot(snapshot) => (snapshot.lead.as_ref().expect("the lead").version, snapshot.reason()),
        other => panic!("not a snapshot: {other:?}"),
    }
}

/// The activities among changes, each with its version.
fn activities(changes: &[LeadChange]) -> Vec<(String, u64)> {
    let activity = |change: &LeadChange| match &change.change {
        Some(Change::Activity(activity)) => {
            assert_eq!(activity.version, change.version);
            Some((activity.action_id.clone(), change.version))
        }
        _ => None,
    };
    changes.iter().filter_map(activity).collect()
}

fn name(change: &LeadChange) -> String {
    match change.change.as_ref().expect("a change of a known kind") {
        Change::Activity(activity) => format!("activity {}", activity.action_id),
        Change::Document(document) => format!("document {}", document.document_id),
        Change::ProfileField(field) => field.clone(),
        Change::ChecklistItem(item) => format!("item {}", item.checklist_item_id),
    }
}

async fn line(stream: &mut BufReader<tokio::net::TcpStream>) -> String {
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, stream.read_line(&mut line)).await.expect("in time").expect("a line");
    line.trim_end().to_owned()
}
