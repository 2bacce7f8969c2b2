//! Metrics: what they are called, what they mean, and how they are kept cheap.
//!
//! A metric that is counted per request or per message is counted through a handle that was looked up before: see
//! [`Family`].

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Buckets of the latency histograms, in seconds: up to what a sender waits for.
const LATENCIES: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0];
/// Buckets of the lives of streams, in seconds: up to beyond the age of a connection.
const LIVES: [f64; 8] = [1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 86_400.0];
/// Buckets of the batch sizes.
const BATCHES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// How often samples are put into their buckets. Until then each takes memory.
const UPKEEP: Duration = Duration::from_secs(1);

/// The process's metrics.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Begins to count. What is counted before is lost. Needs a tokio runtime.
    ///
    /// # Errors
    /// Something else counts already.
    pub fn install() -> anyhow::Result<Self> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCIES)?
            .set_buckets_for_metric(Matcher::Full("leadfold_watch_duration_seconds".to_owned()), &LIVES)?
            .set_buckets_for_metric(Matcher::Suffix("_changes".to_owned()), &BATCHES)?
            .install_recorder()?;
        describe();
        let upkeep = handle.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        #[cfg(target_os = "linux")]
        metrics_process::Collector::default().describe();
        Ok(Self { handle })
    }

    /// All of them, in Prometheus' text format.
    pub fn render(&self) -> String {
        #[cfg(target_os = "linux")]
        metrics_process::Collector::default().collect();
        self.handle.render()
    }
}

/// Says what each means, and lets those that count rare things begin at zero: what has never been seen cannot be
/// seen to rise.
fn describe() {
    gauge!("leadfold_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_gauge!("leadfold_build_info", "1, with the version as a label.");
    describe_gauge!("leadfold_part_up", "1 while a part works: the store, whether it takes writes, the feed, the server.");
    describe_gauge!("leadfold_ready", "1 while this instance is ready for webhooks, or for reads and watches.");

    describe_counter!("leadfold_webhooks_total", "Webhooks answered, by event and by what became of them.");
    describe_histogram!("http_server_request_duration_seconds", "From the headers of a webhook to its answer.");
    describe_histogram!("rpc_server_call_duration_seconds", "From the request of a unary call to its answer.");
    describe_counter!("leadfold_unauthenticated_total", "Requests that were not let in.");
    describe_counter!("leadfold_reloads_total", "Files of secrets that changed and were read again.");

    describe_gauge!("leadfold_watch_streams", "Watch streams that are open.");
    describe_histogram!("leadfold_watch_setup_duration_seconds", "From the request of a stream to its beginning or its refusal.");
    describe_histogram!("leadfold_watch_duration_seconds", "How long watch streams were open, by the status that they ended with.");
    describe_counter!("leadfold_watch_messages_total", "Messages delivered on watch streams, heartbeats included.");
    describe_counter!("leadfold_watch_conflations_total", "Changes that a stream of many leads told together with a later one.");
    describe_gauge!("leadfold_watched_leads", "Leads that are kept in memory because they are watched.");
    for name in ["leadfold_watch_messages_total", "leadfold_watch_conflations_total"] {
        counter!(name).increment(0);
    }

    describe_gauge!("leadfold_feed_lag_seconds", "How long ago the change feed last proved to have told everything.");
    describe_counter!("leadfold_feed_gaps_total", "Times that the feed may have missed changes, and watched leads were read again.");
    describe_counter!("leadfold_feed_reconnects_total", "Times that the feed lost its connection.");
    for name in ["leadfold_feed_gaps_total", "leadfold_feed_reconnects_total"] {
        counter!(name).increment(0);
    }

    describe_histogram!("leadfold_redis_call_duration_seconds", "Calls of Redis, by what was called.");
    describe_counter!("leadfold_redis_errors_total", "Calls of Redis that failed, by Redis' error code.");
    describe_histogram!("leadfold_redis_batch_changes", "Changes that went to Redis in one call.");

    describe_counter!("leadfold_webhooks_shed_total", "Webhooks turned away since too much was under way, or came from one sender.");
    describe_counter!("leadfold_calls_shed_total", "Calls turned away since too many were under way.");
    for limit in ["server", "sender"] {
        counter!("leadfold_webhooks_shed_total", "limit" => limit).increment(0);
    }
    counter!("leadfold_calls_shed_total").increment(0);

    describe_gauge!("leadfold_spool_events", "Events that wait in the spool to be applied.");
    describe_gauge!("leadfold_spool_bytes", "Bytes of the spool on disk.");
    describe_gauge!("leadfold_spool_max_bytes", "Bytes that the spool may take: --spool-max-bytes.");
    describe_gauge!("leadfold_spool_oldest_age_seconds", "How long ago the oldest event that waits in the spool was received.");
    describe_counter!("leadfold_spool_applied_total", "Events of the spool that were applied.");
    describe_counter!("leadfold_spool_damaged_total", "Records of the spool that could not be read.");
    describe_gauge!("leadfold_store_breaker_open", "1 while the store fails and events go to the spool without asking it.");
    describe_gauge!("leadfold_dead_letters", "Dead letters that are kept.");
    describe_counter!("leadfold_dead_letters_total", "Events that became dead letters, by reason.");
    describe_counter!("leadfold_dead_letters_evicted_total", "Dead letters that gave way to newer ones.");
    describe_counter!("leadfold_alarms_total", "Failures that somebody has to look at, by cause; the log says what.");
    counter!("leadfold_spool_damaged_total").increment(0);
    for cause in ["store_unavailable", "store_refuses", "store_corrupt", "spool", "dead_letters"] {
        counter!("leadfold_alarms_total", "cause" => cause).increment(0);
    }

    describe_gauge!("leadfold_connections", "Connections that are open, by listener.");
    describe_counter!("leadfold_accept_errors_total", "Connections that could not be accepted, for want of file descriptors, say.");
    describe_counter!("leadfold_tls_handshake_failures_total", "Connections that did not come to speak TLS.");
    describe_counter!("leadfold_connections_refused_total", "Connections beyond --max-connections.");
    for listener in ["http", "grpc", "admin"] {
        gauge!("leadfold_connections", "listener" => listener).set(0.0);
        counter!("leadfold_accept_errors_total", "listener" => listener).increment(0);
        counter!("leadfold_connections_refused_total", "listener" => listener).increment(0);
        counter!("leadfold_unauthenticated_total", "listener" => listener).increment(0);
        counter!("leadfold_tls_handshake_failures_total", "listener" => listener).increment(0);
    }

    describe_counter!(
        "leadfold_log_lines_dropped_total",
        "Log lines that were lost: nobody read them in time, or they could not be written."
    );
    // Not `increment`: what was lost before the metrics were installed counts.
    counter!("leadfold_log_lines_dropped_total").absolute(0);

    describe_counter!("leadfold_spans_total", "Spans that were handed to the OTLP collector, or were lost.");
}

/// Handles of one metric, by the values of its labels. Looking one up costs a tenth of what the macros do, which
/// build a key each time.
pub struct Family<K, M> {
    handles: RwLock<HashMap<K, M>>,
    make: fn(K) -> M,
}

impl<K: Copy + Eq + Hash, M> Family<K, M> {
    /// Makes handles as they are needed. There must be few different keys.
    pub fn new(make: fn(K) -> M) -> Self {
        Self { handles: RwLock::default(), make }
    }

    /// Does something with one.
    pub fn with(&self, key: K, work: impl FnOnce(&M)) {
        if let Some(handle) = self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return work(handle);
        }
        work(self.handles.write().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert_with(|| (self.make)(key)));
    }
}

impl<K, M> fmt::Debug for Family<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").finish_non_exhaustive()
    }
}
