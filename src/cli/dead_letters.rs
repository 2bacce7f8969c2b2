//! `leadfold dead-letters`: what was refused is listed, tried again, or dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write, stderr, stdin, stdout};

use anyhow::{anyhow, bail};
use chrono::Utc;
use comfy_table::ColumnConstraint;

use super::connect::Server;
use super::json::{self, Json};
use super::list::tell_of_more;
use super::text;
use crate::api::{DeadLetter, DropDeadLettersRequest, ListDeadLettersRequest, RetryDeadLettersRequest};
use crate::config::{DeadLettersCommand, DeadLettersDropArgs, DeadLettersListArgs, DeadLettersRetryArgs};

/// Letters that people are shown unless they ask for more.
const SHOWN: u32 = 20;
/// Letters of one call: of those that are tried again each may take as long as an event.
const PAGE: usize = 200;
const RETRIED_AT_ONCE: usize = 20;

pub(super) async fn run(command: DeadLettersCommand) -> anyhow::Result<()> {
    match command {
        DeadLettersCommand::List(args) => list(args).await,
        DeadLettersCommand::Retry(args) => retry(args).await,
        DeadLettersCommand::Drop(args) => drop_letters(args).await,
    }
}

/// Letters, the newest first: `limit` at most.
async fn letters(server: &Server, limit: usize, include_payloads: bool) -> anyhow::Result<(Vec<DeadLetter>, bool)> {
    let mut client = server.dead_letters();
    let (mut letters, mut page_token) = (Vec::new(), String::new());
    loop {
        let page_size = i32::try_from(PAGE.min(limit - letters.len()))?;
        let request = ListDeadLettersRequest { page_size, page_token, include_payloads };
        let page = client.list_dead_letters(request).await.map_err(|status| server.explain(&status))?.into_inner();
        letters.extend(page.dead_letters);
        page_token = page.next_page_token;
        if page_token.is_empty() || letters.len() >= limit {
            return Ok((letters, !page_token.is_empty()));
        }
    }
}

async fn list(args: DeadLettersListArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let limit = args.limit.unwrap_or(if args.client.json { u32::MAX } else { SHOWN });
    let (letters, more) = letters(&server, usize::try_from(limit)?, args.payloads).await?;
    let mut out = stdout().lock();
    if args.client.json {
        let json = Json::new()?;
        for letter in &letters {
            writeln!(out, "{}", json.line("DeadLetter", letter)?)?;
        }
        tell_of_more(limit, more);
        return Ok(());
    }
    if letters.is_empty() {
        let _ = writeln!(stderr(), "no dead letters on {}", server.name());
        return Ok(());
    }
    let now = Utc::now();
    let rows = letters.iter().map(|letter| {
        let wrong = if letter.field.is_empty() { letter.error.clone() } else { format!("{}: {}", letter.field, letter.error) };
        let lead = if letter.lead_id.is_empty() { "-" } else { &letter.lead_id };
        let retriable = if letter.retriable { "yes" } else { "no" };
        let (id, event, reason) = (letter.dead_letter_id.clone(), letter.event.clone(), letter.reason.clone());
        let last = text::ago(letter.latest_time.as_ref(), now);
        [id, last, letter.count.to_string(), event, lead.to_owned(), retriable.to_owned(), reason, wrong]
    });
    let header = ["id", "last", "times", "event", "lead", "retriable", "reason", "what was wrong"];
    let mut table = text::table(header, rows);
    // What was wrong is worth several lines; an id that is broken over two cannot be copied.
    for at in [0, 4] {
        if let Some(column) = table.column_mut(at) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    writeln!(out, "{}", table.trim_fmt())?;
    if args.payloads {
        for letter in letters.iter().filter(|letter| !letter.payload.is_empty()) {
            writeln!(out, "\n{}: {}", letter.dead_letter_id, text::plain(&letter.payload))?;
        }
    }
    tell_of_more(limit, more);
    Ok(())
}

async fn retry(args: DeadLettersRetryArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let ids = if args.all { every_id(&server, true).await? } else { args.ids };
    let mut client = server.dead_letters();
    let json = Json::new()?;
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    // Where nobody reads what is printed, the letters are tried again all the same.
    let mut printed = Ok(());
    // The oldest first: as they came.
    for ids in ids.chunks(RETRIED_AT_ONCE) {
        let request = RetryDeadLettersRequest { dead_letter_ids: ids.to_vec() };
        let answer = client.retry_dead_letters(request).await.map_err(|status| server.explain(&status))?.into_inner();
        for result in answer.results {
            let line = if args.client.json {
                json.line("RetriedDeadLetter", &result)?
            } else if !result.error.is_empty() || result.outcome == "not_found" {
                text::plain(format!("{}  {}  {}", result.dead_letter_id, result.outcome, result.error).trim_end())
            } else {
                String::new()
            };
            if printed.is_ok() && !line.is_empty() {
                printed = writeln!(stdout(), "{line}");
            }
            *outcomes.entry(result.outcome).or_default() += 1;
        }
    }
    let stay = ["refused", "unavailable", "not_retriable", "not_found"];
    let stay: u64 = outcomes.iter().filter(|(outcome, _)| stay.contains(&outcome.as_str())).map(|(_, count)| count).sum();
    let ended = if stay == 0 { Ok(()) } else { Err(anyhow!("{} could not be taken", text::count(stay, "dead letter"))) };
    super::report(ended, || {
        printed?;
        if !args.client.json {
            let told: Vec<_> = outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            writeln!(stdout(), "{}", if told.is_empty() { "nothing to try again".to_owned() } else { told.join(", ") })?;
        }
        Ok(())
    })
}

async fn drop_letters(args: DeadLettersDropArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let ids = if args.all { every_id(&server, false).await? } else { args.ids };
    if !args.yes && !confirmed(ids.len())? {
        bail!("nothing was dropped");
    }
    let asked = ids.iter().collect::<BTreeSet<_>>().len() as u64;
    let mut client = server.dead_letters();
    let mut dropped = 0;
    for ids in ids.chunks(PAGE) {
        let request = DropDeadLettersRequest { dead_letter_ids: ids.to_vec() };
        dropped += client.drop_dead_letters(request).await.map_err(|status| server.explain(&status))?.into_inner().dropped_count;
    }
    let done = if args.client.json {
        json::escaped(&serde_json::json!({ "dropped": dropped }).to_string())
    } else {
        format!("dropped {}", text::count(dropped, "dead letter"))
    };
    // Of letters that were named, each that is not there is a mistake; of all of them, others may have been first.
    let missing = if args.all { 0 } else { asked.saturating_sub(dropped) };
    let ended = if missing == 0 { Ok(()) } else { Err(anyhow!("{} not there", text::count(missing, "dead letter was"))) };
    super::report(ended, || Ok(writeln!(stdout(), "{done}")?))
}

/// The ids of all letters, the oldest first.
async fn every_id(server: &Server, retriable: bool) -> anyhow::Result<Vec<String>> {
    let (letters, _) = letters(server, usize::MAX, false).await?;
    let wanted = letters.into_iter().rev().filter(|letter| letter.retriable || !retriable);
    Ok(wanted.map(|letter| letter.dead_letter_id).collect())
}

fn confirmed(count: usize) -> anyhow::Result<bool> {
    let letters = text::count(count as u64, "dead letter");
    if !stdin().is_terminal() {
        bail!("there is no terminal to ask on: add --yes to drop {letters} for good");
    }
    super::confirmed(&format!("Drop {letters} for good?"))
}
