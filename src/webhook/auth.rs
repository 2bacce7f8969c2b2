//! Who may send events: whoever knows a secret, and says it in a header or signs with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::signature::{Key, Problem, SECRET_PREFIX, Signed};
use crate::auth::files::{self, Watched};
use crate::config::{Secret, WebhookSecretsConfig};
use crate::time::Timestamp;

/// Characters of a secret: fewer could be guessed.
const LEAST_SECRET: usize = 16;

/// The secrets that are good now. With none, everybody may send.
#[derive(Debug)]
pub struct Secrets {
    header: HeaderName,
    file: Option<PathBuf>,
    fixed: Option<Secret>,
    known: ArcSwap<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Of the secrets that are said, the SHA-256: comparing digests tells nothing of lengths.
    said: Vec<[u8; 32]>,
    signing: Vec<Key>,
}

/// What a request's headers have shown.
#[derive(Debug)]
pub(super) enum Admission {
    /// Its sender may send.
    Granted,
    /// Nobody is asked for a secret.
    Open,
    /// It may, if the body is signed.
    IfSigned(Signed),
}

impl Admission {
    /// Whether it is known who sends, before anything of the body has come.
    pub(super) const fn is_authenticated(&self) -> bool {
        matches!(self, Self::Granted)
    }
}

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stranger {
    #[error("a webhook secret or signature is required")]
    Missing,
    #[error("the webhook secret is wrong")]
    WrongSecret,
    #[error("the signature is not by a secret that is known here")]
    WrongSignature,
    #[error(transparent)]
    Signature(#[from] Problem),
}

impl Secrets {
    /// The secrets of the file, which is read again when it changes, and of the environment.
    ///
    /// # Errors
    /// The file cannot be read, or a secret cannot be used. None is quoted.
    pub fn open(config: &WebhookSecretsConfig) -> anyhow::Result<Arc<Self>> {
        let watched = Watched::new(config.file.clone());
        let known = ArcSwap::from_pointee(read(config.file.as_deref(), config.fixed.as_ref())?);
        let secrets = Arc::new(Self { header: config.header.clone(), file: config.file.clone(), fixed: config.fixed.clone(), known });
        let again = Arc::clone(&secrets);
        watched.spawn("webhook secrets", move || {
            again.known.store(Arc::new(read(again.file.as_deref(), again.fixed.as_ref())?));
            Ok(())
        });
        Ok(secrets)
    }

    /// Whether senders have to know a secret.
    pub const fn are_required(&self) -> bool {
        self.file.is_some() || self.fixed.is_some()
    }

    /// Looks at a request's headers, before anything else of it.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<Admission, Stranger> {
        if !self.are_required() {
            return Ok(Admission::Open);
        }
        let known = self.known.load();
        let mut wrong = Stranger::Missing;
        for said in headers.get_all(&self.header).iter().filter(|_| !known.said.is_empty()) {
            let digest: [u8; 32] = Sha256::digest(said.as_bytes()).into();
            let right = known.said.iter().fold(Choice::from(0), |right, secret| right | secret.ct_eq(&digest));
            if right.into() {
                return Ok(Admission::Granted);
            }
            wrong = Stranger::WrongSecret;
        }
        if known.signing.is_empty() {
            return Err(wrong);
        }
        match Signed::read(headers, Timestamp::now().micros().div_euclid(1_000_000)) {
            Ok(signed) => Ok(Admission::IfSigned(signed)),
            Err(Problem::Unsigned) => Err(wrong),
            Err(problem) => Err(problem.into()),
        }
    }

    /// Looks at the body, before anything is made of it.
    pub(super) fn confirm(&self, admission: &Admission, body: &[u8]) -> Result<(), Stranger> {
        match admission {
            Admission::Granted | Admission::Open => Ok(()),
            Admission::IfSigned(signed) if signed.is_by(&self.known.load().signing, body) => Ok(()),
            Admission::IfSigned(_) => Err(Stranger::WrongSignature),
        }
    }
}

fn read(file: Option<&Path>, fixed: Option<&Secret>) -> anyhow::Result<Known> {
    let mut known = Known::default();
    if let Some(file) = file {
        let text = files::read_secret(file).context("--webhook-secret-file")?;
        let added = known.add(&text).with_context(|| format!("--webhook-secret-file {}", file.display()))?;
        if added == 0 {
            bail!("--webhook-secret-file {} has no secret: write one a line", file.display());
        }
    }
    if let Some(fixed) = fixed
        && known.add(fixed.expose()).context("LEADFOLD_WEBHOOK_SECRET")? == 0
    {
        bail!("LEADFOLD_WEBHOOK_SECRET is empty: give it a secret, or unset it");
    }
    Ok(known)
}

impl Known {
    /// Adds the secrets of a text, one a line; empty lines and those that begin with `#` are none.
    fn add(&mut self, text: &str) -> anyhow::Result<usize> {
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut count = 0;
        for (at, secret) in lines {
            let problem = |problem: &str| anyhow!("the secret of line {} cannot be used: {problem}", at + 1);
            if secret.starts_with(SECRET_PREFIX) {
                self.signing.push(Key::parse(secret).map_err(problem)?);
            } else if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(problem("it has other characters than visible ASCII"));
            } else if secret.len() < LEAST_SECRET {
                return Err(problem("it is shorter than 16 characters: make one with `openssl rand -hex 32`"));
            } else {
                self.said.push(Sha256::digest(secret).into());
            }
            count += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_one_a_line() {
        let mut known = Known::default();
        let count = known.add("# old\n0123456789abcdef\r\n\n  whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw  \n").expect("secrets");
        assert_eq!((count, known.said.len(), known.signing.len()), (2, 1, 1));
        assert_eq!(known.said[0], <[u8; 32]>::from(Sha256::digest("0123456789abcdef")));
    }

    #[test]
    fn bad_secrets_are_named_by_their_line_and_not_quoted() {
        for bad in ["hunter2", "whsec_", "whsec_hunter2!", "hunter2 hunter2 hunter2", "hunter2-hunter2-h\u{fc}nter2"] {
            let problem = Known::default().add(&format!("\n{bad}\n")).expect_err(bad).to_string();
            assert!(problem.starts_with("the secret of line 2 ") && !problem.contains("hunter2"), "{problem}");
        }
    }
}
