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

/// A spool's file from any place on: a record, the beginning of one, or damage. Whatever stands before a record, it is
/// found.
fn spooled(bytes: &[u8]) {
    match spool::next(bytes) {
        spool::Next::Record(header, body) => {
            assert!(header.total() <= bytes.len() && body.len() < header.total());
            let _ = spool::decode(&header, body);
        }
        spool::Next::Damaged(header) => assert!(header.total() <= bytes.len()),
        spool::Next::Partial(needed) => assert!(needed > bytes.len()),
        spool::Next::NoHeader => {}
    }
    let change = serde_json::from_slice::<Change>(bytes).ok();
    let meta = spool::Meta::of(change.as_ref().unwrap_or(&Change::default()));
    let mut written = spool::encode(change.as_ref().unwrap_or(&Change::default()), meta).expect("JSON");
    spool::set_sequence(&mut written, 7);
    if let Some(change) = change {
        let spool::Next::Record(header, body) = spool::next(&written) else { panic!("not a record") };
        assert_eq!((header.sequence, header.meta, header.total(), spool::decode(&header, body)), (7, meta, written.len(), Ok(change)));
    }
    let (at, header) = spool::find_header(&[bytes, &written].concat(), 0, 7).expect("the record behind");
    // There may be another one in what stands before.
    assert!(at <= bytes.len() && header.sequence >= 7);
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
