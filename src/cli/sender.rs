//! Events on their way to a webhook: sent again until somebody answers for them.

use std::io::{Write as _, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::text;
use super::trouble::{self, Trouble};
use crate::auth::files;
use crate::config::{Secret, WebhookArgs, webhook_secret_of_the_environment};
use crate::webhook::signature::{Key, SECRET_PREFIX};

/// How long an answer may take: the server promises one within 3 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first and the longest wait before an event is sent again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The longest wait that a server can ask for.
const MAX_ASKED: Duration = Duration::from_secs(60);
/// The most that is read of an answer.
const MAX_ANSWER: usize = 64 << 10;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Applied,
    Duplicate,
    Queued,
    Ignored,
}

/// An event that the server will never take, in its words.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: String,
    pub(super) field: Option<String>,
}

/// Sends events to one webhook.
pub(super) struct Sender {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    proof: Option<Proof>,
    give_up: Duration,
    /// When the server last took something, or the first failure after that: one dead server is one story.
    last_success: Mutex<Instant>,
}

enum Proof {
    Said(HeaderName, HeaderValue),
    Signed(Key),
}

/// An attempt that may go better the next time.
struct NotYet {
    why: String,
    asked: Option<Duration>,
}

impl Sender {
    /// To the webhook of these arguments, over at most so many connections.
    pub(super) fn new(args: &WebhookArgs, connections: usize) -> anyhow::Result<Self> {
        Self::with_proof(args, connections, proof(args)?)
    }

    /// The same, to a webhook that asks for no secret, whatever there is in the environment.
    pub(super) fn without_secret(args: &WebhookArgs, connections: usize) -> anyhow::Result<Self> {
        Self::with_proof(args, connections, None)
    }

    fn with_proof(args: &WebhookArgs, connections: usize, proof: Option<Proof>) -> anyhow::Result<Self> {
        let url: Uri = args.webhook_url.trim_end_matches('/').parse().map_err(|_| not_an_address(&args.webhook_url))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
            return Err(not_an_address(&args.webhook_url));
        }
        if url.path() == "/" {
            bail!("--webhook-url {} names no path: the server takes events at {url}webhooks/omniai", args.webhook_url);
        }
        let connector = HttpsConnectorBuilder::new().with_tls_config(trouble::trusting(args.ca_file.as_deref())?);
        if matches!(proof, Some(Proof::Said(..))) && url.scheme_str() == Some("http") && !trouble::is_loopback(&url) {
            let _ = writeln!(stderr(), "warning: the secret goes to {url} unencrypted, for all on the way to read: use https://");
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(PATIENCE));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(connections)
            .build(connector.https_or_http().enable_http1().wrap_connector(http));
        let give_up = Duration::from_secs(args.give_up_seconds);
        Ok(Self { client, url, proof, give_up, last_success: Mutex::new(Instant::now()) })
    }

    /// The address that events go to.
    pub(super) const fn url(&self) -> &Uri {
        &self.url
    }

    /// Sends an event, again and again until the server has taken or refused it. `workspace_id` goes into the URL,
    /// for an event that names none.
    ///
    /// # Errors
    /// There is no use in sending anything more: the server has taken nothing for too long, or does not let us in.
    pub(super) async fn send(&self, event: Bytes, workspace_id: Option<&str>) -> anyhow::Result<Result<Fate, Refused>> {
        let url = workspace_id.map_or_else(|| Ok(self.url.clone()), |workspace_id| self.url_of(workspace_id))?;
        let mut backoff = BACKOFF.0;
        let mut first_failure = None;
        loop {
            let not_yet = match self.attempt(&event, &url).await? {
                Ok(answer) => {
                    *self.success() = Instant::now();
                    return Ok(answer);
                }
                Err(not_yet) => not_yet,
            };
            let first_failure = *first_failure.get_or_insert_with(Instant::now);
            // However long this one event waits, the server works as long as it takes others.
            let silent = self.success().max(first_failure).elapsed();
            if silent >= self.give_up {
                bail!("{} has taken nothing for {} s ({})", self.url, silent.as_secs(), not_yet.why);
            }
            let wait = backoff.mul_f64(rand::random_range(0.5..1.0)).max(not_yet.asked.unwrap_or_default().min(MAX_ASKED));
            sleep(wait.min(self.give_up.saturating_sub(silent).max(BACKOFF.0))).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    fn success(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.last_success.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn url_of(&self, workspace_id: &str) -> anyhow::Result<Uri> {
        let segment = percent_encoding::utf8_percent_encode(workspace_id, percent_encoding::NON_ALPHANUMERIC);
        format!("{}/{segment}", self.url).parse().with_context(|| format!("workspace {workspace_id:?} in a URL"))
    }

    async fn attempt(&self, event: &Bytes, url: &Uri) -> anyhow::Result<Result<Result<Fate, Refused>, NotYet>> {
        let mut request = Request::post(url).header(header::CONTENT_TYPE, "application/json");
        match &self.proof {
            None => {}
            Some(Proof::Said(name, secret)) => request = request.header(name, secret),
            Some(Proof::Signed(key)) => {
                let id = format!("msg_{:032x}", rand::random::<u128>());
                let now = chrono::Utc::now().timestamp().to_string();
                request = request
                    .header("webhook-signature", key.signature(&id, &now, event))
                    .header("webhook-id", id)
                    .header("webhook-timestamp", now);
            }
        }
        let request = request.body(Full::new(event.clone())).context("a request")?;
        let not_yet = |why: String, asked| Ok(Err(NotYet { why, asked }));
        let answer = timeout(PATIENCE, async {
            let response = self.client.request(request).await.map_err(|error| trouble::trouble(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| Trouble::Other(error.to_string()))?;
            Ok::<_, Trouble>((head, body.to_bytes()))
        });
        let (head, body) = match answer.await {
            Err(_) => return not_yet(format!("no answer within {} s", PATIENCE.as_secs()), None),
            Ok(Err(Trouble::Refused)) => return not_yet("connection refused".to_owned(), None),
            Ok(Err(Trouble::Other(why))) => return not_yet(why, None),
            Ok(Err(Trouble::Tls(advice))) => bail!("cannot reach {}: {advice}", self.url),
            Ok(Ok(answer)) => answer,
        };
        let told: Told = serde_json::from_slice(&body).unwrap_or_default();
        let is_told = told.error.is_some();
        let error = told.error.unwrap_or_else(|| format!("answered {}", head.status));
        match head.status {
            StatusCode::OK => match told.status.as_deref() {
                Some("applied") => Ok(Ok(Ok(Fate::Applied))),
                Some("duplicate") => Ok(Ok(Ok(Fate::Duplicate))),
                Some("queued") => Ok(Ok(Ok(Fate::Queued))),
                Some("ignored") => Ok(Ok(Ok(Fate::Ignored))),
                _ => bail!("{url} answers, but it is no leadfold: give the address of its webhook with --webhook-url"),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                bail!("{} does not let us in ({error}): give its secret with --webhook-secret-file", self.url)
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => not_yet(error, asked(&head.headers)),
            StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => Err(self.elsewhere(&error)),
            status if status.is_server_error() => not_yet(error, asked(&head.headers)),
            // A proxy may have a limit of its own.
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Ok(Err(Refused { error, field: told.field }))),
            StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY if is_told => {
                Ok(Ok(Err(Refused { error, field: told.field })))
            }
            _ => Err(self.elsewhere(&error)),
        }
    }

    /// What answers is no webhook of leadfold: every event would be answered like this.
    fn elsewhere(&self, error: &str) -> anyhow::Error {
        anyhow!("{} is not the address of leadfold's webhook ({}): give it with --webhook-url", self.url, text::plain(error))
    }
}

/// An answer, whichever it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Told {
    status: Option<String>,
    error: Option<String>,
    field: Option<String>,
}

/// How long a server asks to wait: in seconds, or until a time.
fn asked(headers: &http::HeaderMap) -> Option<Duration> {
    let asked = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = chrono::DateTime::parse_from_rfc2822(asked).ok()?;
    (until.to_utc() - chrono::Utc::now()).to_std().ok()
}

fn not_an_address(url: &str) -> anyhow::Error {
    anyhow!("--webhook-url {url:?} is not an address: write it as http://HOST:PORT/webhooks/omniai")
}

fn proof(args: &WebhookArgs) -> anyhow::Result<Option<Proof>> {
    let (secret, origin) =
        match (&args.webhook_secret_file, webhook_secret_of_the_environment().filter(|secret| !secret.expose().is_empty())) {
            (Some(file), _) => {
                let text = files::read_text(file).context("--webhook-secret-file")?;
                (Secret::from(text), format!("--webhook-secret-file {}", file.display()))
            }
            (None, Some(secret)) => (secret, "LEADFOLD_WEBHOOK_SECRET".to_owned()),
            (None, None) => return Ok(None),
        };
    let mut lines = secret.expose().lines().map(str::trim);
    let Some(line) = lines.find(|line| !line.is_empty() && !line.starts_with('#')) else { bail!("{origin} has no secret") };
    if line.starts_with(SECRET_PREFIX) {
        let key = Key::parse(line).map_err(|problem| anyhow!("{origin}: the secret cannot be used: {problem}"))?;
        return Ok(Some(Proof::Signed(key)));
    }
    let name = &args.webhook_secret_header;
    let name = name.parse().map_err(|_| anyhow!("--webhook-secret-header {name:?} is not the name of a header"))?;
    let mut value = HeaderValue::from_str(line).map_err(|_| anyhow!("{origin}: the secret has characters that no header can have"))?;
    value.set_sensitive(true);
    Ok(Some(Proof::Said(name, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_may_be_a_time() {
        let asked = |value: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().expect("a value"));
            asked(&headers)
        };
        assert_eq!(asked(" 7 "), Some(Duration::from_secs(7)));
        let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(30);
        let wait = asked(&soon.format("%a, %d %b %Y %H:%M:%S GMT").to_string()).expect("a time");
        assert!((28..=30).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!((asked("Sun, 06 Nov 1994 08:49:37 GMT"), asked("soon")), (None, None));
    }
}
