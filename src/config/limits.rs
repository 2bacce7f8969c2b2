//! How much is taken at once.

use std::time::Duration;

use clap::Args;

use super::validate::number;

/// The flags of limits.
#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// Requests of each listener that are under way at once; more are told to come back
    #[arg(long, env = "LEADFOLD_MAX_REQUESTS_IN_FLIGHT", value_name = "N", default_value_t = 10_000)]
    pub max_requests_in_flight: u64,
    /// Webhooks per second from one sender's address; more are told to come back (0: no limit)
    #[arg(long, env = "LEADFOLD_MAX_WEBHOOKS_PER_SECOND", value_name = "N", default_value_t = 0)]
    pub max_webhooks_per_second: u64,
    /// Seconds after which a connection that says nothing ends
    #[arg(long, env = "LEADFOLD_IDLE_CONNECTION_SECONDS", value_name = "SECONDS", default_value_t = 75)]
    pub idle_connection_seconds: u64,
}

/// The limits: checked.
#[derive(Clone, Copy, Debug)]
pub struct LimitConfig {
    /// Requests under way, per listener.
    pub requests_in_flight: usize,
    /// Webhooks per second and sender; none: as many as come.
    pub webhooks_per_second: Option<std::num::NonZeroU32>,
    /// How long a connection may say nothing.
    pub idle_connection: Duration,
}

impl LimitArgs {
    pub(super) fn validate(self, wrong: &mut Vec<String>) -> LimitConfig {
        let rate = number("--max-webhooks-per-second", self.max_webhooks_per_second, 0, 1_000_000, wrong);
        let idle = number("--idle-connection-seconds", self.idle_connection_seconds, 1, 86_400, wrong);
        LimitConfig {
            requests_in_flight: number("--max-requests-in-flight", self.max_requests_in_flight, 1, 1_000_000, wrong),
            webhooks_per_second: std::num::NonZeroU32::new(rate),
            idle_connection: Duration::from_secs(idle),
        }
    }
}
