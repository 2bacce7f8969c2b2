//! A change feed that is trimmed while an instance does not look.

use std::collections::{HashMap, HashSet};

use futures::StreamExt;
use leadfold::api::watch_lead_response::Event as LeadEvent;
use leadfold::api::watch_leads_request::Scope;
use leadfold::api::watch_leads_response::Event as LeadsEvent;
use leadfold::api::{Lead, LeadIds, LeadUpdate, lead_change::Change};
use serde_json::json;

use crate::support::events::message;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, LeadsWatch};
use crate::support::{PATIENCE, eventually, fresh_id};

/// Events of each lead while nobody looks: a few, more than are kept at hand, and many.
const EVENTS: [usize; 6] = [1, 20, 120, 300, 700, 1200];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_did_not_look_finds_everything_all_the_same() {
    let redis = RedisServer::start();
    // Redis trims whole nodes of 100 entries: in one partition that is soon.
    let options = || Options::on(&redis).env("LEADFOLD_FEED_LENGTH", "10").env("LEADFOLD_PARTITIONS", "1");
    let (one, paused) = (Server::start(&options()), Server::start(&options()));
    let workspace_id = fresh_id();
    let leads: Vec<String> = EVENTS.iter().map(|_| fresh_id()).collect();
    let post = async |lead: usize, number: usize| {
        let time = chrono::DateTime::from_timestamp(1_760_000_000 + i64::try_from(number).expect("small"), 0).expect("a time");
        let mut event = message(&leads[lead], &format!("a{number}"), &time.to_rfc3339());
        event["workspaceId"] = json!(workspace_id);
        one.apply(&event).await
    };
    for lead in 0..leads.len() {
        post(lead, 0).await;
    }
    let mut alone = Vec::new();
    for lead_id in &leads {
        let mut watch = LeadWatch::open(&paused, lead_id, 0).await;
        let LeadEvent::Snapshot(snapshot) = watch.next().await else { panic!("not a snapshot") };
        alone.push((watch, snapshot.lead.expect("the lead")));
    }
    let mut together = Vec::new();
    for scope in [Scope::WorkspaceId(workspace_id.clone()), Scope::LeadIds(LeadIds { ids: leads.clone() })] {
        let mut watch = LeadsWatch::open(&paused, scope, false).await;
        together.push((HashMap::<String, u64>::from_iter(watch.initial().await), watch));
    }
    // So that the paused instance has a gap to find in its feed, and not the one of its start.
    eventually("the feed is followed", async || (paused.metric("leadfold_feed_gaps_total").await >= 1.0).then_some(())).await;
    let gaps = paused.metric("leadfold_feed_gaps_total").await;

    paused.signal("STOP");
    let of_lead = |lead: usize| (1..=EVENTS[lead]).map(move |number| (lead, number));
    let mut events: Vec<_> = (0..leads.len()).flat_map(of_lead).collect();
    events.sort_by_key(|(_, number)| *number);
    let events = futures::stream::iter(events).map(|(lead, number)| post(lead, number));
    let posted = events.buffer_unordered(8).count().await;
    let kept: usize = redis::cmd("XLEN").arg("leadfold:{0}:feed").query(&mut redis.connection()).expect("XLEN");
    assert!(kept < 300 && posted > 2000, "{kept} of {posted} entries are left: nothing was lost");
    paused.signal("CONT");

    let mut newest = HashMap::new();
    for lead_id in &leads {
        newest.insert(lead_id.clone(), one.lead(lead_id).await);
    }
    for (watch, before) in alone {
        let count = EVENTS[leads.iter().position(|id| *id == before.lead_id).expect("one of them")];
        let reading = read(watch, &before, &newest[&before.lead_id], count);
        tokio::time::timeout(PATIENCE, reading).await.expect("the final state in time");
    }
    for (known, watch) in together {
        tokio::time::timeout(PATIENCE, read_all(watch, known, &newest)).await.expect("the final states in time");
    }
    let found = paused.metric("leadfold_feed_gaps_total").await;
    assert!(found > gaps, "the gap was not noticed, and something else told of the changes");
}

/// Reads to the newest state: changes that do not tell all say so.
async fn read(mut watch: LeadWatch, before: &Lead, newest: &Lead, events: usize) {
    let (mut version, mut told, mut truncated) = (before.version, HashSet::new(), false);
    while version < newest.version {
        let LeadUpdate { lead, changes, changes_truncated } = watch.next_update().await;
        let lead = lead.expect("the lead");
        assert!(lead.version > version, "{} after {version}", lead.version);
        truncated |= changes_truncated;
        for change in changes {
            assert!((version + 1..=lead.version).contains(&change.version), "{} between {version} and {}", change.version, lead.version);
            let Some(Change::Activity(activity)) = change.change else { panic!("not an activity") };
            assert!(told.insert(activity.action_id), "an activity was told twice");
        }
        version = lead.version;
        assert!(version < newest.version || lead == *newest);
    }
    assert!(truncated || told.len() == events, "{} of {events} activities were told, and no word of the others", told.len());
    assert!(!truncated || told.len() < events, "all {events} activities were told, but not trusted");
}

async fn read_all(mut watch: LeadsWatch, mut known: HashMap<String, u64>, newest: &HashMap<String, Lead>) {
    while newest.values().any(|lead| known[&lead.lead_id] < lead.version) {
        let LeadsEvent::Update(update) = watch.next().await else { continue };
        let lead = update.lead.expect("the lead");
        let known = known.get_mut(&lead.lead_id).expect("a lead that was told of");
        assert!(lead.version > *known, "{} after {known}", lead.version);
        *known = lead.version;
        let newest = &newest[&lead.lead_id];
        assert!(lead.version < newest.version || lead == *newest);
    }
}
