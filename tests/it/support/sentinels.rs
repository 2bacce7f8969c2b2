//! A primary, its replica, and three real sentinels that watch over them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::proxy::Proxy;
use super::redis::{PASSWORD, RedisServer, USER, free_port, program};
use super::redis_cluster::{text, try_text, until};

/// What the sentinels call the primary.
pub const NAME: &str = "leads";
/// Who leadfold is to the sentinels, where they ask for that.
pub const SENTINEL_USER: &str = "watcher";
/// The password of that user.
pub const SENTINEL_PASSWORD: &str = "the/sentinels'&password";
/// The password of sentinels and replicas towards the servers, where these ask for one.
const SERVERS_PASSWORD: &str = "the-servers-password";

/// How they are set up.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Sentinels hold a server for dead that was silent for so long.
    pub down_after: Duration,
    /// Servers and sentinels ask for passwords.
    pub passwords: bool,
}

/// All of them; dropped, they are killed.
pub struct Sentinels {
    /// The one that is the primary at the start, and its replica.
    pub nodes: [RedisServer; 2],
    /// The addresses under which the sentinels and leadfold know the nodes.
    pub proxies: [Proxy; 2],
    sentinels: Vec<Sentinel>,
    setup: Setup,
}

struct Sentinel {
    process: Child,
    port: u16,
    dir: TempDir,
}

impl Sentinels {
    /// Starts sentinels who hold a server for dead that was silent for so long.
    pub fn start(down_after: Duration) -> Self {
        Self::start_with(Setup { down_after, passwords: false })
    }

    pub fn start_with(setup: Setup) -> Self {
        let mut own = vec!["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"];
        let acl = format!(">{SERVERS_PASSWORD}");
        if setup.passwords {
            own.extend(["--user", "internal", "on", &acl, "~*", "&*", "+@all"]);
            own.extend(["--masteruser", "internal", "--masterauth", SERVERS_PASSWORD]);
        }
        let primary = RedisServer::start_with(&own);
        let to_primary = Proxy::to(primary.port());
        let of = format!("127.0.0.1 {}", to_primary.port());
        let replica = RedisServer::start_with(&[&own[..], &["--replicaof", &of]].concat());
        until("the replica is in step", || text(&replica, &["INFO", "replication"]).contains("master_link_status:up"));
        let proxies = [to_primary, Proxy::to(replica.port())];
        for (node, proxy) in [&primary, &replica].into_iter().zip(&proxies) {
            let port = proxy.port().to_string();
            super::redis_cluster::tell(node, &["CONFIG", "SET", "replica-announce-ip", "127.0.0.1", "replica-announce-port", &port]);
        }
        // Its primary learns of the new address when the replica connects again.
        super::redis_cluster::tell(&primary, &["CLIENT", "KILL", "TYPE", "replica"]);
        let announced = format!("port={}", proxies[1].port());
        until("the replica is announced", || text(&primary, &["INFO", "replication"]).contains(&announced));
        let sentinels = (0..3).map(|_| Sentinel::start(proxies[0].port(), setup)).collect();
        let sentinels = Self { nodes: [primary, replica], proxies, sentinels, setup };
        sentinels.until_acquainted();
        sentinels
    }

    fn until_acquainted(&self) {
        for sentinel in &self.sentinels {
            until("the sentinels know each other and the replica", || {
                let told = sentinel.ask("master");
                told.is_some_and(|told| field(&told, "num-other-sentinels") == Some("2") && field(&told, "num-slaves") == Some("1"))
            });
        }
    }

    /// Where they are, as the server takes it.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        let login = if self.setup.passwords {
            let encode = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
            format!("?sentinel_user={}&sentinel_password={}", encode(SENTINEL_USER), encode(SENTINEL_PASSWORD))
        } else {
            String::new()
        };
        format!("redis-sentinel://{USER}:{PASSWORD}@{}/{NAME}{login}", sentinels.join(","))
    }

    /// The ports of the sentinels.
    pub fn ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.port).collect()
    }

    /// Waits until every sentinel names this node as the primary.
    pub fn until_primary(&self, node: usize) {
        let wanted = self.proxies[node].port().to_string();
        for sentinel in &self.sentinels {
            until("the sentinels have made it the primary", || {
                sentinel.ask("get-master-addr-by-name").is_some_and(|told| told.get(1) == Some(&wanted))
            });
        }
    }

    /// Has the sentinels replace the primary by its replica, as an operator does, and waits until they have.
    pub fn fail_over_to(&self, node: usize) {
        let wanted = self.proxies[node].port().to_string();
        // A sentinel gives up a failover that it has begun where the replica is not ready for it.
        until("a failover succeeds", || {
            self.sentinels[0].tell(&["SENTINEL", "FAILOVER", NAME]);
            let deadline = Instant::now() + Duration::from_secs(4);
            loop {
                let is_primary = self.sentinels[0].ask("get-master-addr-by-name").is_some_and(|told| told.get(1) == Some(&wanted));
                if is_primary || Instant::now() > deadline {
                    return is_primary;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        self.until_primary(node);
    }

    /// Waits until the node that is no longer the primary follows the one that is.
    pub fn until_replica(&self, node: usize) {
        until("the old primary is a replica", || try_text(&self.nodes[node], &["INFO", "replication"]).contains("master_link_status:up"));
        let (announced, primary) = (format!("port={}", self.proxies[node].port()), &self.nodes[1 - node]);
        until("the replica is online", || {
            let told = try_text(primary, &["INFO", "replication"]);
            told.lines().any(|line| line.contains(&announced) && line.contains("state=online"))
        });
    }

    /// Sends a signal to one sentinel.
    pub fn signal(&self, sentinel: usize, name: &str) {
        let pid = self.sentinels[sentinel].process.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Ends one sentinel, and starts it again with what it knew on another port.
    pub fn move_sentinel(&mut self, number: usize) {
        let sentinel = &mut self.sentinels[number];
        let _ = sentinel.process.kill();
        let _ = sentinel.process.wait();
        let file = sentinel.dir.path().join("sentinel.conf");
        let before = format!("port {}", sentinel.port);
        sentinel.port = free_port();
        let config = std::fs::read_to_string(&file).expect("the sentinel's file");
        let config: Vec<String> =
            config.lines().map(|line| if line == before { format!("port {}", sentinel.port) } else { line.to_owned() }).collect();
        std::fs::write(&file, config.join("\n") + "\n").expect("the sentinel's file");
        sentinel.process = spawn(sentinel.dir.path());
        let port = sentinel.port.to_string();
        for other in (0..3).filter(|other| *other != number) {
            until("the others know where it is now", || self.sentinels[other].known_ports().is_some_and(|ports| ports.contains(&port)));
        }
        self.until_acquainted();
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for sentinel in &mut self.sentinels {
            let _ = sentinel.process.kill();
            let _ = sentinel.process.wait();
        }
    }
}

fn spawn(dir: &std::path::Path) -> Child {
    Command::new(program())
        .arg(dir.join("sentinel.conf"))
        .args(["--sentinel", "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a sentinel")
}

impl Sentinel {
    fn start(primary: u16, setup: Setup) -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().expect("a temporary directory"));
        let mut config = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor {NAME} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {NAME} {}\nsentinel failover-timeout {NAME} 2000\n",
            setup.down_after.as_millis()
        );
        if setup.passwords {
            // What leadfold needs, and no more; the others of this file are for the test and the sentinels themselves.
            config += &format!(
                "sentinel auth-user {NAME} internal\nsentinel auth-pass {NAME} {SERVERS_PASSWORD}\n\
                 user {SENTINEL_USER} on \">{SENTINEL_PASSWORD}\" &+switch-master -@all +hello +auth +ping +subscribe \
                 +sentinel|get-master-addr-by-name +sentinel|master +sentinel|sentinels +sentinel|myid\n\
                 user default off\nuser internal on >{SERVERS_PASSWORD} ~* &* +@all\n\
                 sentinel sentinel-user internal\nsentinel sentinel-pass {SERVERS_PASSWORD}\n"
            );
        }
        std::fs::write(dir.path().join("sentinel.conf"), config).expect("the sentinel's file");
        let process = spawn(dir.path());
        Self { process, port, dir }
    }

    fn connection(&self) -> Option<redis::Connection> {
        // The right one of both works: a sentinel without users knows no other than the default.
        ["", "internal:the-servers-password@"].iter().find_map(|user| {
            let client = redis::Client::open(format!("redis://{user}127.0.0.1:{}", self.port)).expect("a valid URL");
            let mut connection = client.get_connection_with_timeout(Duration::from_secs(1)).ok()?;
            connection.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
            let alive: redis::RedisResult<String> = redis::cmd("SENTINEL").arg("myid").query(&mut connection);
            alive.is_ok().then_some(connection)
        })
    }

    fn ask(&self, what: &str) -> Option<Vec<String>> {
        redis::cmd("SENTINEL").arg(what).arg(NAME).query(&mut self.connection()?).ok()
    }

    fn known_ports(&self) -> Option<Vec<String>> {
        let others: Vec<Vec<String>> = redis::cmd("SENTINEL").arg("sentinels").arg(NAME).query(&mut self.connection()?).ok()?;
        Some(others.iter().filter_map(|other| field(other, "port").map(str::to_owned)).collect())
    }

    /// `false`: it refuses.
    fn tell(&self, command: &[&str]) -> bool {
        let Some(mut connection) = self.connection() else { return false };
        redis::cmd(command[0]).arg(&command[1..]).query::<redis::Value>(&mut connection).is_ok()
    }
}

fn field<'a>(told: &'a [String], name: &str) -> Option<&'a str> {
    told.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1)).map(String::as_str)
}
