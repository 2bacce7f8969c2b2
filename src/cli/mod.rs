//! The commands that talk to a server, or send it events: text for people, JSON for programs.

use std::io::{self, ErrorKind};

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
mod sender;
mod simulate;
mod text;
mod traffic;
mod watch;

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

fn unless_nobody_reads(ended: anyhow::Result<()>) -> anyhow::Result<()> {
    match ended {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) => Ok(()),
        ended => ended,
    }
}
