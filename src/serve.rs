//! The service: build everything, start everything, drain everything.

mod tls;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use http::Request;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval_at, sleep_until, timeout, timeout_at};
use tower::ServiceExt;

use crate::auth::Tokens;
use crate::config::{ListenerName, ServeConfig, is_loopback};
use crate::dead_letters::{DeadLetters, Limits};
use crate::grpc::HealthReporter;
use crate::health::{Audience, Health, Report};
use crate::intake::{Intake, Spooling};
use crate::listener::{Listener, RequestBody, Settings, Shutdown};
use crate::origin::Guard;
use crate::spool::drain::{self, Drainer};
use crate::spool::{Breaker, Spool};
use crate::store::embedded::EmbeddedStore;
use crate::store::redis::{Options, RedisStore};
use crate::store::{Store, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::watch::Hub;
use crate::webhook::Secrets;
use crate::{admin, board, grpc, webhook};

/// How often the health that gRPC clients see is looked after.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// Of the time to drain, what is left to end polite connections that are still open.
const ABORT_RESERVE: Duration = Duration::from_millis(500);
/// How long the admin listener may take to end, which does so last, and what is left then of the time to drain.
const ADMIN_END: Duration = Duration::from_secs(2);
const ADMIN_RESERVE: Duration = Duration::from_millis(200);
/// How long the start waits for a Redis that hangs: events can be taken without it.
const FIRST_CONTACT: Duration = Duration::from_secs(2);
/// How long the end waits for the disk to take what Redis may have lost: a disk that hangs must not keep the process.
const SPOOL_AT_END: Duration = Duration::from_secs(2);
/// Requests of one connection that are under way at once, watches not counted.
const MAX_CALLS_PER_CONNECTION: u32 = 1000;

/// Requests of one connection of the webhook listener that are under way at once. Senders have a few; a proxy that has more
/// to pass on opens another connection.
const MAX_WEBHOOKS_PER_CONNECTION: u32 = 100;
/// Bytes of a refused body that are read and dropped, if bodies may not be larger anyway.
const DISCARDED_BYTES: u64 = 4 << 20;

/// Where a service listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Webhooks.
    pub http: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
}

impl Addresses {
    /// Says them on stdout, for people and for scripts that wait. On a thread of its own: whoever reads stdout may have
    /// gone, or may have stalled, and the service goes on.
    pub fn print(&self) {
        let mut lines = String::new();
        for (name, address) in [("http", self.http), ("grpc", self.grpc), ("admin", self.admin)] {
            lines += &format!("{name} listening on {address}\n");
        }
        lines += "ready\n";
        let print = move || std::io::stdout().write_all(lines.as_bytes());
        let started = std::thread::Builder::new().name("leadfold-stdout".to_owned()).spawn(print);
        if let Err(error) = started {
            tracing::error!(%error, "the addresses cannot be printed: there is no thread to be had");
        }
    }
}

/// SIGHUP ends nothing: files of tokens, secrets and certificates are read again then (see [`crate::auth::files`]).
pub async fn survive_hangups() {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        tracing::info!("SIGHUP: files of tokens, secrets and certificates are read again, if there are any; all else stays as it is");
    }
}

/// Runs until a signal ends it. `announce` hears where, once everything listens.
///
/// # Errors
/// A store cannot be opened or an address cannot be bound.
pub async fn serve(config: ServeConfig, announce: impl FnOnce(&Addresses)) -> anyhow::Result<()> {
    let metrics = Metrics::install()?;
    let tokens = Tokens::open(config.security.tokens_file.as_deref())?;
    let (tls, tls_for_grpc) = config.tls.as_ref().map(tls::open).transpose()?.unzip();
    tls::warn_of_the_clear(&config);
    let secrets = Secrets::open(&config.security.webhook_secrets)?;
    let dead_letters = open_dead_letters(&config)?;
    // Before the store: what nobody can write to is known at once.
    let spool = open_spool(&config)?;
    let store = open_store(&config).await?;
    let spooling = spool.map(|spool| {
        let partitions = store.feed_parts();
        Spooling { spool: Arc::new(spool), breaker: Arc::new(Breaker::new(Arc::clone(&store), partitions)) }
    });
    let hub = Arc::new(Hub::start(Arc::clone(&store)));
    let intake = Intake::new(Arc::clone(&store), spooling.clone(), dead_letters.clone(), Arc::default());
    let letters = (dead_letters.clone(), intake.clone());
    let limits = grpc::Limits {
        max_watches: config.max_watches,
        max_watches_per_token: config.max_watches_per_token,
        max_calls: config.limits.requests_in_flight,
    };
    let (services, reporter) = grpc::services(Arc::clone(&store), Arc::clone(&hub), Arc::clone(&tokens), letters, limits)?;
    let spool = spooling.as_ref().map(|spooling| Arc::clone(&spooling.spool));
    let health = Health::new(Arc::clone(&store), Arc::clone(&hub), spool);
    let settling = Arc::clone(&store);
    let spool_at_end = spooling.as_ref().map(|spooling| Arc::clone(&spooling.spool));
    let settings = |name| Settings {
        name,
        max_connections: config.max_connections,
        max_streams: MAX_CALLS_PER_CONNECTION,
        max_watches: 0,
        max_age: None,
        max_idle: config.limits.idle_connection,
        max_discarded: DISCARDED_BYTES.max(config.max_body_bytes as u64),
    };
    // The board's pages watch too.
    let for_watches = |name| Settings {
        max_streams: config.max_watches_per_connection.saturating_add(MAX_CALLS_PER_CONNECTION),
        max_watches: usize::try_from(config.max_watches_per_connection).unwrap_or(usize::MAX),
        max_age: config.max_connection_age,
        ..settings(name)
    };
    let of_webhooks = Settings { max_streams: MAX_WEBHOOKS_PER_CONNECTION, ..settings("http") };
    let behind_proxies =
        |listener: Listener, name| listener.behind(config.proxies.trusted.clone(), config.proxies.protocol.contains(&name));
    let http = Listener::bind(config.http_addr, tls.clone(), of_webhooks).await?;
    let http = behind_proxies(http, ListenerName::Http);
    let grpc = Listener::bind(config.grpc_addr, tls_for_grpc, for_watches("grpc")).await?;
    let grpc = behind_proxies(grpc, ListenerName::Grpc);
    let admin = Listener::bind(config.admin_addr, tls, for_watches("admin")).await?;
    let admin = behind_proxies(admin, ListenerName::Admin);
    let addresses = Addresses { http: http.address()?, grpc: grpc.address()?, admin: admin.address()? };

    // The admin listener outlives the others: it tells how the draining goes.
    let (shutdown, admin_shutdown) = (Shutdown::default(), Shutdown::default());
    let allowed_hosts = &config.security.allowed_hosts;
    let for_webhooks = webhook::Settings {
        limits: config.limits,
        proxies: config.proxies.trusted.clone(),
        guard: (!secrets.are_required()).then(|| Guard::new(allowed_hosts, &[], false)),
        max_body_bytes: config.max_body_bytes,
        noop: config.noop_route,
    };
    let webhooks = webhook::routes(intake, secrets, for_webhooks);
    // Before all else: a client of gRPC understands nothing else.
    let wrong_port = axum::middleware::from_fn_with_state(("--http-addr", addresses.grpc.port()), grpc::wrong_port::answer_grpc);
    let webhooks = webhooks.layer(wrong_port);
    let for_board = board::Settings {
        guard: Guard::new(allowed_hosts, &[], tokens.are_required()),
        needs_certificate: config.tls.as_ref().is_some_and(|tls| tls.grpc_client_ca.is_some()),
        webhook_port: addresses.http.port(),
    };
    let board = board::routes(grpc::admit(services.clone(), "admin", Arc::clone(&tokens), limits), for_board)?;
    tokio::spawn(http.serve(from_listener(webhooks), shutdown.clone()));
    let guard = Guard::new(allowed_hosts, &config.cors_origins, tokens.are_required());
    let calls = grpc::web::routes(
        grpc::admit(services, "grpc", Arc::clone(&tokens), limits),
        &config.cors_origins,
        Some(guard),
        addresses.http.port(),
    )?;
    tokio::spawn(grpc.serve(from_listener(calls), shutdown.clone()));
    let for_admin = admin::Settings {
        is_private: is_loopback(config.admin_addr),
        max_requests: config.limits.requests_in_flight,
        grpc_port: addresses.grpc.port(),
    };
    let admin_routes = admin::routes(health.clone(), metrics, Arc::clone(&tokens), board, for_admin);
    tokio::spawn(admin.serve(from_listener(admin_routes), admin_shutdown.clone()));
    if let Some(dead_letters) = &dead_letters {
        tokio::spawn(Arc::clone(dead_letters).expire(store.clock().clone()));
    }
    tokio::spawn(end_streams_of_fallen_tokens(tokens, Arc::clone(&hub)));
    if let Some(Spooling { spool, breaker }) = spooling {
        tokio::spawn(drain::tell(Arc::clone(&spool), Arc::clone(&breaker)));
        let prober = Arc::clone(&breaker);
        tokio::spawn(async move { prober.probe().await });
        let rate = config.spool.drain_rate;
        tokio::spawn(Drainer { spool, store: Arc::clone(&store), breaker, dead_letters, rate }.run());
    }
    let first = look_at_health(&reporter, &health, None).await;
    let looking_after = tokio::spawn(look_after_health(reporter.clone(), health.clone(), first));
    // Whoever reads that it is ready may end it at once.
    let mut signals = EndSignals::listen()?;
    announce(&addresses);
    tracing::info!(store = store.name(), "ready");

    signals.next().await;
    let deadline = Instant::now() + config.drain;
    tracing::info!("draining");
    health.stop();
    shutdown.announce();
    admin_shutdown.announce();
    looking_after.abort();
    reporter.set_serving(false);
    let is_hurried = tokio::select! {
        () = drain(config.drain_delay, deadline, &hub, &reporter, &shutdown) => false,
        () = signals.next() => true,
    };
    shutdown.abort.cancel();
    admin_shutdown.polite.cancel();
    if !is_hurried {
        let until = deadline.checked_sub(ADMIN_RESERVE).unwrap_or(deadline).min(Instant::now() + ADMIN_END);
        let _ = timeout_at(until, admin_shutdown.finished()).await;
    }
    admin_shutdown.abort.cancel();
    let _ = timeout_at(deadline, async {
        shutdown.finished().await;
        admin_shutdown.finished().await;
        settling.settled().await;
    })
    .await;
    if timeout(SPOOL_AT_END, spool_what_may_be_lost(&*settling, spool_at_end.as_deref())).await.is_err() {
        tracing::error!("the disk did not take in time what Redis may have lost");
    }
    tracing::info!("stopped");
    Ok(())
}

/// What was acknowledged just before Redis went away is known to this process alone: the next one has it from the spool.
async fn spool_what_may_be_lost(store: &dyn Store, spool: Option<&Spool>) {
    let changes = store.take_unsettled().await;
    if changes.is_empty() {
        return;
    }
    let (count, mut kept) = (changes.len(), 0);
    if let Some(spool) = spool {
        // Together, so that they share fsyncs.
        for some in changes.chunks(256) {
            let pushed = futures::future::join_all(some.iter().map(|change| spool.push(change))).await;
            kept += pushed.iter().filter(|pushed| pushed.is_ok()).count();
        }
    }
    if kept == count {
        tracing::warn!(kept, "Redis is away: what it had acknowledged just before is in the spool, to be applied again");
    } else {
        tracing::error!(lost = count - kept, kept, "Redis is away: what it had acknowledged just before may be lost with it");
    }
}

/// Ends everything politely: returns when it has ended, or a little before the deadline.
async fn drain(delay: Duration, deadline: Instant, hub: &Hub, reporter: &HealthReporter, shutdown: &Shutdown) {
    // Load balancers learn of it before the first request is turned away.
    sleep_until((Instant::now() + delay).min(deadline)).await;
    hub.drain();
    shutdown.polite.cancel();
    // Those of health and reflection are streams without an end too.
    reporter.end();
    if timeout_at(deadline.checked_sub(ABORT_RESERVE).unwrap_or(deadline), shutdown.finished()).await.is_err() {
        tracing::warn!("connections that did not end in time are dropped");
    }
}

async fn open_store(config: &ServeConfig) -> anyhow::Result<Arc<dyn Store>> {
    let Some(url) = &config.redis_url else {
        let path = config.data_dir.join("leads.redb");
        let store =
            EmbeddedStore::open(&path, config.max_history).with_context(|| format!("cannot open the embedded store {}", path.display()))?;
        return Ok(Arc::new(store));
    };
    let options = Options {
        key_prefix: config.key_prefix.clone(),
        partitions: config.partitions,
        max_history: config.max_history,
        feed_length: config.feed_length,
        tls: config.redis_tls.clone(),
    };
    let store = RedisStore::open(url.expose(), &options).context("cannot use Redis")?;
    let hangs = |_| Err(StoreError::Unavailable("Redis did not answer in time".to_owned()));
    match timeout(FIRST_CONTACT, store.first_contact()).await.unwrap_or_else(hangs) {
        Ok(()) => {}
        // Events can be taken without it.
        Err(error) if config.spool.max_bytes.is_some() && !matches!(error, StoreError::Misconfigured(_)) => {
            tracing::warn!(%error, "Redis cannot be used yet: events are spooled until it can");
        }
        Err(error) => return Err(error).context("cannot use Redis"),
    }
    Ok(Arc::new(store))
}

/// The embedded store needs none: it fails when the disk does, and the spool would fail with it.
fn open_spool(config: &ServeConfig) -> anyhow::Result<Option<Spool>> {
    let path = config.data_dir.join("spool");
    if config.redis_url.is_none() {
        if has_segments(&path) {
            tracing::warn!(
                spool = %path.display(),
                "there are events here that were taken for a Redis and not applied yet: they are not applied to the embedded store. Start with the \
                 --redis-url of before to apply them, or remove the directory"
            );
        }
        return Ok(None);
    }
    let Some(max_bytes) = config.spool.max_bytes else { return Ok(None) };
    Spool::open(&path, max_bytes).map(Some).with_context(|| cannot_open("spool", &path))
}

fn has_segments(spool: &Path) -> bool {
    let files = std::fs::read_dir(spool).into_iter().flatten().flatten();
    files.into_iter().any(|file| file.path().extension().is_some_and(|extension| extension == "log"))
}

fn open_dead_letters(config: &ServeConfig) -> anyhow::Result<Option<Arc<DeadLetters>>> {
    let Some(kept) = config.spool.dead_letters else { return Ok(None) };
    let limits = Limits { count: kept.count, bytes: kept.bytes, age: kept.age, keep_raw: kept.keep_raw };
    let path = config.data_dir.join("dead-letters.redb");
    Ok(Some(Arc::new(DeadLetters::open(&path, limits).with_context(|| cannot_open("dead letters", &path))?)))
}

fn cannot_open(what: &str, path: &Path) -> String {
    format!("cannot open the {what} {} (each instance needs a --data-dir of its own that it can write to)", path.display())
}

/// What a listener hands in, as axum wants it.
fn from_listener(
    router: Router,
) -> impl tower::Service<Request<RequestBody>, Response = axum::response::Response, Error = std::convert::Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    router.map_request(|request: Request<RequestBody>| request.map(axum::body::Body::new))
}

/// Tells gRPC clients the truth, every second.
async fn look_after_health(reporter: HealthReporter, health: Health, mut before: Report) {
    let mut ticks = interval_at(Instant::now() + HEALTH_INTERVAL, HEALTH_INTERVAL);
    loop {
        ticks.tick().await;
        before = look_at_health(&reporter, &health, Some(&before)).await;
    }
}

async fn look_at_health(reporter: &HealthReporter, health: &Health, before: Option<&Report>) -> Report {
    let report = health.report().await;
    report.tell(before);
    // Whoever watches is told what changes, not every second how it is.
    let is_serving = report.is_ready(Audience::Reads);
    if before.is_none_or(|before| before.is_ready(Audience::Reads) != is_serving) {
        reporter.set_serving(is_serving);
    }
    report
}

/// A stream looks at its caller's token whenever it is awake.
async fn end_streams_of_fallen_tokens(tokens: Arc<Tokens>, hub: Arc<Hub>) {
    let mut changes = tokens.changes();
    while changes.changed().await.is_ok() {
        hub.wake();
    }
}

/// The signals that end the process.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// From now on they end the process in order: before, they kill it.
    fn listen() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
