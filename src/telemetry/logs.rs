//! Log lines, and panics among them.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::time::Duration;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::writer::LossyWriter;
use crate::config::{LogFormat, ServeConfig};

/// How long the end of the process waits for whoever reads the logs.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The logs of this process, to be ended when it ends.
#[derive(Debug)]
pub struct Logs(LossyWriter);

impl Logs {
    /// To stderr.
    ///
    /// # Errors
    /// `--log-level` is no filter, or there is no thread to write with.
    pub fn to_stderr(config: &ServeConfig) -> anyhow::Result<Self> {
        let filter = EnvFilter::try_new(&config.log_level)?;
        // Another handle: the lock of the standard one would be held while a reader stalls.
        let stderr = io::stderr();
        let output = stderr.as_fd().try_clone_to_owned().map(File::from);
        let writer = match output {
            Ok(file) => LossyWriter::start(file),
            // It was closed before the process began.
            Err(_) => LossyWriter::start(io::sink()),
        };
        Self::start(writer.context("no thread to write log lines with")?, filter, config.log_format, stderr.is_terminal())
    }

    /// To a file, for people.
    ///
    /// # Errors
    /// There is no thread to write with.
    pub fn to_file(file: File) -> anyhow::Result<Self> {
        let writer = LossyWriter::start(file).context("no thread to write log lines with")?;
        Self::start(writer, EnvFilter::new("info"), LogFormat::Text, false)
    }

    fn start(writer: LossyWriter, filter: EnvFilter, format: LogFormat, is_terminal: bool) -> anyhow::Result<Self> {
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(writer.clone())
            // It would tell its own troubles with eprintln!, which panics where stderr is closed.
            .log_internal_errors(false);
        let started = match format {
            LogFormat::Text => lines.with_ansi(is_terminal).try_init(),
            // The one span there may be is the request's, with its trace: once is enough.
            LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).try_init(),
        };
        started.map_err(|error| anyhow::anyhow!("logs cannot be started: {error}"))?;
        std::panic::set_hook(Box::new(log_panic));
        Ok(Self(writer))
    }

    /// Lets the last lines be written, for a second at most.
    pub fn end(self) {
        self.0.flush(LAST_LINES);
    }
}

/// Instead of the standard hook, which waits for whoever reads stderr.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or_default();
    let message = panic_message(panic.payload());
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(location, thread, %backtrace, "internal error (panic): {message}");
    } else {
        tracing::error!(location, thread, "internal error (panic): {message}");
    }
}

/// What a panic says. Of a text that was put together, only what comes before the first quotation: that may be what a
/// sender or a lead said.
fn panic_message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        return text;
    }
    let text = payload.downcast_ref::<String>().map_or("", String::as_str);
    text.split(['"', '`', '\n']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_panic_tells_what_we_wrote_and_not_what_it_found() {
        let message = |panic: fn()| {
            let payload = std::panic::catch_unwind(panic).expect_err("a panic");
            panic_message(&*payload).to_owned()
        };
        assert_eq!(message(|| panic!("just `this`")), "just `this`");
        assert_eq!(message(|| panic!("number {}", std::hint::black_box(7))), "number 7");
        let sliced = message(|| drop(std::hint::black_box("an äpple, canary".to_owned())[..4].to_owned()));
        assert!(!sliced.contains("canary") && !sliced.is_empty(), "{sliced}");
        let unwrapped = message(|| {
            let canary = std::hint::black_box(Err::<(), String>("canary".to_owned()));
            canary.expect("it works");
        });
        assert_eq!(unwrapped, "it works: ");
    }

    /// Set for the process that [`a_panic_is_logged_and_waits_for_nobody`] starts.
    const IS_CHILD: &str = "LEADFOLD_TEST_OF_PANICS";

    #[test]
    fn a_panic_is_logged_and_waits_for_nobody() {
        if std::env::var_os(IS_CHILD).is_some() {
            return log_too_much_and_panic();
        }
        let reads = |mut reader: std::io::PipeReader| {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text).expect("text")
        };
        let (reader, child) = child();
        let reading = std::thread::spawn(move || reads(reader));
        wait_for(child);
        let text = reading.join().expect("what it said");
        let line = text.lines().find(|line| line.contains("on purpose")).unwrap_or_else(|| panic!("no line tells of the panic: {text}"));
        assert!(line.contains("\"level\":\"ERROR\"") && line.contains("src/telemetry/logs.rs:"), "{line}");

        let (_stalled, child) = self::child();
        wait_for(child);
        let (gone, child) = self::child();
        drop(gone);
        wait_for(child);
    }

    /// This test once more, in a process of its own, and what that writes to stderr.
    fn child() -> (std::io::PipeReader, Child) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "telemetry::logs::tests::a_panic_is_logged_and_waits_for_nobody", "--nocapture"]);
        (reader, child.env(IS_CHILD, "1").stdout(Stdio::null()).stderr(writer).spawn().expect("it runs"))
    }

    fn wait_for(mut child: Child) {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(status) = child.try_wait().expect("its state") {
                assert!(status.success(), "{status:?}");
                return;
            }
            if Instant::now() > deadline {
                child.kill().expect("killed");
                panic!("a panic waits for a reader that does not read");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// More than a pipe holds, and then a panic in a thread, which must end as it would anywhere.
    fn log_too_much_and_panic() {
        let logs = Logs::start(
            LossyWriter::start(File::from(io::stderr().as_fd().try_clone_to_owned().expect("stderr"))).expect("a thread"),
            EnvFilter::new("info"),
            LogFormat::Json,
            false,
        );
        let logs = logs.expect("logs");
        for _ in 0..2000 {
            tracing::info!("{}", "x".repeat(100));
        }
        let panicked = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(panicked.is_err());
        logs.end();
    }
}
