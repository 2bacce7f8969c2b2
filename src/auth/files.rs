//! Files that hold secrets: read with care, and read again when they change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

/// How often files are looked at. What is replaced the Kubernetes way, by a link, changes only where it leads to, so
/// looking beats being told.
const LOOK: Duration = Duration::from_secs(1);

/// Of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a file that holds secrets. If others on this machine may read it too, a warning says so.
///
/// # Errors
/// It cannot be read, or is no text. Its content is never quoted.
pub fn read_secret(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path)?;
    if let Ok(metadata) = fs::metadata(path) {
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            tracing::warn!(file = %path.display(), mode = %format!("{mode:03o}"), "others may read this file of secrets: chmod 600 it");
        }
    }
    Ok(text)
}

/// Reads a file of text.
///
/// # Errors
/// It cannot be read, or is no text in UTF-8. Its content is never quoted.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| anyhow::anyhow!("{} is not UTF-8 text", path.display()))
}

/// Reads a file without the byte order mark that some editors put at its beginning.
///
/// # Errors
/// It cannot be read, or is text in UTF-16.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        anyhow::bail!("{} is in UTF-16: save it as UTF-8", path.display());
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

/// Files, as they were when they were looked at last.
#[derive(Debug)]
pub struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

/// What tells one content of a file from another.
type Stamp = (Option<SystemTime>, u64, u64, u64);

impl Watched {
    /// Looks at files, before they are read for the first time: so no change is missed.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<_> = paths.into_iter().collect();
        let seen = stamps(&paths);
        Self { paths, seen }
    }

    /// Calls `reload` whenever one of the files has changed or SIGHUP has come, as long as the process lives. What it cannot
    /// use stays out, and what was read before stays in force: a slip of an editor must not lock everybody out.
    pub fn spawn(mut self, what: &'static str, mut reload: impl FnMut() -> anyhow::Result<()> + Send + 'static) {
        if self.paths.is_empty() {
            return;
        }
        // Without it, what has changed is still found.
        let mut hangups = signal(SignalKind::hangup()).ok();
        tokio::spawn(async move {
            loop {
                let asked = tokio::select! {
                    () = sleep(LOOK) => false,
                    Some(()) = next(&mut hangups) => true,
                };
                let now = stamps(&self.paths);
                if now == self.seen && !asked {
                    continue;
                }
                self.seen = now;
                let why = if asked { "are read again on SIGHUP" } else { "have changed" };
                let result = match reload() {
                    Ok(()) => {
                        tracing::info!("{what} {why} and are in force");
                        "ok"
                    }
                    Err(error) => {
                        tracing::error!("{what} {why} and cannot be used, those of before stay in force: {error:#}");
                        "failed"
                    }
                };
                metrics::counter!("leadfold_reloads_total", "what" => what, "result" => result).increment(1);
            }
        });
    }
}

async fn next(signals: &mut Option<Signal>) -> Option<()> {
    match signals {
        Some(signals) => signals.recv().await,
        None => std::future::pending().await,
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok(), metadata.len(), metadata.ino(), metadata.dev()))
    };
    paths.iter().map(stamp).collect()
}
