//! `simulate`: what it says that it has sent is what the server knows.

use std::collections::BTreeMap;

use leadfold::api::{Lead, ListLeadsRequest};
use serde_json::{Value, json};

use super::{complaint, leadfold, url};
use crate::support::server::{Options, Server};
use crate::support::{Setup, on_both_stores};

on_both_stores!(the_server_knows_what_was_sent);

async fn leads(server: &Server, workspace_id: &str) -> Vec<Lead> {
    let (mut leads, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListLeadsRequest { workspace_id: workspace_id.to_owned(), page_size: 100, page_token, ..Default::default() };
        let page = server.client().list_leads(request).await.expect("a page").into_inner();
        leads.extend(page.leads);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return leads;
        }
    }
}

fn webhook(server: &Server) -> String {
    format!("http://{}/webhooks/omniai", server.http)
}

async fn the_server_knows_what_was_sent(server: Setup) {
    let webhook = webhook(&server);
    let args = [
        "simulate",
        "--json",
        "--webhook-url",
        &webhook,
        "--workspace-id",
        "simulated",
        "--leads",
        "30",
        "--rate",
        "600",
        "--duration",
        "3",
        "--seed",
        "7",
    ];
    let output = leadfold(&url(&server), &args).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(told["events"].as_u64().expect("a number") > 300, "{told}");
    assert!(told["late"].as_u64() > Some(0) && told["repeated"].as_u64() > Some(0) && told["duplicate"].as_u64() > Some(0), "{told}");
    assert_eq!(told["sent"].as_object().expect("by event").len(), 7, "{told}");

    let leads = leads(&server, "simulated").await;
    let (mut activities, mut messages) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    for lead in &leads {
        for count in &lead.activity_counts {
            *activities.entry(format!("{} {}", count.r#type, count.status)).or_default() += count.count;
        }
        for count in &lead.message_counts {
            *messages.entry(format!("{} {}", count.channel, count.direction)).or_default() += count.count;
        }
    }
    let known = json!({
        "leads": leads.len(),
        "documents": leads.iter().map(|lead| lead.document_count).sum::<u64>(),
        "messages": leads.iter().map(|lead| lead.message_count).sum::<u64>(),
        "activities": activities,
        "messages_by": messages,
    });
    assert_eq!(known, told["ledger"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_that_ask_for_a_secret_are_given_it() {
    for (secret, header) in [("said-0123456789abcdef", "x-other"), ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "x-webhook-secret")] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("# the sender's\n{secret}\n")).expect("written");
        let path = file.path().to_str().expect("a path");
        let options = Options::default().env("LEADFOLD_WEBHOOK_SECRET_FILE", path).env("LEADFOLD_WEBHOOK_SECRET_HEADER", header);
        let server = Server::start(&options);
        let webhook = webhook(&server);
        let args = ["simulate", "--webhook-url", &webhook, "--rate", "100", "--duration", "1", "--leads", "3"];
        let mut command = leadfold(&url(&server), &args);
        command.env("LEADFOLD_WEBHOOK_SECRET_FILE", path).env("LEADFOLD_WEBHOOK_SECRET_HEADER", header);
        let output = command.output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && told.contains(" 0 refused"), "{output:?}");
        let output = leadfold(&url(&server), &args).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains("--webhook-secret-file") && !told.contains(secret), "{told}");
    }
}

#[test]
fn what_is_no_webhook_is_said() {
    for (url, told) in [("localhost", "http://HOST:PORT/"), ("http://127.0.0.1:8080", "names no path"), ("ftp://h/x", "http://HOST:PORT/")]
    {
        assert!(complaint("", &["simulate", "--webhook-url", url]).contains(told), "{url}");
    }
}
