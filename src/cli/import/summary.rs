//! What an import has done, in the end.

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use super::super::json;
use super::super::sender::Fate;
use super::super::text;
use super::reader::ToSend;
use crate::time::Timestamp;

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Summary {
    dry_run: bool,
    applied: u64,
    duplicate: u64,
    queued: u64,
    ignored: u64,
    pub(super) refused: u64,
    pub(super) broken_files: u64,
    /// Action logs that have not ended, by status.
    unfinished: BTreeMap<String, u64>,
    /// Of a dry run: what would be sent, by event.
    would_send: BTreeMap<&'static str, u64>,
    times: Option<(Timestamp, Timestamp)>,
}

/// Kinds of statuses that are counted apart: the vocabulary is open, memory is not.
const MOST_STATUSES: usize = 32;

impl Summary {
    pub(super) fn new(dry_run: bool) -> Self {
        Self { dry_run, ..Self::default() }
    }

    pub(super) const fn fate(&mut self, fate: Fate) {
        let count = match fate {
            Fate::Applied => &mut self.applied,
            Fate::Duplicate => &mut self.duplicate,
            Fate::Queued => &mut self.queued,
            Fate::Ignored => &mut self.ignored,
        };
        *count += 1;
    }

    pub(super) fn unfinished(&mut self, status: String) {
        let known = self.unfinished.contains_key(&status) || self.unfinished.len() < MOST_STATUSES;
        *self.unfinished.entry(if known { text::plain(&status) } else { "others".to_owned() }).or_default() += 1;
    }

    pub(super) fn would_send(&mut self, event: &ToSend) {
        *self.would_send.entry(event.kind).or_default() += 1;
        if let Some(time) = event.time {
            let (first, last) = self.times.unwrap_or((time, time));
            self.times = Some((first.min(time), last.max(time)));
        }
    }

    /// Events that are done.
    pub(super) fn events(&self) -> u64 {
        let passed: u64 = self.unfinished.values().chain(self.would_send.values()).sum();
        self.applied + self.duplicate + self.queued + self.ignored + self.refused + passed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events() == 0
    }

    pub(super) fn print(&self, took: Duration, as_json: bool) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        let seconds = took.as_secs_f64();
        let rate = self.events() as f64 / seconds.max(0.001);
        let unfinished: u64 = self.unfinished.values().sum();
        if as_json {
            let summary = json!({
                "dryRun": self.dry_run, "events": self.events(), "applied": self.applied, "duplicate": self.duplicate, "queued": self.queued,
                "ignored": self.ignored, "refused": self.refused, "unfinished": self.unfinished, "wouldSend": self.would_send,
                "firstTime": self.times.map(|(first, _)| first.to_rfc3339()), "lastTime": self.times.map(|(_, last)| last.to_rfc3339()),
                "seconds": seconds,
            });
            writeln!(out, "{}", json::escaped(&summary.to_string()))?;
            return Ok(());
        }
        let mut line = |name: &str, count: u64, note: &str| writeln!(out, "{}", format!("{name:<12}{count:>12}  {note}").trim_end());
        if self.dry_run {
            line("would send", self.would_send.values().sum(), "")?;
            for (kind, count) in &self.would_send {
                line("", *count, kind)?;
            }
        } else {
            line("applied", self.applied, "")?;
            line("duplicate", self.duplicate, "known already: nothing changed")?;
            if self.queued > 0 {
                line("queued", self.queued, "on the server's disk, applied as soon as it can")?;
            }
            line("ignored", self.ignored, "of unknown names, of deleted leads, or older than the history that is kept")?;
        }
        if unfinished > 0 {
            let by_status: Vec<_> = self.unfinished.iter().map(|(status, count)| format!("{count} {status}")).collect();
            line("unfinished", unfinished, &format!("({}): passed over, their own events come when they end", by_status.join(", ")))?;
        }
        line("refused", self.refused, if self.refused > 0 { "said above, each with its file and line" } else { "" })?;
        if let Some((first, last)) = self.times {
            writeln!(out, "from {} to {}", first.to_rfc3339(), last.to_rfc3339())?;
        }
        writeln!(out, "{} in {seconds:.1} s, {rate:.0}/s", text::count(self.events(), "event"))?;
        Ok(())
    }

    /// Whether all went well.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        if self.broken_files > 0 {
            bail!("{} could not be read to the end", text::count(self.broken_files, "file"));
        }
        if self.refused > 0 {
            bail!("{} of {} refused; all others are done", self.refused, text::count(self.events(), "event"));
        }
        Ok(())
    }
}
