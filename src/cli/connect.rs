//! The way to the server, and what its failures mean to a person.

use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::Uri;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::retry::is_of_the_server;
use super::trouble::{self, Trouble};
use crate::api::dead_letter_service_client::DeadLetterServiceClient;
use crate::api::lead_service_client::LeadServiceClient;
use crate::auth::files;
use crate::config::{AccessArgs, ClientArgs};

/// How long a connection, and an answer that is not a stream, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for dead letters: of those that are tried again each may take as long as an event.
const RETRY_PATIENCE: Duration = Duration::from_secs(60);
/// The most that one answer may have: a page of large leads.
const MAX_MESSAGE: usize = 64 << 20;

/// A bearer token for those who have no file to put it in. There is no flag: `ps` would show it.
const TOKEN: &str = "LEADFOLD_TOKEN";

/// A client that says who it is.
pub(super) type Client = LeadServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds the token, if there is one, to every call.
#[derive(Clone, Debug)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Bearer {
    fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let (from, text) = match file {
            Some(file) => ("--token-file", files::read_text(file).context("--token-file")?),
            None => match std::env::var_os(TOKEN).filter(|text| !text.is_empty()) {
                Some(text) => (TOKEN, text.to_string_lossy().into_owned()),
                None => return Ok(Self(None)),
            },
        };
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("{from} has no token: write it there, and nothing else");
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().context("the token cannot be sent")?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

/// A server, by the name that the user gave it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    name: String,
    url: Uri,
    ca_file: Option<PathBuf>,
    endpoint: Endpoint,
    bearer: Bearer,
}

impl Server {
    pub(super) fn new(client: &ClientArgs) -> anyhow::Result<Self> {
        let url = client.server.clone();
        let name = url.to_string().trim_end_matches('/').to_owned();
        let endpoint = Endpoint::from(url.clone());
        let endpoint = endpoint.connect_timeout(PATIENCE).http2_keep_alive_interval(PATIENCE).keep_alive_timeout(PATIENCE);
        let is_encrypted = url.scheme_str() == Some("https");
        let endpoint = if is_encrypted {
            endpoint.tls_config(tls(&client.access)?).with_context(|| format!("--server {name}: its certificates cannot be used"))?
        } else {
            endpoint
        };
        let bearer = Bearer::read(client.access.token_file.as_deref())?;
        if bearer.0.is_some() && !is_encrypted && !trouble::is_loopback(&url) {
            let _ = writeln!(stderr(), "warning: the token goes to {name} unencrypted, for all on the way to read: use https://");
        }
        Ok(Self { name, url, ca_file: client.access.ca_file.clone(), endpoint, bearer })
    }

    /// A client for calls that are answered once.
    pub(super) fn client(&self) -> Client {
        self.over(self.endpoint.clone().timeout(PATIENCE).connect_lazy())
    }

    /// A client of the service of dead letters.
    pub(super) fn dead_letters(&self) -> DeadLetterServiceClient<InterceptedService<Channel, Bearer>> {
        let channel = self.endpoint.clone().timeout(RETRY_PATIENCE).connect_lazy();
        DeadLetterServiceClient::with_interceptor(channel, self.bearer.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// A client for streams, which have no end.
    pub(super) fn streams(&self) -> Client {
        self.over(self.endpoint.connect_lazy())
    }

    fn over(&self, channel: Channel) -> Client {
        LeadServiceClient::with_interceptor(channel, self.bearer.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// What a failure means, and what to do.
    pub(super) fn explain(&self, status: &Status) -> anyhow::Error {
        let name = &self.name;
        if is_of_the_server(status) {
            return match status.code() {
                Code::Unauthenticated => anyhow!("{name}: {} (--token-file or {TOKEN})", message(status)),
                _ => anyhow!("{name}: {}", message(status)),
            };
        }
        let is_of_the_transport = std::error::Error::source(status).is_some();
        if is_of_the_transport {
            match trouble::trouble(status) {
                Trouble::Refused => {
                    return anyhow!(
                        "cannot reach {name}: connection refused: is it running? start it with `leadfold serve`, or name another with --server"
                    );
                }
                Trouble::Tls(advice) => return anyhow!("cannot reach {name}: {advice}"),
                Trouble::Other(_) => {}
            }
        }
        // What is not there, or says itself that it will be back, needs no look at.
        let other = if status.code() == Code::Unavailable && !is_of_the_transport { None } else { self.what_speaks() };
        match (other, status.code()) {
            (Some(other), _) => anyhow!("{name} is not the address of leadfold's gRPC: {other}"),
            (None, Code::Cancelled | Code::DeadlineExceeded) => anyhow!("cannot reach {name}: no answer within {} s", PATIENCE.as_secs()),
            (None, Code::Unimplemented) => anyhow!("{name} is not a leadfold of this version ({})", message(status)),
            (None, _) if is_of_the_transport => match trouble::trouble(status) {
                Trouble::Other(why) => anyhow!("cannot reach {name}: {why}"),
                Trouble::Refused | Trouble::Tls(_) => anyhow!("cannot reach {name}"),
            },
            (None, _) => anyhow!("{name}: {}", message(status)),
        }
    }

    fn what_speaks(&self) -> Option<String> {
        trouble::what_speaks(&self.url, self.ca_file.as_deref())
    }

    /// The same, of a call that names a lead.
    pub(super) fn explain_lead(&self, status: &Status, lead_id: &str) -> anyhow::Error {
        match status.code() {
            Code::NotFound => anyhow!(
                "no lead {lead_id:?} on {}: none of its events has come yet, or it was deleted; `leadfold list WORKSPACE` shows who is there",
                self.name
            ),
            _ => self.explain(status),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn tls(access: &AccessArgs) -> anyhow::Result<ClientTlsConfig> {
    let read = |flag: &str, file: &Path| files::read(file).with_context(|| flag.to_owned());
    let config = match &access.ca_file {
        Some(file) => {
            // tonic takes a file without any certificate, and trusts nobody.
            trouble::trusting(Some(file))?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--ca-file", file)?))
        }
        None => ClientTlsConfig::new().with_webpki_roots(),
    };
    Ok(match (&access.client_cert, &access.client_key) {
        (Some(cert), Some(key)) => config.identity(Identity::from_pem(read("--client-cert", cert)?, read("--client-key", key)?)),
        _ => config,
    })
}

fn message(status: &Status) -> String {
    let text = if status.message().is_empty() { status.code().description() } else { status.message() };
    super::text::plain(text)
}
