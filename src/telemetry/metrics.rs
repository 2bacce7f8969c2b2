//! Metrics: how they are told, and how they are kept cheap. Which there are is in `series.rs`.
//!
//! A metric that is counted per request or per message is counted through a handle that was looked up before: see
//! [`Family`].

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use metrics::gauge;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::series;

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
        series::begin();
        gauge!("leadfold_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
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
