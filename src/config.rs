//! The command line: its definition here, what `serve` demands of its values in [`ServeArgs::validate`].

mod access;
mod dead_letters;
mod limits;
mod proxies;
mod redis;
mod security;
mod spool;
mod telemetry;
mod tls;
mod tools;
mod usage;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use http::Uri;

pub use access::AccessArgs;
pub use dead_letters::{DeadLettersCommand, DeadLettersDropArgs, DeadLettersListArgs, DeadLettersRetryArgs};
pub use limits::{LimitArgs, LimitConfig};
pub use proxies::{ListenerName, ProxyArgs, ProxyConfig};
pub use redis::{RedisAddress, RedisTlsArgs, SentinelAddress};
pub use security::{SecurityArgs, SecurityConfig, WebhookSecretsConfig, is_loopback, webhook_secret_of_the_environment};
pub use spool::{DeadLetterConfig, SpoolArgs, SpoolConfig};
pub use telemetry::{OtlpConfig, TelemetryArgs, TelemetryConfig};
pub use tls::{TlsArgs, TlsConfig};
pub use tools::{CompletionsArgs, DemoArgs, ImportArgs, SimulateArgs, TrafficArgs, WebhookArgs};
pub use validate::ServeConfig;

/// Folds webhook events into one live aggregate per lead, and serves it over gRPC.
#[derive(Debug, Parser)]
#[command(name = "leadfold", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server: webhooks in, gRPC out
    Serve(Box<ServeArgs>),
    /// See it work: a server, traffic, and a lead that is watched, all in one
    Demo(DemoArgs),
    /// The commands that talk to a server.
    #[command(flatten)]
    Client(ClientCommand),
}

/// The subcommands that talk to a running server.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Show one lead
    Get(GetArgs),
    /// List a workspace's leads, latest activity first
    #[command(alias = "ls")]
    List(ListArgs),
    /// Follow one lead, or all leads of a workspace, as they change
    Watch(WatchArgs),
    /// Delete a lead and all its records
    #[command(alias = "rm")]
    Delete(DeleteArgs),
    /// List, retry or drop events that were refused
    DeadLetters {
        /// Which of these.
        #[command(subcommand)]
        command: DeadLettersCommand,
    },
    /// Send a server what happened before it was there
    Import(Box<ImportArgs>),
    /// Send a server realistic traffic
    Simulate(Box<SimulateArgs>),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

/// `leadfold serve`, as given; [`ServeArgs::validate`] turns it into a [`ServeConfig`].
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Where to take webhooks; port 0 takes any free one
    #[arg(long, env = "LEADFOLD_HTTP_ADDR", value_name = "IP:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    pub http_addr: SocketAddr,
    /// Where to serve gRPC
    #[arg(long, env = "LEADFOLD_GRPC_ADDR", value_name = "IP:PORT", default_value = "127.0.0.1:50051", value_parser = address)]
    pub grpc_addr: SocketAddr,
    /// Where to serve the board, /livez, /readyz and /metrics
    #[arg(long, env = "LEADFOLD_ADMIN_ADDR", value_name = "IP:PORT", default_value = "127.0.0.1:9090", value_parser = address)]
    pub admin_addr: SocketAddr,
    /// Directory of the embedded store, the spool and dead letters: each instance needs its own
    #[arg(long, env = "LEADFOLD_DATA_DIR", value_name = "DIR", default_value = "./leadfold-data")]
    pub data_dir: PathBuf,
    /// Redis to keep the leads in: redis://, redis-cluster://, redis-sentinel://, unix:// [default: none, the embedded store]
    #[arg(long, env = "LEADFOLD_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<Secret>,
    /// TLS on the way to Redis.
    #[command(flatten)]
    pub redis_tls: RedisTlsArgs,
    /// First part of every Redis key: separates deployments that share a Redis
    #[arg(long, env = "LEADFOLD_KEY_PREFIX", value_name = "PREFIX", default_value = "leadfold")]
    pub key_prefix: String,
    /// Partitions that leads are spread over (1 to 1024); written into Redis at first start, fixed from then on
    #[arg(long, env = "LEADFOLD_PARTITIONS", value_name = "N", default_value_t = 64)]
    pub partitions: u64,
    /// Activities kept for each lead (at least 256); older ones stay counted
    #[arg(long, env = "LEADFOLD_MAX_HISTORY", value_name = "N", default_value_t = 10_000)]
    pub max_history: u64,
    /// Entries of the change feed kept for each partition (at least 10)
    #[arg(long, env = "LEADFOLD_FEED_LENGTH", value_name = "N", default_value_t = 4096)]
    pub feed_length: u64,
    /// Largest webhook body taken, in bytes
    #[arg(long, env = "LEADFOLD_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 1_048_576)]
    pub max_body_bytes: u64,
    /// Seconds that requests in flight get to finish on shutdown (at most 10)
    #[arg(long, env = "LEADFOLD_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 10)]
    pub drain_seconds: u64,
    /// Who may come in.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Encryption of the listeners.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// How much is taken at once.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Proxies in front of the listeners.
    #[command(flatten)]
    pub proxies: ProxyArgs,
    /// Where traces go.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// How log lines are written
    #[arg(long, env = "LEADFOLD_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: a level, or directives such as info,leadfold=debug
    #[arg(long, env = "LEADFOLD_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    /// Connections that each listener serves at once
    #[arg(long, env = "LEADFOLD_MAX_CONNECTIONS", value_name = "N", default_value_t = 20_000)]
    pub max_connections: u64,
    /// Watches that this process serves at once: streams, of which one counts as many as the leads that it names
    #[arg(long, env = "LEADFOLD_MAX_WATCHES", value_name = "N", default_value_t = 100_000)]
    pub max_watches: u64,
    /// Watches that one connection may have open
    #[arg(long, env = "LEADFOLD_MAX_WATCHES_PER_CONNECTION", value_name = "N", default_value_t = 20_000)]
    pub max_watches_per_connection: u64,
    /// Watches that one token may have open (0: half of --max-watches)
    #[arg(long, env = "LEADFOLD_MAX_WATCHES_PER_TOKEN", value_name = "N", default_value_t = 0)]
    pub max_watches_per_token: u64,
    /// Web origin whose pages may call by gRPC-Web; repeat it, or separate with commas [default: none]
    #[arg(long = "cors-origin", env = "LEADFOLD_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// Age at which a gRPC connection is asked to reconnect (0: never)
    #[arg(long, env = "LEADFOLD_MAX_CONNECTION_AGE_SECONDS", value_name = "SECONDS", default_value_t = 1800)]
    pub max_connection_age_seconds: u64,
    /// Milliseconds between saying "not ready" and the end of new requests on shutdown (at most 5000)
    #[arg(long, env = "LEADFOLD_DRAIN_DELAY_MS", value_name = "MS", default_value_t = 500)]
    pub drain_delay_ms: u64,
    /// The spool and dead letters.
    #[command(flatten)]
    pub spool: SpoolArgs,
    /// Serve POST /noop, which does nothing: for benchmarks [default: false]
    #[arg(long, env = "LEADFOLD_NOOP_ROUTE", hide = true, value_parser = BoolishValueParser::new())]
    pub noop_route: bool,
}

/// What every client command takes.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Address of the server's gRPC listener: http://HOST:PORT, https://HOST:PORT, or HOST:PORT for the former
    #[arg(long, env = "LEADFOLD_SERVER", value_name = "URL", default_value = "http://127.0.0.1:50051", value_parser = tools::server)]
    pub server: Uri,
    /// Who calls, and whom to trust.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Print JSON, one message per line, instead of text for people [default: false]
    #[arg(long, env = "LEADFOLD_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// `leadfold get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// The lead to show
    pub lead_id: String,
    /// Show the newest N activities as well, with --json one line each after the lead's [default: 5, with --json 0]
    #[arg(long, env = "LEADFOLD_ACTIVITIES", value_name = "N")]
    pub activities: Option<u32>,
    /// The server, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `leadfold list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// The workspace whose leads to list
    pub workspace_id: String,
    /// Leads to print at most [default: 20, with --json all]
    #[arg(long, env = "LEADFOLD_LIMIT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// The server, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `leadfold watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// The lead to follow; it need not exist yet
    #[arg(required_unless_present = "workspace", conflicts_with = "workspace")]
    pub lead_id: Option<String>,
    /// Follow every lead of this workspace instead [default: none]
    #[arg(long, env = "LEADFOLD_WORKSPACE", value_name = "WORKSPACE", alias = "workspace-id")]
    pub workspace: Option<String>,
    /// The server, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `leadfold delete`.
#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// The lead to delete
    pub lead_id: String,
    /// Do not ask [default: false]
    #[arg(long)]
    pub yes: bool,
    /// The server, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// A text that is never shown: a URL may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself. Don't print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("leadfold").chain(args.iter().copied()))
    }

    #[test]
    fn the_definition_holds_together() {
        use clap::CommandFactory as _;
        let root = Cli::command();
        root.clone().debug_assert();
        // What destroys is asked for each time, and the demo is the same wherever it is run.
        let without_variable = |command: &str, flag: &str| matches!((command, flag), (_, "yes" | "all") | ("demo", "data-dir"));
        for command in root.get_subcommands().chain(root.get_subcommands().flat_map(clap::Command::get_subcommands)) {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let long = arg.get_long().unwrap_or_default();
                let env = arg.get_env().map(|env| env.to_string_lossy().into_owned());
                let expected = format!("LEADFOLD_{}", long.to_uppercase().replace('-', "_"));
                assert_eq!(env, Some(expected).filter(|_| !without_variable(command.get_name(), long)), "--{long}");
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty() && !help.contains('\n'), "--{long}");
                assert!(!arg.get_default_values().is_empty() && arg.get_action().takes_values() || help.contains("[default: "), "--{long}");
            }
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let cli = parse(&["serve", "--redis-url", "redis://:hunter2@h"]).expect("parsed");
        assert!(!format!("{cli:?}").contains("hunter2"));
        let Command::Serve(args) = cli.command else { panic!("serve") };
        assert_eq!(args.redis_url.expect("url").expose(), "redis://:hunter2@h");
    }

    #[test]
    fn a_watch_has_exactly_one_scope() {
        assert!(parse(&["watch", "l1"]).is_ok() && parse(&["watch", "--workspace", "w"]).is_ok());
        assert!(parse(&["watch"]).is_err() && parse(&["watch", "l1", "--workspace", "w"]).is_err());
    }
}
