//! `deploy/`: what is in it can be read, and asks for what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::metrics::{Exposed, exercise};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::{Setup, eventually, fresh_id};

/// What a server adds that is scraped.
const OF_THE_SCRAPE: [&str; 2] = ["instance", "job"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    let redis = RedisServer::start();
    // A collector that is not there: spans are lost, and that is counted.
    let server = Server::start(&Options::on(&redis).env("LEADFOLD_OTLP_ENDPOINT", "http://127.0.0.1:1").env("LEADFOLD_MAX_WATCHES", "2"));
    exercise(&server).await;
    server.post(r#"{"event":"lead.exploded"}"#).await;
    server.post(r#"{"event":"action_log.completed"}"#).await;
    watch_too_much(&server).await;
    let () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query(&mut redis.connection()).expect("CONFIG SET");
    server.post(crate::support::events::lead_created(&fresh_id()).to_string()).await;
    eventually("spans are lost", async || {
        let exposed = Exposed::by(&server).await;
        (exposed.sum("leadfold_spans_total", &[("result", "lost")]) > 0.0).then_some(())
    })
    .await;

    let exposed = Exposed::by(&server).await;
    let (mut wrong, mut asked) = (Vec::new(), BTreeSet::new());
    for (place, query) in queries() {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty(), "{place} asks for nothing: {query}");
        for selector in &selectors {
            asked.insert(base_name(&selector.metric).to_owned());
            if let Err(problem) = selector.check(&exposed) {
                wrong.push(format!("{place}: {problem} in {query}"));
            }
        }
        // What is grouped by must be a label of something that is asked for.
        for label in grouped_by(&query) {
            let has = |selector: &Selector| exposed.series.iter().any(|(name, labels, _)| selector.is(name) && labels.contains_key(&label));
            if !OF_THE_SCRAPE.contains(&&*label) && !selectors.iter().any(has) {
                wrong.push(format!("{place}: no label {label} in {query}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let untold: Vec<_> = exposed.types.keys().filter(|name| name.starts_with("leadfold_") && !asked.contains(*name)).collect();
    assert!(untold.len() <= 4, "metrics that neither the dashboard nor an alert shows: {untold:?}");
}

/// Prometheus cannot see the rise to the first event of a series that appears with that event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_series_that_is_asked_for_is_there_from_the_start() {
    for server in [Setup::embedded(), Setup::redis()] {
        let exposed = Exposed::by(&server).await;
        let mut wrong = BTreeSet::new();
        for (place, query) in queries() {
            for selector in selectors(&query).iter().filter(|selector| selector.metric != "up") {
                if !exposed.series.iter().any(|(name, labels, _)| selector.selects(name, labels)) {
                    wrong.insert(format!("{place}: {selector:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "give them a line in src/telemetry/series.rs:\n{}", Vec::from_iter(wrong).join("\n"));
    }
}

#[test]
fn selectors_select_as_those_of_prometheus_do() {
    let labels: BTreeMap<_, _> = [("code", "503"), ("event", "none")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    for (query, selected) in [
        (r#"leadfold_x"#, true),
        (r#"leadfold_y"#, false),
        (r#"leadfold_x{code="503"}"#, true),
        (r#"leadfold_x{code="50"}"#, false),
        (r#"leadfold_x{code=~"5.."}"#, true),
        (r#"leadfold_x{code=~"4..|5.."}"#, true),
        (r#"leadfold_x{code=~"5."}"#, false),
        (r#"leadfold_x{code!~"5.."}"#, false),
        (r#"leadfold_x{code="503", event!="none"}"#, false),
        (r#"leadfold_x{code="503", event!="some"}"#, true),
        (r#"leadfold_x{other=""}"#, true),
        (r#"leadfold_x{instance=~"$instance"}"#, true),
    ] {
        assert_eq!(selectors(query)[0].selects("leadfold_x", &labels), selected, "{query}");
    }
}

#[test]
fn every_alert_is_explained() {
    let operations = std::fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md");
    for rule in rules() {
        let name = rule["alert"].as_str().expect("its name").to_owned();
        assert!(operations.contains(&format!("### {name}\n")), "docs/operations.md does not say what {name} means");
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("page" | "ticket")), "{name} wakes whom?");
    }
    let alerts: BTreeSet<String> = rules().iter().map(|rule| rule["alert"].as_str().unwrap_or_default().to_owned()).collect();
    for heading in operations.lines().filter_map(|line| line.strip_prefix("### Leadfold")) {
        assert!(alerts.contains(&format!("Leadfold{heading}")), "docs/operations.md explains Leadfold{heading}, which there is not");
    }
}

#[test]
fn prometheus_accepts_its_files() {
    let directory = root().join("deploy/prometheus");
    for (check, file) in [("rules", "alerts.yml"), ("config", "prometheus.yml")] {
        let checked = Command::new("promtool").args(["check", check]).arg(directory.join(file)).output();
        let Ok(checked) = checked else {
            eprintln!("skipped: there is no promtool (Debian has it in the package prometheus)");
            return;
        };
        assert!(checked.status.success(), "{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn every_file_can_be_read_and_an_untested_one_says_so() {
    let files = files(&root().join("deploy"));
    assert!(files.len() > 5, "{files:?}");
    for file in &files {
        let text = std::fs::read_to_string(file).expect("a text");
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("yml" | "yaml") => {
                for document in yaml_documents(&text) {
                    let value: Value = serde_saphyr::from_str(&document).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                    assert!(value.is_object(), "{}: {value}", file.display());
                }
            }
            Some("json") => drop(serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))),
            _ => {}
        }
        let name = file.to_string_lossy();
        if name.contains("kubernetes") || name.contains("compose") || name.contains("Dockerfile") {
            assert!(text.starts_with("# Untested"), "{name} cannot be run by the tests, and does not say so");
        }
    }
}

#[test]
fn flags_in_the_environment_of_deployments_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_leadfold")).args(["serve", "--help"]).output().expect("the help").stdout;
    let help = String::from_utf8(help).expect("text");
    for file in files(&root().join("deploy")).into_iter().chain([root().join("docs/operations.md")]) {
        let text = std::fs::read_to_string(&file).expect("a text");
        for (at, _) in text.match_indices("LEADFOLD_") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            // The one secret that has no flag, since `ps` would show it.
            let exists = name == "LEADFOLD_WEBHOOK_SECRET" || ['=', ']'].iter().any(|end| help.contains(&format!("[env: {name}{end}")));
            assert!(exists, "{}: there is no {name}", file.display());
        }
    }
}

#[test]
fn systemd_accepts_its_unit() {
    let Ok(checked) =
        Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(root().join("deploy/systemd/leadfold.service")).output()
    else {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    // The program and the files of a machine on which it is installed are not here.
    let wrong: Vec<&str> = said.lines().filter(|line| line.contains("leadfold.service") && !line.contains("is not executable")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Two streams are open, and a third is one too many.
async fn watch_too_much(server: &Server) {
    use crate::support::watching::LeadWatch;
    eventually("no stream is open", async || (server.metric("leadfold_watch_streams").await == 0.0).then_some(())).await;
    let lead_id = fresh_id();
    let _open = [LeadWatch::open(server, &lead_id, 0).await, LeadWatch::open(server, &lead_id, 0).await];
    let request = leadfold::api::WatchLeadRequest { lead_id, ..Default::default() };
    let status = server.client().watch_lead(request).await.expect_err("--max-watches is 2");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files
}

fn yaml_documents(text: &str) -> Vec<String> {
    text.split("\n---\n")
        .filter(|document| document.lines().any(|line| !line.is_empty() && !line.starts_with('#')))
        .map(str::to_owned)
        .collect()
}

fn rules() -> Vec<Value> {
    let text = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).expect("the alerts");
    let file: Value = serde_saphyr::from_str(&text).expect("YAML");
    let groups = file["groups"].as_array().expect("groups").iter();
    groups.flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// Every query, and where it stands.
fn queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("deploy/grafana/leadfold.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let mut queries: Vec<_> =
        rules().iter().map(|rule| (rule["alert"].to_string(), rule["expr"].as_str().expect("its query").to_owned())).collect();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((panel["title"].to_string(), target["expr"].as_str().expect("its query").to_owned()));
        }
    }
    assert!(queries.len() > 40, "{queries:?}");
    queries
}

/// A metric, and which of its series are meant.
#[derive(Debug)]
struct Selector {
    metric: String,
    /// Label, operator, value.
    matchers: Vec<(String, String, String)>,
}

impl Selector {
    fn is(&self, name: &str) -> bool {
        name == self.metric
    }

    /// Whether it means this series, whatever the scrape adds to it.
    fn selects(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.is(name)
            && self.matchers.iter().filter(|(label, ..)| !OF_THE_SCRAPE.contains(&&**label)).all(|(label, operator, value)| {
                // To Prometheus a label that is not there is an empty one.
                let is = labels.get(label).map_or("", String::as_str);
                match operator.as_str() {
                    "=" => is == value,
                    "!=" => is != value,
                    "=~" => matches(value, is),
                    "!~" => !matches(value, is),
                    _ => panic!("{self:?}: there is no {operator}"),
                }
            })
    }

    fn check(&self, exposed: &Exposed) -> Result<(), String> {
        // Prometheus itself says whether a target answers.
        if self.metric == "up" {
            return Ok(());
        }
        if !exposed.series.iter().any(|(name, ..)| self.is(name)) {
            return Err(format!("no metric {}", self.metric));
        }
        for (label, operator, value) in self.matchers.iter().filter(|(label, ..)| !OF_THE_SCRAPE.contains(&&**label)) {
            let values = || exposed.series.iter().filter(|(name, ..)| self.is(name)).filter_map(|(_, labels, _)| labels.get(label));
            if values().next().is_none() {
                return Err(format!("no label {label} of {}", self.metric));
            }
            if operator == "=" && !values().any(|is| is == value) {
                return Err(format!("no {label}={value:?} of {}", self.metric));
            }
        }
        Ok(())
    }
}

/// Whether a text is what a regular expression says. Of those we use alternatives and any one character.
fn matches(pattern: &str, text: &str) -> bool {
    assert!(pattern.chars().all(|c| is_word(c) || "|.".contains(c)), "{pattern:?}: this test knows only | and .");
    let is =
        |pattern: &str| pattern.len() == text.len() && pattern.chars().zip(text.chars()).all(|(wanted, is)| wanted == '.' || wanted == is);
    pattern.split('|').any(is)
}

fn base_name(metric: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix)).unwrap_or(metric)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The metrics of a query: they all begin with one of a few words, unlike PromQL's functions.
fn selectors(query: &str) -> Vec<Selector> {
    let mut selectors = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(is_word) {
        rest = &rest[start..];
        let word: String = rest.chars().take_while(|c| is_word(*c)).collect();
        rest = &rest[word.len()..];
        if !(word == "up" || ["leadfold_", "http_", "rpc_", "process_"].iter().any(|prefix| word.starts_with(prefix))) {
            continue;
        }
        // A label, as in `by (rpc_method)`, is followed by none of these.
        if !(rest.starts_with(['{', '[', ')', ' ', '\n']) || rest.is_empty())
            || ["rpc_method", "rpc_response_status_code", "http_response_status_code"].contains(&&*word)
        {
            continue;
        }
        let mut matchers = Vec::new();
        if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find('}').expect("the end of the matchers");
            for matcher in inner[..end].split(',') {
                let label: String = matcher.trim().chars().take_while(|c| is_word(*c)).collect();
                let (operator, value) = matcher.trim()[label.len()..].split_once('"').expect("a quoted value");
                matchers.push((label, operator.to_owned(), value.trim_end_matches('"').to_owned()));
            }
            rest = &inner[end + 1..];
        }
        selectors.push(Selector { metric: word, matchers });
    }
    selectors
}

fn grouped_by(query: &str) -> Vec<String> {
    let groups = query.split("by (").skip(1).filter_map(|after| after.split(')').next());
    groups.flat_map(|labels| labels.split(',').map(|label| label.trim().to_owned())).collect()
}
