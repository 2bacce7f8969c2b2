//! The board's calls, run by node: which failures end them, and which are a proxy's and pass.

use std::path::Path;
use std::process::Command;

use leadfold::api::DeleteLeadRequest;
use serde_json::Value;

use crate::support::server::{Options, Server};
use crate::support::tokens::with_tokens;

/// Calls with `rpc.js` over a `fetch` that is answered by the pages of proxies, and then by the real server.
const SCRIPT: &str = r#"
import { call, stream } from './rpc.js';
const real = globalThis.fetch;
const failure = async (fetch) => {
  globalThis.fetch = fetch;
  try {
    for await (const message of stream('WatchLeads', { workspaceId: 'w' })) void message;
    return 'none';
  } catch (error) {
    return { code: error.code, isFinal: error.isFinal, words: error.message };
  }
};
const page = (status, headers) => failure(async () => new Response('<html><h1>Oops</h1></html>', { status, headers }));
const told = {};
for (const status of [200, 400, 401, 403, 404, 429, 502, 503]) told[status] = await page(status, { 'content-type': 'text/html' });
for (const status of [3, 5, 7, 12, 16]) told[`grpc ${status}`] = await page(200, { 'content-type': 'application/grpc-web+proto', 'grpc-status': status });
told.server = await failure((path, options) => real(process.argv[2] + path, options));
console.log(JSON.stringify(told));
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_servers_own_word_ends_the_boards_calls() {
    if Command::new("node").arg("--version").output().is_err() {
        return eprintln!("SKIPPED: node is not installed");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&with_tokens(Options::default(), dir.path()));
    let refused = server.client().delete_lead(DeleteLeadRequest { lead_id: "l".to_owned() }).await;
    assert!(refused.is_err(), "the server asks for a token");
    let board = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/board");
    for file in ["rpc.js", "protobuf.js"] {
        std::fs::copy(board.join(file), dir.path().join(file)).expect(file);
    }
    let schema = reqwest::get(format!("http://{}/board/schema.js", server.admin)).await.expect("an answer");
    let schema = if schema.status().is_success() { schema.text().await.expect("text") } else { panic!("{schema:?}") };
    std::fs::write(dir.path().join("schema.js"), schema).expect("a file");
    std::fs::write(dir.path().join("settings.js"), "export const settings = { token: '' };").expect("a file");
    std::fs::write(dir.path().join("package.json"), r#"{"type":"module"}"#).expect("a file");
    std::fs::write(dir.path().join("try.js"), SCRIPT).expect("a file");
    let output = Command::new("node").arg(dir.path().join("try.js")).arg(format!("http://{}", server.admin)).output().expect("node");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    for (from, failure) in told.as_object().expect("an object") {
        assert_eq!(failure["isFinal"], from == "server", "{from}: {told}");
        assert!(!failure["words"].as_str().expect("words").contains('<'), "a page is not for people: {failure}");
    }
    assert_eq!(told["server"]["code"], 16, "{told}");
}
