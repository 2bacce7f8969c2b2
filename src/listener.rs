//! The accept loop under all three listeners.
//!
//! tonic's and axum's own servers leave open what a service of endless streams needs: an end of streams that
//! nobody reads, a limit on what waits to be sent, timeouts before the first byte and between headers, an age at
//! which connections end politely, and rest when no file descriptor is left. hyper-util has the pieces; this
//! puts them together.

mod activity;
mod body;
mod budget;
mod connection;
mod edge;
mod proxy_protocol;
mod refusal;
mod socket;
mod stream;
mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use activity::Activity;
pub use body::RequestBody;
pub use budget::{Budget, CALLS, SERVICE_STREAMS};
pub use edge::Tasks;
use proxy_protocol::ProxyProtocol;
pub use proxy_protocol::TrustedProxies;
use refusal::Refusal;
use stream::Stream;
pub use tls::{Tls, TlsFiles};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long a peer may take to agree on encryption, for its first byte, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a peer may still begin to speak, and one that is idle ask once more, once the listener ends: what it has to say may
/// be on its way.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// When accepting fails (no file descriptor is left, say), how long to rest.
const ACCEPT_REST: Duration = Duration::from_millis(100);

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
    /// How long a connection may be without a request. Those of HTTP/2 answer a ping every 20 s meanwhile.
    pub max_idle: Duration,
    /// Bytes that are read of the body of a request that is answered without it. A larger one ends its connection.
    pub max_discarded: u64,
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
    /// What goes on when its connection is gone.
    tasks: TaskTracker,
    ending: Arc<AtomicBool>,
}

impl Shutdown {
    /// The end is near: from now on every answer by HTTP/1 is the last of its connection, and says so.
    pub fn announce(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Waits until every connection is gone, and all that was begun for one is done.
    pub async fn finished(&self) {
        self.connections.close();
        self.connections.wait().await;
        self.tasks.close();
        self.tasks.wait().await;
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
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let settings = self.settings;
        let room = Arc::new(Semaphore::new(settings.max_connections));
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = self.tcp.accept() => Some(accepted),
                // What the kernel has accepted already may have a request on its way.
                () = shutdown.polite.cancelled() => self.tcp.accept().now_or_never().filter(Result::is_ok),
            };
            let (stream, peer) = match accepted {
                None => return,
                Some(Ok((stream, peer))) => (stream, Peer(peer.ip())),
                Some(Err(error)) => {
                    metrics::counter!("leadfold_accept_errors_total", "listener" => settings.name).increment(1);
                    tracing::warn!(listener = settings.name, %error, "could not accept a connection");
                    sleep(ACCEPT_REST).await;
                    continue;
                }
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
                        begun = begin(stream, peer, &proxies, tls.as_deref(), settings, &shutdown.polite) => begun,
                        () = async { shutdown.polite.cancelled().await; sleep(LAST_WORDS).await } => None,
                    };
                    if let Some((stream, peer)) = begun {
                        Box::pin(connection::connection(stream, peer, service, settings, &shutdown)).await;
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
    polite: &CancellationToken,
) -> Option<(Stream, Peer)> {
    // Small messages must not wait for each other. A socket that refuses is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let client = proxies.client(&mut stream, peer, settings.name).await?;
    let mut first = [0];
    let first_byte = timeout(PATIENCE, stream.peek(&mut first)).await;
    if !matches!(first_byte, Ok(Ok(1))) || proxies.is_surprised(&stream, peer, settings.name).await {
        return None;
    }
    let mut stream = match tls {
        None => Stream::Plain(stream),
        // No record of TLS begins so, and every request by HTTP does.
        Some(_) if first[0].is_ascii_alphabetic() => {
            refuse_unencrypted(stream, settings.name, polite).await;
            return None;
        }
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

/// Tells a peer that speaks HTTP to a port that speaks TLS, in words that it understands.
async fn refuse_unencrypted(stream: TcpStream, listener: &'static str, polite: &CancellationToken) {
    let refusal = Refusal::new(StatusCode::BAD_REQUEST, "this port speaks TLS: write https://");
    refusal.log(listener);
    metrics::counter!("leadfold_tls_handshake_failures_total", "listener" => listener).increment(1);
    let (_, outbox) = socket::split(Stream::Plain(stream), Activity::new());
    outbox.refuse(&refusal);
    outbox.close(polite).await;
}
