//! The commands that talk to a server, or send it events: text for people, JSON for programs.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;

use anyhow::anyhow;
use tokio::io::Interest;
use tokio::net::unix::pipe;

use crate::config::{ClientCommand, DemoArgs};

mod completions;
mod connect;
mod dead_letters;
mod delete;
mod demo;
mod get;
mod import;
mod json;
mod list;
mod progress;
mod retry;
mod sender;
mod simulate;
mod text;
mod traffic;
mod trouble;
mod watch;

pub use text::plain_lines;

/// Colours for terminals that can show them, and for people who want them: `NO_COLOR` and `TERM` that are set but empty are as good
/// as not set, which the libraries see otherwise.
pub fn choose_colours() {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let is = |name: &str, value: &str| set(name).is_some_and(|set| set == value);
    let forced = set("CLICOLOR_FORCE").is_some() && !is("CLICOLOR_FORCE", "0");
    let wanted = set("NO_COLOR").is_none() && !is("CLICOLOR", "0") && set("TERM").is_some() && !is("TERM", "dumb");
    let wanted = |is_terminal: bool| wanted && is_terminal || forced && set("NO_COLOR").is_none();
    console::set_colors_enabled(wanted(io::stdout().is_terminal()));
    console::set_colors_enabled_stderr(wanted(io::stderr().is_terminal()));
}

/// Runs one.
///
/// # Errors
/// One line for whoever called. A reader of the output that has gone is none: `leadfold list … | head` is fine.
pub async fn run(command: ClientCommand) -> anyhow::Result<()> {
    let ended = match command {
        ClientCommand::Get(args) => get::run(args).await,
        ClientCommand::List(args) => list::run(args).await,
        ClientCommand::Watch(args) => watch::run(args).await,
        ClientCommand::Delete(args) => delete::run(args).await,
        ClientCommand::DeadLetters { command } => dead_letters::run(command).await,
        ClientCommand::Import(args) => import::run(*args).await,
        ClientCommand::Simulate(args) => simulate::run(*args).await,
        ClientCommand::Completions(args) => completions::run(&args),
    };
    unless_nobody_reads(ended)
}

/// Runs a server and its clients in one.
///
/// # Errors
/// The service cannot start, or has ended by itself.
pub async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    unless_nobody_reads(demo::run(args).await)
}

/// Asks a question on stderr, since stdout may be a file, and reads the answer.
fn confirmed(question: &str) -> anyhow::Result<bool> {
    // Not an error of output that is passed over: where nobody was asked, nothing was done.
    write!(io::stderr(), "{question} [y/N] ").map_err(|error| anyhow!("the question {question:?} cannot be asked: {error}; add --yes"))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Prints what a command has done, and how that went. Where nobody reads stdout any more, that is still how it went.
fn report(ended: anyhow::Result<()>, print: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let printed = unless_nobody_reads(print());
    ended.and(printed)
}

/// Waits until whoever reads stdout has gone. A command that may print nothing for hours would not find out.
async fn until_nobody_reads() {
    if let Ok(stdout) = stdout_pipe() {
        // Linux tells a writer of the end of its reader as an error.
        if stdout.ready(Interest::ERROR).await.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// Another handle of stdout, where that is a pipe. It is left as it is, since others may write to it as well: nothing must be
/// written through this handle.
fn stdout_pipe() -> io::Result<pipe::Sender> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    if !stdout.metadata()?.file_type().is_fifo() {
        return Err(ErrorKind::Unsupported.into());
    }
    pipe::Sender::from_owned_fd_unchecked(stdout.into())
}

fn unless_nobody_reads(ended: anyhow::Result<()>) -> anyhow::Result<()> {
    match ended {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) => Ok(()),
        ended => ended,
    }
}
