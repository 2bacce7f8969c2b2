//! Page tokens: where the next page begins.
//!
//! A token holds the place of the last item that was returned, not a number of items, so it stays true while
//! leads move. It also holds a check of itself and of the query it belongs to, so that one that is broken or
//! of another query is refused instead of answered wrongly. It grants nothing: whoever could make one up could
//! as well have asked.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::Status;
use xxhash_rust::xxh3::xxh3_64;

use super::status::invalid;
use crate::time::Timestamp;

const CHECK_BYTES: usize = 8;
const TIME_BYTES: usize = 8;

/// Makes the token of a place within a query. `query` names the query in any unambiguous way.
pub(crate) fn encode(query: &str, time: Timestamp, id: &str) -> String {
    let mut bytes = time.micros().to_be_bytes().to_vec();
    bytes.extend_from_slice(id.as_bytes());
    let mut token = check(query, &bytes).to_vec();
    token.extend_from_slice(&bytes);
    URL_SAFE_NO_PAD.encode(token)
}

/// The place of a token; `None` for an empty one, which begins at the beginning.
///
/// # Errors
/// The token is broken or of another query.
pub(crate) fn decode(query: &str, token: &str) -> Result<Option<(Timestamp, String)>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let parsed = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (own_check, bytes) = bytes.split_at_checked(CHECK_BYTES)?;
        let (time, id) = bytes.split_at_checked(TIME_BYTES)?;
        let time = Timestamp::from_micros(i64::from_be_bytes(time.try_into().ok()?));
        let id = String::from_utf8(id.to_vec()).ok()?;
        (own_check == check(query, bytes)).then_some((time, id))
    };
    parsed().map(Some).ok_or_else(|| invalid("page_token", "is broken, or not of this query: begin again without it"))
}

fn check(query: &str, place: &[u8]) -> [u8; CHECK_BYTES] {
    let mut bytes = xxh3_64(query.as_bytes()).to_be_bytes().to_vec();
    bytes.extend_from_slice(place);
    xxh3_64(&bytes).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_finds_its_place_again() {
        let time = Timestamp::from_micros(1_761_854_837_553_000);
        for id in ["", "a", "ÄÖ{}:\n", "4cc8af99-b313-4c1f-b98b-009f38a4721a"] {
            let token = encode("leads w", time, id);
            assert_eq!(decode("leads w", &token).expect("own token"), Some((time, id.to_owned())));
        }
        assert_eq!(decode("leads w", "").expect("no token"), None);
    }

    #[test]
    fn a_broken_token_and_one_of_another_query_are_refused() {
        let token = encode("leads w", Timestamp::from_micros(5), "lead");
        assert!(decode("leads x", &token).is_err());
        for at in 0..token.len() {
            let mut broken = token.clone().into_bytes();
            broken[at] = if broken[at] == b'A' { b'B' } else { b'A' };
            assert!(decode("leads w", &String::from_utf8(broken).expect("ascii")).is_err(), "byte {at}");
        }
        for bad in ["x", "!!!!", &token[1..], &token[..token.len() - 1], &"A".repeat(10_000)] {
            assert!(decode("leads w", bad).is_err(), "{bad:.40}");
        }
    }
}
