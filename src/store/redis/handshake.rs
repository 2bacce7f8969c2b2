//! What is asked of a server on every new connection, before anything else is sent: whether it can be used at all, and
//! which process it is.
//!
//! A server is checked when a connection opens and not only when leadfold starts, since what answers at an address
//! changes: after a failover, a restart or a mistake it is another server, with other settings or other data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::keys::{Keys, LAYOUT};
use super::reply;
use super::route::Purpose;
use crate::time::{Clock, Timestamp};

/// The oldest version whose scripts, functions and ACL rules are those that leadfold uses.
const LEAST_VERSION: (u32, u32) = (7, 0);

/// The fields under which a deployment's layout is written.
const LAYOUT_FIELD: &str = "layout";
const PARTITIONS_FIELD: &str = "partitions";

/// What a server calls its line of replication. It begins another one when it is promoted.
const REPLICATION_ID: &str = "master_replid";

/// Names one server process and its line of replication: as long as it stays the same, nothing that was acknowledged is
/// lost. A restart, a failover or a promotion changes it.
pub(super) type ServerId = Arc<str>;

/// The keys under which the layout of some partitions is written: those that a node has now.
type ConfigKeys = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// Checks servers.
pub(super) struct Handshake {
    is_cluster: bool,
    keys: Keys,
    config_keys: ConfigKeys,
    /// The store's time is learned from the server that has these partitions.
    clock: Clock,
    warned: Arc<AtomicBool>,
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").field("is_cluster", &self.is_cluster).finish_non_exhaustive()
    }
}

/// What all handshakes of one store share.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) keys: Keys,
    pub(super) clock: Clock,
    /// Whether an operator was warned that this Redis may lose what it acknowledged.
    warned: Arc<AtomicBool>,
}

impl Expected {
    pub(super) fn new(keys: Keys, clock: Clock) -> Self {
        Self { keys, clock, warned: Arc::default() }
    }

    /// For a server that has all partitions.
    pub(super) fn of_single(&self) -> Handshake {
        let config = self.keys.config();
        self.handshake(false, Box::new(move || vec![config.clone()]))
    }

    /// For a node that has some of them.
    pub(super) fn of_node(&self, config_keys: ConfigKeys) -> Handshake {
        self.handshake(true, config_keys)
    }

    fn handshake(&self, is_cluster: bool, config_keys: ConfigKeys) -> Handshake {
        let Self { keys, clock, warned } = self.clone();
        Handshake { is_cluster, keys, config_keys, clock, warned }
    }
}

impl Handshake {
    /// Checks the server behind a new connection.
    pub(super) async fn check(&self, connection: &mut MultiplexedConnection, purpose: Purpose) -> RedisResult<ServerId> {
        let asked = Instant::now();
        let info: Value = redis::cmd("INFO").query_async(connection).await?;
        let took = asked.elapsed();
        let info = Info(reply::text(info).map_err(|_| RedisError::from((ErrorKind::Parse, "INFO is not text")))?);
        self.refuse_unusable(&info)?;
        if info.field("aof_enabled") == Some("0") && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "Redis writes no append-only file: when it stops it forgets what it acknowledged since its last snapshot. Set appendonly yes, with appendfsync always to lose nothing"
            );
        }
        if let Some(micros) = info.field("server_time_usec").and_then(|micros| micros.parse().ok())
            && self.keeps_the_time()
        {
            self.clock.learn(Timestamp::from_micros(micros), took);
        }
        self.agree_on_layout(connection, purpose).await?;
        let id = [info.field("run_id"), info.field(REPLICATION_ID)].map(Option::unwrap_or_default);
        Ok(id.join(" ").into())
    }

    /// The nodes of a cluster may have different clocks: one of them is the store's.
    pub(super) fn keeps_the_time(&self) -> bool {
        !self.is_cluster || (self.config_keys)().contains(&self.keys.config_of(0))
    }

    fn refuse_unusable(&self, info: &Info) -> RedisResult<()> {
        let version = info.field("redis_version").unwrap_or_default();
        let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
        let parsed = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        // Valkey has another name for it.
        let mode = info.field("redis_mode").or_else(|| info.field("server_mode"));
        let what = match (mode, self.is_cluster) {
            (Some("sentinel"), _) => {
                "this is a sentinel, not a Redis: use redis-sentinel://HOST:PORT,HOST:PORT/NAME in --redis-url".to_owned()
            }
            _ if parsed < LEAST_VERSION => {
                format!("this is Redis {version}, and leadfold needs {}.{} or later", LEAST_VERSION.0, LEAST_VERSION.1)
            }
            (Some("cluster"), false) => "this is a node of a cluster: use redis-cluster://HOST:PORT,HOST:PORT in --redis-url".to_owned(),
            (Some("standalone"), true) => "this Redis is not part of a cluster: use redis://HOST:PORT in --redis-url".to_owned(),
            _ => match info.field("maxmemory_policy") {
                // A Redis that evicts would forget parts of a lead, and count what it forgot once more.
                Some(policy) if policy != "noeviction" => {
                    format!("this Redis evicts keys when its memory is full (maxmemory-policy {policy}): set it to noeviction")
                }
                _ => return Ok(()),
            },
        };
        Err(unusable(what))
    }

    /// Leads are found by their partition, so every instance must count on the same number of them. What is written here
    /// is gone when Redis comes back empty, so it is looked for, and written again, on each new connection.
    async fn agree_on_layout(&self, connection: &mut MultiplexedConnection, purpose: Purpose) -> RedisResult<()> {
        let keys = (self.config_keys)();
        // All at once: a node of a cluster has many partitions.
        let mut pipe = redis::pipe();
        for key in &keys {
            pipe.cmd("HMGET").arg(key).arg(LAYOUT_FIELD).arg(PARTITIONS_FIELD);
        }
        let stored = if keys.is_empty() { Vec::new() } else { connection.send_packed_commands(&pipe, 0, keys.len()).await? };
        for (key, stored) in keys.iter().zip(stored) {
            let error = match stored {
                Value::ServerError(error) => RedisError::from(error),
                stored => {
                    let stored: (Option<String>, Option<String>) = redis::from_redis_value(stored)?;
                    self.agree_on(connection, key, LAYOUT_FIELD, stored.0, LAYOUT, purpose).await?;
                    self.agree_on(connection, key, PARTITIONS_FIELD, stored.1, &self.keys.partitions().to_string(), purpose).await?;
                    continue;
                }
            };
            // The slot has moved: its new node is asked when a connection to it opens.
            if error.redirect_node().is_none() && error.code() != Some("TRYAGAIN") {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn agree_on(
        &self,
        connection: &mut MultiplexedConnection,
        key: &str,
        field: &str,
        stored: Option<String>,
        wanted: &str,
        purpose: Purpose,
    ) -> RedisResult<()> {
        let stored = match stored {
            Some(stored) => stored,
            // A reader needs nothing to be written, and must not fail where nothing can be.
            None if purpose == Purpose::Read => return Ok(()),
            None => {
                redis::cmd("HSETNX").arg(key).arg(field).arg(wanted).exec_async(connection).await?;
                redis::cmd("HGET").arg(key).arg(field).query_async(connection).await?
            }
        };
        if stored == wanted { Ok(()) } else { Err(unusable(self.other_layout(key, field, &stored, wanted))) }
    }

    fn other_layout(&self, key: &str, field: &str, stored: &str, wanted: &str) -> String {
        if field == PARTITIONS_FIELD {
            return format!("{key} has partitions {stored}, this instance wants {wanted}: start it with --partitions {stored}");
        }
        format!(
            "{key} has layout {stored}, and this version of leadfold reads layout {wanted} only: use the version that wrote it, or another \
             --key-prefix"
        )
    }
}

/// Whether a server's line of replication, as `INFO replication` tells it, is still that of its id.
pub(super) fn is_of_line(id: &ServerId, info: &str) -> bool {
    let line = id.rsplit_once(' ').map_or("", |(_, line)| line);
    info.lines().find_map(|told| told.strip_prefix(REPLICATION_ID)?.strip_prefix(':')).map(str::trim) == Some(line)
}

/// The answer to `INFO`.
struct Info(String);

impl Info {
    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }
}

/// The server is there and cannot be used: what it is, and what to do.
pub(super) fn unusable(what: String) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, "this Redis cannot be used", what))
}

/// What the refusals of a first contact mean: those that waiting does not change are misconfiguration.
pub(super) fn explain_refusal(error: RedisError) -> RedisError {
    let detail = error.to_string();
    let known = [
        ("DB index is out of range", "it has no database of the number in --redis-url"),
        ("SELECT is not allowed in cluster mode", "a cluster has no numbered databases: take the number out of --redis-url"),
        ("cluster support disabled", "this Redis is not part of a cluster: use redis://HOST:PORT in --redis-url"),
        ("unknown command 'SENTINEL'", "this is no sentinel: use redis://HOST:PORT in --redis-url"),
        ("unknown command `SENTINEL`", "this is no sentinel: use redis://HOST:PORT in --redis-url"),
    ];
    match known.iter().find(|(said, _)| detail.contains(said)) {
        Some((_, what)) => unusable((*what).to_owned()),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(is_cluster: bool, info: &str) -> Option<String> {
        let expected = Expected::new(Keys::new("leadfold", 8), Clock::local());
        let handshake = if is_cluster { expected.of_node(Box::new(Vec::new)) } else { expected.of_single() };
        handshake.refuse_unusable(&Info(info.replace('\n', "\r\n"))).err().map(|error| error.detail().unwrap_or_default().to_owned())
    }

    #[test]
    fn servers_are_told_apart_by_what_they_say_of_themselves() {
        let single = "redis_version:7.0.15\nredis_mode:standalone\nmaxmemory_policy:noeviction\n";
        assert_eq!(refused(false, single), None);
        assert_eq!(refused(true, &single.replace("standalone", "cluster")), None);
        // Valkey says which Redis it stands for.
        let valkey =
            format!("{single}server_name:valkey\nvalkey_version:8.0.1\n").replace("7.0.15", "7.2.4").replace("redis_mode", "server_mode");
        assert_eq!(refused(false, &valkey), None);
        assert!(refused(false, &valkey.replace("standalone", "cluster")).is_some_and(|said| said.contains("use redis-cluster://")));
        for (is_cluster, from, to, reason) in [
            (false, "7.0.15", "6.2.14", "Redis 6.2.14"),
            (false, "7.0.15", "5.0.3", "needs 7.0 or later"),
            (false, "standalone", "cluster", "use redis-cluster://"),
            (true, "standalone", "standalone", "use redis://"),
            (false, "standalone", "sentinel", "use redis-sentinel://"),
            (false, "noeviction", "volatile-ttl", "set it to noeviction"),
        ] {
            let said = refused(is_cluster, &single.replace(from, to)).unwrap_or_else(|| panic!("{to} is taken"));
            assert!(said.contains(reason), "{said}");
        }
    }

    #[test]
    fn another_line_of_replication_is_another_server() {
        let id: ServerId = "run line".into();
        assert!(is_of_line(&id, "role:master\r\nmaster_replid:line\r\n"));
        assert!(!is_of_line(&id, "role:master\r\nmaster_replid:another\r\nmaster_replid2:line\r\n"));
    }
}
