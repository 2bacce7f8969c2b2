//! Reading leads: what the replies of `lua/read.lua` and `lua/activities.lua` mean.

use redis::Value;

use super::keys::split_pair_field;
use super::reply;
use crate::lead::{Activity, Lead, MessageCount};
use crate::store::{Read, StoreError, record};
use crate::time::Timestamp;

/// A lead as the script read it.
pub(super) struct Answer {
    pub(super) read: Read,
    /// The greatest time that was trimmed from the history.
    pub(super) floor: Option<Timestamp>,
}

/// `None`: there is no such lead. At most `most` of the activities that were missed are told.
pub(super) fn lead(lead_id: &str, value: Value, most: usize) -> Result<Option<Answer>, StoreError> {
    let mut parts = reply::array(value)?.into_iter();
    let Some(head) = parts.next() else { return Ok(None) };
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let (details, latest, missed, complete) = (next(), next(), next(), next());

    let mut lead = Lead { lead_id: lead_id.to_owned(), ..Lead::default() };
    let mut latest_id = None;
    let mut floor = None;
    for (field, value) in reply::pairs(head)? {
        let field = reply::text(field)?;
        let time = |value: Value| -> Result<Timestamp, StoreError> { Ok(Timestamp::from_micros(reply::number(&reply::text(value)?)?)) };
        match &*field {
            "v" => lead.version = reply::number(&reply::text(value)?)?,
            "w" => lead.workspace_id = reply::text(value)?,
            "f" => lead.first_activity = Some(time(value)?),
            "i" => latest_id = Some(record::unpack(&reply::bytes(value)?)?),
            "n" => {
                let text = reply::text(value)?;
                floor = text.split_once(' ').map(|(_, floor)| reply::number(floor).map(Timestamp::from_micros)).transpose()?;
            }
            _ => match split_pair_field(&field) {
                Some(('a', pair)) => drop(lead.activity_counts.insert(pair, reply::number(&reply::text(value)?)?)),
                Some(('m', pair)) => message_count(&mut lead, pair).count = reply::number(&reply::text(value)?)?,
                Some(('t', pair)) => message_count(&mut lead, pair).latest = time(value)?,
                _ => {}
            },
        }
    }
    for (key, value) in reply::pairs(details)? {
        lead.insert(record::decode_detail(&reply::bytes(key)?, &reply::bytes(value)?)?);
    }
    lead.sort_documents();
    if let Some(id) = latest_id {
        lead.latest_activity = Some(record::decode_activity(id, &reply::bytes(latest)?)?);
    }
    let mut missed = activities(missed)?;
    missed.sort_by_key(|activity| activity.version);
    let mut complete = complete == Value::Int(1);
    if missed.len() > most {
        missed.drain(..missed.len() - most);
        complete = false;
    }
    Ok(Some(Answer { read: Read { lead, missed, complete }, floor }))
}

fn message_count(lead: &mut Lead, pair: (String, String)) -> &mut MessageCount {
    lead.message_counts.entry(pair).or_default()
}

/// Activities from a flat list of packed ids and records.
pub(super) fn activities(value: Value) -> Result<Vec<Activity>, StoreError> {
    let decode = |(id, bytes): (Value, Value)| record::decode_activity(record::unpack(&reply::bytes(id)?)?, &reply::bytes(bytes)?);
    reply::pairs(value)?.into_iter().map(decode).collect()
}
