//! `leadfold demo`: the service, traffic through its real webhook, and a lead that is watched through its real API.

use std::fs::File;
use std::io::{Write as _, stderr, stdout};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{CommandFactory as _, FromArgMatches as _};
use console::style;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::sender::Sender;
use super::traffic::{self, Totals};
use super::{text, watch};
use crate::config::{Cli, ClientArgs, Command, DemoArgs, ServeConfig, WatchArgs, WebhookArgs};
use crate::serve::{self, Addresses};
use crate::simulation::{Settings, World};
use crate::telemetry::logs::Logs;

/// Events under way at once: the demo shows how it works, not how fast.
const CONCURRENCY: usize = 16;

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // Removed when it is dropped: at the very end.
    let temporary = args.data_dir.is_none().then(|| tempfile::Builder::new().prefix("leadfold-demo-").tempdir()).transpose()?;
    let data_dir = args.data_dir.clone().or(temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_else(|| PathBuf::from("."));
    std::fs::create_dir_all(&data_dir).with_context(|| format!("cannot use {}", data_dir.display()))?;
    let (logs, writer) = log_to_file(&data_dir)?;

    let (announce, announced) = oneshot::channel();
    let mut service = tokio::spawn(serve::serve(config(&data_dir)?, |addresses| {
        let _ = announce.send(*addresses);
    }));
    let addresses = tokio::select! {
        addresses = announced => addresses.ok(),
        _ = &mut service => None,
    };
    let addresses = addresses.ok_or_else(|| anyhow!("the service did not start: {} says why", logs.display()))?;

    let webhook = WebhookArgs {
        webhook_url: format!("http://{}/webhooks/omniai", addresses.http),
        webhook_secret_file: None,
        webhook_secret_header: "x-webhook-secret".to_owned(),
        ca_file: None,
        give_up_seconds: 30,
    };
    let sender = Sender::without_secret(&webhook, CONCURRENCY)?;
    let seed = args.traffic.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let settings = Settings { seed, leads: args.traffic.leads, workspaces: 1, workspace_id: None, has_star: true };
    let mut world = World::new(&settings);
    let (lead_id, workspace_id) = world.first_lead();
    let (lead_id, workspace_id) = (lead_id.to_owned(), workspace_id.to_owned());
    let lines = introduction(&addresses, &lead_id, &workspace_id, &logs);
    for line in &lines {
        writeln!(stdout(), "{line}")?;
    }

    // A long line takes several rows.
    let columns = usize::from(console::Term::stdout().size().1).max(1);
    let rows = lines.iter().map(|line| console::measure_text_width(line).div_ceil(columns).max(1)).sum();
    let client = ClientArgs { server: format!("http://{}", addresses.grpc).parse()?, ..client_args()? };
    let watched = watch::follow(WatchArgs { lead_id: Some(lead_id), workspace: None, client }, rows);
    let mut totals = Totals::default();
    let traffic = traffic::send(&mut world, &sender, (args.traffic.rate, CONCURRENCY), &mut totals, std::future::pending(), |_| {});
    let ended = tokio::select! {
        // A signal is for the service as well, which may be done first.
        biased;
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = watched => ended,
        ended = traffic => ended,
        ended = &mut service => return ended?.and_then(|()| Err(anyhow!("the service has ended: {} says why", logs.display()))),
    };
    // The service has heard the same signal, and drains; where the end is another, it is told.
    let _ = writeln!(stderr(), "ending");
    if ended.is_err() {
        service.abort();
        return ended;
    }
    service.await??;
    writer.end();
    let kept = args.data_dir.map(|dir| format!("; its leads are in {}", dir.display())).unwrap_or_default();
    writeln!(stdout(), "{} were sent, {} applied{kept}", text::count(totals.events, "event"), totals.applied)?;
    Ok(())
}

/// What `serve` would run on with these addresses and no settings: the demo is the same wherever it is run.
fn config(data_dir: &Path) -> anyhow::Result<ServeConfig> {
    let command = Cli::command().mut_subcommand("serve", |serve| serve.mut_args(|arg| arg.env(None)));
    let mut args: Vec<std::ffi::OsString> = ["leadfold", "serve", "--drain-delay-ms", "0", "--data-dir"].map(Into::into).into();
    args.push(data_dir.into());
    for (flag, port) in [("--http-addr", 8080), ("--grpc-addr", 50051), ("--admin-addr", 9090)] {
        let usual = SocketAddr::from(([127, 0, 0, 1], port));
        let address = if TcpListener::bind(usual).is_ok() {
            usual
        } else {
            // Where nobody reads stderr the demo goes on.
            let _ = writeln!(stderr(), "port {port} is taken: another one stands in");
            SocketAddr::from(([127, 0, 0, 1], 0))
        };
        args.push(format!("{flag}={address}").into());
    }
    let matches = command.try_get_matches_from(args)?;
    match Cli::from_arg_matches(&matches)?.command {
        Command::Serve(args) => {
            let mut config = args.validate().map_err(|wrong| anyhow!("{}", wrong.join("; ")))?;
            // It has no flag that could be left out.
            config.security.webhook_secrets.fixed = None;
            Ok(config)
        }
        _ => Err(anyhow!("no server")),
    }
}

/// The defaults of the clients.
fn client_args() -> anyhow::Result<ClientArgs> {
    let command = Cli::command().mut_subcommand("watch", |watch| watch.mut_args(|arg| arg.env(None)));
    let matches = command.try_get_matches_from(["leadfold", "watch", "lead"])?;
    match Cli::from_arg_matches(&matches)?.command {
        Command::Client(crate::config::ClientCommand::Watch(args)) => Ok(args.client),
        _ => Err(anyhow!("no client")),
    }
}

/// The terminal is for the demo.
fn log_to_file(data_dir: &Path) -> anyhow::Result<(PathBuf, Logs)> {
    let path = data_dir.join("demo.log");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((path, Logs::to_file(file)?))
}

fn introduction(addresses: &Addresses, lead_id: &str, workspace_id: &str, logs: &Path) -> Vec<String> {
    let Addresses { http, grpc, admin } = addresses;
    // As it was called: what is shown can be pasted.
    let leadfold = std::env::args().next().unwrap_or_else(|| "leadfold".to_owned());
    let server = if grpc.port() == 50051 { String::new() } else { format!(" --server http://{grpc}") };
    let event = format!(
        r#"{{"event":"action_log.completed","workspaceId":"{workspace_id}","actionLog":{{"id":"hello-1","type":"MESSAGE","status":"COMPLETED","leadId":"{lead_id}","summary":"Hello from curl","messages":[{{"channel":"SMS","direction":"INBOUND"}}]}}}}"#
    );
    let title = |text: &str| style(text.to_owned()).bold().to_string();
    vec![
        format!("{}  http://{admin}/?workspace={workspace_id}", title("board   ")),
        format!("{}  http://{http}/webhooks/omniai   gRPC {grpc}   logs {}", title("webhook "), logs.display()),
        String::new(),
        title("try, in another terminal:"),
        format!("  curl http://{http}/webhooks/omniai -H 'content-type: application/json' -d '{event}'"),
        format!("  grpcurl -plaintext -d '{{\"lead_id\":\"{lead_id}\"}}' {grpc} leadfold.v1.LeadService/WatchLead"),
        format!("  {leadfold} get {lead_id}{server}"),
        format!("  {leadfold} list {workspace_id}{server}"),
        String::new(),
    ]
}
