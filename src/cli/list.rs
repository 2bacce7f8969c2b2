//! `leadfold list`: a workspace, latest activity first.

use std::io::{Write, stderr, stdout};

use chrono::Utc;

use super::connect::Server;
use super::json::Json;
use super::text::{self, Told};
use crate::api::{Lead, ListLeadsRequest};
use crate::config::ListArgs;

/// Leads that people are shown unless they ask for more.
const SHOWN: u32 = 20;
/// Leads of one page: they may be large.
const PAGE: u32 = 100;

pub(super) async fn run(args: ListArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let mut client = server.client();
    let mut out = stdout().lock();
    let json = Json::new()?;
    let mut leads: Vec<Lead> = Vec::new();
    let limit = args.limit.unwrap_or(if args.client.json { u32::MAX } else { SHOWN });
    let (mut left, mut page_token) = (limit, String::new());
    while left > 0 {
        let page_size = i32::try_from(left.min(PAGE))?;
        let request = ListLeadsRequest { workspace_id: args.workspace_id.clone(), page_size, page_token, ..ListLeadsRequest::default() };
        let page = client.list_leads(request).await.map_err(|status| server.explain(&status))?.into_inner();
        left = left.saturating_sub(u32::try_from(page.leads.len())?);
        if args.client.json {
            for lead in &page.leads {
                writeln!(out, "{}", json.line("Lead", lead)?)?;
            }
        } else {
            leads.extend(page.leads);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if args.client.json {
        out.flush()?;
        tell_of_more(limit, !page_token.is_empty());
        return Ok(());
    }
    if leads.is_empty() {
        let _ = writeln!(
            stderr(),
            "no leads in workspace {:?} on {}: none of its events has come yet, or the workspace has another id",
            args.workspace_id,
            server.name()
        );
        return Ok(());
    }
    let now = Utc::now();
    let rows = leads.iter().map(|lead| {
        let latest = lead.latest_activity.as_ref().map(text::activity).unwrap_or_default();
        [
            Told::from(lead.lead_id.clone()),
            Told::bold(&text::name(lead)),
            Told::from(text::ago(lead.latest_activity_time.as_ref(), now)),
            Told::from(lead.message_count.to_string()),
            Told::from(lead.document_count.to_string()),
            Told::coloured(&latest),
        ]
    });
    let header = ["lead", "name", "latest", "messages", "documents", "what"];
    text::write_table(&mut out, header, rows)?;
    tell_of_more(limit, !page_token.is_empty());
    Ok(())
}

/// Says that not everything was printed; on stderr, so that it is taken for none of it.
pub(super) fn tell_of_more(limit: u32, is_more: bool) {
    if is_more {
        let _ = writeln!(stderr(), "these are {limit}, and there are more: see --limit");
    }
}
