//! The commands that send events: to fill a server with what happened before it, or with what never happened.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use http::Uri;

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
    /// Webhook events, one after the other or in a JSON array, or the platform's REST export (action logs); - is stdin, gzip is read
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Lead of a REST export, which doesn't say [default: the name of the file, if it is a UUID]
    #[arg(long, env = "LEADFOLD_LEAD_ID", value_name = "LEAD")]
    pub lead_id: Option<String>,
    /// Workspace of a REST export, and of events that name none [default: none]
    #[arg(long, env = "LEADFOLD_WORKSPACE_ID", value_name = "WORKSPACE", alias = "workspace")]
    pub workspace_id: Option<String>,
    /// Read and check everything, send nothing, and say what would be sent [default: false]
    #[arg(long, env = "LEADFOLD_DRY_RUN", value_parser = BoolishValueParser::new())]
    pub dry_run: bool,
    /// Events under way at once
    #[arg(long, env = "LEADFOLD_CONCURRENCY", value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,
    /// Records of the first file to pass over
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
    #[arg(long, env = "LEADFOLD_WORKSPACE_ID", value_name = "WORKSPACE", alias = "workspace", conflicts_with = "workspaces")]
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
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `leadfold completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete in
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// The address of a gRPC server; without a scheme it is not encrypted.
pub(super) fn server(text: &str) -> Result<Uri, String> {
    let form = "write it as http://HOST:PORT, https://HOST:PORT or HOST:PORT";
    let text = text.trim();
    let has_scheme = text.contains("://");
    let url = if has_scheme { text.to_owned() } else { format!("http://{text}") };
    let url: Uri = url.parse().map_err(|_| form.to_owned())?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err(form.to_owned());
    }
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(format!("it has a user or password, which gRPC does not take: put a token into --token-file; {form}"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(format!("it has a path, and gRPC is served at none: {form}"));
    }
    // `host:` and a number that is no port are parsed as well.
    let has_port = url.authority().is_some_and(|authority| authority.as_str().trim_start_matches(url.host().unwrap_or_default()).len() > 1);
    if has_port && url.port_u16().is_none_or(|port| port == 0) || !has_scheme && url.port().is_none() {
        return Err(format!("it has no port from 1 to 65535: {form}"));
    }
    Ok(url)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.01..=1_000_000.0).contains(rate));
    rate.ok_or_else(|| "write a number from 0.01 to 1000000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_may_be_written_without_a_scheme() {
        for (text, url) in [
            ("localhost:50051", "http://localhost:50051/"),
            ("[::1]:50051", "http://[::1]:50051/"),
            (" HTTPS://leads.example/ ", "https://leads.example/"),
            ("http://10.0.0.1:1", "http://10.0.0.1:1/"),
        ] {
            assert_eq!(server(text).map(|url| url.to_string()), Ok(url.to_owned()), "{text}");
        }
        for (text, word) in [
            ("", "HOST:PORT"),
            ("http://", "HOST:PORT"),
            ("ftp://h", "HOST:PORT"),
            ("localhost", "no port"),
            ("localhost:", "no port"),
            ("http://h:0", "no port"),
            ("http://h:99999", "HOST:PORT"),
            ("http://u:secret@h:1", "--token-file"),
            ("http://h:1/path", "path"),
            ("http://h:1?x", "path"),
        ] {
            let refusal = server(text).expect_err(text);
            assert!(refusal.contains(word) && !refusal.contains("secret"), "{text}: {refusal}");
        }
    }
}
