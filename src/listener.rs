//! The accept loop under all three listeners.
//!
//! tonic's and axum's own servers leave open what a service of endless streams needs: an end of streams that
//! nobody reads, a limit on what waits to be sent, timeouts before the first byte and between headers, an age at
//! which connections end politely, and rest when no file descriptor is left. hyper-util has the pieces; this
//! puts them together.

mod budget;
mod proxy_protocol;
mod socket;
mod stream;
mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt};

pub use budget::{Budget, CALLS, SERVICE_STREAMS};
use proxy_protocol::ProxyProtocol;
pub use proxy_protocol::TrustedProxies;
use stream::Stream;
pub use tls::{Tls, TlsFiles};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long a peer may take to agree on encryption, for its first byte, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a peer may still begin to speak once the listener ends: what it has to say may be on its way.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// When accepting fails (no file descriptor is left, say), how long to rest.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Bytes of one stream that wait for a slow reader: hyper's default of 400 KiB is too much 10,000 times.
const SEND_BUFFER: usize = 16 * 1024;
/// Of one request: how many headers, and how many bytes of them, in HTTP/1 and in HTTP/2.
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: (usize, u32) = (64 * 1024, 16 * 1024);
/// How long a connection that has reached its age, or is idle, may take to end, if its age is not shorter still.
const GRACE: Duration = Duration::from_secs(30);
/// Streams that a peer opened and took back before they were looked at. At hyper's default of 20, one client that cancels
/// many calls at once ends every watch of its connection.
const CANCELLED_UNSEEN: usize = 4096;
/// Streams that we reset ourselves, over a connection's whole life: what comes late for calls that were cancelled. At h2's
/// default of 1,024, a client that lives long and cancels now and then loses every watch of its connection.
const RESET_BY_US: usize = 64 * 1024;
/// HTTP/2: what h2 counts for a small DATA frame that is not read yet. It ends a connection when they come to half the
/// connection's window: at hyper's default of 1 MiB, 2,000 small requests that arrive together end every watch of their
/// connection. So the window is large enough for one of each stream.
const SMALL_FRAME: u32 = 256;
/// And the least that it is.
const MIN_CONNECTION_WINDOW: u32 = 1 << 20;
/// HTTP/2 pings to peers, and how long to wait for their answer: a peer that vanished is gone in half a minute.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// How one listener treats its connections.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Its name, in logs and metrics.
    pub name: &'static str,
    /// Connections that are open at once.
    pub max_connections: usize,
    /// Requests or streams of one HTTP/2 connection that are open at once.
    pub max_streams: u32,
    /// Watches of one connection that are open at once.
    pub max_watches: usize,
    /// The age at which a connection ends politely, a tenth more or less.
    pub max_age: Option<Duration>,
    /// How long a peer may be silent while it has no watch. Those of HTTP/2 answer a ping every 20 s.
    pub max_idle: Duration,
}

/// Where a request comes from: the address of the peer. Every request carries it.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Which connection a request comes by: no two of this process have the same. Every request carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionNumber(pub u64);

impl ConnectionNumber {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// How many watches a connection may have, and when they end. Every request carries it.
#[derive(Clone, Debug)]
pub struct ConnectionWatches {
    /// One is held by each open watch.
    pub permits: Arc<Semaphore>,
    /// How many there are.
    pub max: usize,
    /// What else it may have under way.
    pub budget: Budget,
    /// The connection has reached its age: a stream without an end would keep it for ever.
    pub aged: CancellationToken,
}

/// The end of a listener, in its steps.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Stop accepting; finish what is under way, and tell peers to go away.
    pub polite: CancellationToken,
    /// Drop what is left.
    pub abort: CancellationToken,
    connections: TaskTracker,
}

impl Shutdown {
    /// Waits until every connection is gone.
    pub async fn finished(&self) {
        self.connections.close();
        self.connections.wait().await;
    }
}

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
    settings: Settings,
    proxies: ProxyProtocol,
}

impl Listener {
    /// Binds an address. With `tls`, everything is encrypted.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(address: SocketAddr, tls: Option<Arc<Tls>>, settings: Settings) -> anyhow::Result<Self> {
        let tcp = TcpListener::bind(address).await;
        let tcp = tcp.map_err(|error| anyhow::anyhow!("cannot listen on {address} ({}): {error}", settings.name))?;
        Ok(Self { tcp, tls, settings, proxies: ProxyProtocol::default() })
    }

    /// These proxies are trusted. With `protocol`, each of their connections begins with the PROXY protocol.
    #[must_use]
    pub fn behind(mut self, trusted: TrustedProxies, protocol: bool) -> Self {
        self.proxies = ProxyProtocol { trusted, expected: protocol };
        self
    }

    /// The address, with the port that was chosen.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until the shutdown begins. Connections live on in their tasks.
    pub async fn serve<S, B>(self, service: S, shutdown: Shutdown)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let settings = self.settings;
        let room = Arc::new(Semaphore::new(settings.max_connections));
        loop {
            let (stream, peer) = tokio::select! {
                () = shutdown.polite.cancelled() => return,
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, peer)) => (stream, Peer(peer.ip())),
                    Err(error) => {
                        metrics::counter!("leadfold_accept_errors_total", "listener" => settings.name).increment(1);
                        tracing::warn!(listener = settings.name, %error, "could not accept a connection");
                        sleep(ACCEPT_REST).await;
                        continue;
                    }
                },
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                metrics::counter!("leadfold_connections_refused_total", "listener" => settings.name).increment(1);
                continue;
            };
            let (service, shutdown, tls, proxies) = (service.clone(), shutdown.clone(), self.tls.clone(), self.proxies.clone());
            let connections = shutdown.connections.clone();
            connections.spawn(async move {
                let open = metrics::gauge!("leadfold_connections", "listener" => settings.name);
                open.increment(1.0);
                let serve = async {
                    // Most of a connection's memory is needed only by one that says something.
                    let begun = tokio::select! {
                        biased;
                        begun = begin(stream, peer, &proxies, tls.as_deref(), settings) => begun,
                        () = async { shutdown.polite.cancelled().await; sleep(LAST_WORDS).await } => None,
                    };
                    if let Some((stream, peer)) = begun {
                        Box::pin(connection(stream, peer, service, settings, &shutdown)).await;
                    }
                };
                tokio::select! {
                    () = serve => {}
                    () = shutdown.abort.cancelled() => {}
                }
                open.decrement(1.0);
                drop(place);
            });
        }
    }
}

/// Waits for a peer to say something, encrypted if that is asked for. Returns for whom it speaks, too.
async fn begin(
    mut stream: TcpStream,
    Peer(peer): Peer,
    proxies: &ProxyProtocol,
    tls: Option<&Tls>,
    settings: Settings,
) -> Option<(Stream, Peer)> {
    // Small messages must not wait for each other. A socket that refuses is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let client = proxies.client(&mut stream, peer, settings.name).await?;
    let first_byte = timeout(PATIENCE, stream.peek(&mut [0])).await;
    if !matches!(first_byte, Ok(Ok(1))) || proxies.is_surprised(&stream, peer, settings.name).await {
        return None;
    }
    let mut stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let accepted = timeout(PATIENCE, tls.accept(stream)).await;
            let accepted = accepted.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            match accepted {
                Ok(stream) => Stream::Tls(Box::new(stream)),
                Err(error) => {
                    metrics::counter!("leadfold_tls_handshake_failures_total", "listener" => settings.name).increment(1);
                    tracing::debug!(listener = settings.name, %error, "a TLS handshake failed");
                    return None;
                }
            }
        }
    };
    // hyper's timeouts begin with the first byte.
    let first_byte = timeout(PATIENCE, stream.has_first_byte()).await;
    matches!(first_byte, Ok(Ok(true))).then_some((stream, Peer(client)))
}

async fn connection<S, B>(stream: Stream, peer: Peer, service: S, settings: Settings, shutdown: &Shutdown)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let aged = CancellationToken::new();
    let watches = ConnectionWatches {
        permits: Arc::new(Semaphore::new(settings.max_watches)),
        max: settings.max_watches,
        budget: Budget::default(),
        aged: aged.clone(),
    };
    let number = ConnectionNumber::next();
    let permits = Arc::clone(&watches.permits);
    let crowded = || permits.available_permits() < settings.max_watches;
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(watches.clone());
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(number);
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES.0);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .initial_connection_window_size(settings.max_streams.saturating_mul(2 * SMALL_FRAME).clamp(MIN_CONNECTION_WINDOW, i32::MAX as u32))
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(CANCELLED_UNSEEN)
        .max_local_error_reset_streams(RESET_BY_US)
        .max_header_list_size(MAX_HEADER_BYTES.1)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1);
    let (socket, outbox) = socket::split(stream);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service)));

    let age = settings.max_age.map_or(Duration::MAX, |age| age.mul_f64(rand::random_range(0.9..1.1)));
    let idle = async {
        loop {
            sleep(settings.max_idle).await;
            if !outbox.has_heard() && !crowded() {
                return;
            }
        }
    };
    let (result, grace) = tokio::select! {
        result = outbox.run(connection.as_mut(), crowded) => (Some(result), Duration::ZERO),
        () = shutdown.polite.cancelled() => (None, Duration::MAX),
        () = sleep(age) => (None, GRACE.min(age)),
        () = idle => (None, GRACE),
    };
    let result = match result {
        Some(result) => result,
        None => {
            // Peers are told to go away before their streams end, so that they come back on another connection.
            connection.as_mut().graceful_shutdown();
            if grace < Duration::MAX {
                aged.cancel();
            }
            let Ok(result) = timeout(grace, outbox.run(connection.as_mut(), crowded)).await else {
                // What is left is not read, or has no end.
                tracing::debug!(listener = settings.name, "a connection that has reached its age, or is idle, is dropped");
                return;
            };
            result
        }
    };
    if let Err(error) = result {
        tracing::debug!(listener = settings.name, %error, "a connection ended badly");
    }
}
