//! Who may come in: tokens, and what is demanded of listeners that others can reach.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

/// The flags of authentication.
#[derive(Clone, Debug, Args)]
pub struct SecurityArgs {
    /// File of the bearer tokens that gRPC and the admin listener ask for, read again when it changes [default: none]
    #[arg(long, env = "LEADFOLD_TOKENS_FILE", value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
    /// Serve beyond loopback without authentication [default: false]
    #[arg(long, env = "LEADFOLD_INSECURE_NO_AUTH", value_parser = BoolishValueParser::new())]
    pub insecure_no_auth: bool,
}

/// What was asked for: checked.
#[derive(Clone, Debug)]
pub struct SecurityConfig {
    /// The file of tokens; none: no token is asked for.
    pub tokens_file: Option<PathBuf>,
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
    pub(super) fn validate(self, listeners: Listeners, wrong: &mut Vec<String>) -> SecurityConfig {
        let tokens = self.tokens_file.is_some();
        for (flag, address, guarded, guard) in [
            ("--http-addr", listeners.http, false, "this version has no authentication for webhooks"),
            ("--grpc-addr", listeners.grpc, tokens, "nobody would be asked for a token: name a --tokens-file"),
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
        SecurityConfig { tokens_file: self.tokens_file }
    }
}
