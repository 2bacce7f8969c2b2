//! Files that hold secrets: read with care, and read again when they change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::time::sleep;

/// How often files are looked at. What is replaced the Kubernetes way, by a link, changes only where it leads to, so
/// looking beats being told.
const LOOK: Duration = Duration::from_secs(1);

/// Reads a file that holds secrets. If others on this machine may read it too, a warning says so.
///
/// # Errors
/// It cannot be read, or is no text. Its content is never quoted.
pub fn read_secret(path: &Path) -> anyhow::Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Ok(metadata) = fs::metadata(path) {
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            tracing::warn!(file = %path.display(), mode = %format!("{mode:03o}"), "others may read this file of secrets: chmod 600 it");
        }
    }
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{} is not UTF-8 text", path.display()))
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

    /// Calls `reload` whenever one of the files has changed, as long as the process lives. What it cannot use stays
    /// out, and what was read before stays in force: a slip of an editor must not lock everybody out.
    pub fn spawn(mut self, what: &'static str, mut reload: impl FnMut() -> anyhow::Result<()> + Send + 'static) {
        if self.paths.is_empty() {
            return;
        }
        tokio::spawn(async move {
            loop {
                sleep(LOOK).await;
                let now = stamps(&self.paths);
                if now == self.seen {
                    continue;
                }
                self.seen = now;
                let result = match reload() {
                    Ok(()) => {
                        tracing::info!("{what} have changed and were read again");
                        "ok"
                    }
                    Err(error) => {
                        tracing::error!("{what} have changed and cannot be used, those of before stay in force: {error:#}");
                        "failed"
                    }
                };
                metrics::counter!("leadfold_reloads_total", "what" => what, "result" => result).increment(1);
            }
        });
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok(), metadata.len(), metadata.ino(), metadata.dev()))
    };
    paths.iter().map(stamp).collect()
}
