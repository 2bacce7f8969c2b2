//! What no sender should send.

use std::fmt::Write as _;

use leadfold::api::{GetLeadRequest, ListLeadsRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::support::events::{SAMPLE, SAMPLE_LEAD, SAMPLE_TIME, WORKSPACE, lead_updated, message, message_with_document, sample_on};
use crate::support::server::{Server, WEBHOOK};
use crate::support::{Setup, fresh_id, is_about_now, on_both_stores, time};

on_both_stores!(
    ids_are_data_and_stay_apart,
    ids_have_an_end,
    a_size_that_is_none_is_unknown,
    a_time_that_is_none_or_far_off_is_that_of_the_receipt,
);

const MEBIBYTE: usize = 1 << 20;

/// What is refused before any store is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_event_is_refused() {
    let server = Setup::embedded();
    for end in [1, 10, SAMPLE.len() / 2, SAMPLE.trim_end().len() - 1] {
        server.post(&SAMPLE[..end]).await.assert_refused(400, "");
    }
    let array = format!("[{SAMPLE}]");
    let trailing = format!("{SAMPLE}{SAMPLE}");
    for body in
        ["", " \n", "null", "true", "7", "\"text\"", "[]", "{", "}", "{]", "{\"event\" \"x\"}", "\u{feff}", "{}\0{}", &array, &trailing]
    {
        server.post(body).await.assert_refused(400, "");
    }
    server.post("{}").await.assert_refused(400, "event");
    server.post("{\"event\":[]}").await.assert_refused(400, "event");
}

/// Bytes that are no UTF-8, and escapes that are no character.
const NO_TEXT: [&[u8]; 7] = [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xc0\x80", br"\ud83d", br"\ude00", br"\x41"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_text_costs_a_character_and_not_the_event() {
    let server = Setup::embedded();
    for bytes in NO_TEXT {
        // In a field that is kept, in two that are skipped, and in a name.
        for place in ["docs.pdf", "<div dir", "Mark Ding <mark-local@", "subject"] {
            let lead_id = fresh_id();
            let body = replaced_in(&SAMPLE.replace(SAMPLE_LEAD, &lead_id), place, bytes);
            let answer = server.post(body).await;
            assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{place} {bytes:?}: {answer:?}");
            let document = &server.lead(&lead_id).await.documents[0];
            assert_eq!(document.filename.contains('\u{fffd}'), place == "docs.pdf", "{document:?}");
        }
        // An id of which a character is lost may be any.
        for (place, field) in [
            ("59ac65a5-", "actionLog.id"),
            (&SAMPLE_LEAD[..8], "actionLog.leadId"),
            (&WORKSPACE[..8], "workspaceId"),
            ("MESSAGE", "actionLog.type"),
        ] {
            server.post(replaced_in(SAMPLE, place, bytes)).await.assert_refused(400, field);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_field_that_stands_twice_is_refused() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    let body = sample_on(&lead_id).to_string();
    let twice = [
        body.replacen("{\"actionLog\"", "{\"workspaceId\":\"another\",\"actionLog\"", 1),
        body.replacen("{\"actionLog\"", "{\"actionLog\":{},\"actionLog\"", 1),
        body.replacen("\"leadId\"", "\"leadId\":\"another\",\"leadId\"", 1),
        body.replacen("\"status\"", "\"status\":\"FAILED\",\"status\"", 1),
        body.replacen("\"filename\"", "\"size\":1,\"filename\"", 1),
        format!("{},\"event\":\"lead.created\"}}", &body[..body.len() - 1]),
    ];
    for twice in &twice {
        assert_ne!(twice, &body);
        let answer = server.post(&**twice).await;
        assert_eq!((answer.status, answer.outcome()), (400, ""), "{twice}: {answer:?}");
    }
    let status = server.client().get_lead(GetLeadRequest { lead_id }).await.expect_err("no lead");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_array_is_no_object() {
    let server = Setup::embedded();
    // The field's values in the order in which the code happens to declare them.
    for (pointer, field, array) in [
        ("/actionLog", "actionLog", json!(["a1", "MESSAGE", "COMPLETED", "the-lead"])),
        ("/actionLog", "actionLog", json!([])),
        ("/actionLog/messages/0", "actionLog.messages[0]", json!(["m1", "EMAIL"])),
        ("/actionLog/messages/0/documents/0", "actionLog.messages[0].documents[0]", json!(["d1"])),
    ] {
        let mut event = sample_on(&fresh_id());
        *event.pointer_mut(pointer).expect(pointer) = array;
        server.post(event.to_string()).await.assert_refused(400, field);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nesting_without_end_costs_nothing() {
    let server = Setup::embedded();
    let objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let arrays = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let place = "\"the nesting\"";
    for deep in [&objects, &arrays] {
        assert_eq!(server.post(&**deep).await.status, 400, "the whole body");
        // Where it is skipped, it is no reason to lose the event.
        for pointer in
            ["/actionLog/input/metadata", "/actionLog/input/documents", "/actionLog/input/channel", "/actionLog/output", "/other"]
        {
            let mut event = message(&fresh_id(), "a1", SAMPLE_TIME);
            let (parent, name) = pointer.rsplit_once('/').expect(pointer);
            event.pointer_mut(parent).expect(pointer)[name] = json!("the nesting");
            let answer = server.post(event.to_string().replace(place, deep)).await;
            assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{pointer}: {answer:?}");
        }
        // Where it is kept, it is kept as a text, and cut.
        let lead_id = fresh_id();
        let mut event = lead_updated(&lead_id);
        event["data"]["checklistItems"][0]["value"] = json!("the nesting");
        assert_eq!(server.post(event.to_string().replace(place, deep)).await.status, 200, "the value of an item");
        let value = &server.lead(&lead_id).await.checklist_items[0].value;
        assert!(value.len() <= 4096 && value.starts_with(&deep[..4000]) && value.ends_with('…'), "{value}");
    }
}

/// Bodies of a mebibyte that cost the server seconds where it compares each part with each: with a lead that is kept, and
/// with a dead letter. Tests run a server that is not optimised, so the bound is not that of the release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_keeps_the_server_busy() {
    let server = Setup::embedded();
    let filled = |event: &Value, entry: &dyn Fn(usize) -> String| {
        let event = event.to_string();
        let mut entries = String::new();
        for number in 0.. {
            let entry = entry(number);
            if event.len() + entries.len() + entry.len() > MEBIBYTE {
                break;
            }
            entries += if number > 0 { "," } else { "" };
            entries += &entry;
        }
        event.replace("\"the entries\"", &format!("[{entries}]"))
    };
    let mut messages = message(&fresh_id(), "a1", SAMPLE_TIME);
    messages["actionLog"]["messages"] = json!("the entries");
    let mut payload = message(&fresh_id(), "a1", SAMPLE_TIME);
    payload["actionLog"]["output"] = json!({"documents": "the entries"});
    let mut items = lead_updated(&fresh_id());
    items["data"]["checklistItems"] = json!("the entries");
    let many = (0..499).map(|number| format!("{{\"documentId\":\"{number}\"}}")).collect::<Vec<_>>().join(",");
    let large_first = |number| {
        if number == 0 {
            format!("{{\"checklistItemId\":\"i\",\"updatedAt\":\"2025-01-01T00:00:00Z\",\"documents\":[{many}]}}")
        } else {
            "{\"checklistItemId\":\"i\"}".to_owned()
        }
    };
    for (what, status, body) in [
        ("distinct directions", 400, filled(&messages, &|number| format!("{{\"direction\":\"{number}\"}}"))),
        ("499 directions again and again", 200, filled(&messages, &|number| format!("{{\"direction\":\"{}\"}}", number % 499))),
        ("distinct messages", 400, filled(&messages, &|number| format!("{{\"id\":\"{number}\"}}"))),
        ("499 messages again and again", 200, filled(&messages, &|number| format!("{{\"id\":\"{}\"}}", number % 499))),
        ("499 documents again and again", 200, filled(&payload, &|number| format!("{{\"id\":\"{}\"}}", number % 499))),
        ("one item with many documents, then without", 200, filled(&items, &large_first)),
        (
            "control characters",
            200,
            message(&fresh_id(), "a1", SAMPLE_TIME).to_string().replace("\"Incoming", &format!("\"{}", "\t".repeat(MEBIBYTE - 2000))),
        ),
    ] {
        let cpu = || server.metric("process_cpu_seconds_total");
        let before = cpu().await;
        let answer = server.post(body).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        let took = cpu().await - before;
        assert!(took < 4.0, "{what}: {took} s");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_has_an_end() {
    let server = Setup::embedded();
    let padded = |lead_id: &str, length: usize| {
        let mut body = message(lead_id, "a1", SAMPLE_TIME).to_string();
        body.extend(std::iter::repeat_n(' ', length - body.len()));
        body
    };
    let answer = server.post(padded(&fresh_id(), MEBIBYTE)).await;
    assert_eq!((answer.status, answer.outcome()), (200, "applied"), "exactly the limit: {answer:?}");
    for length in [MEBIBYTE + 1, 4 * MEBIBYTE, 12 * MEBIBYTE] {
        server.post(padded(&fresh_id(), length)).await.assert_refused(413, "");
    }
    // A sender that does not tell the length beforehand gets no further.
    let body = padded(&fresh_id(), MEBIBYTE + 1);
    let chunked = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(raw_post(&server, &chunked).await, "HTTP/1.1 413 Payload Too Large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_json_is_taken_and_only_by_post() {
    let server = Setup::embedded();
    for json in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/cloudevents+json",
        "application/vnd.x+json;v=1",
    ] {
        let event = message(&fresh_id(), "a1", SAMPLE_TIME).to_string();
        let answer = server.post_to(WEBHOOK, json, event).await;
        assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{json}: {answer:?}");
    }
    for other in
        ["text/plain", "application/xml", "application/x-www-form-urlencoded", "application/jsonp", "application/json-seq", "json", "+json"]
    {
        server.post_to(WEBHOOK, other, SAMPLE).await.assert_refused(415, "");
    }
    let without = format!("content-length: {}\r\n\r\n{SAMPLE}", SAMPLE.len());
    assert_eq!(raw_post(&server, &without).await, "HTTP/1.1 415 Unsupported Media Type", "none at all");

    let web = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    for path in [WEBHOOK, &format!("{WEBHOOK}/w")] {
        for method in [reqwest::Method::GET, reqwest::Method::PUT, reqwest::Method::DELETE] {
            let answer = web.request(method, format!("http://{}{path}", server.http)).send().await.expect("an answer");
            assert_eq!(answer.status(), 405);
            assert_eq!(answer.headers().get("allow").map(reqwest::header::HeaderValue::as_bytes), Some(&b"POST"[..]));
        }
    }
    for path in ["/", "/webhooks", "/webhooks/other", "/livez", "/metrics"] {
        assert_eq!(server.post_to(path, "application/json", SAMPLE).await.status, 404, "{path}: this port takes webhooks only");
    }
}

async fn ids_are_data_and_stay_apart(server: Setup) {
    let ids = strange_ids();
    let mut versions = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        // The same strange id everywhere, and one thing by which to know the lead again.
        let mut event = message_with_document(id, id, SAMPLE_TIME, id);
        event["workspaceId"] = json!(id);
        event["actionLog"]["summary"] = json!(format!("of lead {index}"));
        event["actionLog"]["messages"][0]["id"] = json!(id);
        versions.push(server.apply(&event).await);
    }
    for (index, (id, version)) in ids.iter().zip(versions).enumerate() {
        let lead = server.lead(id).await;
        assert_eq!((&lead.lead_id, &lead.workspace_id, lead.version), (id, id, version));
        assert_eq!((lead.message_count, lead.document_count), (1, 1), "{id:?}");
        let activity = lead.latest_activity.as_ref().expect("its activity");
        assert_eq!((&activity.action_id, &activity.document_ids), (id, &vec![id.clone()]));
        assert_eq!(activity.summary, format!("of lead {index}"));
        assert_eq!((&lead.documents[0].document_id, &lead.documents[0].message_id), (id, id));
        let listed = server.client().list_leads(ListLeadsRequest { workspace_id: id.clone(), ..Default::default() }).await;
        assert_eq!(listed.expect("a list").into_inner().leads, [lead], "its workspace has one lead: {id:?}");
    }
}

async fn ids_have_an_end(server: Setup) {
    for (pointer, field) in [("/workspaceId", "workspaceId"), ("/actionLog/id", "actionLog.id"), ("/actionLog/leadId", "actionLog.leadId")]
    {
        let mut event = sample_on(&fresh_id());
        for too_long in ["x".repeat(4096), "x".repeat(257), "ü".repeat(129)] {
            *event.pointer_mut(pointer).expect(pointer) = json!(too_long);
            let answer = server.post(event.to_string()).await;
            answer.assert_refused(400, field);
            assert!(answer.body["error"].as_str().is_some_and(|error| error.contains("longer than 256 bytes")), "{answer:?}");
        }
    }
    // Nor is an id that an event can do without.
    let lead_id = fresh_id();
    let mut event = sample_on(&lead_id);
    event["actionLog"]["messages"][0]["id"] = json!("x".repeat(257));
    event["actionLog"]["messages"][0]["documents"][0]["id"] = json!("x".repeat(257));
    server.apply(&event).await;
    let lead = server.lead(&lead_id).await;
    assert_eq!((lead.message_count, lead.document_count), (1, 0), "{lead:?}");
    for longest in ["x".repeat(256), "ü".repeat(128)] {
        let mut event = sample_on(&longest);
        event["actionLog"]["id"] = json!(longest);
        event["workspaceId"] = json!(longest);
        server.apply(&event).await;
        let lead = server.lead(&longest).await;
        assert_eq!((&lead.lead_id, &lead.workspace_id), (&longest, &longest));
    }
}

async fn a_size_that_is_none_is_unknown(server: Setup) {
    let sizes = [
        ("-1", None),
        ("-0.0", Some(0)),
        ("0", Some(0)),
        ("1.5", None),
        ("1e308", None),
        ("1000.0", Some(1000)),
        ("1e3", Some(1000)),
        ("9007199254740992", Some(1 << 53)),
        ("9007199254740993", None),
        ("18446744073709551616", None),
        ("null", None),
    ];
    for (size, expected) in sizes {
        let lead_id = fresh_id();
        let event = message_with_document(&lead_id, "a1", SAMPLE_TIME, "d1").to_string();
        let answer = server.post(event.replace("\"size\":1000", &format!("\"size\":{size}"))).await;
        assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{size}: {answer:?}");
        assert_eq!(server.lead(&lead_id).await.documents[0].size_bytes, expected, "{size}");
    }
}

async fn a_time_that_is_none_or_far_off_is_that_of_the_receipt(server: Setup) {
    let counter = "leadfold_unread_fields_total{field=\"actionLog.completedAt\"}";
    let none = ["yesterday", "2025-10-30", "2025-10-30T20:07:17", "2025-02-30T00:00:00Z", "2025-10-30T25:00:00Z"];
    let far_off = ["0001-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "9999-12-31T23:59:59Z", "2262-04-11T23:47:17Z"];
    for (index, unusable) in none.iter().chain(&far_off).enumerate() {
        let lead_id = fresh_id();
        server.apply(&message(&lead_id, "a1", unusable)).await;
        assert_eq!(server.metric(counter).await, (index + 1) as f64, "{unusable}");
        let lead = server.lead(&lead_id).await;
        let activity = lead.latest_activity.expect("its activity");
        assert!(is_about_now(activity.complete_time.as_ref()), "{unusable}: {activity:?}");
        assert_eq!(lead.first_activity_time, activity.complete_time);
    }
    for same in ["2025-10-30T22:07:17.553+02:00", "2025-10-30T20:07:17.553000999Z", "2025-10-30t20:07:17.553z"] {
        let lead_id = fresh_id();
        server.apply(&message(&lead_id, "a1", same)).await;
        assert_eq!(server.lead(&lead_id).await.latest_activity_time, Some(time(SAMPLE_TIME)), "{same}");
    }
    // An older sender tells the time outside of the action.
    let lead_id = fresh_id();
    let mut event = message(&lead_id, "a1", SAMPLE_TIME);
    event["actionLog"]["completedAt"] = Value::Null;
    event["occurredAt"] = json!("2025-10-01T00:00:00Z");
    server.apply(&event).await;
    assert_eq!(server.lead(&lead_id).await.latest_activity_time, Some(time("2025-10-01T00:00:00Z")));
    // Where neither can be read, the first delivery's receipt stands.
    let lead_id = fresh_id();
    let mut event = message(&lead_id, "a1", "soon");
    event["occurredAt"] = json!("soon");
    let version = server.apply(&event).await;
    let again = server.post(event.to_string()).await;
    assert_eq!((again.outcome(), again.version()), ("duplicate", version));
}

/// Ids that mean something to somebody: to Redis, to JSON, to a path, to a UUID parser. No two are equal, though
/// some look it.
fn strange_ids() -> Vec<String> {
    let mut ids: Vec<String> = [
        "{",
        "}",
        "{}",
        "a{b}c",
        "{b}",
        "b",
        "a:b",
        "a:b:c",
        ":",
        " ",
        " b",
        "b ",
        "b\n",
        "\nb",
        "b\r\n",
        "\t",
        "*",
        "?",
        "[b]",
        "b*",
        "\0",
        "b\0",
        "b\0c",
        "\u{1f}",
        "\u{7f}",
        "ü",
        "u\u{308}",
        "Ü",
        "日本",
        "🦀",
        "\\",
        "\\u0000",
        "\"",
        "'",
        "%2F",
        "a/b",
        "../b",
        "\u{feff}b",
        "\u{202e}b",
        "-1",
        "0",
        "00",
        "0.0",
        "null",
        "true",
        "__proto__",
        "NaN",
        "0123456789abcdef",
        WORKSPACE,
    ]
    .map(str::to_owned)
    .to_vec();
    // Records keep a UUID as 16 bytes: only in its usual spelling, for another one is another id.
    ids.extend([WORKSPACE.to_uppercase(), WORKSPACE.replace('-', ""), format!("{{{WORKSPACE}}}"), format!("urn:uuid:{WORKSPACE}")]);
    ids.push(WORKSPACE[..16].to_owned());
    ids.push(WORKSPACE.replacen('a', "A", 1));
    ids
}

/// A body with some of its text replaced by bytes.
fn replaced_in(body: &str, text: &str, by: &[u8]) -> Vec<u8> {
    let at = body.find(text).expect(text);
    [&body.as_bytes()[..at], by, &body.as_bytes()[at + text.len()..]].concat()
}

/// Sends a POST as it is written here, and returns the first line of the answer.
async fn raw_post(server: &Server, rest: &str) -> String {
    let mut head = format!("POST {WEBHOOK} HTTP/1.1\r\nhost: leadfold\r\n");
    if rest.starts_with("transfer-encoding") {
        head.push_str("content-type: application/json\r\n");
    }
    write!(head, "{rest}").expect("text");
    let stream = tokio::net::TcpStream::connect(&server.http).await.expect("a connection");
    let (mut read, mut write) = stream.into_split();
    // The answer may come, and the connection end, before everything is sent.
    let sent = tokio::spawn(async move { (write.write_all(head.as_bytes()).await, write) });
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    let line = async {
        while !answer.contains(&b'\n') {
            let count = read.read(&mut chunk).await.expect("an answer");
            assert!(count > 0, "the connection has ended without an answer");
            answer.extend_from_slice(&chunk[..count]);
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, line).await.expect("an answer in time");
    drop(sent);
    String::from_utf8_lossy(&answer).lines().next().unwrap_or("").to_owned()
}
