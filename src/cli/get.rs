//! `leadfold get`: one lead, whole.

use std::io::{Write, stdout};

use chrono::Utc;
use console::style;

use super::connect::Server;
use super::json::Json;
use super::text::{self, Told};
use crate::api::{Activity, GetLeadRequest, Lead, ListActivitiesRequest};
use crate::config::GetArgs;

/// Activities that people are shown.
const SHOWN: u32 = 5;

pub(super) async fn run(args: GetArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let request = GetLeadRequest { lead_id: args.lead_id.clone() };
    let answer = server.client().get_lead(request).await.map_err(|status| server.explain_lead(&status, &args.lead_id))?;
    let lead = answer.into_inner().lead.unwrap_or_default();
    let activities = activities(&server, &args, args.activities.unwrap_or(if args.client.json { 0 } else { SHOWN })).await?;
    let mut out = stdout().lock();
    if args.client.json {
        let json = Json::new()?;
        writeln!(out, "{}", json.line("Lead", &lead)?)?;
        for activity in &activities {
            writeln!(out, "{}", json.line("Activity", activity)?)?;
        }
        return Ok(());
    }
    show(&mut out, &lead, &activities)?;
    Ok(())
}

async fn activities(server: &Server, args: &GetArgs, wanted: u32) -> anyhow::Result<Vec<Activity>> {
    let (mut client, wanted) = (server.client(), wanted as usize);
    let mut activities: Vec<Activity> = Vec::new();
    let mut page_token = String::new();
    while activities.len() < wanted {
        let page_size = i32::try_from((wanted - activities.len()).min(1000))?;
        let request = ListActivitiesRequest { lead_id: args.lead_id.clone(), page_size, page_token };
        let page = client.list_activities(request).await.map_err(|status| server.explain_lead(&status, &args.lead_id))?.into_inner();
        activities.extend(page.activities);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    activities.truncate(wanted);
    Ok(activities)
}

fn show(out: &mut impl Write, lead: &Lead, activities: &[Activity]) -> anyhow::Result<()> {
    let now = Utc::now();
    let time = |time: Option<&prost_types::Timestamp>| format!("{} ({})", text::exact(time), text::ago(time, now));
    let latest =
        lead.latest_activity.as_ref().map(|latest| format!("{}, {}", text::activity(latest), time(lead.latest_activity_time.as_ref())));
    let profile = lead.profile.clone().unwrap_or_default();
    let facts = [
        ("lead", lead.lead_id.clone()),
        ("workspace", lead.workspace_id.clone()),
        ("external id", lead.external_id.clone()),
        ("name", text::name(lead)),
        ("email", profile.email),
        ("phone", profile.phone_number),
        ("website", profile.website),
        ("source", profile.source),
        ("version", format!("{}, {}", lead.version, time(lead.update_time.as_ref()))),
        ("first", lead.first_activity_time.as_ref().map(|first| time(Some(first))).unwrap_or_default()),
        ("latest", latest.unwrap_or_default()),
        ("completed", lead.application_complete_time.as_ref().map(|completed| time(Some(completed))).unwrap_or_default()),
    ];
    for (name, fact) in facts.iter().filter(|(_, fact)| !fact.is_empty() && fact != "-") {
        writeln!(out, "{} {}", style(format!("{name:<12}")).dim(), text::plain(fact))?;
    }
    let messages = lead.message_counts.iter().map(|count| {
        [count.channel.clone(), count.direction.clone(), count.count.to_string(), text::ago(count.latest_time.as_ref(), now)]
            .map(Told::from)
    });
    section(out, &text::count(lead.message_count, "message"), ["channel", "direction", "count", "latest"], messages)?;
    let counts = lead
        .activity_counts
        .iter()
        .map(|count| [Told::from(count.r#type.clone()), Told::status(&count.status), Told::from(count.count.to_string())]);
    section(out, "activities", ["type", "status", "count"], counts)?;
    let documents = lead.documents.iter().map(|document| {
        let extraction = document.extraction.clone().unwrap_or_default();
        let (name, mime_type) = (document.filename.clone(), document.mime_type.clone());
        let kind = [extraction.status, extraction.document_type].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        [
            Told::dim(&document.document_id),
            Told::from(name),
            Told::from(mime_type),
            Told::from(text::size(document.size_bytes)),
            Told::status(&kind),
            Told::from(text::ago(document.create_time.as_ref(), now)),
        ]
    });
    let shown = match lead.documents.len() as u64 {
        shown if shown < lead.document_count => format!("{}, the newest {shown}", text::count(lead.document_count, "document")),
        all => text::count(all, "document"),
    };
    section(out, &shown, ["id", "name", "type", "size", "extraction", "created"], documents)?;
    let items =
        lead.checklist_items.iter().map(|item| [Told::from(item.code.clone()), Told::status(&item.status), Told::from(item.value.clone())]);
    section(out, "checklist", ["code", "status", "value"], items)?;
    let newest = activities.iter().map(|activity| {
        let time = activity.complete_time.as_ref();
        [
            Told::from(text::ago(time, now)),
            Told::from(text::exact(time)),
            Told::dim(&activity.action_id),
            Told::coloured(&text::activity(activity)),
        ]
    });
    section(out, "newest activities", ["latest", "time", "id", "what"], newest)
}

/// A title and a table; nothing if there are no rows.
fn section<const N: usize>(
    out: &mut impl Write,
    title: &str,
    header: [&str; N],
    rows: impl ExactSizeIterator<Item = [Told; N]>,
) -> anyhow::Result<()> {
    if rows.len() > 0 {
        writeln!(out, "\n{}", style(title).bold())?;
        text::write_table(out, header, rows)?;
    }
    Ok(())
}
