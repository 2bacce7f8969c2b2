//! Reverse proxies of other people, in front of a server: nginx and haproxy.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;
use super::redis::free_port;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Haproxy,
}

/// What passes through a proxy. On both sides it is unencrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// HTTP/1.1, with connections to the server that are kept and shared between clients.
    Http1,
    /// gRPC over HTTP/2.
    Grpc,
}

/// A running proxy; dropped, it is killed.
pub struct ReverseProxy {
    /// Where it listens: `host:port`.
    pub address: String,
    program: Program,
    process: Child,
    dir: TempDir,
}

impl Program {
    pub const ALL: [Self; 2] = [Self::Nginx, Self::Haproxy];

    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

impl ReverseProxy {
    /// Starts a proxy in front of the server at `host:port`, and returns when it takes connections. `None`: the program is
    /// not installed.
    ///
    /// # Panics
    /// It is not installed where all clients have to be there: see [`installed`].
    pub fn start(program: Program, traffic: Traffic, server: &str) -> Option<Self> {
        let path = installed(program.name())?;
        // Somebody else may take a free port before the proxy does: then the next one will do.
        for _ in 0..5 {
            let address = format!("127.0.0.1:{}", free_port());
            let dir = tempfile::tempdir().expect("a temporary directory");
            let process = spawn((program, &path), traffic, &address, server, dir.path());
            let mut proxy = Self { address, program, process, dir };
            if proxy.wait_until_it_listens() {
                return Some(proxy);
            }
            eprintln!("{} does not start: {}", program.name(), proxy.log());
        }
        panic!("{} does not start on any port", program.name());
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait_until_it_listens(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.process.try_wait().expect("its state").is_some() {
                return false;
            }
            if TcpStream::connect(&self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for ReverseProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of {} ---\n{}---", self.program.name(), self.log());
        }
    }
}

fn spawn((program, path): (Program, &Path), traffic: Traffic, address: &str, server: &str, dir: &Path) -> Child {
    let (config, log) = (dir.join("config"), File::create(dir.join("log")).expect("a log"));
    let text = match program {
        Program::Nginx => nginx(traffic, address, server, &dir.display().to_string()),
        Program::Haproxy => haproxy(traffic, address, server),
    };
    std::fs::write(&config, text).expect("a configuration");
    let mut command = Command::new(path);
    match program {
        Program::Nginx => command.arg("-p").arg(dir).arg("-c").arg(&config).args(["-e", "stderr"]),
        Program::Haproxy => command.args(["-db", "-f"]).arg(&config),
    };
    let stdout = log.try_clone().expect("a file");
    command.stdin(Stdio::null()).stdout(stdout).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.name()))
}

/// One process, so that nothing is left when it is killed.
fn nginx(traffic: Traffic, address: &str, server: &str, dir: &str) -> String {
    let (http2, location) = match traffic {
        Traffic::Http1 => ("", "proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection '';"),
        Traffic::Grpc => ("http2", "grpc_pass grpc://server; grpc_read_timeout 1h; grpc_send_timeout 1h;"),
    };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {dir}/{name};")).concat();
    format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr warn;
         events {{ worker_connections 1024; }}
         http {{
           access_log off; client_max_body_size 0; {temporary}
           upstream server {{ server {server}; keepalive 16; }}
           server {{ listen {address} {http2}; location / {{ {location} }} }}
         }}\n"
    )
}

fn haproxy(traffic: Traffic, address: &str, server: &str) -> String {
    let protocol = match traffic {
        Traffic::Http1 => "",
        Traffic::Grpc => "proto h2",
    };
    format!(
        "global\n  maxconn 1000\n  log stderr format raw local0 warning\n\
         defaults\n  mode http\n  log global\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  http-reuse always\n\
         frontend front\n  bind {address} {protocol}\n  default_backend back\n\
         backend back\n  server server {server} {protocol}\n"
    )
}

/// Whether `LEADFOLD_TEST_WITHOUT` says that a program cannot be had here, and its tests are to be left out.
pub fn is_left_out(program: &str) -> bool {
    let left_out = std::env::var("LEADFOLD_TEST_WITHOUT").unwrap_or_default();
    let is_left_out = left_out.split_whitespace().any(|name| name == program);
    if is_left_out {
        eprintln!("SKIPPED: {program} cannot be had here");
    }
    is_left_out
}

/// Where a program of other people is; `None`: it is not installed, and the test that needs it is left out.
///
/// # Panics
/// It is not installed, but `CI` or `LEADFOLD_TEST_CLIENTS` is set: there everything has been prepared, and nothing may be
/// left out.
pub fn installed(program: &str) -> Option<PathBuf> {
    if is_left_out(program) {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where distributions have servers, which is not in the path of every user.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = dirs.into_iter().map(|dir| dir.join(program)).find(|program| program.is_file());
    if found.is_none() {
        let must_be_there =
            ["CI", "LEADFOLD_TEST_CLIENTS"].iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        assert!(!must_be_there, "{program} is not installed: .ci/run installs it");
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}
