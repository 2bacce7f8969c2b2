//! `leadfold completions`: what a shell needs to complete commands and flags.

use std::io::{Write as _, stdout};

use clap::CommandFactory as _;

use crate::config::{Cli, CompletionsArgs};

pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "leadfold", &mut script);
    stdout().write_all(&script)?;
    Ok(())
}
