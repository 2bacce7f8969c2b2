//! The flags of proxies in front of the listeners.

use clap::{Args, ValueEnum};

use crate::listener::TrustedProxies;

/// The flags, as given.
#[derive(Clone, Debug, Args)]
pub struct ProxyArgs {
    /// Network of proxies whose word on the client's address is believed; repeat it, or separate with commas [default: none]
    #[arg(long = "trusted-proxy", env = "LEADFOLD_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',')]
    pub trusted_proxies: Vec<String>,
    /// Listener whose trusted proxies begin each connection with the PROXY protocol; repeat it, or separate with commas [default: none]
    #[arg(long, env = "LEADFOLD_PROXY_PROTOCOL", value_name = "LISTENER", value_enum, value_delimiter = ',')]
    pub proxy_protocol: Vec<ListenerName>,
}

/// A listener, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListenerName {
    /// Webhooks.
    Http,
    /// gRPC.
    Grpc,
    /// The board, health and metrics.
    Admin,
}

/// The proxies in front of the listeners: checked.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    /// Whose word on the client's address is believed.
    pub trusted: TrustedProxies,
    /// The listeners on which they speak the PROXY protocol.
    pub protocol: Vec<ListenerName>,
}

impl ProxyArgs {
    pub(super) fn validate(self, wrong: &mut Vec<String>) -> ProxyConfig {
        let mut networks = Vec::new();
        for text in &self.trusted_proxies {
            match TrustedProxies::parse(text) {
                Ok(network) => networks.push(network),
                Err(problem) => wrong.push(format!("--trusted-proxy {text:?}: {problem}")),
            }
        }
        if networks.is_empty() && self.trusted_proxies.is_empty() && !self.proxy_protocol.is_empty() {
            wrong.push("--proxy-protocol is believed from trusted proxies only: name them with --trusted-proxy".to_owned());
        }
        ProxyConfig { trusted: TrustedProxies::new(networks), protocol: self.proxy_protocol }
    }
}
