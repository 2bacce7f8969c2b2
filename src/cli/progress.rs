//! How far it has come: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Tells on stderr.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Instant,
    total: Option<u64>,
}

impl Progress {
    /// Of so many bytes, if that is known.
    pub(super) fn new(total: Option<u64>) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            let template = match total {
                Some(_) => "{wide_bar} {percent:>3} %  {msg}  {bytes} of {total_bytes}, {eta} left",
                None => "{spinner} {elapsed}  {msg}",
            };
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self { bar, began: now, last_line: now, total }
    }

    /// So many events, up to this byte, are done.
    pub(super) fn update(&mut self, events: u64, bytes: u64) {
        let seconds = self.began.elapsed().as_secs_f64();
        let rate = events as f64 / seconds.max(0.001);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{events} events, {rate:.0}/s"));
            bar.set_position(bytes);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let part = bytes as f64 / self.total.unwrap_or_default() as f64;
            let left = if part.is_finite() && part > 0.0 {
                format!(", {:.0} %, about {:.0} s left", part * 100.0, seconds / part - seconds)
            } else {
                String::new()
            };
            self.say(&format!("{events} events, {rate:.0}/s{left}"));
        }
    }

    /// Writes a line that stays.
    pub(super) fn say(&self, line: &str) {
        let write = || {
            // stderr may be closed: then there is nobody to tell.
            let _ = writeln!(stderr(), "{line}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
