//! A primary, its replica, and three real sentinels that watch over them.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::redis::{PASSWORD, RedisServer, USER, free_port, program};
use super::redis_cluster::{text, until};

/// What the sentinels call the primary.
pub const NAME: &str = "leads";

/// All of them; dropped, they are killed.
pub struct Sentinels {
    /// The one that is the primary at the start, and its replica.
    pub nodes: [RedisServer; 2],
    sentinels: Vec<(Child, u16, TempDir)>,
}

impl Sentinels {
    /// Starts sentinels who hold a server for dead that was silent for so long.
    pub fn start(patience: Duration) -> Self {
        let durable = ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"];
        let primary = RedisServer::start_with(&durable);
        let of = format!("127.0.0.1 {}", primary.port());
        let replica = RedisServer::start_with(&[&durable[..], &["--replicaof", &of]].concat());
        until("the replica is in step", || text(&replica, &["INFO", "replication"]).contains("master_link_status:up"));
        let sentinels = (0..3).map(|_| sentinel(primary.port(), patience)).collect();
        let sentinels = Self { nodes: [primary, replica], sentinels };
        for (_, port, _) in &sentinels.sentinels {
            until("the sentinels know each other and the replica", || {
                let told = ask(*port, "master");
                told.is_some_and(|told| field(&told, "num-other-sentinels") == Some("2") && field(&told, "num-slaves") == Some("1"))
            });
        }
        sentinels
    }

    /// Where they are, as the server takes it.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(|(_, port, _)| format!("127.0.0.1:{port}")).collect();
        format!("redis-sentinel://{USER}:{PASSWORD}@{}/{NAME}", sentinels.join(","))
    }

    /// Waits until every sentinel names this node as the primary.
    pub fn until_primary(&self, node: usize) {
        let wanted = self.nodes[node].port().to_string();
        for (_, port, _) in &self.sentinels {
            until("the sentinels have made it the primary", || {
                ask(*port, "get-master-addr-by-name").is_some_and(|told| told.get(1) == Some(&wanted))
            });
        }
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (sentinel, _, _) in &mut self.sentinels {
            let _ = sentinel.kill();
            let _ = sentinel.wait();
        }
    }
}

fn sentinel(primary: u16, patience: Duration) -> (Child, u16, TempDir) {
    let (port, dir) = (free_port(), tempfile::tempdir().expect("a temporary directory"));
    let file = dir.path().join("sentinel.conf");
    let config = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor {NAME} 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds {NAME} {}\nsentinel failover-timeout {NAME} 5000\n",
        patience.as_millis()
    );
    std::fs::write(&file, config).expect("the sentinel's file");
    let process = Command::new(program())
        .arg(&file)
        .args(["--sentinel", "--dir"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a sentinel");
    (process, port, dir)
}

fn ask(port: u16, what: &str) -> Option<Vec<String>> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).expect("a valid URL");
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(1)).ok()?;
    redis::cmd("SENTINEL").arg(what).arg(NAME).query(&mut connection).ok()
}

fn field<'a>(told: &'a [String], name: &str) -> Option<&'a str> {
    told.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1)).map(String::as_str)
}
