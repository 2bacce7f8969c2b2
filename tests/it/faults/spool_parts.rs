//! In a cluster: what waits for a node that is away does not hold up what waits behind it for the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use leadfold::api::{GetLeadRequest, ListActivitiesRequest};
use leadfold::store::redis::slot;
use xxhash_rust::xxh3::xxh3_64;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis_cluster::{PRIMARIES, RedisCluster};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{PATIENCE, eventually, fresh_id};

/// A node that is silent for less has to be waited for.
const LONG: Duration = Duration::from_secs(60);
/// More than are held in memory.
const WAITING: usize = 10_500;
const BEHIND: usize = 400;
const LEADS: usize = 40;

/// Leads by the node that has them.
fn leads(cluster: &RedisCluster) -> Vec<Vec<String>> {
    let owners: Vec<usize> = (0..64).map(|partition| cluster.owner(slot(&format!("{{{partition}}}")))).collect();
    let mut leads = vec![Vec::new(); PRIMARIES];
    while leads.iter().any(|leads| leads.len() < LEADS) {
        let lead_id = fresh_id();
        let partition = usize::try_from(xxh3_64(lead_id.as_bytes()) % 64).expect("a partition");
        leads[owners[partition]].push(lead_id);
    }
    leads
}

/// Sends events of these leads in turn, which must all be queued.
async fn queue(server: &Server, leads: &[String], events: usize, sent: &mut BTreeMap<String, usize>) {
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let bodies: Vec<String> = (0..events)
        .map(|number| {
            let lead_id = &leads[number % LEADS];
            let count = sent.entry(lead_id.clone()).or_default();
            *count += 1;
            message(lead_id, &format!("a{count}"), SAMPLE_TIME).to_string()
        })
        .collect();
    let send = |body: String| {
        let request = web.post(format!("http://{}{WEBHOOK}", server.http)).header("content-type", "application/json").body(body);
        async move { request.send().await.expect("an answer").text().await.expect("its body") }
    };
    let mut answers = futures::stream::iter(bodies.into_iter().map(send)).buffer_unordered(64);
    while let Some(answer) = answers.next().await {
        assert!(answer.contains("queued"), "{answer}");
    }
}

/// Waits for the number of events that wait: it must not take longer than a minute.
async fn until_waiting(server: &Server, is_it: impl Fn(f64) -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let waiting = server.metric("leadfold_spool_events").await;
        if is_it(waiting) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {waiting} events wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What was sent of these leads is there, once.
async fn assert_applied(server: &Server, leads: &[String], sent: &BTreeMap<String, usize>) {
    for lead_id in leads.iter().filter(|lead_id| sent.contains_key(*lead_id)) {
        let wanted = sent[lead_id] as u64;
        let lead = eventually("its events are applied", async || {
            let request = GetLeadRequest { lead_id: lead_id.clone() };
            let lead = server.client().get_lead(request).await.ok()?.into_inner().lead?;
            (lead.message_count >= wanted).then_some(lead)
        })
        .await;
        assert_eq!(lead.message_count, wanted, "{lead_id}");
        let request = || ListActivitiesRequest { lead_id: lead_id.clone(), page_size: 1000, ..Default::default() };
        let listed = eventually("activities", async || server.client().list_activities(request()).await.ok()).await.into_inner();
        assert_eq!(listed.activities.len(), sent[lead_id], "{lead_id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_dead_node_does_not_hold_up_what_waits_for_another() {
    let mut cluster = RedisCluster::start(LONG);
    let leads = leads(&cluster);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(&Options::at(&cluster.url()).data_dir(dir.path()));
    let mut sent = BTreeMap::new();

    cluster.nodes[0].kill();
    let began = Instant::now();
    queue(&server, &leads[0], WAITING, &mut sent).await;
    println!("{WAITING} events wait for a node, after {:?}", began.elapsed());
    cluster.nodes[1].kill();
    queue(&server, &leads[1], BEHIND, &mut sent).await;
    assert_eq!(server.metric("leadfold_spool_events").await, (WAITING + BEHIND) as f64);
    cluster.nodes[1].restart();
    // The first node is still dead, and its events are in front.
    until_waiting(&server, |waiting| waiting == WAITING as f64, "those of the second node are applied").await;
    assert_applied(&server, &leads[1], &sent).await;
    let oldest = server.metric("leadfold_spool_oldest_age_seconds").await;
    assert!(oldest <= began.elapsed().as_secs_f64() && oldest >= began.elapsed().as_secs_f64() - 5.0, "{oldest} of {:?}", began.elapsed());

    // It comes back, and is away again when some of its events are applied; so is the other one for a moment.
    cluster.nodes[0].restart();
    until_waiting(&server, |waiting| waiting < (WAITING - 1000) as f64, "those of the first node are applied").await;
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    queue(&server, &leads[1], BEHIND, &mut sent).await;
    queue(&server, &leads[0], BEHIND, &mut sent).await;
    cluster.nodes[1].restart();
    assert_applied(&server, &leads[1], &sent).await;
    cluster.nodes[0].restart();
    until_waiting(&server, |waiting| waiting == 0.0, "all are applied").await;
    server.eventually_metric("leadfold_spool_bytes", 0.0).await;
    assert_eq!(server.metric("leadfold_spool_oldest_age_seconds").await, 0.0);
    assert_applied(&server, &leads[0], &sent).await;
    assert_applied(&server, &leads[1], &sent).await;
    assert_eq!(server.metric("leadfold_spool_damaged_total").await, 0.0);
}
