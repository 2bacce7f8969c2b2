//! What the process tells of itself: [`logs`], [`metrics`], [`traces`].

use crate::config::ServeConfig;

pub mod logs;
pub mod metrics;
pub mod traces;

/// Logs and traces, from the first line to the last span.
#[derive(Debug)]
pub struct Telemetry {
    exporter: Option<traces::Exporter>,
}

impl Telemetry {
    /// Starts both. Needs a tokio runtime.
    ///
    /// # Errors
    /// The filter of log lines or the collector's address cannot be used.
    pub fn start(config: &ServeConfig) -> anyhow::Result<Self> {
        logs::to_stderr(config)?;
        let exporter = config.telemetry.otlp.as_ref().map(traces::Exporter::start).transpose()?;
        Ok(Self { exporter })
    }

    /// Hands over the spans that wait, if the collector takes them in time.
    pub fn end(self) {
        if let Some(exporter) = self.exporter {
            exporter.end();
        }
    }
}
