//! Stored records: any bytes are read or refused, and what was read is written so that it reads the same.

use std::fmt::Debug;

use crate::lead::Change;
use crate::spool::record as spool;
use crate::store::StoreError;
use crate::store::embedded::head::Head;
use crate::store::record::{decode_activity, decode_detail, encode_activity, encode_detail, encode_detail_key, pack, unpack};

/// The first byte chooses the kind of the record, the others are the record.
pub fn record(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        b'a' => settles(bytes, |bytes| decode_activity("action".to_owned(), bytes), |activity| encode_activity(activity, activity.version)),
        b'd' => detail(bytes),
        b'h' => settles(bytes, Head::decode, Head::encode),
        b'i' => id(bytes),
        b's' => spooled(bytes),
        _ => {}
    }
}

/// A byte for the length of the key, the key, the record.
fn detail(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else { return };
    let Some((key, bytes)) = rest.split_at_checked(usize::from(*length)) else { return };
    settles(bytes, |bytes| decode_detail(key, bytes), |detail| encode_detail(detail, detail.version()));
    if let Ok(detail) = decode_detail(key, bytes) {
        let key = encode_detail_key(detail.key());
        let again = decode_detail(&key, &encode_detail(&detail, detail.version())).expect("under its own key");
        assert_eq!(again.key(), detail.key(), "its own key is another one's");
    }
}

fn id(bytes: &[u8]) {
    if let Ok(id) = std::str::from_utf8(bytes) {
        assert_eq!(unpack(&pack(id)).expect("our own"), id);
    }
    if let Ok(id) = unpack(bytes) {
        assert_eq!(unpack(&pack(&id)).expect("our own"), id);
    }
}

/// A spool's file from any place on: a record, the beginning of one, or damage.
fn spooled(bytes: &[u8]) {
    match spool::next(bytes) {
        spool::Next::Record(_, body, taken) => {
            assert!(taken <= bytes.len() && body.len() < taken);
            let _ = spool::decode(body);
        }
        spool::Next::Partial(needed) => assert!(needed > bytes.len()),
        spool::Next::Damaged => {}
    }
    if let Ok(change) = serde_json::from_slice::<Change>(bytes) {
        let meta = spool::Meta::of(&change);
        let written = spool::encode(&change, meta).expect("JSON");
        let spool::Next::Record(found, body, taken) = spool::next(&written) else { panic!("not a record") };
        assert_eq!((found, taken, spool::decode(body)), (meta, written.len(), Ok(change)));
    }
}

/// What is read may be odd (nobody but us writes records), so the first writing may tidy it; after that, reading
/// and writing change nothing.
fn settles<T: PartialEq + Debug>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, StoreError>, encode: impl Fn(&T) -> Vec<u8>) {
    let Ok(first) = decode(bytes) else { return };
    let tidy = encode(&first);
    let second = decode(&tidy).expect("what we wrote ourselves");
    assert_eq!(encode(&second), tidy);
    assert_eq!(decode(&encode(&second)).expect("what we wrote ourselves"), second);
}
