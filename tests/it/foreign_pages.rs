//! What pages of other sites can do to a server that asks for no token, tried in a real browser: nothing.

use leadfold::api::{DeleteLeadRequest, GetLeadRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::browser::Browser;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::fresh_id;
use crate::support::server::{Options, Server};

/// A site with one empty page, on a port of its own.
async fn site() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let page = "<!doctype html><title>a page</title><iframe name=\"frame\"></iframe>";
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", page.len());
                let _ = stream.write_all((head + page).as_bytes()).await;
            });
        }
    });
    port
}

/// A message as gRPC frames it, as numbers for a script.
fn framed(message: &impl prost::Message) -> Value {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    json!([&[0], &length[..], &message].concat())
}

/// A request of the page's script: its status and text, or that the page may not know.
async fn fetch(browser: &Browser, url: &str, options: &str, body: &Value) -> Value {
    let script = format!(
        "fetch({url:?}, {{ method: 'POST', body: new Uint8Array({body}), ...{options} }})\
         .then(async (answer) => done([answer.type, answer.status, await answer.text()]), (error) => done([String(error)]));"
    );
    browser.run(&script).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_site_can_neither_delete_nor_read() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start(&Options::default());
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let delete = framed(&DeleteLeadRequest { lead_id: lead_id.clone() });
    let get = framed(&GetLeadRequest { lead_id: lead_id.clone() });
    let port = site().await;
    for page in [format!("http://localhost:{port}/"), format!("http://127.0.0.1:{port}/")] {
        browser.open(&page).await;
        for address in [&server.grpc, &server.admin] {
            let url = |call: &str| format!("http://{address}/leadfold.v1.LeadService/{call}");
            for content_type in ["text/plain", "application/grpc-web+proto", "application/grpc-web-text", "application/grpc"] {
                let headers = format!("headers: {{ 'content-type': '{content_type}' }}");
                for mode in ["no-cors", "cors"] {
                    let options = format!("{{ mode: '{mode}', {headers} }}");
                    fetch(&browser, &url("DeleteLead"), &options, &delete).await;
                    let got = fetch(&browser, &url("GetLead"), &options, &get).await;
                    assert!(!got.to_string().contains(&lead_id), "{page} {mode} {content_type}: {got}");
                }
            }
            // A form, in the three ways that there are, with what a message would be.
            for encoding in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
                let script = format!(
                    "const form = document.createElement('form');\
                     Object.assign(form, {{ method: 'POST', action: {:?}, enctype: '{encoding}', target: 'frame' }});\
                     const field = document.createElement('input');\
                     Object.assign(field, {{ name: String.fromCharCode(...{delete}), value: '' }});\
                     form.append(field); document.body.append(form);\
                     document.querySelector('iframe').onload = () => done(true); form.submit();",
                    url("DeleteLead")
                );
                browser.run(&script).await;
            }
        }
    }
    server.lead(&lead_id).await;
    assert!(server.logs().contains("--cors-origin"), "the requests came as far as the server, which refused them: {}", server.logs());
}

/// The browser is told that the name is on loopback: the page's site and the server are one origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_here_can_neither_delete_nor_read() {
    let Some(browser) = Browser::start_with(&["--host-resolver-rules=MAP evil.example 127.0.0.1"]).await else { return };
    let server = Server::start(&Options::default());
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let delete = framed(&DeleteLeadRequest { lead_id: lead_id.clone() });
    let get = framed(&GetLeadRequest { lead_id: lead_id.clone() });
    for address in [&server.grpc, &server.admin] {
        let (_, port) = address.rsplit_once(':').expect("a port");
        // Whatever it answers to a navigation, its page is of the origin that calls.
        browser.open(&format!("http://evil.example:{port}/")).await;
        assert_eq!(browser.eval("location.origin").await, format!("http://evil.example:{port}"));
        for content_type in ["application/grpc-web+proto", "application/grpc-web-text", "text/plain", "application/grpc"] {
            let options = format!("{{ headers: {{ 'content-type': '{content_type}' }} }}");
            let deleted = fetch(&browser, "/leadfold.v1.LeadService/DeleteLead", &options, &delete).await;
            // The admin listener has neither this call nor plain gRPC, and says so to clients of gRPC.
            assert!(deleted[1] == 403 || *address == server.admin, "{address} {content_type}: {deleted}");
            let got = fetch(&browser, "/leadfold.v1.LeadService/GetLead", &options, &get).await;
            if *address == server.admin && content_type == "application/grpc" {
                assert_eq!(got[2], "", "{got}");
                continue;
            }
            assert_eq!(got[1], 403, "{address} {content_type}: {got}");
            assert!(got[2].as_str().is_some_and(|text| text.contains("--allowed-host")), "{got}");
        }
    }
    server.lead(&lead_id).await;
}

/// The same page under a name that was allowed, so that it is not for want of a right request that nothing was had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_was_allowed_reads() {
    let Some(browser) = Browser::start_with(&["--host-resolver-rules=MAP leads.example 127.0.0.1"]).await else { return };
    let server = Server::start(&Options::default().env("LEADFOLD_ALLOWED_HOST", "leads.example"));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let get = framed(&GetLeadRequest { lead_id: lead_id.clone() });
    for address in [&server.grpc, &server.admin] {
        let (_, port) = address.rsplit_once(':').expect("a port");
        browser.open(&format!("http://leads.example:{port}/")).await;
        let options = "{ headers: { 'content-type': 'application/grpc-web+proto' } }";
        let got = fetch(&browser, "/leadfold.v1.LeadService/GetLead", options, &get).await;
        assert!(got[1] == 200 && got[2].as_str().is_some_and(|text| text.contains(&lead_id)), "{address}: {got}");
    }
}
