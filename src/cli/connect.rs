//! The way to the server, and what its failures mean to a person.

use std::time::Duration;

use anyhow::{anyhow, bail};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::api::dead_letter_service_client::DeadLetterServiceClient;
use crate::api::lead_service_client::LeadServiceClient;

/// How long a connection, and an answer that is not a stream, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for dead letters: of those that are tried again each may take as long as an event.
const RETRY_PATIENCE: Duration = Duration::from_secs(60);
/// The most that one answer may have: a page of large leads.
const MAX_MESSAGE: usize = 64 << 20;

/// A server, by the name that the user gave it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    name: String,
    endpoint: Endpoint,
}

impl Server {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        let form = "write it as http://HOST:PORT";
        if url.starts_with("https://") {
            bail!("--server {url:?}: TLS is not supported in this version: {form}");
        }
        let named = url.strip_prefix("http://").is_some_and(|host| !host.trim_end_matches('/').is_empty());
        let endpoint = Endpoint::from_shared(url.to_owned()).ok().filter(|_| named);
        let endpoint = endpoint.ok_or_else(|| anyhow!("--server {url:?} is not an address: {form}"))?;
        let endpoint = endpoint.connect_timeout(PATIENCE).http2_keep_alive_interval(PATIENCE).keep_alive_timeout(PATIENCE);
        Ok(Self { name: url.to_owned(), endpoint })
    }

    /// A client for calls that are answered once.
    pub(super) fn client(&self) -> LeadServiceClient<Channel> {
        LeadServiceClient::new(self.endpoint.clone().timeout(PATIENCE).connect_lazy()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// A client of the service of dead letters.
    pub(super) fn dead_letters(&self) -> DeadLetterServiceClient<Channel> {
        DeadLetterServiceClient::new(self.endpoint.clone().timeout(RETRY_PATIENCE).connect_lazy()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// A client for streams, which have no end.
    pub(super) fn streams(&self) -> LeadServiceClient<Channel> {
        LeadServiceClient::new(self.endpoint.connect_lazy()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// What a failure means, and what to do.
    pub(super) fn explain(&self, status: &Status) -> anyhow::Error {
        // The server's words stand alone; only a status of the transport has a source.
        let unreachable = std::error::Error::source(status).is_some();
        let name = &self.name;
        match status.code() {
            Code::Unavailable | Code::Unknown if unreachable => {
                anyhow!("cannot reach {name}: is it running? start it with `leadfold serve`, or name another with --server")
            }
            Code::Cancelled | Code::DeadlineExceeded => anyhow!("no answer from {name} within {} s", PATIENCE.as_secs()),
            Code::Unimplemented => anyhow!("{name} is not a leadfold of this version ({})", message(status)),
            _ => anyhow!("{name}: {}", message(status)),
        }
    }

    /// The same, of a call that names a lead.
    pub(super) fn explain_lead(&self, status: &Status, lead_id: &str) -> anyhow::Error {
        match status.code() {
            Code::NotFound => anyhow!("no lead {lead_id:?} on {}", self.name),
            _ => self.explain(status),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn message(status: &Status) -> String {
    let text = if status.message().is_empty() { status.code().description() } else { status.message() };
    super::text::plain(text)
}
