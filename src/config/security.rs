//! Who may come in: tokens, and what is demanded of listeners that others can reach.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use http::HeaderName;

use super::Secret;

/// The flags of authentication.
#[derive(Clone, Debug, Args)]
pub struct SecurityArgs {
    /// File of the bearer tokens that gRPC and the admin listener ask for, read again when it changes [default: none]
    #[arg(long, env = "LEADFOLD_TOKENS_FILE", value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
    /// File of the secrets that webhooks are sent with, one a line, read again when it changes [default: none]
    #[arg(long, env = "LEADFOLD_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    pub webhook_secret_file: Option<PathBuf>,
    /// Header that brings the webhook secret; secrets that begin with whsec_ sign instead (Standard Webhooks)
    #[arg(long, env = "LEADFOLD_WEBHOOK_SECRET_HEADER", value_name = "NAME", default_value = "x-webhook-secret")]
    pub webhook_secret_header: String,
    /// Host name that web browsers may use for listeners that ask for no token or secret, besides localhost and IP addresses; repeat it, or separate with commas [default: none]
    #[arg(long = "allowed-host", env = "LEADFOLD_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,
    /// Serve beyond loopback without authentication [default: false]
    #[arg(long, env = "LEADFOLD_INSECURE_NO_AUTH", value_parser = BoolishValueParser::new())]
    pub insecure_no_auth: bool,
}

/// What was asked for: checked.
#[derive(Clone, Debug)]
pub struct SecurityConfig {
    /// The file of tokens; none: no token is asked for.
    pub tokens_file: Option<PathBuf>,
    /// What senders of webhooks have to know.
    pub webhook_secrets: WebhookSecretsConfig,
    /// Host names of listeners that ask for no credential, in lower case and without a port.
    pub allowed_hosts: Vec<String>,
}

/// The secrets of webhooks: none at all if neither is there.
#[derive(Clone, Debug)]
pub struct WebhookSecretsConfig {
    /// The file that has them, one a line.
    pub file: Option<PathBuf>,
    /// Others, of the environment, in the same form.
    pub fixed: Option<Secret>,
    /// The header that brings one.
    pub header: HeaderName,
}

/// Secrets of webhooks for those who have no file to put them in. There is no flag: `ps` would show it.
const WEBHOOK_SECRET: &str = "LEADFOLD_WEBHOOK_SECRET";

/// Secrets of webhooks that are in the environment.
pub fn webhook_secret_of_the_environment() -> Option<Secret> {
    std::env::var_os(WEBHOOK_SECRET).map(|secret| Secret::from(secret.to_string_lossy().into_owned()))
}

/// The listeners, by their flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listeners {
    pub(super) http: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// Whether an address can be reached from this machine only. An IPv4 address in IPv6 clothes (::ffff:127.0.0.1) can.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

impl SecurityArgs {
    /// `mutual`: clients of gRPC have to show certificates.
    pub(super) fn validate(self, listeners: Listeners, mutual: bool, wrong: &mut Vec<String>) -> SecurityConfig {
        let tokens = self.tokens_file.is_some();
        let fixed = webhook_secret_of_the_environment();
        let secrets = fixed.is_some() || self.webhook_secret_file.is_some();
        let header = self.webhook_secret_header.parse().unwrap_or_else(|_| {
            wrong.push(format!("--webhook-secret-header {:?} is not the name of a header", self.webhook_secret_header));
            HeaderName::from_static("x-webhook-secret")
        });
        for (flag, address, guarded, guard) in [
            ("--http-addr", listeners.http, secrets, "nobody would be asked for a secret: name a --webhook-secret-file"),
            ("--grpc-addr", listeners.grpc, tokens || mutual, "nobody would be asked for a token: name a --tokens-file"),
            ("--admin-addr", listeners.admin, tokens, "nobody would be asked for a token: name a --tokens-file"),
        ] {
            if !guarded && !self.insecure_no_auth && !is_loopback(address) {
                let home = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), address.port());
                wrong.push(format!(
                    "{flag} {address} can be reached from other machines, and {guard}, or use {home}, or add \
                     --insecure-no-auth if your network keeps strangers out"
                ));
            }
        }
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        for name in self.allowed_hosts.iter().filter(|name| !is_name(name)) {
            wrong.push(format!(
                "--allowed-host {name:?} is not a host name: write it without scheme, port and path, such as leads.example.com"
            ));
        }
        let allowed_hosts = self.allowed_hosts.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        let webhook_secrets = WebhookSecretsConfig { file: self.webhook_secret_file, fixed, header };
        SecurityConfig { tokens_file: self.tokens_file, webhook_secrets, allowed_hosts }
    }
}
