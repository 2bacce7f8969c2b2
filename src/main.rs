//! leadfold, the program.

use clap::Parser;
use leadfold::config::{Cli, Command};

fn main() -> anyhow::Result<()> {
    let Cli { command: Command::Serve(args) } = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(leadfold::serve::serve(args.config()))
}
