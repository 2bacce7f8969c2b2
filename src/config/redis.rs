//! Where Redis is: what `--redis-url` may name, and the certificates on the way there.

use std::path::{Path, PathBuf};

use clap::Args;
use redis::{ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, TlsCertificates};

use crate::auth::files;

/// The forms of a URL, for whoever wrote another.
const FORMS: &str = "write redis://HOST:PORT, redis-cluster://HOST:PORT,HOST:PORT, redis-sentinel://HOST:PORT,HOST:PORT/NAME, \
                     these with rediss in place of redis (TLS), or unix:///PATH";
/// Query parameters of a sentinel URL.
const SENTINEL_USER: &str = "sentinel_user";
const SENTINEL_PASSWORD: &str = "sentinel_password";
/// The port of a sentinel that is named without one.
const SENTINEL_PORT: &str = ":26379";

/// The flags of TLS on the way to Redis.
#[derive(Clone, Debug, Args)]
pub struct RedisTlsArgs {
    /// PEM file of the authorities that certify a rediss:// server [default: those of the web]
    #[arg(long, env = "LEADFOLD_REDIS_CA_FILE", value_name = "FILE")]
    pub redis_ca_file: Option<PathBuf>,
    /// PEM file of the certificate that Redis is shown [default: none]
    #[arg(long, env = "LEADFOLD_REDIS_CERT_FILE", value_name = "FILE")]
    pub redis_cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key [default: none]
    #[arg(long, env = "LEADFOLD_REDIS_KEY_FILE", value_name = "FILE")]
    pub redis_key_file: Option<PathBuf>,
}

impl RedisTlsArgs {
    pub(super) fn validate(self, wrong: &mut Vec<String>) -> Option<TlsCertificates> {
        let mut read = |flag: &str, file: Option<PathBuf>| file.and_then(|file| pem(flag, &file, wrong));
        let root_cert = read("--redis-ca-file", self.redis_ca_file);
        let cert = read("--redis-cert-file", self.redis_cert_file);
        let key = read("--redis-key-file", self.redis_key_file);
        let client_tls = match (cert, key) {
            (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
            (None, None) => None,
            _ => {
                wrong.push("--redis-cert-file and --redis-key-file go together: give both, or neither".to_owned());
                None
            }
        };
        (root_cert.is_some() || client_tls.is_some()).then_some(TlsCertificates { client_tls, root_cert })
    }
}

fn pem(flag: &str, file: &Path, wrong: &mut Vec<String>) -> Option<Vec<u8>> {
    match files::read(file) {
        Ok(bytes) if bytes.windows(11).any(|window| window == b"-----BEGIN ") => Some(bytes),
        Ok(_) => {
            wrong.push(format!("{flag} {} is not a PEM file", file.display()));
            None
        }
        Err(error) => {
            wrong.push(format!("{flag}: {error:#}"));
            None
        }
    }
}

/// What a URL names.
#[derive(Clone)]
pub enum RedisAddress {
    /// One server.
    Node(Box<ConnectionInfo>),
    /// Some nodes of a cluster: the others are learned from them.
    Cluster(Vec<ConnectionInfo>),
    /// Sentinels, and the server that they know by a name.
    Sentinel(SentinelAddress),
}

/// Sentinels, and whom to ask them for.
#[derive(Clone)]
pub struct SentinelAddress {
    /// The sentinels that are asked first; others are learned from them.
    pub sentinels: Vec<ConnectionInfo>,
    /// What the sentinels call the primary.
    pub name: String,
    /// How to connect to the primary, except for its address.
    pub server: Box<ConnectionInfo>,
}

impl std::fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node(_) => "Node(***)",
            Self::Cluster(_) => "Cluster(***)",
            Self::Sentinel(_) => "Sentinel(***)",
        })
    }
}

impl RedisAddress {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, to stand behind the flag's name. Never quotes the URL or any part of it but a known
    /// scheme: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.trim().is_empty() {
            return Err("is empty: give a URL, or leave it (and LEADFOLD_REDIS_URL) out to use the embedded store".to_owned());
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(format!("is not a URL (not shown, it may hold a password): {FORMS}"));
        };
        let malformed = || format!("is malformed (not shown, it may hold a password): {FORMS}; percent-encode special characters");
        match scheme.to_ascii_lowercase().as_str() {
            "redis" | "rediss" | "unix" | "redis+unix" => {
                let node = url.into_connection_info().map_err(|_| malformed())?;
                Ok(Self::Node(Box::new(node)))
            }
            known @ ("redis-cluster" | "rediss-cluster") => {
                let parts = Parts::of(known, rest);
                let nodes = parts.nodes("", true).filter(|_| parts.path.is_empty()).ok_or_else(malformed)?;
                Ok(Self::Cluster(nodes))
            }
            known @ ("redis-sentinel" | "rediss-sentinel") => {
                let parts = Parts::of(known, rest);
                let (path, query) = parts.path.split_once('?').unwrap_or((parts.path, ""));
                let (name, database) = path.split_once('/').unwrap_or((path, "0"));
                if name.is_empty() {
                    return Err(format!("names no server: {known}://HOST:PORT,HOST:PORT/NAME, where NAME is what the sentinels call it"));
                }
                let login = sentinel_login(query).ok_or_else(|| {
                    format!("has an unknown parameter behind the '?' (not shown): {SENTINEL_USER} and {SENTINEL_PASSWORD} are understood")
                })?;
                let sentinels = parts.nodes(SENTINEL_PORT, false).ok_or_else(malformed)?;
                let sentinels = sentinels.into_iter().map(|info| login.apply(info)).collect();
                // Where it is, is not known yet; how to talk to it is.
                let server = format!("{}://{}somewhere:1/{database}", parts.scheme, parts.user);
                let server = server.as_str().into_connection_info().map_err(|_| malformed())?;
                Ok(Self::Sentinel(SentinelAddress { sentinels, name: name.to_owned(), server: Box::new(server) }))
            }
            _ => Err(format!("has an unknown scheme: {FORMS}")),
        }
    }
}

/// Who leadfold is to the sentinels: they have users of their own.
#[derive(Default)]
struct SentinelLogin {
    user: Option<String>,
    password: Option<String>,
}

/// Reads `sentinel_user=…&sentinel_password=…`. `None`: there is something else in it.
fn sentinel_login(query: &str) -> Option<SentinelLogin> {
    let mut login = SentinelLogin::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value).decode_utf8().ok()?.into_owned();
        match name {
            SENTINEL_USER => login.user = Some(value),
            SENTINEL_PASSWORD => login.password = Some(value),
            _ => return None,
        }
    }
    Some(login)
}

impl SentinelLogin {
    fn apply(&self, info: ConnectionInfo) -> ConnectionInfo {
        let mut settings = info.redis_settings().clone();
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        info.set_redis_settings(settings)
    }
}

/// A URL of several hosts, taken apart.
struct Parts<'a> {
    /// `redis` or `rediss`.
    scheme: &'a str,
    /// Up to the `@`, and empty without one.
    user: &'a str,
    hosts: &'a str,
    path: &'a str,
}

impl<'a> Parts<'a> {
    fn of(scheme: &'a str, rest: &'a str) -> Self {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Self { scheme: scheme.split('-').next().unwrap_or(scheme), user, hosts, path }
    }

    /// Each host by the client's own parser: what it takes now, it takes when it connects. `None`: one is malformed.
    fn nodes(&self, default_port: &str, with_user: bool) -> Option<Vec<ConnectionInfo>> {
        let user = if with_user { self.user } else { "" };
        let node = |host: &str| {
            let port = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) { "" } else { default_port };
            let bare = !host.is_empty() && !host.contains(['?', '#', '@']);
            bare.then(|| format!("{}://{user}{host}{port}", self.scheme).as_str().into_connection_info().ok())?
        };
        self.hosts.split(',').map(|host| node(host.trim())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(nodes: &[ConnectionInfo]) -> Vec<String> {
        nodes.iter().map(|node| node.addr().to_string()).collect()
    }

    #[test]
    fn a_cluster_is_named_by_some_of_its_nodes() {
        let Ok(RedisAddress::Cluster(nodes)) = RedisAddress::parse("redis-cluster://u:p%40ss@h1:7001,[::1]:7002,h3") else {
            panic!("a cluster")
        };
        assert_eq!(addresses(&nodes), ["h1:7001", "::1:7002", "h3:6379"]);
        for node in &nodes {
            assert_eq!((node.redis_settings().username(), node.redis_settings().password()), (Some("u"), Some("p@ss")));
        }
    }

    #[test]
    fn sentinels_are_asked_for_a_name() {
        let Ok(RedisAddress::Sentinel(address)) = RedisAddress::parse("rediss-sentinel://:p@s1,s2:5000/main/3") else {
            panic!("sentinels")
        };
        assert_eq!(addresses(&address.sentinels), ["s1:26379", "s2:5000"]);
        assert_eq!((address.name.as_str(), address.server.redis_settings().db()), ("main", 3));
        assert_eq!(address.server.redis_settings().password(), Some("p"));
        assert!(address.sentinels.iter().all(|sentinel| sentinel.redis_settings().password().is_none()));
    }

    #[test]
    fn sentinels_have_a_user_and_a_password_of_their_own() {
        let Ok(RedisAddress::Sentinel(address)) =
            RedisAddress::parse("redis-sentinel://u:p@s1,s2/main/1?sentinel_user=watcher&sentinel_password=a%2Fb%26c")
        else {
            panic!("sentinels")
        };
        for sentinel in &address.sentinels {
            let settings = sentinel.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("watcher"), Some("a/b&c")));
        }
        let server = address.server.redis_settings();
        assert_eq!((server.username(), server.password(), server.db()), (Some("u"), Some("p"), 1));
        let Ok(RedisAddress::Sentinel(address)) = RedisAddress::parse("redis-sentinel://s1/main?sentinel_password=x") else {
            panic!("sentinels")
        };
        assert_eq!(address.sentinels[0].redis_settings().username(), None);
    }

    #[test]
    fn what_is_wrong_is_said_without_quoting_it() {
        for bad in [
            "redis-cluster://",
            "redis-cluster://h1,,h2",
            "redis-cluster://:hunter2@h:port",
            "redis-cluster://h/1",
            "redis-sentinel://:hunter2@h",
            "redis-sentinel://h/",
            "redis-sentinel://h/name/hunter2",
            "redis-cluster://h?hunter2",
            "redis-sentinel://h/name?hunter2",
            "redis-sentinel://h/name?password=hunter2",
        ] {
            let problem = RedisAddress::parse(bad).expect_err(bad);
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
