//! How to get to a server: by its address, or by asking sentinels which one it is now.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, ProtocolVersion, RedisError, RedisResult, TlsCertificates,
    Value,
};
use tokio::time::timeout;

use super::handshake::{Handshake, ServerId, explain_refusal, unusable};
use super::reply;
use super::route::Purpose;
use super::sentinel::{Primary, Sentinels, address_of};

/// How long a connection waits for the first sentinel to name the primary.
const FIRST_ANSWER: Duration = Duration::from_millis(600);

/// A server, however it is found.
#[derive(Clone)]
pub(super) struct Server {
    way: Way,
    /// What it is known by, wherever it is now.
    key: Arc<str>,
    handshake: Arc<Handshake>,
}

#[derive(Clone)]
enum Way {
    /// It stays where it is.
    At(Arc<Client>),
    /// Sentinels know where it is.
    Sentinels(Arc<Sentinels>),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// A new connection, and what is at its other end.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) connection: MultiplexedConnection,
    pub(super) server_id: ServerId,
    /// The primary that it leads to, where sentinels have named it.
    pub(super) primary: Option<Primary>,
}

impl Server {
    /// One at a known address.
    pub(super) fn at(info: ConnectionInfo, tls: Option<&TlsCertificates>, handshake: Handshake) -> RedisResult<Self> {
        let key = info.addr().to_string().into();
        Ok(Self { way: Way::At(Arc::new(client(info, tls)?)), key, handshake: Arc::new(handshake) })
    }

    /// One that sentinels know.
    pub(super) fn named(sentinels: Arc<Sentinels>, handshake: Handshake) -> Self {
        let key = sentinels.name.as_str().into();
        Self { way: Way::Sentinels(sentinels), key, handshake: Arc::new(handshake) }
    }

    /// Where it is now, for people.
    pub(super) fn name(&self) -> String {
        match &self.way {
            Way::At(client) => client.get_connection_info().addr().to_string(),
            Way::Sentinels(sentinels) => match &*sentinels.primary().borrow() {
                Some(primary) => primary.to_string(),
                None => format!("{:?} of the sentinels", sentinels.name),
            },
        }
    }

    /// What it is known by, wherever it is now.
    pub(super) fn key(&self) -> Arc<str> {
        Arc::clone(&self.key)
    }

    /// Whether its answers tell the store's time.
    pub(super) fn keeps_the_time(&self) -> bool {
        self.handshake.keeps_the_time()
    }

    /// Connects to where the server is now, and checks it.
    pub(super) async fn connect(&self, config: &AsyncConnectionConfig, purpose: Purpose) -> RedisResult<Opened> {
        let (client, primary) = match &self.way {
            Way::At(client) => (Arc::clone(client), None),
            Way::Sentinels(sentinels) => {
                let primary = primary_of(sentinels).await?;
                let address = address_of(&primary, sentinels.server.addr());
                (Arc::new(client(sentinels.server.clone().set_addr(address), sentinels.tls.as_ref())?), Some(primary))
            }
        };
        let connected = client.get_multiplexed_async_connection_with_config(config).await;
        let mut connection = connected.map_err(|error| match error.kind() {
            ErrorKind::RESP3NotSupported => unusable("this Redis is older than 7.0".to_owned()),
            _ => explain_refusal(error),
        })?;
        if primary.is_some() {
            refuse_replica(&mut connection).await?;
        }
        let server_id = self.handshake.check(&mut connection, purpose).await?;
        Ok(Opened { connection, server_id, primary })
    }

    /// Whether what this connection's server acknowledges is acknowledged: not if it may have been replaced.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn confirm(&self, opened: &Opened) -> RedisResult<()> {
        match (&self.way, &opened.primary) {
            (Way::Sentinels(sentinels), Some(primary)) if !sentinels.confirms(primary) => Err(sentinels.not_confirmed()),
            _ => Ok(()),
        }
    }

    /// Whether the connection leads to where the server is now, as far as is known.
    pub(super) fn is_current(&self, opened: &Opened) -> bool {
        match &self.way {
            Way::At(_) => true,
            Way::Sentinels(sentinels) => *sentinels.primary().borrow() == opened.primary,
        }
    }

    /// Waits until the connection leads to another server than the present one.
    pub(super) async fn replaced(&self, opened: &Opened) -> RedisError {
        if let Way::Sentinels(sentinels) = &self.way {
            // The sender lives as long as the sentinels do.
            let _ = sentinels.primary().wait_for(|primary| *primary != opened.primary).await;
            return RedisError::from(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the primary was replaced"));
        }
        std::future::pending().await
    }

    /// Whether it may be replaced while its connections live on. A node of a cluster redirects then.
    pub(super) const fn may_be_replaced(&self) -> bool {
        matches!(self.way, Way::Sentinels(_))
    }
}

/// The primary that the sentinels name: as soon as the first of them has answered.
async fn primary_of(sentinels: &Sentinels) -> RedisResult<Primary> {
    let mut known = sentinels.primary();
    let named = match timeout(FIRST_ANSWER, known.wait_for(Option::is_some)).await {
        Ok(Ok(primary)) => primary.clone(),
        _ => None,
    };
    named.ok_or_else(|| sentinels.not_confirmed())
}

/// Refuses a server that is no primary, or none any more.
pub(super) async fn refuse_replica(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
    match role.into_iter().next().map(reply::bytes) {
        Some(Ok(role)) if role == b"master" => Ok(()),
        _ => Err(RedisError::from((
            ErrorKind::MasterNameNotFoundBySentinel,
            "not a primary",
            "the server that the sentinels name is a replica".to_owned(),
        ))),
    }
}

/// The same kind of address, somewhere else.
pub(super) fn with_host(like: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

pub(super) fn client(info: ConnectionInfo, tls: Option<&TlsCertificates>) -> RedisResult<Client> {
    // A peer that vanished is noticed within seconds, not when the kernel gives up.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)).with_retries(3);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(Duration::from_secs(5));
    // RESP3 tells of a lost connection at once, not at the next command. To tell the name of the library takes a right
    // that nothing else needs.
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
    let info = info.set_tcp_settings(tcp).set_redis_settings(redis);
    match tls {
        Some(tls) if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) => Client::build_with_tls(info, tls.clone()),
        _ => Client::open(info),
    }
}
