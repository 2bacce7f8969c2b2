//! `leadfold dead-letters …`, as given.

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};

use super::ClientArgs;

/// What to do with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List them, the newest first
    List(DeadLettersListArgs),
    /// Try them again, after an upgrade say: what is taken is no dead letter any more
    Retry(DeadLettersRetryArgs),
    /// Drop them for good
    Drop(DeadLettersDropArgs),
}

/// `leadfold dead-letters list`.
#[derive(Clone, Debug, Args)]
pub struct DeadLettersListArgs {
    /// Dead letters to print at most [default: 20, with --json all]
    #[arg(long, env = "LEADFOLD_LIMIT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Print what is kept of each as well [default: false]
    #[arg(long, env = "LEADFOLD_PAYLOADS", value_parser = BoolishValueParser::new())]
    pub payloads: bool,
    /// The server, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `leadfold dead-letters retry`.
#[derive(Clone, Debug, Args)]
pub struct DeadLettersRetryArgs {
    /// Those to try again, by their ids
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<String>,
    /// Try all of them, the oldest first [default: false]
    #[arg(long)]
    pub all: bool,
    /// The server, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `leadfold dead-letters drop`.
#[derive(Clone, Debug, Args)]
pub struct DeadLettersDropArgs {
    /// Those to drop, by their ids
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<String>,
    /// Drop all of them [default: false]
    #[arg(long)]
    pub all: bool,
    /// Do not ask [default: false]
    #[arg(long)]
    pub yes: bool,
    /// The server, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}
