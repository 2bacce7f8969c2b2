//! How to get to a server: by its address, or by asking sentinels who it is now.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, ProtocolVersion, RedisError, RedisResult, TlsCertificates,
    Value,
};

use super::reply;
use crate::config::SentinelAddress;

/// How long a sentinel may take to answer: there are others.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(300);

/// A server, however it is found.
#[derive(Clone)]
pub(super) enum Server {
    /// It stays where it is.
    At(Arc<Client>),
    /// Sentinels know where it is.
    Named(Arc<Named>),
}

/// A server that sentinels know.
pub(super) struct Named {
    sentinels: Vec<Client>,
    name: String,
    server: ConnectionInfo,
    tls: Option<TlsCertificates>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(client) => write!(f, "At({})", client.get_connection_info().addr()),
            Self::Named(named) => write!(f, "Named({})", named.name),
        }
    }
}

impl Server {
    /// One at a known address.
    pub(super) fn at(info: ConnectionInfo, tls: Option<&TlsCertificates>) -> RedisResult<Self> {
        client(info, tls).map(Arc::new).map(Self::At)
    }

    /// One that sentinels know.
    pub(super) fn named(address: SentinelAddress, tls: Option<&TlsCertificates>) -> RedisResult<Self> {
        let SentinelAddress { sentinels, name, server } = address;
        let sentinels = sentinels.into_iter().map(|info| client(info, tls)).collect::<RedisResult<_>>()?;
        Ok(Self::Named(Arc::new(Named { sentinels, name, server: *server, tls: tls.cloned() })))
    }

    /// Connects to where the server is now.
    pub(super) async fn connect(&self, config: &AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        match self {
            Self::At(client) => client.get_multiplexed_async_connection_with_config(config).await,
            Self::Named(named) => named.connect(config).await,
        }
    }
}

impl Named {
    /// Asks one sentinel after the other. The server has to say itself that it is the primary: a sentinel that was cut
    /// off may name the one of before.
    async fn connect(&self, config: &AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        let mut failed = RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "no sentinel knows a primary of that name"));
        let mut sentinels: Vec<_> = self.sentinels.iter().collect();
        sentinels.shuffle(&mut rand::rng());
        for sentinel in sentinels {
            let found = async {
                let (host, port) = self.ask(sentinel).await?;
                let addr = with_host(self.server.addr(), host, port);
                let client = client(self.server.clone().set_addr(addr), self.tls.as_ref())?;
                let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
                refuse_replica(&mut connection).await?;
                Ok(connection)
            };
            match found.await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn ask(&self, sentinel: &Client) -> RedisResult<(String, u16)> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(SENTINEL_TIMEOUT)).set_response_timeout(Some(SENTINEL_TIMEOUT));
        let mut connection = sentinel.get_multiplexed_async_connection_with_config(&config).await?;
        let mut command = redis::cmd("SENTINEL");
        let address: Option<(String, u16)> = command.arg("get-master-addr-by-name").arg(&self.name).query_async(&mut connection).await?;
        address.ok_or_else(|| RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "a sentinel does not know that name")))
    }
}

/// Refuses a server that is no primary, or none any more.
pub(super) async fn refuse_replica(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
    match role.into_iter().next().map(reply::bytes) {
        Some(Ok(role)) if role == b"master" => Ok(()),
        _ => Err(RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "the sentinels name a server that is a replica"))),
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

fn client(info: ConnectionInfo, tls: Option<&TlsCertificates>) -> RedisResult<Client> {
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
