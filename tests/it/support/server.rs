//! The real binary, and how tests talk to it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::{GetLeadRequest, Lead};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::PATIENCE;
use super::redis::RedisServer;

const START_PATIENCE: Duration = Duration::from_secs(20);
/// The webhook that events which name their workspace are sent to.
pub const WEBHOOK: &str = "/webhooks/omniai";

/// What becomes of the readers of a server's stdout and stderr once it is ready.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Readers {
    /// They read on.
    #[default]
    Stay,
    /// They close their ends.
    Leave,
    /// They read no more, and keep their ends open.
    Stall,
}

/// How a server is started.
#[derive(Clone, Default)]
pub struct Options {
    readers: Readers,
    redis_url: Option<String>,
    data_dir: Option<PathBuf>,
    http: Option<String>,
    grpc: Option<String>,
    admin: Option<String>,
    env: Vec<(&'static str, String)>,
    shell: Option<&'static str>,
}

impl Options {
    /// On this Redis.
    pub fn on(redis: &RedisServer) -> Self {
        Self::at(&redis.url())
    }

    /// On the Redis of this URL.
    pub fn at(url: &str) -> Self {
        Self { redis_url: Some(url.to_owned()), ..Self::default() }
    }

    /// With this data directory instead of a temporary one.
    pub fn data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = Some(dir.to_owned());
        self
    }

    /// With this `host:port` of the webhooks instead of any that is free.
    pub fn http(mut self, address: &str) -> Self {
        self.http = Some(address.to_owned());
        self
    }

    /// With this `host:port` of the gRPC service instead of any that is free.
    pub fn grpc(mut self, address: &str) -> Self {
        self.grpc = Some(address.to_owned());
        self
    }

    /// With this `host:port` of the admin listener instead of any that is free.
    pub fn admin(mut self, address: &str) -> Self {
        self.admin = Some(address.to_owned());
        self
    }

    /// With other readers of its output than those that read all of it.
    pub fn readers(mut self, readers: Readers) -> Self {
        self.readers = readers;
        self
    }

    /// With an environment variable.
    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// From a shell in which these commands were run, such as `ulimit`.
    pub fn in_shell(mut self, commands: &'static str) -> Self {
        self.shell = Some(commands);
        self
    }

    /// The command that starts it.
    pub fn command(&self, data_dir: &Path) -> Command {
        let program = env!("CARGO_BIN_EXE_leadfold");
        let mut command = match self.shell {
            None => Command::new(program),
            Some(commands) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{commands}; exec \"$0\" \"$@\""), program]);
                shell
            }
        };
        let any = "127.0.0.1:0";
        let (grpc, admin) = (self.grpc.as_deref().unwrap_or(any), self.admin.as_deref().unwrap_or(any));
        let http = self.http.as_deref().unwrap_or(any);
        command.args(["serve", "--http-addr", http, "--grpc-addr", grpc, "--admin-addr", admin, "--data-dir"]);
        command.arg(data_dir);
        command.args(self.redis_url.iter().flat_map(|url| ["--redis-url", url]));
        // The settings of whoever runs the tests are not the tests' settings.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LEADFOLD_")) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG").envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a server and kills it after some time, ready or not.
    pub fn killed_after(&self, time: Duration) {
        let data_dir = self.data_dir.as_deref().expect("a data directory");
        let mut process = self.command(data_dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary can be started");
        std::thread::sleep(time);
        process.kill().expect("it is killed");
        process.wait().expect("it has ended");
    }

    /// Starts a server that must not start, and returns what it says.
    pub fn refused(&self) -> String {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut process = self.command(self.data_dir.as_deref().unwrap_or(dir.path())).spawn().expect("the binary can be started");
        let deadline = Instant::now() + START_PATIENCE;
        while process.try_wait().expect("its state").is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        // One that serves instead would be waited for without end.
        let _ = process.kill();
        let output = process.wait_with_output().expect("its output");
        assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    }
}

/// A running server; dropped, it is killed.
pub struct Server {
    process: Child,
    /// `host:port` of the webhooks.
    pub http: String,
    /// `host:port` of the gRPC service.
    pub grpc: String,
    /// `host:port` of `/livez` and its like.
    pub admin: String,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: Option<JoinHandle<()>>,
    /// What nobody reads.
    _stalled: Option<(ChildStdout, ChildStderr)>,
    web: reqwest::Client,
    _own_dir: Option<TempDir>,
}

/// An answer to a webhook.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON of the body; null where it is none.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

/// How a server ended.
pub struct Exit {
    /// Its exit status.
    pub status: ExitStatus,
    /// From the signal to the end.
    pub took: Duration,
}

impl Server {
    /// Starts one, and returns when it is ready.
    pub fn start(options: &Options) -> Self {
        Self::try_start(options).unwrap_or_else(|refusal| panic!("the server does not start; it said:\n{refusal}"))
    }

    /// Starts one, and returns when it is ready, or what it says if it ends with 1 instead.
    pub fn try_start(options: &Options) -> Result<Self, String> {
        let own_dir = options.data_dir.is_none().then(|| tempfile::tempdir().expect("a temporary directory"));
        let data_dir = options.data_dir.as_deref().or(own_dir.as_ref().map(TempDir::path)).expect("a data directory");
        let mut process = options.command(data_dir).spawn().expect("the binary can be started");

        let (stdout, stderr_pipe) = (process.stdout.take().expect("its stdout"), process.stderr.take().expect("its stderr"));
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (stderr_reader, unread) = match options.readers {
            Readers::Stay => (Some(collect(stderr_pipe, Arc::clone(&stderr))), None),
            Readers::Leave | Readers::Stall => (None, Some(stderr_pipe)),
        };
        let (lines, until_ready) = match options.readers {
            Readers::Stay => (lines(stdout), None),
            Readers::Leave | Readers::Stall => {
                let (lines, until_ready) = lines_until_ready(stdout);
                (lines, Some(until_ready))
            }
        };
        let mut server = Self {
            process,
            http: String::new(),
            grpc: String::new(),
            admin: String::new(),
            stderr,
            stderr_reader,
            _stalled: None,
            web: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client"),
            _own_dir: own_dir,
        };
        let mut addresses = match server.wait_until_ready(&lines) {
            Some(addresses) => addresses,
            None => {
                let status = server.process.wait().expect("its end");
                server.stderr_reader.take().map(JoinHandle::join).transpose().expect("the rest of the logs");
                assert_eq!(status.code(), Some(1), "{}", server.logs());
                return Err(server.logs());
            }
        };
        let mut address = |of: &str| addresses.remove(of).unwrap_or_else(|| panic!("no line says where {of} listens"));
        (server.http, server.grpc, server.admin) = (address("http"), address("grpc"), address("admin"));
        let unread = until_ready.map(|until_ready| until_ready.join().expect("its stdout")).zip(unread);
        server._stalled = unread.filter(|_| options.readers == Readers::Stall);
        Ok(server)
    }

    /// `None`: it has ended without a word.
    fn wait_until_ready(&mut self, lines: &mpsc::Receiver<String>) -> Option<HashMap<String, String>> {
        let deadline = Instant::now() + START_PATIENCE;
        let mut addresses = HashMap::new();
        loop {
            let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) if addresses.is_empty() => return None,
                Err(_) => {
                    let state = self.process.try_wait();
                    panic!("the server is not ready ({state:?}, {addresses:?}); it said:\n{}", self.logs());
                }
            };
            match line.split_once(" listening on ") {
                _ if line == "ready" => return Some(addresses),
                Some((name, address)) => drop(addresses.insert(name.to_owned(), address.to_owned())),
                None => panic!("an unexpected line on stdout: {line:?}"),
            }
        }
    }

    /// What it has written to stderr so far: all of it once it has ended.
    pub fn logs(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("the logs")).into_owned()
    }

    /// Posts an event to the webhook.
    pub async fn post(&self, body: impl Into<Vec<u8>>) -> Answer {
        self.post_to(WEBHOOK, "application/json", body).await
    }

    /// Posts a body somewhere.
    pub async fn post_to(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        let request = self.web.post(format!("http://{}{path}", self.http)).header("content-type", content_type).body(body.into());
        let response = request.send().await.unwrap_or_else(|error| panic!("no answer ({error:?}); the server said:\n{}", self.logs()));
        let status = response.status().as_u16();
        let text = response.text().await.expect("the body of the answer");
        Answer { status, body: serde_json::from_str(&text).unwrap_or_default(), text }
    }

    /// Posts an event that must be applied, and returns the lead's new version.
    pub async fn apply(&self, event: &Value) -> u64 {
        self.apply_to(WEBHOOK, event).await
    }

    /// Posts an event that must be applied, somewhere else.
    pub async fn apply_to(&self, path: &str, event: &Value) -> u64 {
        let answer = self.post_to(path, "application/json", event.to_string()).await;
        assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{event} was answered {answer:?}");
        answer.version()
    }

    /// A client of the service, on a connection of its own.
    pub fn client(&self) -> LeadServiceClient<Channel> {
        LeadServiceClient::new(self.channel())
    }

    /// A connection to the gRPC port.
    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).expect("a valid address");
        endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).connect_lazy()
    }

    /// The lead, which must exist.
    pub async fn lead(&self, lead_id: &str) -> Lead {
        let answer = self.client().get_lead(GetLeadRequest { lead_id: lead_id.to_owned() }).await;
        answer.unwrap_or_else(|status| panic!("GetLead {lead_id:?}: {status:?}")).into_inner().lead.expect("the lead of the answer")
    }

    /// The lead, as soon as it exists.
    pub async fn lead_eventually(&self, lead_id: &str) -> Lead {
        let request = || GetLeadRequest { lead_id: lead_id.to_owned() };
        super::eventually(lead_id, async || self.client().get_lead(request()).await.ok()?.into_inner().lead).await
    }

    /// The lead, which this client must be able to see.
    pub async fn lead_with(&self, client: &mut super::tokens::Client, lead_id: &str) -> Lead {
        let answer = client.get_lead(GetLeadRequest { lead_id: lead_id.to_owned() }).await;
        answer.unwrap_or_else(|status| panic!("GetLead {lead_id:?}: {status:?}")).into_inner().lead.expect("the lead of the answer")
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self) -> Exit {
        let began = Instant::now();
        self.signal_termination();
        while began.elapsed() < START_PATIENCE {
            if let Some(status) = self.process.try_wait().expect("the state of the server") {
                let took = began.elapsed();
                self.stderr_reader.take().map(JoinHandle::join).transpose().expect("the rest of the logs");
                return Exit { status, took };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("SIGTERM does not end the server; it said:\n{}", self.logs());
    }

    /// Sends SIGTERM and does not wait.
    pub fn signal_termination(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().expect("kill");
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// CPU time that it has used.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the state of the server");
        let ticks = stat.rsplit(')').next().expect("fields").split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        // Linux counts in hundredths of a second.
        Duration::from_millis(ticks * 10)
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("the state of the server").is_none()
    }

    /// Memory that it occupies, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the status of the server");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// What the admin listener answers to a path: status and body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let ask = || self.web.get(format!("http://{}{path}", self.admin)).send();
        // A connection that was kept may reach its age just when it is used again.
        let answer = match ask().await {
            Ok(answer) => answer,
            Err(_) => ask().await.expect("an answer"),
        };
        (answer.status().as_u16(), answer.text().await.expect("the body of the answer"))
    }

    /// A metric without labels; 0 if it was never touched.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.admin("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits for a metric without labels to have a value.
    pub async fn eventually_metric(&self, name: &str, expected: f64) {
        let mut last = f64::NAN;
        let deadline = Instant::now() + PATIENCE;
        while last != expected {
            assert!(Instant::now() < deadline, "{name} stays {last} instead of {expected}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            last = self.metric(name).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            // Shown only for a test that failed, where it is what one wants to read.
            eprintln!("--- the server's stderr ---\n{}---", self.logs());
        }
    }
}

impl Answer {
    /// `applied`, `duplicate`, …; empty if the answer tells none.
    pub fn outcome(&self) -> &str {
        self.body["status"].as_str().unwrap_or("")
    }

    /// The lead's version: a decimal number in a string.
    pub fn version(&self) -> u64 {
        let version = self.body["version"].as_str().and_then(|version| version.parse().ok());
        version.unwrap_or_else(|| panic!("no version in {self:?}"))
    }

    /// The field that a refusal names; empty if it names none.
    pub fn field(&self) -> &str {
        self.body["field"].as_str().unwrap_or("")
    }

    /// Checks that this is a refusal of one field (empty: of the whole body), in words.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, field: &str) {
        assert_eq!((self.status, self.field()), (status, field), "{self:?}");
        assert!(self.body["error"].as_str().is_some_and(|error| !error.is_empty()), "no words in {self:?}");
        assert_eq!(self.outcome(), "", "a refusal has no status: {self:?}");
    }
}

/// Its lines as they come.
pub fn lines(stdout: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Where nobody listens any more, the pipe must be emptied nevertheless.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Its lines up to `ready`, and then the pipe, in which nothing was read beyond.
fn lines_until_ready(stdout: ChildStdout) -> (mpsc::Receiver<String>, JoinHandle<ChildStdout>) {
    let (sender, receiver) = mpsc::channel();
    let until_ready = std::thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            if stdout.read_line(&mut line).expect("its stdout") == 0 || sender.send(line.trim_end().to_owned()).is_err() {
                break;
            }
        }
        stdout.into_inner()
    });
    (receiver, until_ready)
}

fn collect(mut stderr: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = [0; 8192];
        while let Ok(count @ 1..) = stderr.read(&mut chunk) {
            into.lock().expect("the logs").extend_from_slice(&chunk[..count]);
        }
    })
}
