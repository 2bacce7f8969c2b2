//! Page tokens: whatever a client sends is refused or is a place; what we hand out is found again, and not when a
//! bit of it is changed or the query is another one.

use super::split_at_first;
use crate::grpc::page_token::{decode, encode};
use crate::time::Timestamp;

/// Takes a query and a token, parted by a line feed; and a place to make a token of.
pub fn page_token(data: &[u8]) {
    let (query, rest) = split_at_first(data, b'\n');
    let query = String::from_utf8_lossy(query);
    if let Ok(token) = std::str::from_utf8(rest)
        && let Ok(Some((time, id))) = decode(&query, token)
    {
        assert_eq!(encode(&query, time, &id), token, "two tokens of one place");
    }

    let Some((time, rest)) = rest.split_first_chunk() else { return };
    let time = Timestamp::from_micros(i64::from_be_bytes(*time));
    let Some((at, id)) = rest.split_first() else { return };
    let id = String::from_utf8_lossy(id);
    let token = encode(&query, time, &id);
    assert_eq!(decode(&query, &token).expect("our own token"), Some((time, id.into_owned())));
    assert!(decode(&format!("{query}!"), &token).is_err(), "a token of another query is taken");

    let mut changed = token.into_bytes();
    let at = usize::from(*at) % changed.len();
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    assert!(decode(&query, &String::from_utf8(changed).expect("ASCII")).is_err(), "a changed token is taken");
}
