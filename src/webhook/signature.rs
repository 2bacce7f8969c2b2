//! Standard Webhooks (<https://www.standardwebhooks.com>): an HMAC over the id, the time and the body of a message.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

/// What its secrets begin with.
pub const SECRET_PREFIX: &str = "whsec_";
/// Seconds that the sender's clock may differ from ours, either way.
const TOLERANCE: i64 = 5 * 60;
/// Bytes of a key: fewer could be guessed.
const LEAST_KEY: usize = 16;
/// The names of the headers; the second ones are Svix's, who signed like this first.
const IDS: [&str; 2] = ["webhook-id", "svix-id"];
const TIMESTAMPS: [&str; 2] = ["webhook-timestamp", "svix-timestamp"];
const SIGNATURES: [&str; 2] = ["webhook-signature", "svix-signature"];
/// Padded or not.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// What messages are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(***)")
    }
}

impl Key {
    /// Of a secret as the sender shows it, `whsec_` and all.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn parse(secret: &str) -> Result<Self, &'static str> {
        let encoded = secret.strip_prefix(SECRET_PREFIX).unwrap_or(secret);
        match BASE64.decode(encoded) {
            Err(_) => Err("what follows whsec_ is not base64"),
            Ok(key) if key.len() < LEAST_KEY => Err("its key is shorter than 16 bytes"),
            Ok(key) => Ok(Self(key)),
        }
    }

    /// The signature of a message, as its header says it.
    pub fn signature(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(self.sign(id.as_bytes(), timestamp.as_bytes(), body)))
    }

    /// The signature of a message.
    pub(crate) fn sign(&self, id: &[u8], timestamp: &[u8], body: &[u8]) -> [u8; 32] {
        // An HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { unreachable!("a key of any length") };
        for part in [id, b".", timestamp, b".", body] {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// What the headers of a message say of its signature. It is worth nothing until [`Signed::is_by`] has seen the body.
#[derive(Clone, Debug)]
pub struct Signed {
    id: HeaderValue,
    timestamp: HeaderValue,
    signatures: Vec<[u8; 32]>,
}

/// Why a message cannot be what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It does not say that it is signed.
    #[error("the message is not signed")]
    Unsigned,
    /// It says so, in a way that makes no sense.
    #[error("webhook-id, webhook-timestamp or webhook-signature is missing, twice there, or malformed")]
    Malformed,
    /// It is from another time.
    #[error("webhook-timestamp is more than 5 minutes from this server's time")]
    Stale,
}

impl Signed {
    /// Reads the headers. `now`: seconds since 1970.
    ///
    /// # Errors
    /// Why there is no need to look at the body.
    pub fn read(headers: &HeaderMap, now: i64) -> Result<Self, Problem> {
        if !SIGNATURES.iter().any(|name| headers.contains_key(*name)) {
            return Err(Problem::Unsigned);
        }
        let (id, timestamp, list) = (only(headers, IDS)?, only(headers, TIMESTAMPS)?, only(headers, SIGNATURES)?);
        let text = |value: &HeaderValue| value.to_str().map(str::to_owned).map_err(|_| Problem::Malformed);
        if id.is_empty() {
            return Err(Problem::Malformed);
        }
        let seconds: i64 = text(&timestamp)?.parse().map_err(|_| Problem::Malformed)?;
        if now.saturating_sub(seconds).saturating_abs() > TOLERANCE {
            return Err(Problem::Stale);
        }
        // Other versions than v1 are other schemes: a sender may use several at once.
        let signature = |part: &str| BASE64.decode(part.strip_prefix("v1,")?).ok()?.try_into().ok();
        let signatures: Vec<_> = text(&list)?.split(' ').filter_map(signature).collect();
        if signatures.is_empty() { Err(Problem::Malformed) } else { Ok(Self { id, timestamp, signatures }) }
    }

    /// Whether a holder of one of these keys has signed this body. How long that takes does not depend on which.
    pub fn is_by<'a>(&self, keys: impl IntoIterator<Item = &'a Key>, body: &[u8]) -> bool {
        let mut found = Choice::from(0);
        for key in keys {
            let expected = key.sign(self.id.as_bytes(), self.timestamp.as_bytes(), body);
            for signature in &self.signatures {
                found |= expected.ct_eq(signature);
            }
        }
        found.into()
    }
}

/// The value of a header that may have two names, and may stand there once.
fn only(headers: &HeaderMap, names: [&str; 2]) -> Result<HeaderValue, Problem> {
    let name = names.into_iter().find(|name| headers.contains_key(*name)).ok_or(Problem::Malformed)?;
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value.clone()),
        _ => Err(Problem::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const NOW: i64 = 1_614_265_330;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    fn published() -> [(&'static str, &'static str); 3] {
        [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ]
    }

    fn with(name: &str, value: &'static str) -> HeaderMap {
        headers(&published().map(|(known, old)| (known, if known == name { value } else { old })))
    }

    fn key() -> Key {
        Key::parse(SECRET).expect("a key")
    }

    #[test]
    fn the_published_vector_is_right() {
        let signed = Signed::read(&headers(&published()), NOW).expect("signed");
        assert!(signed.is_by(&[key()], BODY));
        let other = Key::parse("whsec_AAAAAAAAAAAAAAAAAAAAAAAA").expect("a key");
        assert!(signed.is_by(&[other.clone(), key()], BODY), "one of several keys");
        assert!(!signed.is_by(&[other], BODY) && !signed.is_by(&[], BODY));
        assert!(!signed.is_by(&[key()], br#"{"test": 2432232315}"#));
        let svix = published().map(|(name, value)| (&*name.replace("webhook", "svix").leak(), value));
        assert!(Signed::read(&headers(&svix), NOW).expect("signed").is_by(&[key()], BODY));
    }

    #[test]
    fn the_id_and_the_time_are_signed_too() {
        for (name, value) in [("webhook-id", "msg_other"), ("webhook-timestamp", "1614265331"), ("webhook-timestamp", "+1614265330")] {
            assert!(!Signed::read(&with(name, value), NOW).expect("signed").is_by(&[key()], BODY), "{value}");
        }
    }

    #[test]
    fn one_good_signature_among_others_is_enough() {
        let list = "v1a,Zm9v v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= \
                    v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,!";
        assert!(Signed::read(&with("webhook-signature", list), NOW).expect("signed").is_by(&[key()], BODY));
    }

    #[test]
    fn times_far_off_are_stale_whatever_they_are() {
        for now in [NOW - 300, NOW + 300] {
            assert!(Signed::read(&headers(&published()), now).is_ok());
        }
        for now in [NOW - 301, NOW + 301, i64::MIN, i64::MAX, 0] {
            assert_eq!(Signed::read(&headers(&published()), now).expect_err("stale"), Problem::Stale, "{now}");
        }
        for time in ["-9223372036854775808", "9223372036854775807", "0", "-1"] {
            assert_eq!(Signed::read(&with("webhook-timestamp", time), NOW).expect_err("stale"), Problem::Stale, "{time}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (name, value) in [
            ("webhook-id", ""),
            ("webhook-timestamp", ""),
            ("webhook-timestamp", "soon"),
            ("webhook-timestamp", "1614265330.5"),
            ("webhook-timestamp", "9223372036854775808"),
            ("webhook-signature", ""),
            ("webhook-signature", "v1"),
            ("webhook-signature", "v1,"),
            ("webhook-signature", "v1,g0hM"),
            ("webhook-signature", "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ] {
            assert_eq!(Signed::read(&with(name, value), NOW).expect_err("malformed"), Problem::Malformed, "{name}: {value}");
        }
        for (missing, _) in &published()[..2] {
            let rest: Vec<_> = published().into_iter().filter(|(name, _)| name != missing).collect();
            assert_eq!(Signed::read(&headers(&rest), NOW).expect_err("malformed"), Problem::Malformed, "{missing}");
        }
        assert_eq!(Signed::read(&HeaderMap::new(), NOW).expect_err("unsigned"), Problem::Unsigned);
        let mut twice = headers(&published());
        twice.append("webhook-timestamp", HeaderValue::from_static("1614265330"));
        assert_eq!(Signed::read(&twice, NOW).expect_err("twice"), Problem::Malformed);
    }

    #[test]
    fn secrets_that_could_be_guessed_are_no_keys() {
        for bad in ["whsec_", "", "whsec_AAAA", "whsec_!!!!", "whsec_AAAAAAAAAAAAAAAAAAAA"] {
            assert!(Key::parse(bad).is_err(), "{bad}");
        }
        assert!(Key::parse("whsec_AAAAAAAAAAAAAAAAAAAAAA==").is_ok() && Key::parse("whsec_AAAAAAAAAAAAAAAAAAAAAA").is_ok());
        assert!(!format!("{:?}", key()).contains("MfKQ"));
    }

    #[test]
    fn an_independent_implementation_agrees() {
        let theirs = standardwebhooks::Webhook::new(SECRET).expect("a key");
        for body in [BODY, b"", b"{}", "{\"a\":\"\u{e4}\"}".as_bytes()] {
            let now = chrono::Utc::now().timestamp();
            let signature = theirs.sign("msg_1", now, body).expect("signed");
            let time = now.to_string();
            let ours = headers(&[("webhook-id", "msg_1"), ("webhook-timestamp", &time), ("webhook-signature", &signature)]);
            assert!(Signed::read(&ours, now).expect("signed").is_by(&[key()], body));
            assert_eq!(key().signature("msg_1", &time, body), signature);
        }
    }
}
