//! How the service is, part by part, and what follows for those who ask.
//!
//! Nothing is believed that was not seen: the store answers a question now, and would take a change now; the feed
//! was told by traffic that it has missed nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::spool::Spool;
use crate::store::{Store, StoreError};
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
        let (reads, writes) = tokio::join!(seen(self.store.check()), seen(self.store.check_writes()));
        let latency = began.elapsed();
        Report {
            store: Part {
                name: "store",
                wrong: reads,
                figures: json!({ "kind": self.store.name(), "latencySeconds": latency.as_secs_f64() }),
            },
            writes: Part { name: "writes", wrong: writes, figures: json!({}) },
            feed: self.feed(),
            spool: self.spool.as_deref().map(spool),
            server: Part {
                name: "server",
                wrong: self.stopping.load(Ordering::Acquire).then(|| "shutting down".to_owned()),
                figures: json!({}),
            },
        }
    }

    fn feed(&self) -> Part {
        let lag = self.hub.silence();
        let wrong = (!self.hub.is_trusted()).then(|| format!("the change feed has been silent for {} ms", lag.as_millis()));
        Part { name: "feed", wrong, figures: json!({ "lagSeconds": lag.as_secs_f64(), "watchedLeads": self.hub.topics() }) }
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
    Part { name: "spool", wrong: spool.failure(), figures }
}

async fn seen(check: impl Future<Output = Result<(), StoreError>>) -> Option<String> {
    match timeout(CHECK_TIMEOUT, check).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the store does not answer".to_owned()),
    }
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
    /// What is wrong with it; `None`: nothing.
    pub wrong: Option<String>,
    /// What else there is to know, an object.
    figures: Value,
}

impl Part {
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
    /// The spool, if there is one.
    pub spool: Option<Part>,
    /// This process.
    pub server: Part,
}

impl Report {
    /// All of it.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.store, &self.writes, &self.feed].into_iter().chain(&self.spool).chain([&self.server])
    }

    /// Whether those who ask get what they want.
    pub fn is_ready(&self, audience: Audience) -> bool {
        self.server.is_well()
            && match audience {
                Audience::Webhooks => self.writes.is_well() || self.spool.as_ref().is_some_and(Part::is_well),
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
            let was_well = before.and_then(|before| before.parts().find(|other| other.name == part.name)).is_none_or(Part::is_well);
            match &part.wrong {
                Some(wrong) if was_well => tracing::warn!(part = part.name, "not ready: {wrong}"),
                None if !was_well => tracing::info!(part = part.name, "ready again"),
                _ => {}
            }
        }
        for audience in [Audience::Webhooks, Audience::Reads] {
            metrics::gauge!("leadfold_ready", "audience" => audience.name()).set(f64::from(u8::from(self.is_ready(audience))));
        }
    }
}
