//! A real Redis Cluster: three primaries, a replica of each.

use std::time::{Duration, Instant};

use redis::{Connection, Value};

use super::PATIENCE;
use super::redis::{PASSWORD, RedisServer, USER, free_port};

/// Slots of a cluster.
const SLOTS: u32 = 16384;
/// How many primaries there are; the nodes behind them are their replicas, in the same order.
pub const PRIMARIES: usize = 3;

/// One cluster; dropped, it is killed.
pub struct RedisCluster {
    /// Primaries first, at the start.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts one whose replicas take over when their primary was silent for so long.
    pub fn start(patience: Duration) -> Self {
        let timeout = patience.as_millis().to_string();
        let node = |_| {
            // The port of the nodes' talk among themselves would otherwise be one that is 10,000 higher.
            let talk = free_port().to_string();
            RedisServer::start_with(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &talk,
                "--cluster-node-timeout",
                &timeout,
                "--cluster-require-full-coverage",
                "no",
                "--cluster-replica-validity-factor",
                "0",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--repl-diskless-sync-delay",
                "0",
            ])
        };
        let cluster = Self { nodes: (0..2 * PRIMARIES).map(node).collect() };
        cluster.join();
        cluster
    }

    fn join(&self) {
        let primaries = u32::try_from(PRIMARIES).expect("a number");
        for (number, node) in (0..primaries).zip(&self.nodes) {
            let (first, next) = (number * SLOTS / primaries, (number + 1) * SLOTS / primaries);
            tell(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            tell(node, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(next - 1).to_string()]);
        }
        let (one, others) = self.nodes.split_first().expect("nodes");
        for node in others {
            tell(one, &["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &node.cluster_port()]);
        }
        let all = format!("cluster_known_nodes:{}\r", self.nodes.len());
        for node in &self.nodes {
            until("the nodes know each other", || text(node, &["CLUSTER", "INFO"]).contains(&all));
        }
        for (primary, replica) in self.nodes.iter().zip(&self.nodes[PRIMARIES..]) {
            let id = id(primary);
            until("a replica knows its primary", || text(replica, &["CLUSTER", "NODES"]).contains(&id));
            tell(replica, &["CLUSTER", "REPLICATE", &id]);
        }
        for replica in &self.nodes[PRIMARIES..] {
            until("a replica is in step", || text(replica, &["INFO", "replication"]).contains("master_link_status:up"));
        }
        for node in &self.nodes {
            until("the cluster is well", || text(node, &["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        }
        // Valkey 8.0 refuses to start with a file in which a replica is of another shard than its primary, and that is what it
        // writes until the nodes have told each other.
        for node in &self.nodes {
            let shards =
                || redis::cmd("CLUSTER").arg("SHARDS").query::<Vec<redis::Value>>(&mut node.connection()).map(|shards| shards.len());
            until("the nodes agree on their shards", || shards() == Ok(PRIMARIES));
            tell(node, &["CLUSTER", "SAVECONFIG"]);
        }
    }

    /// Starts all nodes again, which have ended, each on another port, and introduces them to each other.
    pub fn move_all(&mut self) {
        for node in &mut self.nodes {
            node.move_to_another_port();
        }
        let introduce = || {
            for node in &self.nodes {
                for other in &self.nodes {
                    tell(node, &["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string(), &other.cluster_port()]);
                }
            }
        };
        let mut introduced: Option<Instant> = None;
        until("the cluster is well again", || {
            // An introduction is given up after the node timeout, and one that comes meanwhile counts for nothing.
            if introduced.is_none_or(|introduced| introduced.elapsed() > Duration::from_secs(3)) {
                introduce();
                introduced = Some(Instant::now());
            }
            self.nodes.iter().all(|node| {
                let known = text(node, &["CLUSTER", "NODES"]);
                let all_there = self.nodes.iter().all(|other| known.contains(&format!(":{}@", other.port())));
                all_there && text(node, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
            })
        });
    }

    /// Where it is, as the server takes it.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes[..PRIMARIES].iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis-cluster://{USER}:{PASSWORD}@{}", nodes.join(","))
    }

    /// The number of the node that has a slot now, as one that lives tells.
    pub fn owner(&self, slot: u16) -> usize {
        let told = self.nodes.iter().find_map(|node| {
            let mut connection = node.try_connection().ok()?;
            redis::cmd("CLUSTER").arg("SLOTS").query::<Vec<Vec<Value>>>(&mut connection).ok()
        });
        let number = |value: &Value| redis::from_redis_value::<u16>(value.clone()).expect("a number");
        let ranges = told.expect("a living node");
        let range = ranges.iter().find(|range| (number(&range[0])..=number(&range[1])).contains(&slot)).expect("an owner");
        let primary: Vec<Value> = redis::from_redis_value(range[2].clone()).expect("a node");
        let port = number(&primary[1]);
        self.nodes.iter().position(|node| node.port() == port).expect("one of ours")
    }

    /// Whether a node is a primary.
    pub fn is_primary(&self, node: usize) -> bool {
        let role: redis::RedisResult<Vec<Value>> =
            self.nodes[node].try_connection().and_then(|mut connection| redis::cmd("ROLE").query(&mut connection));
        role.is_ok_and(|role| role.first() == Some(&Value::BulkString(b"master".to_vec())))
    }

    /// Has a replica take the place of its primary, and waits until it has. Redis gives up a failover that takes too long.
    pub fn fail_over_to(&self, node: usize, command: &[&str]) {
        until("the replica that was asked has taken over", || {
            tell(&self.nodes[node], command);
            let deadline = Instant::now() + Duration::from_secs(6);
            while !self.is_primary(node) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.is_primary(node)
        });
    }

    /// Moves a slot, with all that is in it, to another node, key by key.
    pub fn move_slot(&self, slot: u16, to: usize) {
        let from = self.owner(slot);
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let number = slot.to_string();
        tell(target, &["CLUSTER", "SETSLOT", &number, "IMPORTING", &id(source)]);
        tell(source, &["CLUSTER", "SETSLOT", &number, "MIGRATING", &id(target)]);
        let mut connection = source.connection();
        loop {
            let keys: Vec<String> =
                redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(3).query(&mut connection).expect("keys of the slot");
            if keys.is_empty() {
                break;
            }
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(target.port()).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
            let () = migrate.query(&mut connection).expect("the keys move");
        }
        let id = id(target);
        for node in [target, source].into_iter().chain(&self.nodes) {
            // Replicas hear of it from the others.
            if let Ok(mut connection) = node.try_connection() {
                let _: redis::RedisResult<Value> =
                    redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("NODE").arg(&id).query(&mut connection);
            }
        }
    }
}

fn id(node: &RedisServer) -> String {
    text(node, &["CLUSTER", "MYID"])
}

fn query<T: redis::FromRedisValue>(connection: &mut Connection, command: &[&str]) -> T {
    let mut told = redis::cmd(command[0]);
    told.arg(&command[1..]);
    told.query(connection).unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Sends a command that must succeed.
pub fn tell(node: &RedisServer, command: &[&str]) {
    let _: Value = query(&mut node.connection(), command);
}

/// Sends a command that is answered by text.
pub fn text(node: &RedisServer, command: &[&str]) -> String {
    query(&mut node.connection(), command)
}

/// The same of a node that may be away.
pub fn try_text(node: &RedisServer, command: &[&str]) -> String {
    let ask = |mut connection: Connection| redis::cmd(command[0]).arg(&command[1..]).query::<String>(&mut connection);
    node.try_connection().and_then(ask).unwrap_or_default()
}

/// Waits for something that one cannot be told of.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
