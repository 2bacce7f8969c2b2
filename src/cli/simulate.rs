//! `leadfold simulate`: histories that never happened, for a server that is to be tried.

use std::io::{Write as _, stdout};
use std::time::Duration;

use anyhow::{anyhow, bail};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::json;
use super::progress::Progress;
use super::sender::Sender;
use super::text;
use super::traffic::{self, Totals};
use crate::config::SimulateArgs;
use crate::simulation::{Settings, World};

pub(super) async fn run(args: SimulateArgs) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let concurrency = args.concurrency as usize;
    let sender = Sender::new(&args.webhook, concurrency)?;
    let seed = args.traffic.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let settings =
        Settings { seed, leads: args.traffic.leads, workspaces: args.workspaces, workspace_id: args.workspace_id.clone(), has_star: false };
    let mut world = World::new(&settings);
    let (lead_id, workspace_id) = world.first_lead();
    let (lead_id, workspace_id) = (lead_id.to_owned(), workspace_id.to_owned());
    let mut progress = Progress::new(None);
    if !args.json {
        let rate = args.traffic.rate;
        progress.say(&format!("seed {seed}: {}, {rate} events/s to {}", text::count(u64::from(args.traffic.leads), "lead"), sender.url()));
        progress.say(&format!("look at it: leadfold watch --workspace {workspace_id}, leadfold watch {lead_id}"));
    }
    let end = async {
        let time = async {
            match args.duration {
                Some(seconds) => sleep(Duration::from_secs(u64::from(seconds))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut again = signal(SignalKind::interrupt())?;
    let (began, mut totals) = (Instant::now(), Totals::default());
    let pace = (args.traffic.rate, concurrency);
    let ended = tokio::select! {
        ended = traffic::send(&mut world, &sender, pace, &mut totals, end, |totals| progress.update(totals.events, 0)) => ended,
        // Who asks twice does not want to wait for answers.
        () = async { again.recv().await; again.recv().await; } => Err(anyhow!("interrupted before everything was answered")),
    };
    progress.finish();
    let ended = ended.and_then(|()| match &totals.first_refusal {
        None => Ok(()),
        Some(refusal) => {
            bail!("{} of {} refused, the first: {}", totals.refused, text::count(totals.events, "event"), text::plain(refusal))
        }
    });
    super::report(ended, || report(&totals, seed, began.elapsed(), args.json))
}

fn report(totals: &Totals, seed: u64, took: Duration, as_json: bool) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let seconds = took.as_secs_f64();
    if as_json {
        let mut report = serde_json::to_value(totals)?;
        report["seed"] = json!(seed);
        report["seconds"] = json!(seconds);
        writeln!(out, "{}", json::escaped(&report.to_string()))?;
        return Ok(());
    }
    let Totals { events, repeated, late, applied, duplicate, queued, ignored, refused, ledger, .. } = totals;
    for (name, count) in &totals.sent {
        writeln!(out, "{count:>10}  {name}")?;
    }
    writeln!(
        out,
        "{} in {seconds:.1} s, {:.1}/s; {repeated} sent twice, {late} late",
        text::count(*events, "event"),
        *events as f64 / seconds
    )?;
    writeln!(out, "answered: {applied} applied, {duplicate} duplicate, {queued} queued, {ignored} ignored, {refused} refused")?;
    let activities: i64 = ledger.activities.values().sum();
    writeln!(
        out,
        "the server must know: {}, {activities} activities, {}, {}",
        text::count(ledger.leads, "lead"),
        text::count(ledger.messages, "message"),
        text::count(ledger.documents, "document")
    )?;
    Ok(())
}
