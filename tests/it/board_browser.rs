//! The board as people use it: in a real browser, with live traffic.

use std::time::Instant;

use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::browser::Browser;
use crate::support::events::{SAMPLE_TIME, WORKSPACE, document_extracted, lead_created, lead_updated, message, message_with_document};
use crate::support::server::{Options, Server};

const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";
const DOWN: &str = "\u{e015}";
const HOSTILE: &str = "<img src=x onerror=alert(1)><script>alert(1)</script>\u{202e}gnp";

fn address(server: &Server) -> String {
    format!("http://{}/?workspace={WORKSPACE}", server.admin)
}

/// The text of the first element of its kind.
fn text(selector: &str) -> String {
    format!("document.querySelector({selector:?})?.textContent")
}

/// The names in the list, in the order in which they are seen.
const NAMES: &str = "[...document.querySelectorAll('.row')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map((row) => row.querySelector('.name').textContent).join()";

async fn assert_clean(browser: &Browser, server: &Server) {
    assert_eq!(browser.problems().await, Vec::<String>::new(), "nothing on the console");
    let own = format!("http://{}/", server.admin);
    let foreign: Vec<String> =
        browser.requests().await.into_iter().filter(|url| url.starts_with("http") && !url.starts_with(&own)).collect();
    assert_eq!(foreign, Vec::<String>::new(), "no request to anybody else");
}

async fn assert_accessible(browser: &Browser) {
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")] {
        browser.appear(width, scheme).await;
        browser.wait("document.querySelector('.fresh') === null && document.getAnimations().length === 0").await;
        let Some(violations) = browser.accessibility_violations().await else { return };
        assert_eq!(violations, Vec::<Value>::new(), "at {width} pixels, {scheme}");
    }
    browser.appear(1280, "light").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leads_appear_move_and_open_as_events_come() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start(&Options::default());
    let workspace = format!("/webhooks/omniai/{WORKSPACE}");
    browser.open(&address(&server)).await;
    browser.wait(&format!("{} === 'No leads yet'", text("#welcome h2"))).await;
    browser.wait(&format!("{}.includes('curl http://127.0.0.1:{}/webhooks/omniai')", text("#welcome code"), port(&server.http))).await;
    browser.wait("document.querySelector('#connection').dataset.state === 'live'").await;
    assert_accessible(&browser).await;

    // A lead is born, and another; the one with the latest activity is on top.
    server.apply_to(&workspace, &lead_created("ada")).await;
    server.apply_to(&workspace, &lead_updated("ada")).await;
    server.apply(&message("ada", "a1", "2026-03-01T10:00:00Z")).await;
    browser.wait(&format!("{NAMES} === 'Ada Lovelace'")).await;
    let mut other = message("other", "b1", "2026-03-01T11:00:00Z");
    other["actionLog"]["summary"] = json!(HOSTILE);
    server.apply(&other).await;
    browser.wait(&format!("{NAMES} === 'other,Ada Lovelace'")).await;
    server.apply(&message_with_document("ada", "a2", "2026-03-01T12:00:00Z", "statement")).await;
    browser.wait(&format!("{NAMES} === 'Ada Lovelace,other'")).await;
    browser.wait("document.querySelector('[aria-posinset=\"1\"] .pip.waiting') !== null").await;
    server.apply(&document_extracted("ada", "statement")).await;
    browser.wait("document.querySelector('[aria-posinset=\"1\"] .pip.done') !== null").await;

    // What a lead says stays text.
    let summaries = browser.eval("[...document.querySelectorAll('.row .summary')].map((summary) => summary.textContent)").await;
    assert!(summaries.as_array().is_some_and(|all| all.contains(&json!(HOSTILE))), "{summaries}");
    assert_eq!(browser.eval("document.querySelectorAll('main img, main script').length").await, 0);

    // A click opens a lead; what happens then shows in it.
    browser.click("[aria-posinset=\"1\"] a").await;
    browser.wait(&format!("{} === 'Ada Lovelace' && document.activeElement.id === 'lead-name'", text("#lead-name"))).await;
    browser.wait("document.querySelectorAll('.event').length === 2").await;
    browser.wait(&format!("{}.includes('statement.pdf')", text(".file"))).await;
    browser.wait(&format!("{}.includes('Bank Statement')", text(".document .meta"))).await;
    browser.wait(&format!("{} === '1 of 2'", text("#checklist-title + .sum"))).await;
    server.apply(&message("ada", "a3", "2026-03-01T13:00:00Z")).await;
    browser.wait(&format!("{}.includes('a3') && document.querySelectorAll('.event').length === 3", text(".event-summary"))).await;
    browser.wait(&format!("{} === '3'", text("#messages-title + .sum"))).await;
    assert_accessible(&browser).await;

    // The keyboard does it all: back to the row, down, open, search.
    browser.press(ESCAPE).await;
    browser.wait("document.querySelector('#lead').hidden && document.activeElement.closest('.row')?.ariaPosInSet === '1'").await;
    browser.press(DOWN).await;
    browser.wait("document.activeElement.closest('.row')?.ariaPosInSet === '2'").await;
    browser.press("kj").await;
    browser.press(ENTER).await;
    browser.wait(&format!("{} === 'other' && location.search.includes('lead=other')", text("#lead-name"))).await;
    browser.wait(&format!("{} === {}", text(".event-summary"), json!(HOSTILE))).await;
    browser.press("k").await;
    browser.wait(&format!("{} === 'Ada Lovelace'", text("#lead-name"))).await;
    browser.press(ESCAPE).await;
    browser.press("/othe").await;
    browser.wait(&format!("{NAMES} === 'other' && {} === '1 of 2 leads'", text("#count"))).await;
    browser.press(ESCAPE).await;
    browser.wait(&format!("{NAMES} === 'Ada Lovelace,other'")).await;
    browser.press(ESCAPE).await;
    assert_accessible(&browser).await;

    // A lead that is not born yet can be waited for.
    browser.open(&format!("{}&lead=unborn", address(&server))).await;
    browser.wait(&format!("{}?.startsWith('There is no such lead') ?? false", text(".lead-body > .note"))).await;
    server.apply(&message("unborn", "c1", "2026-03-01T09:00:00Z")).await;
    browser.wait("document.querySelectorAll('.event').length === 1 && document.querySelector('.lead-body > .note').hidden").await;
    browser.press(ESCAPE).await;
    browser.wait(&format!("{NAMES} === 'Ada Lovelace,other,unborn'")).await;

    // What was deleted is gone.
    server.client().delete_lead(leadfold::api::DeleteLeadRequest { lead_id: "other".to_owned() }).await.expect("deleted");
    browser.wait(&format!("{NAMES} === 'Ada Lovelace,unborn'")).await;
    assert_clean(&browser, &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_said_and_nothing_is_missed() {
    let Some(browser) = Browser::start().await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = Server::start(&Options::default().data_dir(dir.path()));
    server.apply(&message("one", "a1", SAMPLE_TIME)).await;
    browser.open(&format!("{}&lead=one", address(&server))).await;
    browser.wait("document.querySelectorAll('.event').length === 1").await;
    browser.wait("document.querySelector('#connection').dataset.state === 'live'").await;
    let admin = server.admin.clone();
    tokio::task::block_in_place(|| server.terminate());
    browser.wait("document.querySelector('#connection').dataset.state === 'waiting'").await;
    let said = browser.eval(&text("#connection")).await;
    assert!(said.as_str().is_some_and(|said| said.contains("Reconnecting") && said.contains("as of")), "{said}");
    assert_eq!(browser.eval("document.querySelectorAll('.row').length").await, 1, "what was known stays on the page");

    let server = Server::start(&Options::default().data_dir(dir.path()).admin(&admin));
    server.apply(&message("one", "a2", "2026-03-01T10:00:00Z")).await;
    server.apply(&message("two", "b1", "2026-03-01T11:00:00Z")).await;
    browser.wait(&format!("{NAMES} === 'two,one'")).await;
    browser.wait("document.querySelectorAll('.event').length === 2").await;
    browser.wait("document.querySelector('#connection').dataset.state === 'live'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_for_and_kept_for_the_tab() {
    let Some(browser) = Browser::start().await else { return };
    let token = "browser-test-token-0123456789";
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("tokens.toml");
    std::fs::write(&file, format!("[[token]]\nname = \"t\"\ntoken = \"{token}\"\nworkspaces = [\"{WORKSPACE}\"]\n")).expect("the file");
    let path: &'static str = Box::leak(file.display().to_string().into_boxed_str());
    let server = Server::start(&Options::default().env("LEADFOLD_TOKENS_FILE", path));
    server.apply(&message("one", "a1", SAMPLE_TIME)).await;
    browser.open(&address(&server)).await;
    browser.wait("document.activeElement.id === 'token'").await;
    browser.press("not-the-right-token-at-all").await;
    browser.press(ENTER).await;
    browser.wait(&format!("{}?.includes('not known') ?? false", text("#welcome .problem"))).await;
    browser.wait("document.activeElement.id === 'token'").await;
    browser.press(token).await;
    browser.press(ENTER).await;
    browser.wait(&format!("{NAMES} === 'one'")).await;
    assert_eq!(browser.eval("JSON.stringify({ ...localStorage }).includes('token')").await, false);
    browser.open(&address(&server)).await;
    browser.wait(&format!("{NAMES} === 'one'")).await;

    // Once it is revoked, nothing is shown any more.
    std::fs::write(&file, format!("[[token]]\nname = \"u\"\ntoken = \"{token}-2\"\nworkspaces = [\"{WORKSPACE}\"]\n")).expect("the file");
    browser.wait("document.querySelector('#token') !== null && document.querySelector('#scroller').hidden").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_leads_are_there_at_once_and_cost_little() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start(&Options::default());
    let posts = (0..1000)
        .map(|number| message(&format!("lead-{number:04}"), "a1", &format!("2026-03-01T10:{:02}:{:02}Z", number / 60, number % 60)));
    stream::iter(posts)
        .for_each_concurrent(32, async |event| {
            server.apply(&event).await;
        })
        .await;
    browser.open("about:blank").await;
    let began = Instant::now();
    browser.open(&address(&server)).await;
    browser.wait("document.querySelector('.row') !== null").await;
    let first = began.elapsed();
    browser.wait(&format!("{} === '1,000 leads'", text("#count"))).await;
    let all = began.elapsed();
    let rows = browser.eval("document.querySelectorAll('.row').length").await;
    assert!(rows.as_u64().is_some_and(|rows| (10..60).contains(&rows)), "only what can be seen is there: {rows} rows");

    browser.devtools("Performance.enable", json!({})).await;
    let before = scripting(&browser).await;
    let began = Instant::now();
    let updates = 300;
    stream::iter(0..updates)
        .for_each_concurrent(8, async |number| {
            let lead_id = format!("lead-{:04}", (number * 37) % 1000);
            server.apply(&message(&lead_id, &format!("u{number}"), &format!("2026-03-02T10:{:02}:{:02}Z", number / 60, number % 60))).await;
        })
        .await;
    let rate = f64::from(updates) / began.elapsed().as_secs_f64();
    browser.wait(&format!("{NAMES}.startsWith('lead-{:04},')", ((updates - 1) * 37) % 1000)).await;
    let cost = (scripting(&browser).await - before) / f64::from(updates);
    println!("1,000 leads: first rows after {first:?}, all after {all:?}; at {rate:.0} updates/s, {cost:.2} ms of scripting each");
    assert!(all < PATIENCE && cost < 15.0, "{all:?}, {cost} ms");

    // To the last row and back, by keyboard.
    browser.press("j").await;
    browser.press("\u{e010}").await;
    browser.wait("document.activeElement.closest('.row')?.ariaPosInSet === '1000'").await;
    browser.press("\u{e011}").await;
    browser.wait("document.activeElement.closest('.row')?.ariaPosInSet === '1'").await;
    assert_clean(&browser, &server).await;
}

/// Milliseconds that the page's scripts have run.
async fn scripting(browser: &Browser) -> f64 {
    let metrics = browser.devtools("Performance.getMetrics", json!({})).await;
    let of = metrics["metrics"].as_array().and_then(|all| all.iter().find(|metric| metric["name"] == "ScriptDuration").cloned());
    of.and_then(|metric| metric["value"].as_f64()).expect("a number") * 1000.0
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().expect("a port")
}
