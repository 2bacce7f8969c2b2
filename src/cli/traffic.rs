//! Simulated events on their way to a webhook, at a rate.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::sender::{Fate, Refused, Sender};
use crate::simulation::{Facts, Ledger, SimulatedEvent, World};

/// How often it is looked whether events are due.
const TICK: Duration = Duration::from_millis(5);

/// What was sent, and what was answered.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    /// Events that were answered.
    pub(super) events: u64,
    /// By the name of the event.
    pub(super) sent: BTreeMap<&'static str, u64>,
    /// Of these, sent before; and overtaken by others.
    pub(super) repeated: u64,
    pub(super) late: u64,
    pub(super) applied: u64,
    pub(super) duplicate: u64,
    pub(super) queued: u64,
    pub(super) ignored: u64,
    pub(super) refused: u64,
    /// The first refusal, in the server's words.
    pub(super) first_refusal: Option<String>,
    /// What the server must know of it.
    pub(super) ledger: Ledger,
}

/// Sends events at a rate until `end`, and then those that are still held back. `told` hears of the totals now and then.
///
/// # Errors
/// There is no use in sending anything more.
pub(super) async fn send(
    world: &mut World,
    sender: &Sender,
    (rate, concurrency): (f64, usize),
    totals: &mut Totals,
    end: impl Future<Output = ()>,
    mut told: impl FnMut(&Totals),
) -> anyhow::Result<()> {
    let mut under_way = FuturesUnordered::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut end = std::pin::pin!(end);
    let (began, mut made) = (Instant::now(), 0_u64);
    let mut rest = None;
    loop {
        // What a slow server did not take in time is not made up for by a burst: one second's worth at most.
        let due = (began.elapsed().as_secs_f64() * rate) as u64;
        made = made.max(due.saturating_sub(rate.ceil() as u64));
        while under_way.len() < concurrency {
            let event = match &mut rest {
                None if made < due => world.next(Utc::now()),
                None => break,
                Some(rest) => match Iterator::next(rest) {
                    Some(event) => event,
                    None => break,
                },
            };
            made += 1;
            under_way.push(deliver(sender, event));
        }
        if rest.is_some() && under_way.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = &mut end, if rest.is_none() => rest = Some(world.rest().collect::<Vec<_>>().into_iter()),
            Some(answered) = under_way.next(), if !under_way.is_empty() => note(totals, answered?),
            _ = ticks.tick() => told(totals),
        }
    }
}

struct Answered {
    name: &'static str,
    is_repeated: bool,
    is_late: bool,
    facts: Facts,
    fate: Result<Fate, Refused>,
}

async fn deliver(sender: &Sender, event: SimulatedEvent) -> anyhow::Result<Answered> {
    let SimulatedEvent { name, workspace_id, names_workspace, body, facts, is_repeated, is_late, .. } = event;
    let fate = sender.send(Bytes::from(body), Some(&*workspace_id).filter(|_| !names_workspace)).await?;
    Ok(Answered { name, is_repeated, is_late, facts, fate })
}

fn note(totals: &mut Totals, answered: Answered) {
    totals.events += 1;
    *totals.sent.entry(answered.name).or_default() += 1;
    totals.repeated += u64::from(answered.is_repeated);
    totals.late += u64::from(answered.is_late);
    match answered.fate {
        Ok(fate) => {
            totals.ledger.add(&answered.facts);
            let count = match fate {
                Fate::Applied => &mut totals.applied,
                Fate::Duplicate => &mut totals.duplicate,
                Fate::Queued => &mut totals.queued,
                Fate::Ignored => &mut totals.ignored,
            };
            *count += 1;
        }
        Err(Refused { error, field }) => {
            totals.refused += 1;
            totals.first_refusal.get_or_insert_with(|| format!("{}{error}", field.map(|field| format!("{field}: ")).unwrap_or_default()));
        }
    }
}
