//! Taking replies apart.

use redis::{ErrorKind, RedisError, Value};

use crate::store::StoreError;

pub(super) fn unexpected(value: &Value) -> StoreError {
    StoreError::Corrupt(format!("Redis answered {}", kind(value)))
}

/// The kind of a value, not its contents: those may be a lead's.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a string",
        Value::Array(_) => "an array",
        Value::Map(_) => "a map",
        _ => "something else",
    }
}

pub(super) fn array(value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(values) => Ok(values),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::VerbatimString { text, .. } => Ok(text.into_bytes()),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Int(number) => Ok(number.to_string().into_bytes()),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn text(value: Value) -> Result<String, StoreError> {
    String::from_utf8(bytes(value)?).map_err(|_| StoreError::Corrupt("Redis answered text that is not UTF-8".to_owned()))
}

pub(super) fn number<N: std::str::FromStr>(text: &str) -> Result<N, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt("Redis answered text where a number was due".to_owned()))
}

/// The items of a flat list, two by two.
pub(super) fn pairs(value: Value) -> Result<Vec<(Value, Value)>, StoreError> {
    let mut items = match value {
        Value::Map(pairs) => return Ok(pairs),
        other => array(other)?.into_iter(),
    };
    let mut pairs = Vec::with_capacity(items.len() / 2);
    while let (Some(first), Some(second)) = (items.next(), items.next()) {
        pairs.push((first, second));
    }
    Ok(pairs)
}

/// Counts a call that failed, by the code that Redis gave.
pub(super) fn count(call: &'static str, error: &RedisError) {
    let code = match error.code() {
        Some(code) => code.to_owned(),
        None if error.is_timeout() => "timeout".to_owned(),
        None => "connection".to_owned(),
    };
    metrics::counter!("leadfold_redis_errors_total", "call" => call, "code" => code).increment(1);
}

/// What an error means for the caller, and which server it came from. Only an answer that will be the same next time is
/// final.
pub(super) fn store_error(server: &str, error: &RedisError) -> StoreError {
    let code = match error.code() {
        Some("WRONGTYPE") => return StoreError::Corrupt("a key of the wrong type".to_owned()),
        None if error.kind() == ErrorKind::AuthenticationFailed => Some("WRONGPASS"),
        code => code,
    };
    if error.kind() == ErrorKind::InvalidClientConfig {
        return StoreError::Misconfigured(format!("Redis at {server}: {}", error.detail().unwrap_or("its address cannot be used")));
    }
    if let Some(advice) = code.and_then(advice) {
        // Which command it is about is all that such an answer says besides.
        let which = error.detail().filter(|_| code == Some("NOPERM")).map(|detail| format!(" ({detail})")).unwrap_or_default();
        return StoreError::Refusing(format!("Redis at {server} answered {}{which}", code.unwrap_or_default()), advice);
    }
    StoreError::Unavailable(match error.kind() {
        ErrorKind::MasterNameNotFoundBySentinel | ErrorKind::EmptySentinelList => in_words(error),
        _ => format!("Redis at {server}: {}", in_words(error)),
    })
}

/// An error in words that hold no secret and nothing of a lead.
pub(super) fn in_words(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("it answered {code}"),
        None if error.kind() == ErrorKind::AuthenticationFailed => "it does not take the user or password".to_owned(),
        None if error.is_timeout() => "it did not answer in time".to_owned(),
        // Refused, reset, or why TLS failed: the system's own words.
        None if error.is_io_error() => format!("no connection: {error}"),
        None => match error.kind() {
            ErrorKind::MasterNameNotFoundBySentinel | ErrorKind::InvalidClientConfig => {
                error.detail().unwrap_or("the sentinels name no primary").to_owned()
            }
            _ => "no connection".to_owned(),
        },
    }
}

/// What to do about an answer that waiting does not change. All of these come before anything was written.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "OOM" => "its memory is full: raise its maxmemory",
        "MISCONF" => "it cannot write to its disk: see its log, make room",
        "NOREPLICAS" => "fewer replicas are connected than its min-replicas-to-write",
        "READONLY" => "it is a replica: name the primary in --redis-url, or the sentinels that know it",
        "NOAUTH" | "WRONGPASS" => "it does not take the user or password of --redis-url (LEADFOLD_REDIS_URL)",
        "NOPERM" => "the user of --redis-url lacks a right: the README lists those that are needed",
        _ => return None,
    })
}
