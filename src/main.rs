//! The program: reads its arguments, sets up logs, runs what was asked for, and says in one line what went wrong.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use leadfold::config::{Cli, Command, ServeConfig};
use leadfold::telemetry::Telemetry;
use leadfold::{cli, serve};

/// Less of everything: time per request and memory per stream.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Two crates bring rustls; without a choice it would panic at the first connection.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::choose_colours();
    let command = match Cli::read() {
        Ok(cli) => cli.command,
        Err(code) => return code,
    };
    let ended = match command {
        Command::Serve(args) => match args.validate() {
            Ok(config) => run_server(config),
            Err(problems) => return failed(&problems.join("\nerror: ")),
        },
        Command::Demo(args) => run_demo(args),
        Command::Client(command) => run_client(command),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn run_server(config: ServeConfig) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let telemetry = Telemetry::start(&config)?;
        tokio::spawn(serve::survive_hangups());
        let ended = serve::serve(config, serve::Addresses::print).await;
        telemetry.end();
        ended
    })
}

fn run_demo(args: leadfold::config::DemoArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(cli::demo(args))
}

fn run_client(command: leadfold::config::ClientCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(cli::run(command));
    // A question on the terminal may still be waiting for its answer.
    runtime.shutdown_background();
    ended
}

/// How long the last words wait for whoever reads stderr.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn failed(problem: &str) -> ExitCode {
    // It may quote what others wrote: the names of files, the words of a server.
    let line = format!("error: {}\n", cli::plain_lines(problem));
    let (done, written) = mpsc::channel();
    // On a thread of its own, since a reader of stderr may have stalled. Where it has gone there is nobody to tell.
    let write = move || done.send(std::io::stderr().write_all(line.as_bytes()).is_ok());
    if std::thread::Builder::new().spawn(write).is_ok() {
        let _ = written.recv_timeout(LAST_WORDS);
    }
    ExitCode::FAILURE
}
