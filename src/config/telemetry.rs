//! Where traces go. (How log lines look is said in the parent.)

use clap::Args;
use http::Uri;

/// The flags of telemetry.
#[derive(Clone, Debug, Args)]
pub struct TelemetryArgs {
    /// OpenTelemetry collector to send traces to by OTLP over gRPC, such as http://127.0.0.1:4317 [default: none, no traces]
    #[arg(long, env = "LEADFOLD_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Share of the traces begun here that are kept (0 to 1); those begun elsewhere are kept as was decided there
    #[arg(long, env = "LEADFOLD_TRACE_SAMPLE_RATIO", value_name = "RATIO", default_value_t = 1.0)]
    pub trace_sample_ratio: f64,
}

/// What was asked for: checked.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Where traces go; none: nowhere.
    pub otlp: Option<OtlpConfig>,
}

/// A collector, and what it gets.
#[derive(Clone, Debug)]
pub struct OtlpConfig {
    /// Its address, `http://` or `https://`.
    pub endpoint: String,
    /// The share of the traces begun here that is kept, 0 to 1.
    pub sample_ratio: f64,
}

impl TelemetryArgs {
    pub(super) fn validate(self, wrong: &mut Vec<String>) -> TelemetryConfig {
        let sample_ratio = self.trace_sample_ratio;
        if !(0.0..=1.0).contains(&sample_ratio) {
            wrong.push(format!("--trace-sample-ratio {sample_ratio} is out of range: use 0 to 1"));
        }
        let is_usable = |endpoint: &str| {
            endpoint.parse::<Uri>().is_ok_and(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")))
        };
        if self.otlp_endpoint.as_deref().is_some_and(|endpoint| !is_usable(endpoint)) {
            // It may hold a key of a hosted collector.
            wrong.push("--otlp-endpoint is not an http:// or https:// URL: write it as http://127.0.0.1:4317".to_owned());
        }
        TelemetryConfig { otlp: self.otlp_endpoint.map(|endpoint| OtlpConfig { endpoint, sample_ratio }) }
    }
}
