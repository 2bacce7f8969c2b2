//! What was answered, so that it can be held against what is there afterwards: every event that was answered 200 must
//! be in the aggregates, exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leadfold::api::{GetLeadRequest, ListActivitiesRequest};

use super::events::{SAMPLE_TIME, message};
use super::server::Server;
use super::{PATIENCE, eventually, fresh_id};

/// The longest that an answer may take.
pub const PROMPT: Duration = Duration::from_secs(3);
/// How long it may take until what a server has lost is there again. The events of one lead are applied again one after the
/// other, and these flows have some 10,000 on 16 leads.
const RECOVERED: Duration = Duration::from_secs(30);

/// Events that go on being sent, each from a sender that tries again until it has an answer, and what was answered.
pub struct Ledger {
    leads: Vec<String>,
    state: Mutex<State>,
    stopping: AtomicBool,
    next: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Actions that were answered 200, by lead.
    taken: BTreeMap<String, BTreeSet<String>>,
    /// How often each answer was given.
    answers: BTreeMap<String, u64>,
    slowest: Duration,
}

impl Ledger {
    /// Of events on so many leads.
    pub fn new(leads: usize) -> Arc<Self> {
        let leads = std::iter::repeat_with(fresh_id).take(leads).collect();
        Arc::new(Self { leads, state: Mutex::default(), stopping: AtomicBool::new(false), next: AtomicU64::new(0) })
    }

    /// The leads.
    pub fn leads(&self) -> &[String] {
        &self.leads
    }

    /// Sends events to an address that may change, from so many senders at once, until [`Ledger::stop`].
    pub fn flow(self: &Arc<Self>, senders: usize, address: &Arc<Mutex<String>>) -> Vec<tokio::task::JoinHandle<()>> {
        let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
        let sender = || {
            let (ledger, address, web) = (Arc::clone(self), Arc::clone(address), web.clone());
            tokio::spawn(async move {
                while !ledger.stopping.load(Ordering::Relaxed) {
                    ledger.send_one(&web, &address).await;
                }
            })
        };
        std::iter::repeat_with(sender).take(senders).collect()
    }

    async fn send_one(&self, web: &reqwest::Client, address: &Mutex<String>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lead_id = &self.leads[usize::try_from(number).expect("a number") % self.leads.len()];
        let action_id = format!("action-{number}");
        let body = message(lead_id, &action_id, SAMPLE_TIME).to_string();
        while !self.is_taken(web, address, lead_id, &action_id, &body).await && !self.stopping.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_taken(&self, web: &reqwest::Client, address: &Mutex<String>, lead_id: &str, action_id: &str, body: &str) -> bool {
        let url = format!("http://{}{}", address.lock().expect("the address"), super::server::WEBHOOK);
        let began = Instant::now();
        let answer = web.post(url).header("content-type", "application/json").body(body.to_owned()).send().await;
        let Ok(answer) = answer else {
            // The server itself was killed: whether it took the event is not known, and nothing was promised.
            *self.state.lock().expect("the ledger").answers.entry("none".to_owned()).or_default() += 1;
            return false;
        };
        let (status, retry) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        let text = answer.text().await.unwrap_or_default();
        let took = began.elapsed();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let mut state = self.state.lock().expect("the ledger");
        state.slowest = state.slowest.max(took);
        let told = json["status"].as_str().unwrap_or("refused").to_owned();
        *state.answers.entry(if status == 200 { told } else { status.to_string() }).or_default() += 1;
        match status {
            200 => drop(state.taken.entry(lead_id.to_owned()).or_default().insert(action_id.to_owned())),
            503 => assert!(retry, "503 says when to come back"),
            // A server that was killed in the middle of its answer.
            _ if text.is_empty() => {}
            _ => panic!("an event was answered {status}: {text}"),
        }
        status == 200
    }

    /// Ends the flow.
    pub async fn stop(&self, senders: Vec<tokio::task::JoinHandle<()>>) {
        self.stopping.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.await.expect("a sender");
        }
        println!("{:?}, slowest {:?}", self.answers(), self.slowest());
    }

    /// How often each answer was given: `applied`, `queued`, `503`, …; `none` where the connection broke.
    pub fn answers(&self) -> BTreeMap<String, u64> {
        self.state.lock().expect("the ledger").answers.clone()
    }

    /// How often one answer was given.
    pub fn count(&self, answer: &str) -> u64 {
        self.answers().get(answer).copied().unwrap_or_default()
    }

    /// Waits until one answer was given so many times more.
    pub async fn until(&self, answer: &str, more: u64) {
        let (wanted, deadline) = (self.count(answer) + more, Instant::now() + PATIENCE * 2);
        while self.count(answer) < wanted {
            assert!(Instant::now() < deadline, "{more} more {answer}, of {:?}", self.answers());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The slowest answer so far.
    pub fn slowest(&self) -> Duration {
        self.state.lock().expect("the ledger").slowest
    }

    /// Every answer came in time.
    pub fn assert_prompt(&self) {
        assert!(self.slowest() < PROMPT, "an answer took {:?}", self.slowest());
    }

    /// Waits until nothing is spooled, and holds what was answered against what is there: every event that was
    /// answered 200 is in its lead's history, nothing is there twice, and the counts say the same.
    pub async fn settle(&self, server: &Server) {
        let deadline = Instant::now() + PATIENCE * 4;
        while server.metric("leadfold_spool_events").await > 0.0 || server.metric("leadfold_spool_bytes").await > 0.0 {
            assert!(Instant::now() < deadline, "the spool still holds {} events", server.metric("leadfold_spool_events").await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let taken = self.state.lock().expect("the ledger").taken.clone();
        let lead_id = taken.keys().next().expect("a lead");
        eventually("reads are served again", async || server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok())
            .await;
        // What a server lost that was replaced is applied again, which takes a moment.
        let deadline = Instant::now() + RECOVERED;
        for (lead_id, taken) in &taken {
            loop {
                let there = Self::history(server, lead_id).await;
                let lost: Vec<_> = taken.difference(&there).collect();
                if lost.is_empty() {
                    let lead = server.lead(lead_id).await;
                    let counted: u64 = lead.activity_counts.iter().map(|count| count.count).sum();
                    assert_eq!((counted, lead.message_count), (there.len() as u64, there.len() as u64), "counts and history disagree");
                    break;
                }
                assert!(Instant::now() < deadline, "answered 200 and lost: {} of {}, {lost:.200?}", lost.len(), taken.len());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// The ids of all actions of a lead.
    async fn history(server: &Server, lead_id: &str) -> BTreeSet<String> {
        let mut there = BTreeSet::new();
        let mut request = Some(ListActivitiesRequest { lead_id: lead_id.to_owned(), page_size: 1000, ..Default::default() });
        while let Some(asked) = request.take() {
            let page = server.client().list_activities(asked.clone()).await.expect("activities").into_inner();
            for activity in page.activities {
                assert!(there.insert(activity.action_id.clone()), "{} is there twice", activity.action_id);
            }
            if !page.next_page_token.is_empty() {
                request = Some(ListActivitiesRequest { page_token: page.next_page_token, ..asked });
            }
        }
        there
    }
}
