//! What a person looks at: the present state, drawn in place, and the last things that happened.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use console::style;

use super::super::text;
use super::lines;
use super::screen::Screen;
use crate::api::{Lead, LeadSnapshot, LeadUpdate};

/// Between two drawings at least; and at most, since times are told from now.
const REDRAW: (Duration, Duration) = (Duration::from_millis(80), Duration::from_secs(1));
/// Things that happened which are remembered.
const REMEMBERED: usize = 100;
/// Leads of a workspace that are remembered: more than any terminal has rows.
const MAX_LEADS: usize = 200;
/// Documents that are shown.
const DOCUMENTS: usize = 5;
/// Columns of the longest bar.
const BAR: u64 = 20;

/// The view.
#[derive(Debug)]
pub(super) struct Live {
    screen: Screen,
    /// One lead, or a workspace's.
    is_one: bool,
    leads: HashMap<String, Lead>,
    happened: VecDeque<(DateTime<Utc>, String, String)>,
    /// The connection is lost, and why.
    trouble: Option<String>,
    dirty: bool,
    drawn: Instant,
}

impl Live {
    pub(super) fn new(screen: Screen, is_one: bool) -> Self {
        let drawn = Instant::now();
        Self { screen, is_one, leads: HashMap::new(), happened: VecDeque::new(), trouble: None, dirty: true, drawn }
    }

    pub(super) fn snapshot(&mut self, snapshot: &LeadSnapshot) {
        let Some(lead) = &snapshot.lead else { return };
        if let Some(reason) = lines::reason(snapshot) {
            self.happen(&lead.lead_id, reason.to_owned());
        }
        self.keep(lead);
    }

    pub(super) fn update(&mut self, update: &LeadUpdate) {
        let Some(lead) = &update.lead else { return };
        for told in update.changes.iter().filter_map(lines::change) {
            self.happen(&lead.lead_id, told);
        }
        if update.changes_truncated {
            self.happen(&lead.lead_id, "and more than is told".to_owned());
        }
        self.keep(lead);
    }

    pub(super) fn trouble(&mut self, trouble: Option<String>) {
        (self.trouble, self.dirty) = (trouble, true);
    }

    fn keep(&mut self, lead: &Lead) {
        if !self.is_one && lead.version == 0 {
            self.leads.remove(&lead.lead_id);
        } else {
            self.leads.insert(lead.lead_id.clone(), lead.clone());
        }
        if self.leads.len() > 2 * MAX_LEADS {
            let keep: std::collections::HashSet<_> = self.newest().into_iter().take(MAX_LEADS).map(|lead| lead.lead_id.clone()).collect();
            self.leads.retain(|id, _| keep.contains(id));
        }
        self.dirty = true;
    }

    fn happen(&mut self, lead_id: &str, told: String) {
        self.happened.push_front((Utc::now(), lead_id.to_owned(), told));
        self.happened.truncate(REMEMBERED);
    }

    /// Draws, if there is reason to.
    pub(super) fn tick(&mut self) -> anyhow::Result<()> {
        let waited = self.drawn.elapsed();
        if (self.dirty && waited >= REDRAW.0) || waited >= REDRAW.1 {
            (self.dirty, self.drawn) = (false, Instant::now());
            let lines = self.lines();
            self.screen.draw(&lines)?;
        }
        Ok(())
    }

    fn newest(&self) -> Vec<&Lead> {
        let mut leads: Vec<_> = self.leads.values().collect();
        leads.sort_by_key(|lead| std::cmp::Reverse(lead.latest_activity_time.as_ref().map(|time| (time.seconds, time.nanos))));
        leads
    }

    fn lines(&self) -> Vec<String> {
        let (rows, _) = self.screen.room();
        let now = Utc::now();
        let mut lines = match (self.is_one, self.leads.values().next()) {
            (true, Some(lead)) => one(lead, now),
            (true, None) => vec!["waiting for the server".to_owned()],
            (false, _) => self.workspace(now, rows),
        };
        // The last row says how things stand; what is left between shows what happened.
        lines.truncate(rows.saturating_sub(4));
        let left = rows.saturating_sub(lines.len() + 2);
        lines.push(String::new());
        for (at, lead_id, told) in self.happened.iter().take(left) {
            let whose = self
                .leads
                .get(lead_id)
                .filter(|_| !self.is_one)
                .map(|lead| format!("{}  ", style(text::name(lead)).bold()))
                .unwrap_or_default();
            lines.push(format!("{}  {whose}{}", style(at.format("%H:%M:%S")).dim(), text::coloured(told)));
        }
        lines.push(match &self.trouble {
            Some(trouble) => style(text::plain(trouble)).red().to_string(),
            None => style("live: Ctrl-C ends").dim().to_string(),
        });
        lines
    }

    fn workspace(&self, now: DateTime<Utc>, rows: usize) -> Vec<String> {
        let leads = self.newest();
        let rows_of_leads = leads.iter().take((rows / 2).max(3)).map(|lead| {
            let latest = lead.latest_activity.as_ref().map(text::activity).unwrap_or_default();
            [
                text::Told::bold(&text::name(lead)),
                text::Told::from(text::ago(lead.latest_activity_time.as_ref(), now)),
                text::Told::from(lead.message_count.to_string()),
                text::Told::from(lead.document_count.to_string()),
                text::Told::coloured(&latest),
            ]
        });
        let header = ["lead", "latest", "messages", "documents", "what"];
        // One row each: what is too long is cut at the edge.
        text::table(header, rows_of_leads).set_content_arrangement(comfy_table::ContentArrangement::Disabled).lines().collect()
    }
}

fn one(lead: &Lead, now: DateTime<Utc>) -> Vec<String> {
    let profile = lead.profile.clone().unwrap_or_default();
    let business = if profile.business_name.is_empty() { String::new() } else { format!("  {}", text::plain(&profile.business_name)) };
    let mut lines = vec![
        format!("{}{business}", style(text::name(lead)).bold()),
        style(format!("lead {}  workspace {}  version {}", text::plain(&lead.lead_id), text::plain(&lead.workspace_id), lead.version))
            .dim()
            .to_string(),
    ];
    if lead.version == 0 {
        lines.push("nothing is known yet".to_owned());
        return lines;
    }
    if let Some(latest) = &lead.latest_activity {
        let ago = text::ago(lead.latest_activity_time.as_ref(), now);
        lines.push(format!("latest      {}  {}", style(format!("{ago:<10}")).cyan(), text::coloured(&text::activity(latest))));
    }
    if let Some(completed) = &lead.application_complete_time {
        lines.push(format!("completed   {}", style(text::ago(Some(completed), now)).green()));
    }
    let done = lead.checklist_items.iter().filter(|item| item.status == "COMPLETED").count();
    if !lead.checklist_items.is_empty() {
        lines.push(format!("checklist   {done} of {} completed", lead.checklist_items.len()));
    }
    lines.push(String::new());
    lines.push(style(text::count(lead.message_count, "message")).bold().to_string());
    let most = lead.message_counts.iter().map(|count| count.count).max().unwrap_or(1).max(1);
    for count in &lead.message_counts {
        let bar = "▇".repeat(usize::try_from((count.count * BAR).div_ceil(most)).unwrap_or_default());
        let ago = text::ago(count.latest_time.as_ref(), now);
        let (channel, direction) = (text::plain(&count.channel), text::plain(&count.direction));
        lines.push(format!("  {channel:<10}{direction:<10}{:>5}  {}  {}", count.count, style(bar).cyan(), style(ago).dim()));
    }
    lines.push(style(text::count(lead.document_count, "document")).bold().to_string());
    for document in lead.documents.iter().take(DOCUMENTS) {
        let extraction = document.extraction.clone().unwrap_or_default();
        let state = match &*extraction.status {
            "completed" => style(text::plain(&extraction.document_type)).green(),
            "" => style("waiting".to_owned()).yellow(),
            other => style(text::plain(other)).red(),
        };
        let name = text::plain(if document.filename.is_empty() { &document.document_id } else { &document.filename });
        lines.push(format!("  {name:<32} {:>8}  {state}", text::size(document.size_bytes)));
    }
    if lead.document_count > DOCUMENTS as u64 {
        lines.push(style(format!("  and {} more", lead.document_count - DOCUMENTS as u64)).dim().to_string());
    }
    lines
}
