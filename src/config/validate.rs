//! What `serve` demands of its flags: all that is wrong is said at once, one line each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use redis::TlsCertificates;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::limits::LimitConfig;
use super::proxies::ProxyConfig;
use super::security::{Listeners, SecurityConfig};
use super::telemetry::TelemetryConfig;
use super::tls::TlsConfig;
use super::{LogFormat, RedisAddress, Secret, ServeArgs, SpoolConfig};

/// What `serve` runs with: checked.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Where webhooks are taken.
    pub http_addr: SocketAddr,
    /// Where gRPC is served.
    pub grpc_addr: SocketAddr,
    /// Where the board, health and metrics are served.
    pub admin_addr: SocketAddr,
    /// The directory of the embedded store, the spool and dead letters.
    pub data_dir: PathBuf,
    /// The Redis to use; none: the embedded store.
    pub redis_url: Option<Secret>,
    /// What a `rediss` server is checked against, and what it is shown.
    pub redis_tls: Option<TlsCertificates>,
    /// The first part of every Redis key.
    pub key_prefix: String,
    /// The number of partitions, 1 to 1024.
    pub partitions: u16,
    /// Activities kept per lead.
    pub max_history: usize,
    /// Entries kept per partition of the feed.
    pub feed_length: usize,
    /// The largest webhook body.
    pub max_body_bytes: usize,
    /// How long requests in flight may take on shutdown.
    pub drain: Duration,
    /// Who may come in.
    pub security: SecurityConfig,
    /// Encryption; none: everything is in the clear.
    pub tls: Option<TlsConfig>,
    /// How much is taken at once.
    pub limits: LimitConfig,
    /// Proxies in front of the listeners.
    pub proxies: ProxyConfig,
    /// Where traces go.
    pub telemetry: TelemetryConfig,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// A filter that `EnvFilter` accepts.
    pub log_level: String,
    /// Connections per listener.
    pub max_connections: usize,
    /// Watches per process.
    pub max_watches: usize,
    /// Watches per connection.
    pub max_watches_per_connection: u32,
    /// Watches per token.
    pub max_watches_per_token: usize,
    /// The web origins that may call by gRPC-Web.
    pub cors_origins: Vec<String>,
    /// The age at which a gRPC connection is asked to reconnect; none: never.
    pub max_connection_age: Option<Duration>,
    /// On shutdown, how long requests are still taken after health says no.
    pub drain_delay: Duration,
    /// The spool and dead letters.
    pub spool: SpoolConfig,
    /// Whether `POST /noop` is served.
    pub noop_route: bool,
}

impl ServeArgs {
    /// Checks everything. `Err` has one line for each thing that is wrong: the flag, what is wrong, what to do.
    pub fn validate(self) -> Result<ServeConfig, Vec<String>> {
        let mut wrong = Vec::new();
        if let Some(name) = self.empty_variable() {
            wrong.push(format!("{name} is empty: give it a value, or unset it to do without"));
        }
        self.check_addresses(&mut wrong);
        let listeners = Listeners { http: self.http_addr, grpc: self.grpc_addr, admin: self.admin_addr };
        let mutual = self.tls.grpc_client_ca.is_some();
        let tls = self.tls.validate(&mut wrong);
        let security = self.security.validate(listeners, mutual, &mut wrong);
        let limits = self.limits.validate(&mut wrong);
        let proxies = self.proxies.validate(&mut wrong);
        let telemetry = self.telemetry.validate(&mut wrong);
        check_prefix(&self.key_prefix, &mut wrong);
        if self.data_dir.as_os_str().is_empty() {
            wrong.push("--data-dir is empty: name a directory, such as ./leadfold-data".to_owned());
        }
        if let Some(problem) = self.redis_url.as_ref().and_then(|url| RedisAddress::parse(url.expose()).err()) {
            wrong.push(format!("--redis-url {problem}"));
        }
        let redis_tls = self.redis_tls.validate(&mut wrong);
        if let Some(problem) = filter_problem(&self.log_level) {
            wrong.push(format!("--log-level {problem}"));
        }
        for origin in self.cors_origins.iter().filter(|origin| !is_origin(origin)) {
            wrong.push(format!("--cors-origin {origin:?} is not an origin: write it as browsers do, such as https://app.example.com"));
        }
        let partitions = number("--partitions", self.partitions, 1, 1024, &mut wrong);
        let max_history = number("--max-history", self.max_history, 256, 1_000_000, &mut wrong);
        let feed_length = number("--feed-length", self.feed_length, 10, 10_000_000, &mut wrong);
        let max_body_bytes = number("--max-body-bytes", self.max_body_bytes, 1024, 64 << 20, &mut wrong);
        let drain: u64 = number("--drain-seconds", self.drain_seconds, 0, 10, &mut wrong);
        let drain_delay: u64 = number("--drain-delay-ms", self.drain_delay_ms, 0, 5000, &mut wrong);
        // With no time at all everything is dropped, and nothing is waited for.
        if drain > 0 && drain_delay >= drain.saturating_mul(1000) {
            wrong.push(format!(
                "--drain-delay-ms {drain_delay} leaves nothing of --drain-seconds {drain} to finish requests: use a shorter delay or more seconds"
            ));
        }
        let max_connections = number("--max-connections", self.max_connections, 1, 1_000_000, &mut wrong);
        let max_watches = number("--max-watches", self.max_watches, 1, 10_000_000, &mut wrong);
        let per_connection = number("--max-watches-per-connection", self.max_watches_per_connection, 1, 1_000_000, &mut wrong);
        let per_token = number("--max-watches-per-token", self.max_watches_per_token, 0, 10_000_000, &mut wrong);
        let age = number("--max-connection-age-seconds", self.max_connection_age_seconds, 0, 31_536_000, &mut wrong);
        let spool = self.spool.validate(&mut wrong);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(ServeConfig {
            http_addr: self.http_addr,
            grpc_addr: self.grpc_addr,
            admin_addr: self.admin_addr,
            data_dir: self.data_dir,
            redis_url: self.redis_url,
            redis_tls,
            key_prefix: self.key_prefix,
            partitions,
            max_history,
            feed_length,
            max_body_bytes,
            drain: Duration::from_secs(drain),
            security,
            tls,
            limits,
            proxies,
            telemetry,
            log_format: self.log_format,
            log_level: self.log_level,
            max_connections,
            max_watches,
            max_watches_per_connection: per_connection,
            max_watches_per_token: if per_token == 0 { max_watches.div_ceil(2) } else { per_token },
            cors_origins: self.cors_origins,
            max_connection_age: (age > 0).then(|| Duration::from_secs(age)),
            drain_delay: Duration::from_millis(drain_delay),
            spool,
            noop_route: self.noop_route,
        })
    }

    fn check_addresses(&self, wrong: &mut Vec<String>) {
        let listeners = [("--http-addr", self.http_addr), ("--grpc-addr", self.grpc_addr), ("--admin-addr", self.admin_addr)];
        for (at, &(flag, address)) in listeners.iter().enumerate() {
            if let Some((other, _)) = listeners[..at].iter().find(|(_, taken)| *taken == address && address.port() != 0) {
                wrong.push(format!("{flag} {address} is the address of {other} as well: give each its own port"));
            }
        }
    }
}

/// The number in its final type. Out of range, it is said, and the result stands in until all is checked.
pub(super) fn number<T: TryFrom<u64> + Default>(flag: &str, given: u64, least: u64, most: u64, wrong: &mut Vec<String>) -> T {
    let number = T::try_from(given).ok().filter(|_| (least..=most).contains(&given));
    number.unwrap_or_else(|| {
        wrong.push(format!("{flag} {given} is out of range: use {least} to {most}"));
        T::default()
    })
}

/// Braces would move the hash tag, and with it a partition's keys, to another slot.
fn check_prefix(prefix: &str, wrong: &mut Vec<String>) {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(allowed) {
        wrong.push(format!("--key-prefix {prefix:?} cannot be used: write 1 to 64 of the characters A-Z a-z 0-9 _ . : -"));
    }
}

fn filter_problem(filter: &str) -> Option<String> {
    const FORMS: &str = "use error, warn, info, debug or trace, or directives such as info,leadfold=debug";
    // EnvFilter takes a misspelt level for the name of a module, and then logs nothing at all.
    let misspelt = |part: &&str| !part.contains(['=', '[', ':']) && part.parse::<LevelFilter>().is_err();
    if filter.trim().is_empty() {
        return Some(format!("is empty: {FORMS}"));
    }
    if let Some(part) = filter.split(',').map(str::trim).filter(|_| !filter.contains('[')).find(misspelt) {
        return Some(format!("{part:?} is not a level: {FORMS}"));
    }
    EnvFilter::try_new(filter).err().map(|error| format!("{filter:?} is not a filter ({error}): {FORMS}"))
}

/// `scheme://host[:port]`, as it is compared with the header: lower case, no path. `*` would open the leads to
/// every page that a browser on this machine visits.
fn is_origin(origin: &str) -> bool {
    let Some((scheme, host)) = origin.split_once("://") else { return false };
    let host_ok = host.parse::<http::uri::Authority>().is_ok_and(|authority| !authority.host().is_empty());
    matches!(scheme, "http" | "https") && host_ok && !host.contains(['@', '*']) && !host.bytes().any(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn validate(args: &[&str]) -> Result<ServeConfig, Vec<String>> {
        let cli = Cli::try_parse_from(["leadfold", "serve"].iter().chain(args)).expect("parsed");
        let Command::Serve(args) = cli.command else { panic!("serve") };
        args.validate()
    }

    fn wrong(args: &[&str]) -> Vec<String> {
        let lines = validate(args).expect_err("refused");
        assert!(lines.iter().all(|line| line.starts_with("--") && !line.contains('\n')), "{lines:?}");
        lines
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = validate(&[]).expect("valid");
        assert_eq!((config.partitions, config.max_history, config.drain.as_secs()), (64, 10_000, 10));
        assert_eq!(config.max_connection_age, Some(Duration::from_secs(1800)));
        assert!(config.redis_url.is_none() && config.cors_origins.is_empty());
        assert_eq!(validate(&["--max-connection-age-seconds", "0"]).expect("valid").max_connection_age, None);
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let lines = wrong(&[
            "--partitions",
            "0",
            "--drain-seconds",
            "11",
            "--key-prefix",
            "a{b}",
            "--redis-url",
            "http://x",
            "--max-history",
            "255",
        ]);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert_eq!(lines[2], "--partitions 0 is out of range: use 1 to 1024");
    }

    #[test]
    fn the_delay_of_the_end_leaves_time_to_drain() {
        let line = &wrong(&["--drain-delay-ms", "5000", "--drain-seconds", "2"])[0];
        assert!(line.starts_with("--drain-delay-ms 5000 ") && line.contains("--drain-seconds 2"), "{line}");
        assert_eq!(wrong(&["--drain-delay-ms", "1000", "--drain-seconds", "1"]).len(), 1);
        assert!(validate(&["--drain-seconds", "1"]).is_ok() && validate(&["--drain-seconds", "0"]).is_ok());
    }

    #[test]
    fn beyond_loopback_needs_a_word() {
        let line = &wrong(&["--grpc-addr", "0.0.0.0:50051"])[0];
        assert!(
            line.starts_with("--grpc-addr 0.0.0.0:50051 ") && line.contains("use 127.0.0.1:50051") && line.contains("--insecure-no-auth")
        );
        assert!(validate(&["--grpc-addr", "0.0.0.0:50051", "--admin-addr", "0.0.0.0:1", "--tokens-file", "t"]).is_ok());
        assert_eq!(wrong(&["--http-addr", "[::]:1", "--grpc-addr", "10.0.0.1:2", "--admin-addr", "[fe80::1]:3"]).len(), 3);
        assert!(validate(&["--grpc-addr", "0.0.0.0:50051", "--insecure-no-auth"]).is_ok());
        assert!(validate(&["--http-addr", "[::1]:1", "--grpc-addr", "127.9.9.9:2", "--admin-addr", "[::ffff:127.0.0.1]:3"]).is_ok());
    }

    #[test]
    fn listeners_do_not_share_an_address_unless_the_port_is_free_to_choose() {
        assert!(wrong(&["--http-addr", "127.0.0.1:1", "--admin-addr", "127.0.0.1:1"])[0].contains("--http-addr as well"));
        assert!(validate(&["--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]).is_ok());
    }

    #[test]
    fn redis_urls() {
        for good in [
            "redis://h",
            "redis://:p%40ss@h:6379/2",
            "rediss://u:p@h",
            "unix:///run/redis.sock",
            "redis-cluster://h:1,h",
            "redis-sentinel://h/m",
        ] {
            assert!(validate(&["--redis-url", good]).is_ok(), "{good}");
        }
        for bad in
            ["", "hunter2", "redis://:hunter2@h:notaport", "redis://:hunter2@h/notadb", "redis://", "amqp://hunter2@h", "hunter2://h"]
        {
            let lines = wrong(&["--redis-url", bad]);
            assert!(lines.len() == 1 && !lines[0].contains("hunter2"), "{bad}: {lines:?}");
        }
    }

    #[test]
    fn proxies() {
        let networks = ["--trusted-proxy", "10.0.0.0/8, fd00::/8", "--trusted-proxy", "192.0.2.7", "--proxy-protocol", "http,grpc"];
        let config = validate(&networks).expect("valid").proxies;
        assert!(config.trusted.contains([10, 1, 2, 3].into()) && config.trusted.contains([192, 0, 2, 7].into()));
        assert_eq!(config.protocol, [super::super::ListenerName::Http, super::super::ListenerName::Grpc]);
        assert_eq!(wrong(&["--trusted-proxy", "10.0.0.0/33,lb.example", "--trusted-proxy", "::1"]).len(), 2);
        assert!(wrong(&["--proxy-protocol", "http"])[0].contains("--trusted-proxy"));
    }

    #[test]
    fn filters_and_origins() {
        for good in ["info", "WARN", "off", "info,hyper=warn", "leadfold::store=trace"] {
            assert!(validate(&["--log-level", good]).is_ok(), "{good}");
        }
        for bad in ["inof", "", "info,leadfold=loud"] {
            assert_eq!(wrong(&["--log-level", bad]).len(), 1, "{bad}");
        }
        let config = validate(&["--cors-origin", "https://a.example,http://localhost:3000", "--cors-origin", "http://[::1]:3"]);
        assert_eq!(config.expect("valid").cors_origins.len(), 3);
        for bad in ["*", "null", "a.example", "https://a.example/", "https://A.example", "https://", "https://*.example"] {
            assert_eq!(wrong(&["--cors-origin", bad]).len(), 1, "{bad}");
        }
    }
}
