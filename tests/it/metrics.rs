//! Metrics: each is described, named as is the custom, and counts what it says.

use std::collections::{BTreeMap, BTreeSet};

use leadfold::api::watch_leads_request::Scope;
use leadfold::api::{GetLeadRequest, WatchLeadsRequest};

use crate::support::events::{SAMPLE_TIME, WORKSPACE, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::watching::LeadWatch;
use crate::support::{Setup, eventually, fresh_id};

/// What `/metrics` tells.
pub struct Exposed {
    /// `# TYPE` of each metric.
    pub types: BTreeMap<String, String>,
    described: BTreeSet<String>,
    /// Every series: name, labels, value.
    pub series: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Exposed {
    pub async fn by(server: &Server) -> Self {
        let (status, text) = server.admin("/metrics").await;
        assert_eq!(status, 200);
        let mut exposed = Self { types: BTreeMap::new(), described: BTreeSet::new(), series: Vec::new() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["#", "TYPE", name, kind] => drop(exposed.types.insert(name.to_owned(), kind.to_owned())),
                ["#", "HELP", name, ..] => drop(exposed.described.insert(name.to_owned())),
                _ => exposed.series.push(series(line)),
            }
        }
        exposed
    }

    /// The sum of a metric's series that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &BTreeMap<String, String>| labels.iter().all(|(label, value)| series.get(*label).is_some_and(|is| is == value));
        self.series.iter().filter(|(of, series, _)| of == name && has(series)).map(|(_, _, value)| value).sum()
    }
}

fn series(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').expect("the end of the labels");
    // No value of ours holds a quote.
    let label = |label: &str| {
        let (name, value) = label.split_once("=\"").expect("a label");
        (name.trim_start_matches(',').to_owned(), value.to_owned())
    };
    let labels = labels.split_terminator('"').collect::<Vec<_>>().chunks(2).map(|parts| label(&parts.join("\""))).collect();
    (name.to_owned(), labels, value.parse().expect("a number"))
}

/// Makes a server count everything that a healthy one counts.
pub async fn exercise(server: &Server) -> String {
    let lead_id = fresh_id();
    let event = message(&lead_id, "a1", SAMPLE_TIME);
    server.apply(&event).await;
    server.post(event.to_string()).await;
    server.post("{}").await;
    // Read, and then only asked for its version.
    server.lead(&lead_id).await;
    server.lead(&lead_id).await;
    server.client().get_lead(GetLeadRequest { lead_id: fresh_id() }).await.expect_err("there is no such lead");
    let scope = Some(Scope::WorkspaceId(WORKSPACE.to_owned()));
    let mut leads = server.client().watch_leads(WatchLeadsRequest { scope, ..Default::default() }).await.expect("a stream").into_inner();
    leads.message().await.expect("no error");
    let mut watch = LeadWatch::open(server, &lead_id, 0).await;
    watch.next().await;
    server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
    watch.next().await;
    lead_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_described_and_named_as_is_the_custom() {
    let server = Setup::redis();
    let lead_id = exercise(&server).await;
    eventually("the ends of the streams", async || (server.metric("leadfold_watch_streams").await == 0.0).then_some(())).await;
    let exposed = Exposed::by(&server).await;
    for (name, kind) in &exposed.types {
        assert!(exposed.described.contains(name), "{name} has no # HELP");
        match kind.as_str() {
            "counter" => assert!(name.ends_with("_total"), "{name} is a counter"),
            "histogram" => assert!(name.ends_with("_seconds") || name.ends_with("_changes"), "{name} is a histogram"),
            "gauge" => assert!(!name.ends_with("_total"), "{name} is a gauge"),
            _ => panic!("{name} is a {kind}: without buckets it cannot be added up over instances"),
        }
        let home = ["leadfold_", "http_server_", "rpc_server_", "process_"];
        assert!(home.iter().any(|prefix| name.starts_with(prefix)), "{name}");
    }
    for (name, labels, _) in &exposed.series {
        assert!(!labels.values().any(|value| *value == lead_id || value == WORKSPACE), "{name} has an id as a label: {labels:?}");
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
        assert!(exposed.types.contains_key(name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_calls_and_streams_are_counted_apart() {
    let server = Setup::redis();
    exercise(&server).await;
    eventually("the ends of the streams", async || (server.metric("leadfold_watch_streams").await == 0.0).then_some(())).await;
    let exposed = Exposed::by(&server).await;
    for (result, count) in [("applied", 2.0), ("duplicate", 1.0), ("refused", 1.0)] {
        assert_eq!(exposed.sum("leadfold_webhooks_total", &[("result", result)]), count, "{result}");
    }
    let webhooks = |status| {
        let labels = [("http_request_method", "POST"), ("http_route", "/webhooks/omniai"), ("http_response_status_code", status)];
        exposed.sum("http_server_request_duration_seconds_count", &labels)
    };
    assert_eq!((webhooks("200"), webhooks("400")), (3.0, 1.0));
    let calls = |metric: &str, rpc: &str, code| {
        exposed.sum(
            &format!("{metric}_count"),
            &[("rpc_method", &format!("leadfold.v1.LeadService/{rpc}")), ("rpc_response_status_code", code)],
        )
    };
    assert_eq!(calls("rpc_server_call_duration_seconds", "GetLead", "OK"), 2.0);
    assert_eq!(calls("rpc_server_call_duration_seconds", "GetLead", "NOT_FOUND"), 1.0);
    assert_eq!(calls("rpc_server_call_duration_seconds", "WatchLead", "OK"), 0.0, "a stream is not a call");
    for rpc in ["WatchLead", "WatchLeads"] {
        assert_eq!(calls("leadfold_watch_setup_duration_seconds", rpc, "OK"), 1.0, "{rpc}");
        assert_eq!(calls("leadfold_watch_duration_seconds", rpc, "CANCELLED"), 1.0, "{rpc}");
    }
    assert!(server.metric("leadfold_watch_messages_total").await >= 3.0, "a snapshot, an update, and of the other stream a snapshot");
    for call in ["apply", "read", "version"] {
        assert!(exposed.sum("leadfold_redis_call_duration_seconds_count", &[("call", call)]) > 0.0, "{call}");
    }
    assert_eq!(exposed.sum("leadfold_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_the_server_ends_is_counted_with_its_status() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_CONNECTION_AGE_SECONDS", "1"));
    let mut watch = LeadWatch::open(&server, &fresh_id(), 0).await;
    watch.next().await;
    eventually("the end of the stream", async || {
        let exposed = Exposed::by(&server).await;
        let labels = [("rpc_method", "leadfold.v1.LeadService/WatchLead"), ("rpc_response_status_code", "UNAVAILABLE")];
        (exposed.sum("leadfold_watch_duration_seconds_count", &labels) == 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_strangers_make_up_are_one_name() {
    let server = Setup::embedded();
    let mut client = tonic::client::Grpc::new(server.channel());
    for path in ["/made.up/One", "/made.up/Two"] {
        client.ready().await.expect("a connection");
        let codec = tonic_prost::ProstCodec::<GetLeadRequest, GetLeadRequest>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        client.unary(tonic::Request::new(GetLeadRequest::default()), path, codec).await.expect_err("there is no such rpc");
    }
    let exposed = Exposed::by(&server).await;
    let labels = [("rpc_method", "_OTHER"), ("rpc_response_status_code", "UNIMPLEMENTED")];
    assert_eq!(exposed.sum("rpc_server_call_duration_seconds_count", &labels), 2.0);
}

/// Every name of a metric in the source: the first literal of `counter!(…)` and its like.
fn metrics_in_the_source() -> BTreeSet<String> {
    fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }
    let mut names = BTreeSet::new();
    for file in files(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        for made in ["counter!(", "gauge!(", "histogram!(", "durations!("] {
            let made = text.split(made).skip(1).filter_map(|after| after.trim_start().strip_prefix('"')?.split_once('"'));
            names.extend(made.map(|(name, _)| name.to_owned()));
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_there_from_the_start() {
    let names = metrics_in_the_source();
    assert!(names.len() > 30, "{names:?}");
    for server in [Setup::embedded(), Setup::redis()] {
        let exposed = Exposed::by(&server).await;
        let missing: Vec<_> = names.iter().filter(|name| !exposed.types.contains_key(*name)).collect();
        assert!(missing.is_empty(), "give them a line in src/telemetry/series.rs: {missing:?}");
    }
}

/// Whatever can be made to happen here has begun at zero, with its labels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_counter_appears_with_what_it_counts() {
    let mut redis = RedisServer::start();
    // A collector that is not there, and so few watches that some are refused.
    let options = Options::on(&redis).env("LEADFOLD_OTLP_ENDPOINT", "http://127.0.0.1:1").env("LEADFOLD_MAX_WATCHES", "2");
    let server = Server::start(&options);
    let counters = async || {
        let exposed = Exposed::by(&server).await;
        let is_counter = |name: &str| exposed.types.get(name).is_some_and(|kind| kind == "counter");
        exposed.series.into_iter().filter(|(name, ..)| is_counter(name)).map(|(name, labels, value)| ((name, labels), value)).collect()
    };
    let before: BTreeMap<_, f64> = counters().await;

    let lead_id = exercise(&server).await;
    for body in ["", "[]", r#"{"event":"lead.exploded"}"#, r#"{"event":"action_log.completed"}"#, r#"{"event":"document.received"}"#] {
        server.post(body).await;
    }
    let mut elsewhere = message(&lead_id, "a3", SAMPLE_TIME);
    elsewhere["workspaceId"] = "another".into();
    assert_eq!(server.post(elsewhere.to_string()).await.status, 409);
    let () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query(&mut redis.connection()).expect("CONFIG SET");
    server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await;
    redis.kill();
    server.post(message(&lead_id, "a4", SAMPLE_TIME).to_string()).await;
    server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect_err("Redis is away");
    redis.restart();
    eventually("the spool is applied", async || (server.metric("leadfold_spool_applied_total").await >= 2.0).then_some(())).await;
    eventually("spans are lost", async || {
        (Exposed::by(&server).await.sum("leadfold_spans_total", &[("result", "lost")]) > 0.0).then_some(())
    })
    .await;

    let after: BTreeMap<_, f64> = counters().await;
    let risen = after.iter().filter(|(series, value)| before.get(series).is_some_and(|before| before < value)).count();
    assert!(risen > 15, "only {risen} counters have risen: what was tried?");
    let born: Vec<_> = after.keys().filter(|series| !before.contains_key(series)).collect();
    assert!(born.is_empty(), "give them a line in src/telemetry/series.rs: {born:?}");
}
