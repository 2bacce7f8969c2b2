//! The table `tests/clients/cases.json`, and the calls that it stands for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use prost_types::{FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto};
use serde::Deserialize;
use serde_json::Value;
use tonic::Code;

use super::servers::State;

/// No call of these tests takes this long, so a deadline this far off must not change anything.
pub const FAR_DEADLINE: f64 = 60.0;
/// Long enough for a watch to send its first heartbeat.
const DEADLINE_OF_WATCHES: f64 = 1.8;
/// Shorter than a store takes that is slow on purpose.
const SHORT_DEADLINE: f64 = 0.3;

/// As the file has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Table {
    #[serde(rename = "about")]
    _about: Vec<String>,
    rpcs: BTreeMap<String, Rpc>,
    /// Rpcs that no server has.
    unknown_rpcs: Vec<String>,
    /// How a server ends a watch.
    endings: Vec<Ending>,
    /// Reasons that no case here provokes, and why.
    not_provoked: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rpc {
    /// A request that is answered with `answer`, or else with `code` and `reason`.
    request: Value,
    /// Part of the first message, as JSON.
    answer: Option<String>,
    code: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    details: Vec<String>,
    /// What kinds of messages a stream begins with.
    #[serde(default)]
    messages: Vec<String>,
    #[serde(default)]
    uses_store: bool,
    /// It needs no token, and is answered however much is under way.
    #[serde(default)]
    is_open_to_all: bool,
    refusals: Vec<Refusal>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Refusal {
    #[serde(default)]
    server: State,
    /// Instead of the request that is answered.
    request: Option<Value>,
    /// Instead of any request: what cannot be decoded.
    bytes: Option<String>,
    token: Option<String>,
    authorization: Option<String>,
    code: String,
    reason: Option<String>,
    /// Types of details besides `ErrorInfo`, which comes with the reason.
    #[serde(default)]
    details: Vec<String>,
    /// Part of the details as JSON.
    contains: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ending {
    server: State,
    rpc: String,
    token: Option<String>,
    code: String,
    reason: String,
    #[serde(default)]
    details: Vec<String>,
}

/// What a call must end with.
#[derive(Clone, Debug)]
pub struct Expected {
    pub code: Code,
    pub reason: Option<String>,
    /// Types of details, without their package.
    pub details: BTreeSet<String>,
    /// Part of the details as JSON.
    pub contains: Option<String>,
    /// Part of the first message as JSON.
    pub answer: Option<String>,
    /// What kinds of messages come first. Heartbeats may follow.
    pub messages: Vec<String>,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Case {
    pub server: State,
    pub rpc: String,
    pub is_stream: bool,
    /// None: what cannot be decoded.
    pub json: Option<Value>,
    pub bytes: Vec<u8>,
    pub authorization: Option<String>,
    pub seconds: Option<f64>,
    pub gzip: bool,
    pub compress: bool,
    pub cancel_after: Option<usize>,
    pub expected: Expected,
}

impl Case {
    pub fn name(&self) -> String {
        let Self { server, rpc, json, authorization, seconds, gzip, compress, expected, .. } = self;
        let request = json.as_ref().map_or("broken bytes".to_owned(), Value::to_string);
        let who = authorization.as_deref().unwrap_or("nobody");
        format!("{rpc} {request} at {server:?} (by {who}, deadline {seconds:?}, gzip {gzip}/{compress}) must be {:?}", expected.code)
    }
}

/// How many combinations of deadline and compression.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Variants {
    /// Neither, and both.
    Two,
    All,
}

fn code(name: &str) -> Code {
    (0..17).map(Code::from_i32).find(|code| screaming(*code) == name).unwrap_or_else(|| panic!("no such code: {name}"))
}

fn screaming(code: Code) -> String {
    let camel = format!("{code:?}");
    let mut text = String::new();
    for letter in camel.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_uppercase());
    }
    text
}

fn expected(name: &str, reason: Option<&str>, details: &[&str]) -> Expected {
    let details = details.iter().copied().chain(reason.map(|_| "ErrorInfo")).map(str::to_owned).collect();
    Expected { code: code(name), reason: reason.map(str::to_owned), details, contains: None, answer: None, messages: Vec::new() }
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

impl Table {
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/cases.json");
        serde_json::from_str(&std::fs::read_to_string(&path).expect("the table")).unwrap_or_else(|error| panic!("{path:?}: {error}"))
    }

    /// The calls.
    pub fn cases(&self, variants: Variants) -> Vec<Case> {
        let api = Api::get();
        let mut cases = Vec::new();
        for (name, rpc) in &self.rpcs {
            self.cases_of(&api, name, rpc, variants, &mut cases);
        }
        for name in &self.unknown_rpcs {
            let case = Case {
                rpc: name.clone(),
                ..api.case(FIRST_RPC, &self.rpcs[FIRST_RPC].request, expected("UNIMPLEMENTED", Some("UNKNOWN_RPC"), &[]))
            };
            in_variants(case, variants, &mut cases);
        }
        for Ending { server, rpc, token, code, reason, details } in &self.endings {
            let case = api.case(rpc, &self.rpcs[rpc].request, expected(code, Some(reason), &borrowed(details)));
            let authorization = token.as_deref().map(|token| format!("Bearer {}", super::servers::token(token)));
            cases.push(Case { server: *server, authorization, seconds: Some(FAR_DEADLINE), ..case });
        }
        cases
    }

    fn cases_of(&self, api: &Api, name: &str, rpc: &Rpc, variants: Variants, cases: &mut Vec<Case>) {
        let make = |server: State, expected: Expected| Case { server, ..api.case(name, &rpc.request, expected) };
        if rpc.messages.is_empty() {
            let told = expected(rpc.code.as_deref().unwrap_or("OK"), rpc.reason.as_deref(), &borrowed(&rpc.details));
            in_variants(make(State::Open, Expected { answer: rpc.answer.clone(), ..told }), variants, cases);
        } else {
            let told = Expected { answer: rpc.answer.clone(), messages: rpc.messages.clone(), ..expected("DEADLINE_EXCEEDED", None, &[]) };
            let until_deadline = Case { seconds: Some(DEADLINE_OF_WATCHES), ..make(State::Open, told) };
            cases.push(until_deadline.clone());
            cases.push(Case { gzip: true, ..until_deadline });
            let told = Expected { answer: rpc.answer.clone(), messages: vec![rpc.messages[0].clone()], ..expected("CANCELLED", None, &[]) };
            in_variants(Case { cancel_after: Some(1), ..make(State::Open, told) }, variants, cases);
        }
        let compressed = make(State::Open, expected("UNIMPLEMENTED", None, &[]));
        cases.push(Case { compress: true, gzip: true, ..compressed });
        if !rpc.is_open_to_all {
            in_variants(make(State::Guarded, expected("UNAUTHENTICATED", Some("TOKEN_MISSING"), &[])), variants, cases);
            let refused = make(State::Full, expected("UNAVAILABLE", Some("OVERLOADED"), &["RetryInfo"]));
            let from = cases.len();
            in_variants(refused, variants, cases);
            // A stream that is let in nevertheless must not be waited for.
            cases[from..].iter_mut().filter(|case| case.is_stream).for_each(|case| case.seconds = Some(DEADLINE_OF_WATCHES));
        }
        if rpc.uses_store {
            let told = expected("UNAVAILABLE", Some("STORE_UNAVAILABLE"), &["RetryInfo"]);
            in_variants(make(State::WithoutStore, told), variants, cases);
            let late = make(State::Slow, expected("DEADLINE_EXCEEDED", None, &[]));
            cases.push(Case { seconds: Some(SHORT_DEADLINE), ..late.clone() });
            cases.push(Case { seconds: Some(SHORT_DEADLINE), gzip: true, ..late });
        }
        for refusal in &rpc.refusals {
            let told = expected(&refusal.code, refusal.reason.as_deref(), &borrowed(&refusal.details));
            let told = Expected { contains: refusal.contains.clone(), ..told };
            let mut case = Case { server: refusal.server, ..api.case(name, refusal.request.as_ref().unwrap_or(&rpc.request), told) };
            if let Some(bytes) = &refusal.bytes {
                case = Case { json: None, bytes: BASE64.decode(bytes).expect("base64"), ..case };
            }
            let bearer = refusal.token.as_deref().map(|token| format!("Bearer {}", super::servers::token(token)));
            case.authorization = bearer.or_else(|| refusal.authorization.clone());
            in_variants(case, variants, cases);
        }
    }
}

/// Whose request unknown rpcs take.
const FIRST_RPC: &str = "leadfold.v1.LeadService/GetLead";

/// With a deadline and without, compressed and not.
fn in_variants(case: Case, variants: Variants, cases: &mut Vec<Case>) {
    for (has_deadline, gzip) in [(false, false), (true, true), (true, false), (false, true)] {
        if variants == Variants::All || has_deadline == gzip {
            cases.push(Case { seconds: has_deadline.then_some(FAR_DEADLINE), gzip, ..case.clone() });
        }
    }
}

/// The API as descriptors: with that of health and of error details, and with rpcs that no server has.
pub struct Api {
    pool: DescriptorPool,
    encoded: Vec<u8>,
}

impl Api {
    pub fn get() -> Self {
        let mut files = FileDescriptorSet::default();
        let mut names = HashSet::new();
        for set in [leadfold::api::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_types::pb::FILE_DESCRIPTOR_SET] {
            let set = FileDescriptorSet::decode(set).expect("descriptors");
            files.file.extend(set.file.into_iter().filter(|file| names.insert(file.name().to_owned())));
        }
        for file in &mut files.file {
            if let Some(service) = file.service.iter_mut().find(|service| service.name() == "LeadService") {
                let unknown = MethodDescriptorProto { name: Some("NoSuchCall".to_owned()), ..service.method[0].clone() };
                service.method.push(unknown.clone());
                let name = Some("NoSuchService".to_owned());
                file.service.push(ServiceDescriptorProto { name, method: vec![unknown], options: None });
            }
        }
        let encoded = files.encode_to_vec();
        Self { pool: DescriptorPool::decode(&*encoded).expect("descriptors that fit together"), encoded }
    }

    /// Writes the descriptors to a file, as clients read them.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("api.protoset");
        std::fs::write(&path, &self.encoded).expect("a file");
        path
    }

    fn method(&self, rpc: &str) -> MethodDescriptor {
        let (service, method) = rpc.split_once('/').expect("an rpc");
        let service = self.pool.get_service_by_name(service).unwrap_or_else(|| panic!("no such service: {rpc}"));
        service.methods().find(|candidate| candidate.name() == method).unwrap_or_else(|| panic!("no such rpc: {rpc}"))
    }

    fn case(&self, rpc: &str, request: &Value, expected: Expected) -> Case {
        Case {
            server: State::Open,
            rpc: rpc.to_owned(),
            is_stream: self.method(rpc).is_server_streaming(),
            json: Some(request.clone()),
            bytes: self.request(rpc, request),
            authorization: None,
            seconds: None,
            gzip: false,
            compress: false,
            cancel_after: None,
            expected,
        }
    }

    /// A request of an rpc, encoded.
    pub fn request(&self, rpc: &str, json: &Value) -> Vec<u8> {
        let message = DynamicMessage::deserialize(self.method(rpc).input(), json);
        message.unwrap_or_else(|error| panic!("{rpc} {json}: {error}")).encode_to_vec()
    }

    /// A message of an rpc as JSON.
    pub fn message(&self, rpc: &str, bytes: &[u8]) -> Value {
        let message = DynamicMessage::decode(self.method(rpc).output(), bytes).unwrap_or_else(|error| panic!("{rpc} {bytes:?}: {error}"));
        serde_json::to_value(message).expect("JSON")
    }

    /// Any message as JSON.
    pub fn any(&self, name: &str, bytes: &[u8]) -> Value {
        let message = self.pool.get_message_by_name(name).unwrap_or_else(|| panic!("no such message: {name}"));
        let message = DynamicMessage::decode(message, bytes).unwrap_or_else(|error| panic!("{name} {bytes:?}: {error}"));
        let mut json = serde_json::to_value(message).expect("JSON");
        if name != "google.rpc.Status" {
            json["@type"] = format!("type.googleapis.com/{name}").into();
        }
        json
    }
}

#[test]
fn every_rpc_is_in_the_table() {
    let api = Api::get();
    let services = api.pool.services().filter(|service| service.name() != "NoSuchService");
    let rpcs = services.flat_map(|service| {
        let methods: Vec<_> = service.methods().filter(|method| method.name() != "NoSuchCall").collect();
        methods.into_iter().map(move |method| format!("{}/{}", service.full_name(), method.name()))
    });
    // Newer versions of health have an rpc that tonic-health does not serve.
    let rpcs: BTreeSet<_> = rpcs.filter(|rpc| rpc != "grpc.health.v1.Health/List").collect();
    assert_eq!(rpcs, Table::read().rpcs.keys().cloned().collect());
}

/// The source of `src/grpc`, without its tests.
fn sources() -> Vec<(String, String)> {
    let mut sources = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("source");
            let code = text.split("#[cfg(test)]").next().expect("a part").to_owned();
            sources.push((path.file_stem().expect("a name").to_string_lossy().into_owned(), code));
        }
    }
    sources
}

/// What stands between two texts, wherever they stand.
fn between<'a>(source: &'a str, before: &'a str, after: char) -> impl Iterator<Item = &'a str> {
    source.split(before).skip(1).filter_map(move |rest| Some(rest.split_once(after)?.0))
}

#[test]
fn every_reason_and_every_code_is_in_the_table() {
    let is_name = |text: &&str| text.len() > 3 && text.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_');
    let table = Table::read();
    let cases = table.cases(Variants::Two);
    let (mut reasons, mut codes) = (BTreeSet::new(), BTreeSet::new());
    for (file, source) in sources() {
        if file == "status" {
            reasons.extend(source.split('"').skip(1).step_by(2).filter(is_name).map(str::to_owned));
        }
        for call in ["unavailable(\"", "details(\""] {
            reasons.extend(between(&source, call, '"').filter(is_name).map(str::to_owned));
        }
        // Where codes get their names all of them stand, and reflection puts another one in the place of one of its library's.
        if !["observe", "reflection"].contains(&&*file) {
            let names =
                source.split("Code::").skip(1).map(|rest| rest.split(|letter: char| !letter.is_alphanumeric()).next().expect("a part"));
            let all: Vec<_> = (0..17).map(Code::from_i32).collect();
            codes.extend(names.filter_map(|name| all.iter().find(|code| format!("{code:?}") == name)).map(|code| screaming(*code)));
            for code in &all {
                if source.contains(&format!("Status::{}(", screaming(*code).to_lowercase())) {
                    codes.insert(screaming(*code));
                }
            }
        }
    }
    assert!(reasons.len() > 10 && codes.len() > 8, "the sources are read: {reasons:?} {codes:?}");
    let has_case: BTreeSet<_> = cases.iter().filter_map(|case| case.expected.reason.clone()).collect();
    let left_out: BTreeSet<_> = table.not_provoked.keys().cloned().collect();
    assert!(has_case.is_disjoint(&left_out), "these have cases: {left_out:?}");
    assert_eq!(reasons, has_case.union(&left_out).cloned().collect(), "reasons of src/grpc and of tests/clients/cases.json");
    let in_cases: BTreeSet<_> = cases.iter().map(|case| screaming(case.expected.code)).collect();
    let missing: Vec<_> = codes.difference(&in_cases).collect();
    assert!(missing.is_empty(), "codes without a case in tests/clients/cases.json: {missing:?}");
    assert!(in_cases.contains("UNIMPLEMENTED") && in_cases.contains("INTERNAL"), "what tonic answers by itself");
}
