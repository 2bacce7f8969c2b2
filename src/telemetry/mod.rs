//! What the process tells of itself: [`logs`], [`metrics`], [`traces`].

use crate::config::ServeConfig;

pub mod logs;
pub mod metrics;
mod series;
pub mod traces;
mod writer;

/// Logs and traces, from the first line to the last span.
#[derive(Debug)]
pub struct Telemetry {
    logs: logs::Logs,
    exporter: Option<traces::Exporter>,
}

impl Telemetry {
    /// Starts both. Needs a tokio runtime.
    ///
    /// # Errors
    /// The filter of log lines or the collector's address cannot be used.
    pub fn start(config: &ServeConfig) -> anyhow::Result<Self> {
        let logs = logs::Logs::to_stderr(config)?;
        let exporter = config.telemetry.otlp.as_ref().map(traces::Exporter::start).transpose()?;
        Ok(Self { logs, exporter })
    }

    /// Hands over the spans and log lines that wait, if somebody takes them in time.
    pub fn end(self) {
        if let Some(exporter) = self.exporter {
            exporter.end();
        }
        self.logs.end();
    }
}
