//! The commands that send events: to fill a server with what happened before it, or with what never happened.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

/// The webhook that events are sent to, and how to be let in.
#[derive(Clone, Debug, Args)]
pub struct WebhookArgs {
    /// Address of the server's webhook
    #[arg(long, env = "LEADFOLD_WEBHOOK_URL", value_name = "URL", default_value = "http://127.0.0.1:8080/webhooks/omniai")]
    pub webhook_url: String,
    /// File whose first line is the webhook secret: sent in a header, or signed with if it begins with whsec_ [default: none]
    #[arg(long, env = "LEADFOLD_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    pub webhook_secret_file: Option<PathBuf>,
    /// Header that brings the webhook secret
    #[arg(long, env = "LEADFOLD_WEBHOOK_SECRET_HEADER", value_name = "NAME", default_value = "x-webhook-secret")]
    pub webhook_secret_header: String,
    /// PEM file of the certificate authorities to trust for https:// [default: those of the web]
    #[arg(long, env = "LEADFOLD_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Seconds without any success after which it gives up
    #[arg(long, env = "LEADFOLD_GIVE_UP_SECONDS", value_name = "SECONDS", default_value_t = 120)]
    pub give_up_seconds: u64,
}

/// `leadfold import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// Webhook events, one a line, or the platform's REST export (a JSON array of action logs); - is stdin, .gz is gunzipped
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Lead of a REST export, which doesn't say [default: the name of the file, if it is a UUID]
    #[arg(long, env = "LEADFOLD_LEAD_ID", value_name = "LEAD")]
    pub lead_id: Option<String>,
    /// Workspace of a REST export, and of events that name none [default: none]
    #[arg(long, env = "LEADFOLD_WORKSPACE_ID", value_name = "WORKSPACE")]
    pub workspace_id: Option<String>,
    /// Read and check everything, send nothing, and say what would be sent [default: false]
    #[arg(long, env = "LEADFOLD_DRY_RUN", value_parser = BoolishValueParser::new())]
    pub dry_run: bool,
    /// Events under way at once
    #[arg(long, env = "LEADFOLD_CONCURRENCY", value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,
    /// Lines (of a JSON array: elements) of the first file to pass over
    #[arg(long, env = "LEADFOLD_SKIP", value_name = "N", default_value_t = 0)]
    pub skip: u64,
    /// File that keeps how far it has come, to go on from there after any end [default: none]
    #[arg(long, env = "LEADFOLD_RESUME_FILE", value_name = "FILE", conflicts_with = "skip")]
    pub resume_file: Option<PathBuf>,
    /// Print the summary as JSON [default: false]
    #[arg(long, env = "LEADFOLD_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
    /// The webhook.
    #[command(flatten)]
    pub webhook: WebhookArgs,
}

/// What traffic is made of.
#[derive(Clone, Debug, Args)]
pub struct TrafficArgs {
    /// Events a second
    #[arg(long, env = "LEADFOLD_RATE", value_name = "N", default_value_t = 20.0, value_parser = rate)]
    pub rate: f64,
    /// Leads that the events are about
    #[arg(long, env = "LEADFOLD_LEADS", value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub leads: u32,
    /// Start of the randomness: the same seed makes the same histories [default: another each time]
    #[arg(long, env = "LEADFOLD_SEED", value_name = "N")]
    pub seed: Option<u64>,
}

/// `leadfold simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateArgs {
    /// What is sent.
    #[command(flatten)]
    pub traffic: TrafficArgs,
    /// Workspaces that the leads are spread over
    #[arg(long, env = "LEADFOLD_WORKSPACES", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub workspaces: u32,
    /// The one workspace of all leads [default: made from the seed]
    #[arg(long, env = "LEADFOLD_WORKSPACE_ID", value_name = "WORKSPACE", conflicts_with = "workspaces")]
    pub workspace_id: Option<String>,
    /// Seconds that it goes on [default: until it is interrupted]
    #[arg(long, env = "LEADFOLD_DURATION", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub duration: Option<u32>,
    /// Events under way at once
    #[arg(long, env = "LEADFOLD_CONCURRENCY", value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,
    /// Print the summary as JSON [default: false]
    #[arg(long, env = "LEADFOLD_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
    /// The webhook.
    #[command(flatten)]
    pub webhook: WebhookArgs,
}

/// `leadfold demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// What is sent.
    #[command(flatten)]
    pub traffic: TrafficArgs,
    /// Directory to keep the demo's leads in [default: a temporary one, removed at the end]
    #[arg(long, env = "LEADFOLD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `leadfold completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete in
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.01..=1_000_000.0).contains(rate));
    rate.ok_or_else(|| "write a number from 0.01 to 1000000".to_owned())
}
