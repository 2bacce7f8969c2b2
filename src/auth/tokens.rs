//! Bearer tokens, and who holds one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use anyhow::Context;
use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use tokio::sync::watch;

use super::files::{self, Watched};
use super::grants::{self, Rights, TokenDigest, digest};

/// The tokens that are good now.
#[derive(Debug)]
pub struct Tokens {
    /// Without one, everybody may do everything.
    file: Option<PathBuf>,
    grants: ArcSwap<HashMap<TokenDigest, Arc<Grant>>>,
    /// Told whenever a token is not what it was.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Grant {
    rights: Rights,
    standing: AtomicU8,
    /// Watches that are open.
    watches: AtomicUsize,
}

impl Grant {
    fn new(rights: Rights) -> Self {
        Self { rights, standing: AtomicU8::new(Standing::Good as u8), watches: AtomicUsize::new(0) }
    }
}

/// Whether a caller's token is still what it was when the call began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Good,
    /// It may do more or less than before: a new call will tell.
    Changed,
    /// It is good for nothing any more.
    Revoked,
}

/// Why nobody was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no token.
    #[error("a token is required: send the header `authorization: Bearer TOKEN`")]
    Missing,
    /// There is something else than one token.
    #[error("the authorization header is malformed: write `Bearer TOKEN`, once")]
    Malformed,
    /// The token is not, or not any more, one of ours.
    #[error("the token is not known here")]
    Unknown,
}

/// Who is calling.
#[derive(Clone, Debug)]
pub struct Caller(Option<Arc<Grant>>);

/// Watches of a token: dropped, they are closed.
#[derive(Debug)]
pub struct TokenWatches {
    grant: Arc<Grant>,
    count: usize,
}

impl Drop for TokenWatches {
    fn drop(&mut self) {
        self.grant.watches.fetch_sub(self.count, Ordering::AcqRel);
    }
}

impl Caller {
    /// Opens watches of their token; `None` if there would be more than `most`. Without tokens there is nothing to count.
    pub fn watch(&self, count: usize, most: usize) -> Option<Option<TokenWatches>> {
        let Some(grant) = &self.0 else { return Some(None) };
        let add = |open: usize| open.checked_add(count).filter(|open| *open <= most);
        grant.watches.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some(Some(TokenWatches { grant: Arc::clone(grant), count }))
    }

    /// One who may do everything.
    pub const fn all_powerful() -> Self {
        Self(None)
    }

    /// Whether leads of this workspace are theirs to see. The empty one, of leads whose workspace is not known yet, is
    /// seen only by those who see all.
    pub fn sees(&self, workspace_id: &str) -> bool {
        let workspaces = self.0.as_ref().and_then(|grant| grant.rights.workspaces.as_ref());
        workspaces.is_none_or(|workspaces| workspaces.contains(workspace_id))
    }

    /// Whether they see every workspace.
    pub fn sees_all(&self) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.rights.workspaces.is_none())
    }

    /// Whether they may delete the leads that they see.
    pub fn may_delete(&self) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.rights.delete)
    }

    /// What has become of their token since they called.
    pub fn standing(&self) -> Standing {
        match self.0.as_ref().map_or(0, |grant| grant.standing.load(Ordering::Acquire)) {
            0 => Standing::Good,
            1 => Standing::Changed,
            _ => Standing::Revoked,
        }
    }

    /// The name of their token, for logs; empty without one.
    pub fn name(&self) -> &str {
        self.0.as_ref().map_or("", |grant| &grant.rights.name)
    }
}

impl Tokens {
    /// No tokens: everybody may do everything.
    pub fn off() -> Arc<Self> {
        Arc::new(Self { file: None, grants: ArcSwap::default(), changed: watch::Sender::new(()) })
    }

    /// The tokens of a file, read again when it changes; without a file, [`Tokens::off`].
    ///
    /// # Errors
    /// The file cannot be read, or something is wrong in it.
    pub fn open(file: Option<&Path>) -> anyhow::Result<Arc<Self>> {
        let Some(file) = file else { return Ok(Self::off()) };
        let watched = Watched::new([file.to_owned()]);
        let grants = read(file)?.into_iter().map(|(digest, rights)| (digest, Arc::new(Grant::new(rights)))).collect();
        let tokens = Arc::new(Self { file: Some(file.to_owned()), grants: ArcSwap::from_pointee(grants), changed: watch::Sender::new(()) });
        let again = Arc::clone(&tokens);
        watched.spawn("tokens", move || again.reload());
        Ok(tokens)
    }

    /// Whether there are tokens: whether anybody has to have one.
    pub const fn are_required(&self) -> bool {
        self.file.is_some()
    }

    /// Who sent a request with these headers. The token comes as `Bearer TOKEN`, or as the password of `Basic`, which
    /// is what browsers can ask for.
    ///
    /// # Errors
    /// They did not prove to be anybody.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Denied> {
        if self.file.is_none() {
            return Ok(Caller::all_powerful());
        }
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().ok_or(Denied::Missing)?;
        if values.next().is_some() {
            return Err(Denied::Malformed);
        }
        let (scheme, rest) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Denied::Malformed)?;
        let rest = rest.trim();
        let digest = if scheme.eq_ignore_ascii_case("bearer") {
            digest(rest.as_bytes())
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = STANDARD.decode(rest).map_err(|_| Denied::Malformed)?;
            let at = decoded.iter().position(|byte| *byte == b':').ok_or(Denied::Malformed)?;
            digest(&decoded[at + 1..])
        } else {
            return Err(Denied::Malformed);
        };
        // Found by its digest: how long that takes tells nothing of the token.
        self.grants.load().get(&digest).map(|grant| Caller(Some(Arc::clone(grant)))).ok_or(Denied::Unknown)
    }

    /// Is told whenever the [`Standing`] of a caller may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn reload(&self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let before = self.grants.load_full();
        let now: HashMap<_, _> = read(file)?
            .into_iter()
            .map(|(digest, rights)| match before.get(&digest) {
                Some(grant) if grant.rights == rights => (digest, Arc::clone(grant)),
                _ => (digest, Arc::new(Grant::new(rights))),
            })
            .collect();
        let now = Arc::new(now);
        // First no new call is let in, then those that are under way are told.
        self.grants.store(Arc::clone(&now));
        for (digest, grant) in before.iter() {
            let standing = match now.get(digest) {
                Some(same) if Arc::ptr_eq(same, grant) => continue,
                Some(_) => Standing::Changed,
                None => Standing::Revoked,
            };
            tracing::info!(token = grant.rights.name, ?standing, "a token is not what it was");
            grant.standing.store(standing as u8, Ordering::Release);
        }
        self.changed.send_replace(());
        Ok(())
    }
}

fn read(file: &Path) -> anyhow::Result<HashMap<TokenDigest, Rights>> {
    let text = files::read_secret(file).context("--tokens-file")?;
    grants::parse(&text).with_context(|| format!("--tokens-file {}", file.display()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ONE: &str = "the-token-of-one-workspace";
    const ALL: &str = "the-token-of-all-workspaces";

    fn tokens(text: &str) -> Tokens {
        let grants = grants::parse(text).expect("valid").into_iter().map(|(digest, rights)| (digest, Arc::new(Grant::new(rights))));
        let grants = ArcSwap::from_pointee(grants.collect());
        Tokens { file: Some(PathBuf::from("tokens")), grants, changed: watch::Sender::new(()) }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_str(value).expect("a value"))).collect()
    }

    #[test]
    fn a_caller_sees_what_the_token_says() {
        let tokens = tokens(&format!(
            "[[token]]\nname = \"one\"\ntoken = \"{ONE}\"\nworkspaces = [\"w\"]\n\
             [[token]]\nname = \"all\"\ntoken = \"{ALL}\"\nworkspaces = [\"*\"]\ndelete = true\n"
        ));
        let caller = |value: &str| tokens.authenticate(&headers(&[value]));
        let one = caller(&format!("Bearer {ONE}")).expect("known");
        assert!(one.sees("w") && !one.sees("x") && !one.sees("") && !one.sees_all() && !one.may_delete());
        let all = caller(&format!("bearer  {ALL}")).expect("known");
        assert!(all.sees("w") && all.sees("x") && all.sees("") && all.sees_all() && all.may_delete());
        let basic = caller(&format!("Basic {}", STANDARD.encode(format!("anybody:{ONE}")))).expect("known");
        assert_eq!((basic.name(), basic.standing()), ("one", Standing::Good));
    }

    #[test]
    fn nobody_else_is_let_in() {
        let tokens = tokens(&format!("[[token]]\nname = \"one\"\ntoken = \"{ONE}\"\nworkspaces = [\"w\"]\n"));
        let denied = |values: &[&str]| tokens.authenticate(&headers(values)).expect_err("denied");
        assert_eq!(denied(&[]), Denied::Missing);
        for unknown in ["Bearer x", "Bearer ", "Bearer the-token-of-one-workspac", "Bearer the-token-of-one-workspace2", "Basic eDp4"] {
            assert_eq!(denied(&[unknown]), Denied::Unknown, "{unknown}");
        }
        for malformed in ["", "Bearer", ONE, &format!("Token {ONE}"), "Basic !", "Basic eHg="] {
            assert_eq!(denied(&[malformed]), Denied::Malformed, "{malformed}");
        }
        let good = format!("Bearer {ONE}");
        assert_eq!(denied(&[&good, &good]), Denied::Malformed);
        assert!(Tokens::off().authenticate(&headers(&[])).expect("anybody").sees_all());
    }
}
