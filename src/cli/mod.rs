//! The commands that talk to a server: text for people, JSON for programs.

use std::io::{self, ErrorKind};

use crate::config::ClientCommand;

mod connect;
mod dead_letters;
mod delete;
mod get;
mod json;
mod list;
mod text;
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
    };
    match ended {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) => Ok(()),
        ended => ended,
    }
}
