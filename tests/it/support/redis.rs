//! A real redis-server.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;

/// What it says, in its directory.
const LOG: &str = "log";
/// Who leadfold is to Redis.
pub const USER: &str = "leadfold";
/// What it says to prove it.
pub const PASSWORD: &str = "leadfold-s-password";
/// The rights that leadfold needs, as they are given to whoever runs it.
pub const USERS: &str = include_str!("../../../deploy/redis-users.acl");

/// One redis-server with a port and a directory of its own; dropped, it is killed.
pub struct RedisServer {
    process: Child,
    port: u16,
    dir: TempDir,
    extra: Vec<String>,
}

impl RedisServer {
    /// Starts one that keeps nothing on disk.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more arguments, and returns when it answers.
    pub fn start_with(extra: &[&str]) -> Self {
        let extra: Vec<String> = extra.iter().map(|&arg| arg.to_owned()).collect();
        // Somebody else may take a free port before Redis does: then the next one will do.
        for _ in 0..10 {
            let port = free_port();
            let dir = tempfile::tempdir().expect("a temporary directory");
            let process = spawn(port, &dir, &extra);
            let mut redis = Self { process, port, dir, extra: extra.clone() };
            if redis.wait_until_it_answers() {
                return redis;
            }
        }
        panic!("redis-server does not start on any port");
    }

    /// Where it is, as the server takes it: with the user that has the rights which are documented, and no other.
    pub fn url(&self) -> String {
        self.url_as(USER, PASSWORD)
    }

    /// The same, by way of another port.
    pub fn url_on(&self, port: u16) -> String {
        format!("redis://{USER}:{PASSWORD}@127.0.0.1:{port}")
    }

    /// The same, with another user.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}", self.port)
    }

    /// The same, with the user who may do everything.
    fn own_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts one that listens with TLS as well.
    pub fn start_with_tls(extra: &[&str], ca: &str, cert: &str, key: &str) -> Self {
        let port = free_port().to_string();
        let tls = ["--tls-port", &port, "--tls-ca-cert-file", ca, "--tls-cert-file", cert, "--tls-key-file", key];
        Self::start_with(&[&tls[..], extra].concat())
    }

    /// Where it listens with TLS, as the server takes it.
    pub fn tls_url(&self) -> String {
        let port = self.extra.iter().skip_while(|arg| *arg != "--tls-port").nth(1).expect("TLS");
        format!("rediss://{USER}:{PASSWORD}@127.0.0.1:{port}")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port on which it talks to the other nodes of its cluster, as it was told at the start.
    pub fn cluster_port(&self) -> String {
        let told = self.extra.iter().skip_while(|arg| *arg != "--cluster-port").nth(1);
        told.cloned().expect("a node of a cluster")
    }

    /// A connection to look inside, if it answers.
    pub fn try_connection(&self) -> redis::RedisResult<redis::Connection> {
        let connection = redis::Client::open(self.own_url())?.get_connection_with_timeout(Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(connection)
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        self.process.kill().expect("redis-server could be killed");
        self.process.wait().expect("redis-server has ended");
    }

    /// Stops it where it is: it takes connections and answers nothing.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Sends it a signal: `STOP` makes it hang, `CONT` go on.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().expect("kill");
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Starts it again, on the same port with what it has on disk.
    pub fn restart(&mut self) {
        // It may have been killed before.
        let _ = self.process.kill();
        self.process.wait().expect("redis-server has ended");
        // A connection of somebody else's may have been given the port meanwhile.
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.process = spawn(self.port, &self.dir, &self.extra);
            if self.wait_until_it_answers() {
                return;
            }
            let log = std::fs::read_to_string(self.dir.path().join(LOG)).unwrap_or_default();
            assert!(Instant::now() < deadline, "redis-server does not start again on port {}:\n{log}", self.port);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts it again, which has ended, on other ports with what it has on disk.
    pub fn move_to_another_port(&mut self) {
        self.port = free_port();
        if let Some(at) = self.extra.iter().position(|arg| arg == "--cluster-port") {
            self.extra[at + 1] = free_port().to_string();
        }
        self.restart();
    }

    /// A connection to look inside.
    pub fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.own_url()).expect("a valid URL");
        client.get_connection_with_timeout(Duration::from_secs(5)).expect("a connection to redis-server")
    }

    /// Everything it holds, as the bytes of an RDB file. Text is readable in it when it was started with
    /// `--rdbcompression no`.
    pub fn dump(&self) -> Vec<u8> {
        let () = redis::cmd("SAVE").query(&mut self.connection()).expect("SAVE");
        std::fs::read(self.dump_file()).expect("the dump")
    }

    fn dump_file(&self) -> PathBuf {
        self.dir.path().join("dump.rdb")
    }

    /// `false`: it has ended instead, for example because its port is taken.
    fn wait_until_it_answers(&mut self) -> bool {
        let client = redis::Client::open(self.own_url()).expect("a valid URL");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.process.try_wait().expect("the state of redis-server").is_some() {
                return false;
            }
            let answer = client.get_connection_with_timeout(Duration::from_secs(1)).and_then(|mut connection| {
                // Its own process must answer, not another one that has the port.
                redis::cmd("INFO").arg("server").query::<String>(&mut connection)
            });
            let own = format!("process_id:{}\r\n", self.process.id());
            if answer.is_ok_and(|info| info.contains(&own)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("redis-server on port {} does not answer", self.port);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// test.sh names another program where the system has a successor of Redis.
pub fn program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

fn spawn(port: u16, dir: &TempDir, extra: &[String]) -> Child {
    let program = program();
    Command::new(&program)
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
        .args(["--daemonize", "no", "--logfile", LOG, "--dir"])
        .arg(dir.path())
        .args(["--user", USER, "on", &format!(">{PASSWORD}")])
        .args(USERS.split_whitespace().skip_while(|word| *word != "resetkeys"))
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be started ({error}): ./test.sh installs it"))
}

/// A port that nobody has now, and that nobody is given by chance: it is below those that systems hand out for outgoing
/// connections and for port 0, so a server that is started again on it, or later on, finds it free. No two calls of one
/// process give the same one.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    // Several processes that test at once begin at different places.
    let next = NEXT.get_or_init(|| AtomicU32::new(std::process::id().wrapping_mul(997)));
    let ports = std::iter::repeat_with(|| PORTS.start + next.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start));
    let mut free = ports.take(PORTS.len()).filter_map(|port| u16::try_from(port).ok());
    free.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}
