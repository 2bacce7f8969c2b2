//! `leadfold delete`: asks, then deletes.

use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::bail;

use super::connect::Server;
use super::json;
use super::text;
use crate::api::DeleteLeadRequest;
use crate::config::DeleteArgs;

pub(super) async fn run(args: DeleteArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let lead_id = text::plain(&args.lead_id);
    if !args.yes && !confirmed(&lead_id)? {
        bail!("nothing was deleted");
    }
    let request = DeleteLeadRequest { lead_id: args.lead_id.clone() };
    server.client().delete_lead(request).await.map_err(|status| server.explain_lead(&status, &args.lead_id))?;
    let deleted = serde_json::json!({ "deleted": args.lead_id }).to_string();
    let done = if args.client.json { json::escaped(&deleted) } else { format!("deleted {lead_id}") };
    writeln!(stdout(), "{done}")?;
    Ok(())
}

fn confirmed(lead_id: &str) -> anyhow::Result<bool> {
    if !stdin().is_terminal() {
        bail!("there is no terminal to ask on: add --yes to delete {lead_id:?} and all its records");
    }
    super::confirmed(&format!("Delete lead {lead_id} and all its records?"))
}
