//! Envoy in front of servers.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::PATIENCE;
use super::certificates::Certified;
use super::proxies::{Traffic, is_left_out};
use super::redis::free_port;

const CONNECTION_MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const PROTOCOLS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A running Envoy; dropped, it is killed.
pub struct Envoy {
    /// Where it listens for each server, in their order: `host:port`.
    pub addresses: Vec<String>,
    process: Child,
    dir: TempDir,
}

impl Envoy {
    /// Starts one in front of these servers (`host:port`), and returns when it takes connections. Its clients speak TLS if
    /// there is a certificate. None: `LEADFOLD_TEST_WITHOUT` says that it cannot be had here.
    ///
    /// # Panics
    /// It is not among the clients.
    pub fn start(clients: &Path, servers: &[(Traffic, &str)], certificate: Option<&Certified>) -> Option<Self> {
        let program = clients.join("bin/envoy");
        if is_left_out("envoy") {
            return None;
        }
        assert!(program.exists(), "{} is not there: .ci/run installs it", program.display());
        // Somebody else may take a free port before Envoy does: then the next ones will do.
        for _ in 0..5 {
            let addresses: Vec<_> = servers.iter().map(|_| format!("127.0.0.1:{}", free_port())).collect();
            let dir = tempfile::tempdir().expect("a temporary directory");
            let config = dir.path().join("config.json");
            std::fs::write(&config, configuration(&addresses, servers, certificate).to_string()).expect("a configuration");
            let log = File::create(dir.path().join("log")).expect("a log");
            let mut command = Command::new(&program);
            command.arg("-c").arg(&config).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
            let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let mut envoy = Self { addresses, process, dir };
            if envoy.wait_until_it_listens() {
                return Some(envoy);
            }
            eprintln!("Envoy does not start: {}", envoy.log());
        }
        panic!("Envoy does not start on any port");
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
            if self.addresses.iter().all(|address| TcpStream::connect(address).is_ok()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of Envoy ---\n{}---", self.log());
        }
    }
}

fn address(of: &str) -> Value {
    let (host, port) = of.rsplit_once(':').expect("host:port");
    json!({"socket_address": {"address": host, "port_value": port.parse::<u16>().expect("a port")}})
}

fn configuration(addresses: &[String], servers: &[(Traffic, &str)], certificate: Option<&Certified>) -> Value {
    let listeners = addresses.iter().enumerate().map(|(number, listens)| {
        let cluster = format!("server-{number}");
        // Streams have no end, and may be silent for long.
        let route = json!({"cluster": cluster, "timeout": "0s", "idle_timeout": "0s"});
        let manager = json!({
            "@type": CONNECTION_MANAGER,
            "stat_prefix": "front",
            "codec_type": "AUTO",
            "stream_idle_timeout": "0s",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        });
        let mut chain = json!({"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]});
        if let Some(Certified { cert, key }) = certificate {
            let pair = json!({"certificate_chain": {"inline_string": cert}, "private_key": {"inline_string": key}});
            let context = json!({"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [pair]});
            let socket = json!({"@type": TLS, "common_tls_context": context});
            chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": socket});
        }
        json!({"address": address(listens), "filter_chains": [chain]})
    });
    let clusters = servers.iter().enumerate().map(|(number, (traffic, server))| {
        let protocol = match traffic {
            Traffic::Http1 => json!({"http_protocol_options": {}}),
            Traffic::Grpc => json!({"http2_protocol_options": {}}),
        };
        let name = format!("server-{number}");
        let endpoint = json!({"lb_endpoints": [{"endpoint": {"address": address(server)}}]});
        json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
            "typed_extension_protocol_options": {PROTOCOLS: {"@type": format!("type.googleapis.com/{PROTOCOLS}"), "explicit_http_config": protocol}},
        })
    });
    json!({"static_resources": {"listeners": Value::from_iter(listeners), "clusters": Value::from_iter(clusters)}})
}
