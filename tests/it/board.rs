//! The board's HTTP side: what its page is sent, and who gets at the leads.

use leadfold::api::{
    ListLeadsRequest, ListLeadsResponse, WatchLeadsRequest, WatchLeadsResponse, watch_leads_request, watch_leads_response,
};
use prost::Message;
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use crate::support::events::{SAMPLE_TIME, WORKSPACE, message};
use crate::support::server::{Options, Server};
use crate::support::{PATIENCE, fresh_id};

const TOKEN: &str = "board-test-token-0123456789";

fn web() -> Client {
    Client::builder().no_proxy().http1_only().build().expect("an HTTP client")
}

async fn get(server: &Server, path: &str) -> Response {
    web().get(format!("http://{}{path}", server.admin)).send().await.expect("an answer")
}

/// A call as the page makes it.
fn call(server: &Server, method: &str, request: &impl Message) -> RequestBuilder {
    let body = request.encode_to_vec();
    let length = u32::try_from(body.len()).expect("a short body").to_be_bytes();
    web()
        .post(format!("http://{}/leadfold.v1.LeadService/{method}", server.admin))
        .header("content-type", "application/grpc-web+proto")
        .body([&[0], &length[..], &body].concat())
}

fn list(server: &Server) -> RequestBuilder {
    call(server, "ListLeads", &ListLeadsRequest { workspace_id: WORKSPACE.to_owned(), ..Default::default() })
}

/// The leads of an answer; or the gRPC status that is there instead.
async fn leads(response: Response) -> Result<Vec<String>, String> {
    let status = response.headers().get("grpc-status").map(|status| status.to_str().expect("a number").to_owned());
    let body = response.bytes().await.expect("the body");
    match status.filter(|status| status != "0") {
        Some(status) => Err(status),
        None => {
            let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes")) as usize;
            let list = ListLeadsResponse::decode(&body[5..5 + length]).expect("a list");
            Ok(list.leads.into_iter().map(|lead| lead.lead_id).collect())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_and_its_files_come_with_strict_headers_and_are_kept_until_they_change() {
    let server = Server::start(&Options::default());
    let page = get(&server, "/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.text().await.expect("the page");
    assert!(!page.contains("style=") && !page.contains("<style") && !page.contains("onclick"), "nothing inline");
    let port = server.http.rsplit(':').next().expect("a port");
    assert!(page.contains(&format!("name=\"webhook-port\" content=\"{port}\"")), "{page}");

    let named = page.split('"').filter(|text| text.starts_with("/board/")).map(str::to_owned);
    let files: Vec<String> = ["/".to_owned(), "/board/schema.js".to_owned()].into_iter().chain(named).collect();
    assert!(files.len() > 6, "{files:?}");
    for file in files {
        let answer = get(&server, &file).await;
        assert_eq!(answer.status(), StatusCode::OK, "{file}");
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"), "{policy}");
        assert_eq!((&*header("x-content-type-options"), &*header("referrer-policy")), ("nosniff", "no-referrer"));
        assert_eq!(header("cache-control"), "no-cache");
        let again = web().get(format!("http://{}{file}", server.admin)).header("if-none-match", header("etag")).send().await;
        let again = again.expect("an answer");
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{file}");
        assert_eq!(again.text().await.expect("a body"), "", "{file}");
    }
    assert_eq!(get(&server, "/board/nothing.js").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_reads_is_there() {
    let server = Server::start(&Options::default());
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    assert_eq!(leads(list(&server).send().await.expect("an answer")).await, Ok(vec![lead_id.clone()]));
    let delete = leadfold::api::DeleteLeadRequest { lead_id: lead_id.clone() };
    let refused = call(&server, "DeleteLead", &delete).send().await.expect("an answer");
    assert_eq!((refused.status(), &refused.headers()["grpc-status"]), (StatusCode::OK, &"12".parse().expect("a value")));
    server.lead(&lead_id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_pages_and_bent_names_get_nothing() {
    let server = Server::start(&Options::default().env("LEADFOLD_ALLOWED_HOST", "leads.example.com"));
    let status = async |request: RequestBuilder| request.send().await.expect("an answer").status();
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("host", "evil.example"),
        ("host", "evil.example:9090"),
    ] {
        assert_eq!(status(list(&server).header(name, value)).await, StatusCode::FORBIDDEN, "{name}: {value}");
    }
    let own = format!("http://{}", server.admin);
    for (name, value) in [
        ("sec-fetch-site", "same-origin"),
        ("origin", &*own),
        ("host", "localhost:9090"),
        ("host", "[::1]:9090"),
        ("host", "Leads.Example.com"),
    ] {
        assert_eq!(status(list(&server).header(name, value)).await, StatusCode::OK, "{name}: {value}");
    }
    // The page itself may be linked to, but not under a bent name; probes and scrapers may use any.
    let page = |path: &str| web().get(format!("http://{}{path}", server.admin));
    assert_eq!(status(page("/").header("sec-fetch-site", "cross-site")).await, StatusCode::OK);
    assert_eq!(status(page("/").header("host", "evil.example")).await, StatusCode::FORBIDDEN);
    assert_eq!(status(page("/livez").header("host", "pod.cluster.local")).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_are_tokens_the_leads_need_one_and_the_page_does_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("tokens.toml");
    let other = "another-test-token-0123456789";
    let text = [(TOKEN, WORKSPACE), (other, "elsewhere")]
        .map(|(token, workspace)| format!("[[token]]\nname = \"t\"\ntoken = \"{token}\"\nworkspaces = [\"{workspace}\"]\n"));
    std::fs::write(&file, text.concat()).expect("the file of tokens");
    // Environment variables of tests live as long as they do.
    let path: &'static str = Box::leak(file.display().to_string().into_boxed_str());
    let server = Server::start(&Options::default().env("LEADFOLD_TOKENS_FILE", path));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;

    assert_eq!(get(&server, "/").await.status(), StatusCode::OK);
    let with = async |token: &str| leads(list(&server).bearer_auth(token).send().await.expect("an answer")).await;
    assert_eq!(leads(list(&server).send().await.expect("an answer")).await, Err("16".to_owned()));
    assert_eq!(with("not-a-token-of-ours-0000000").await, Err("16".to_owned()));
    assert_eq!(with(other).await, Err("5".to_owned()), "another workspace's token does not see it");
    assert_eq!(with(TOKEN).await, Ok(vec![lead_id]));
    // Whoever has a token may come by any name: a page under a bent one has none.
    let bent = list(&server).header("host", "leads.internal").bearer_auth(TOKEN).send().await.expect("an answer");
    assert_eq!(bent.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_the_board_counts_and_ends_like_any_other() {
    let env = Options::default().env("LEADFOLD_MAX_WATCHES", "1").env("LEADFOLD_DRAIN_DELAY_MS", "0");
    let mut server = Server::start(&env);
    let watch = async || {
        let scope = Some(watch_leads_request::Scope::WorkspaceId(WORKSPACE.to_owned()));
        let request = WatchLeadsRequest { scope, skip_initial: true, ..Default::default() };
        call(&server, "WatchLeads", &request).send().await.expect("an answer")
    };
    let mut first = watch().await;
    let mut seen = Vec::new();
    let frame = next_frame(&mut first, &mut seen).await;
    let event = WatchLeadsResponse::decode(&*frame.1).expect("a message").event;
    assert!(frame.0 == 0 && matches!(event, Some(watch_leads_response::Event::Synced(_))), "{event:?}");
    assert_eq!(watch().await.headers()["grpc-status"], "8", "the server's only watch is open");
    server.apply(&message(&fresh_id(), "a1", SAMPLE_TIME)).await;
    assert_eq!(next_frame(&mut first, &mut seen).await.0, 0);

    server.signal_termination();
    let (flag, trailers) = next_frame(&mut first, &mut seen).await;
    let trailers = String::from_utf8(trailers).expect("trailers are text");
    assert!(flag == 0x80 && trailers.contains("grpc-status:14"), "{flag}: {trailers}");
    let exit = tokio::task::block_in_place(|| server.terminate());
    assert!(exit.status.success() && exit.took.as_secs() < 5, "it took {:?}", exit.took);
}

async fn next_frame(response: &mut Response, seen: &mut Vec<u8>) -> (u8, Vec<u8>) {
    loop {
        if let Some((head, rest)) = seen.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if rest.len() >= length {
                let frame = (head[0], rest[..length].to_vec());
                seen.drain(..5 + length);
                return frame;
            }
        }
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.expect("in time").expect("no error");
        seen.extend(chunk.expect("no end"));
    }
}
