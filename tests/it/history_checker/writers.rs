//! Writers: each event goes to some instance, again and again until one has taken it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::cluster::Instances;
use crate::support::events::{failed, message, message_with_document, retried};
use crate::support::server::WEBHOOK;

/// Half of them are in one workspace, half in another.
pub const LEADS: usize = 12;
/// For so long a lead is written to or left alone: only of one that is left alone heartbeats tell.
const SLOT: Duration = Duration::from_millis(1500);

/// When each lead's versions were acknowledged.
#[derive(Clone, Default)]
pub struct Acknowledged(Arc<Mutex<ByLead>>);

type ByLead = HashMap<String, Vec<(Instant, u64)>>;

impl Acknowledged {
    fn add(&self, lead_id: &str, version: u64) {
        self.0.lock().expect("the versions").entry(lead_id.to_owned()).or_default().push((Instant::now(), version));
    }

    /// The greatest version of a lead that was acknowledged so long ago.
    pub fn before(&self, lead_id: &str, ago: Duration) -> u64 {
        let all = self.0.lock().expect("the versions");
        let old = all.get(lead_id).into_iter().flatten().filter(|(at, _)| at.elapsed() >= ago);
        old.map(|(_, version)| *version).max().unwrap_or(0)
    }
}

/// What was taken.
#[derive(Default)]
pub struct Written {
    /// The ids of each lead's activities.
    pub activities: HashMap<String, HashSet<String>>,
    events: usize,
    repeats: usize,
}

impl AddAssign for Written {
    fn add_assign(&mut self, other: Self) {
        for (lead_id, ids) in other.activities {
            self.activities.entry(lead_id).or_default().extend(ids);
        }
        self.events += other.events;
        self.repeats += other.repeats;
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events taken after {} that had to be sent again", self.events, self.repeats)
    }
}

pub struct Writer {
    number: usize,
    instances: Instances,
    leads: Arc<[String]>,
    workspaces: [String; 2],
    rng: StdRng,
    web: reqwest::Client,
    acknowledged: Acknowledged,
    began: Instant,
    written: Written,
}

impl Writer {
    pub fn new(
        number: usize,
        instances: Instances,
        leads: &Arc<[String]>,
        workspaces: &[String; 2],
        acknowledged: Acknowledged,
        rng: StdRng,
    ) -> Self {
        let web = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().expect("an HTTP client");
        let (leads, workspaces) = (Arc::clone(leads), workspaces.clone());
        Self { number, instances, leads, workspaces, rng, web, acknowledged, began: Instant::now(), written: Written::default() }
    }

    pub async fn run(mut self, end: CancellationToken) -> Written {
        for count in 0.. {
            if end.is_cancelled() {
                break;
            }
            let slot = self.began.elapsed().as_millis() / SLOT.as_millis();
            // A third of the leads, the next third in the next slot.
            let lead = self.rng.random_range(0..LEADS / 3) * 3 + usize::try_from(slot % 3).expect("small");
            let lead_id = self.leads[lead].clone();
            let action_id = format!("w{}-{count}", self.number);
            let late = if self.rng.random_ratio(1, 20) { self.rng.random_range(0..600) } else { 0 };
            let time = chrono::Utc::now() - chrono::TimeDelta::seconds(late);
            let time = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            let mut events = match self.rng.random_range(0..10) {
                0 | 1 => vec![message_with_document(&lead_id, &action_id, &time, &format!("document-of-{action_id}"))],
                2 => vec![failed(&lead_id, &action_id, &time), retried(&lead_id, &action_id, &time)],
                _ => vec![message(&lead_id, &action_id, &time)],
            };
            if self.rng.random_ratio(1, 20) {
                events.extend(events.clone());
            }
            for event in &mut events {
                event["workspaceId"] = json!(self.workspaces[lead / (LEADS / 2)]);
                self.post(&lead_id, event).await;
            }
            self.written.activities.entry(lead_id).or_default().insert(action_id);
            sleep(Duration::from_millis(self.rng.random_range(2..20))).await;
        }
        self.written
    }

    async fn post(&mut self, lead_id: &str, event: &Value) {
        loop {
            let (_, instance) = self.instances.any(&mut self.rng);
            let request = self.web.post(format!("http://{}{WEBHOOK}", instance.http)).header("content-type", "application/json");
            match request.body(event.to_string()).send().await {
                Ok(answer) if answer.status() == 200 => {
                    self.written.events += 1;
                    // Without its body it is an answer all the same.
                    let answer = answer.json::<Value>().await.unwrap_or_default();
                    let version = answer["version"].as_str().and_then(|version| version.parse().ok());
                    self.acknowledged.add(lead_id, version.unwrap_or(0));
                    return;
                }
                Ok(answer) => assert_eq!(answer.status(), 503, "{:?}", answer.text().await),
                // The instance is away, or went while it had the event.
                Err(_) => {}
            }
            self.written.repeats += 1;
            sleep(Duration::from_millis(self.rng.random_range(20..100))).await;
        }
    }
}
