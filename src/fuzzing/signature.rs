//! Signatures: whatever headers say is read or refused, what a key has signed is good with that key and for that
//! body alone, and no short secret is a key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};

use super::split_at_first;
use crate::webhook::signature::{Key, Problem, Signed};

/// What the server's clock says.
const NOW: i64 = 1_790_000_000;
const TOLERANCE: i64 = 300;

/// Takes a secret, an id, a time and a list of signatures, each ended by a line feed, and a body.
pub fn signature(data: &[u8]) {
    let (secret, rest) = split_at_first(data, b'\n');
    let (id, rest) = split_at_first(rest, b'\n');
    let (time, rest) = split_at_first(rest, b'\n');
    let (list, body) = split_at_first(rest, b'\n');
    let ours = Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
    let theirs = std::str::from_utf8(secret).ok().and_then(|secret| Key::parse(secret).ok()).filter(|key| *key != ours);
    assert!(theirs.is_none() || secret.len() >= 22, "a short secret is a key");

    let key = theirs.as_ref().unwrap_or(&ours);
    let told = headers(id, time, list).map(|headers| read(&headers));
    if let Some(Some(signed)) = told {
        let good = signed.is_by([key], body);
        let made = format!("v1,{}", STANDARD.encode(key.sign(id, time, body)));
        let without_padding = made.trim_end_matches('=');
        let stands_there = list.split(|byte| *byte == b' ').any(|part| part == made.as_bytes() || part == without_padding.as_bytes());
        assert_eq!(good, stands_there, "signed or not");
    }

    let made = format!("v2,x v1,{}", STANDARD.encode(key.sign(id, time, body)));
    if let Some(Some(signed)) = headers(id, time, made.as_bytes()).map(|headers| read(&headers)) {
        assert!(signed.is_by([&ours, key], body), "what we signed ourselves");
        assert!(theirs.is_none() || !signed.is_by([&ours], body), "another key's signature is taken");
        assert!(!signed.is_by([key], &[body, b"!"].concat()), "another body's signature is taken");
    }
}

fn read(headers: &HeaderMap) -> Option<Signed> {
    let signed = Signed::read(headers, NOW);
    let seconds = headers["webhook-timestamp"].to_str().ok().and_then(|text| text.parse::<i64>().ok());
    let fresh = seconds.is_some_and(|seconds| (NOW - TOLERANCE..=NOW + TOLERANCE).contains(&seconds));
    match &signed {
        Ok(_) => assert!(fresh, "a time that is not believed"),
        Err(Problem::Stale) => assert!(!fresh),
        Err(problem) => assert_eq!(*problem, Problem::Malformed),
    }
    signed.ok()
}

/// None where HTTP could not carry them.
fn headers(id: &[u8], time: &[u8], list: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in [("webhook-id", id), ("webhook-timestamp", time), ("webhook-signature", list)] {
        headers.insert(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(headers)
}
