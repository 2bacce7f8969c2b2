//! How the service is, part by part, and what follows for those who ask.
//!
//! Nothing is believed that was not seen: a read of each server of the store, a try whether each would take a change, and
//! a feed that proves by traffic that it has missed nothing. An instance is ready as long as it can serve something: one
//! server of several that is away makes the service worse, which is said, and does not take the instance out of rotation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::spool::Spool;
use crate::store::{Condition, Store, StoreError};
use crate::time::Timestamp;
use crate::watch::Hub;

/// How long a look at the store may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is looked at.
#[derive(Clone)]
pub struct Health {
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    spool: Option<Arc<Spool>>,
    stopping: Arc<AtomicBool>,
}

impl Health {
    /// Of this store, of who follows its feed, and of the spool beside it, if there is one.
    pub fn new(store: Arc<dyn Store>, hub: Arc<Hub>, spool: Option<Arc<Spool>>) -> Self {
        Self { store, hub, spool, stopping: Arc::default() }
    }

    /// From now on it says that the server is going to end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Looks at every part, for a second at most.
    pub async fn report(&self) -> Report {
        let began = Instant::now();
        let (reads, writes) = tokio::join!(in_time(self.store.check()), in_time(self.store.check_writes()));
        let latency = began.elapsed();
        let kind = json!({ "kind": self.store.name(), "latencySeconds": latency.as_secs_f64() });
        Report {
            store: Part::of_servers("store", reads, kind),
            writes: Part::of_servers("writes", writes, json!({})),
            feed: self.feed(),
            clock: self.clock(),
            spool: self.spool.as_deref().map(spool),
            server: self.server(),
        }
    }

    /// How this process is.
    pub fn server(&self) -> Part {
        let wrong = self.stopping.load(Ordering::Acquire).then(|| "shutting down".to_owned());
        Part { wrong, ..Part::well("server", json!({})) }
    }

    fn feed(&self) -> Part {
        let lag = self.hub.silence();
        let (parts, doubtful, unconfirmed) = self.hub.parts();
        let said = match (doubtful, parts) {
            (0, _) if unconfirmed > 0 => Some("the sentinels do not confirm the primary: no heartbeats are sent".to_owned()),
            (0, _) => None,
            (_, 1) => Some("the change feed is silent".to_owned()),
            _ => Some(format!("{doubtful} of {parts} parts of the change feed are silent")),
        };
        let figures = json!({ "lagSeconds": lag.as_secs_f64(), "watchedLeads": self.hub.topics() });
        let (wrong, degraded) = if doubtful == parts { (said, None) } else { (None, said) };
        Part { name: "feed", wrong, degraded, figures }
    }

    /// An event without a time of its own would get a wrong one, for good.
    fn clock(&self) -> Part {
        let wrong = "the local clock is before the day this program was built, and the store has not told its time yet";
        Part { wrong: (!self.store.clock().is_credible()).then(|| wrong.to_owned()), ..Part::well("clock", json!({})) }
    }

    /// Puts into the metrics what is true at this moment.
    pub fn measure(&self) {
        metrics::gauge!("leadfold_feed_lag_seconds").set(self.hub.silence().as_secs_f64());
        metrics::gauge!("leadfold_watched_leads").set(self.hub.topics() as f64);
    }
}

fn spool(spool: &Spool) -> Part {
    let status = spool.status();
    let age = status.oldest.map(|oldest| (Timestamp::now().micros() - oldest.micros()).max(0) as f64 / 1e6);
    let figures = json!({ "events": status.events, "bytes": status.bytes, "maxBytes": status.max_bytes, "oldestAgeSeconds": age.unwrap_or_default() });
    Part { wrong: spool.failure(), ..Part::well("spool", figures) }
}

/// `None`: there was no answer in time.
async fn in_time(check: impl Future<Output = Condition>) -> Option<Condition> {
    timeout(CHECK_TIMEOUT, check).await.ok()
}

/// Who asks whether it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// Those who want all of it.
    #[default]
    Everyone,
    /// Senders of webhooks: somebody takes their events.
    Webhooks,
    /// gRPC clients: reads are answered, and watches told of every change.
    Reads,
}

impl Audience {
    /// As URLs and metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Everyone => "everyone",
            Self::Webhooks => "webhooks",
            Self::Reads => "reads",
        }
    }
}

impl std::str::FromStr for Audience {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Everyone, Self::Webhooks, Self::Reads];
        all.into_iter().find(|audience| audience.name() == text).ok_or_else(|| "for: webhooks, reads or everyone".to_owned())
    }
}

/// One part.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// Why it does not work; `None`: it works.
    pub wrong: Option<String>,
    /// It works, but not all of it: what does not.
    pub degraded: Option<String>,
    /// What else there is to know, an object.
    figures: Value,
}

impl Part {
    fn well(name: &'static str, figures: Value) -> Self {
        Self { name, wrong: None, degraded: None, figures }
    }

    /// What is made of servers works while one of them does.
    fn of_servers(name: &'static str, condition: Option<Condition>, mut figures: Value) -> Self {
        let Some(condition) = condition else {
            return Self { wrong: Some("the store does not answer".to_owned()), ..Self::well(name, figures) };
        };
        let mut said = condition.failing.first().map(|(_, error): &(String, StoreError)| error.to_string());
        if condition.servers > 1 {
            figures["servers"] = json!(condition.servers);
            figures["failing"] = json!(condition.failing.iter().map(|(name, _)| name).collect::<Vec<_>>());
            said = said.map(|said| format!("{} of {} servers: {said}", condition.failing.len(), condition.servers));
        }
        let (wrong, degraded) = if condition.is_usable() { (None, said) } else { (said, None) };
        Self { name, wrong, degraded, figures }
    }

    fn is_well(&self) -> bool {
        self.wrong.is_none()
    }
}

/// How every part is.
#[derive(Clone, Debug)]
pub struct Report {
    /// The store answers.
    pub store: Part,
    /// The store takes changes: not when its memory or disk is full, or a replica stands in for its primary.
    pub writes: Part,
    /// The change feed.
    pub feed: Part,
    /// The clock that events without a time are given one by.
    pub clock: Part,
    /// The spool, if there is one.
    pub spool: Option<Part>,
    /// This process.
    pub server: Part,
}

impl Report {
    /// All of it.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.store, &self.writes, &self.feed, &self.clock].into_iter().chain(&self.spool).chain([&self.server])
    }

    /// Whether those who ask get what they want.
    pub fn is_ready(&self, audience: Audience) -> bool {
        self.server.is_well()
            && match audience {
                Audience::Webhooks => self.clock.is_well() && (self.writes.is_well() || self.spool.as_ref().is_some_and(Part::is_well)),
                Audience::Reads => self.store.is_well() && self.feed.is_well(),
                Audience::Everyone => self.is_ready(Audience::Webhooks) && self.is_ready(Audience::Reads),
            }
    }

    /// For people and programs.
    pub fn to_json(&self, audience: Audience) -> Value {
        let parts = self.parts().map(|part| {
            let mut told = json!({ "ok": part.is_well() });
            if let Some(wrong) = &part.wrong {
                told["reason"] = json!(wrong);
            }
            if let Some(degraded) = &part.degraded {
                told["degraded"] = json!(degraded);
            }
            for (name, figure) in part.figures.as_object().into_iter().flatten() {
                told[name] = figure.clone();
            }
            (part.name.to_owned(), told)
        });
        json!({ "ready": self.is_ready(audience), "for": audience.name(), "parts": Value::Object(parts.collect()) })
    }

    /// Puts it into the metrics, and logs what is not as it was.
    pub fn tell(&self, before: Option<&Self>) {
        for part in self.parts() {
            metrics::gauge!("leadfold_part_up", "part" => part.name).set(f64::from(u8::from(part.is_well())));
            metrics::gauge!("leadfold_part_degraded", "part" => part.name).set(f64::from(u8::from(part.degraded.is_some())));
            let was = before.and_then(|before| before.parts().find(|other| other.name == part.name));
            match &part.wrong {
                Some(wrong) if was.is_none_or(|was| was.wrong.as_ref() != Some(wrong)) => {
                    tracing::warn!(part = part.name, "not ready: {wrong}")
                }
                None if was.is_some_and(|was| !was.is_well()) => tracing::info!(part = part.name, "ready again"),
                _ => {}
            }
            match &part.degraded {
                Some(degraded) if was.is_none_or(|was| was.degraded.is_none()) => tracing::warn!(part = part.name, "degraded: {degraded}"),
                None if part.is_well() && was.is_some_and(|was| was.degraded.is_some()) => {
                    tracing::info!(part = part.name, "complete again");
                }
                _ => {}
            }
        }
        for audience in [Audience::Webhooks, Audience::Reads] {
            metrics::gauge!("leadfold_ready", "audience" => audience.name()).set(f64::from(u8::from(self.is_ready(audience))));
        }
    }
}
