//! The file of tokens: what each may do, by the SHA-256 of its text.
//!
//! ```toml
//! [[token]]
//! name = "dashboard"                # for the logs
//! sha256 = "9f86d081884c7d65…"      # of the token's text; or token = "…", the text itself
//! workspaces = ["6048d78a-…"]       # or ["*"]: all, and leads whose workspace is not known yet
//! delete = true                     # may delete leads; left out: may not
//! ```

use std::collections::{HashMap, HashSet};

use anyhow::{anyhow, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Characters of a token: fewer could be guessed, more fit in no header.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 20..=512;

/// The SHA-256 of a token.
pub(super) type TokenDigest = [u8; 32];

/// What the bearer of a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) name: String,
    /// The workspaces that it sees; `None`: all.
    pub(super) workspaces: Option<HashSet<String>>,
    pub(super) delete: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<toml::Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: Option<String>,
    token: Option<String>,
    workspaces: Vec<String>,
    #[serde(default)]
    delete: bool,
}

pub(super) fn digest(token: &[u8]) -> TokenDigest {
    Sha256::digest(token).into()
}

/// Reads the text of a file of tokens.
///
/// # Errors
/// The line, and what is wrong there. No value is quoted: it might be a token.
pub(super) fn parse(text: &str) -> anyhow::Result<HashMap<TokenDigest, Rights>> {
    let line = |at: usize| text[..text.floor_char_boundary(at)].matches('\n').count() + 1;
    let file: File = toml::from_str(text).map_err(|error| {
        let line = line(error.span().map_or(0, |span| span.start));
        anyhow!("line {line} is not understood: each [[token]] has name = \"…\", sha256 = \"…\" or token = \"…\", workspaces = [\"…\"], and may have delete = true")
    })?;
    if file.token.is_empty() {
        bail!("it has no [[token]]: nobody could call");
    }
    let mut grants = HashMap::new();
    for entry in file.token {
        let line = line(entry.span().start);
        let (digest, rights) = entry.into_inner().check().map_err(|problem| anyhow!("the [[token]] of line {line}: {problem}"))?;
        if grants.insert(digest, rights).is_some() {
            bail!("the [[token]] of line {line} is there already");
        }
    }
    Ok(grants)
}

impl Entry {
    fn check(self) -> Result<(TokenDigest, Rights), &'static str> {
        let digest = match (self.sha256, self.token) {
            (Some(hex), None) => from_hex(hex.trim()).ok_or("sha256 is not 64 hexadecimal digits")?,
            (None, Some(token)) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err("token has other characters than visible ASCII");
            }
            (None, Some(token)) if !TOKEN_LENGTH.contains(&token.len()) => {
                return Err("token is not 20 to 512 characters long: make one with `openssl rand -hex 32`");
            }
            (None, Some(token)) => digest(token.as_bytes()),
            _ => return Err("it needs either sha256 or token"),
        };
        let all = self.workspaces.iter().any(|workspace| workspace == "*");
        if self.workspaces.is_empty() || self.workspaces.iter().any(String::is_empty) || (all && self.workspaces.len() > 1) {
            return Err("workspaces is neither [\"*\"] nor a list of ids");
        }
        let workspaces = (!all).then(|| self.workspaces.into_iter().collect());
        Ok((digest, Rights { name: self.name, workspaces, delete: self.delete }))
    }
}

fn from_hex(text: &str) -> Option<TokenDigest> {
    let mut digest = TokenDigest::default();
    if text.len() != 2 * digest.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "hunter2-hunter2-hunter2";

    #[test]
    fn a_token_and_its_digest_are_the_same() {
        let hex: String = digest(TOKEN.as_bytes()).iter().map(|byte| format!("{byte:02X}")).collect();
        let by_hex = parse(&format!("[[token]]\nname = \"a\"\nsha256 = \"{hex}\"\nworkspaces = [\"*\"]\n")).expect("valid");
        let by_text = parse(&format!("[[token]]\nname = \"a\"\ntoken = \"{TOKEN}\"\nworkspaces = [\"*\"]\n")).expect("valid");
        assert_eq!(by_hex, by_text);
        let rights = by_hex.get(&digest(TOKEN.as_bytes())).expect("it is there");
        assert_eq!(rights, &Rights { name: "a".to_owned(), workspaces: None, delete: false });
    }

    #[test]
    fn what_is_wrong_is_said_by_its_line_and_nothing_is_quoted() {
        let entry = |rest: &str| format!("# tokens\n\n[[token]]\nname = \"a\"\n{rest}\n");
        for (text, line) in [
            (String::new(), None),
            ("# nothing\n".to_owned(), None),
            (entry("token = \"short\"\nworkspaces = [\"*\"]"), Some(3)),
            (entry(&format!("token = \"{TOKEN}\"")), Some(3)),
            (entry(&format!("token = \"{TOKEN}\"\nworkspaces = []")), Some(3)),
            (entry(&format!("token = \"{TOKEN}\"\nworkspaces = [\"\"]")), Some(3)),
            (entry(&format!("token = \"{TOKEN}\"\nworkspaces = [\"*\", \"w\"]")), Some(3)),
            (entry("workspaces = [\"w\"]"), Some(3)),
            (entry(&format!("token = \"{TOKEN} \"\nworkspaces = [\"w\"]")), Some(3)),
            (entry(&format!("sha256 = \"{TOKEN}\"\nworkspaces = [\"w\"]")), Some(3)),
            (entry(&format!("sha256 = \"{}\"\ntoken = \"{TOKEN}\"\nworkspaces = [\"w\"]", "a".repeat(64))), Some(3)),
            (entry(&format!("delete = \"{TOKEN}\"\nworkspaces = [\"w\"]")), Some(5)),
            (entry(&format!("{TOKEN} = 1")), Some(5)),
            (entry(&format!("token = {TOKEN}")), Some(5)),
            (entry(&format!("token = \"{TOKEN}")), Some(5)),
        ] {
            let problem = format!("{:#}", parse(&text).expect_err(&text));
            assert!(!problem.contains("hunter2") && !problem.contains('\n'), "{problem}");
            assert!(
                line.is_none_or(|line| problem.contains(&format!("line {line} ")) || problem.contains(&format!("line {line}:"))),
                "{text}: {problem}"
            );
        }
        let twice = entry(&format!("token = \"{TOKEN}\"\nworkspaces = [\"w\"]")).repeat(2);
        assert!(parse(&twice).is_err());
    }
}
