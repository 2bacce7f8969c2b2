//! The way to the server that has a slot. Without a cluster there is one server, which has them all.

use std::sync::Arc;
use std::time::Duration;

use crc::{CRC_16_XMODEM, Crc};
use futures::FutureExt;
use redis::aio::ConnectionLike;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind,
    TlsCertificates, Value,
};

use super::cluster::Cluster;
use super::connection::{Asking, Connection};
use super::handshake::{Expected, ServerId};
use super::reply;
use super::sentinel::Sentinels;
use super::server::{Opened, Server};
use crate::config::RedisAddress;
use crate::store::StoreError;

/// How long one call may take; its fate is unknown after that.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1000);
/// Commands of one connection that are under way at once.
const COMMANDS_IN_FLIGHT: usize = 1024;
/// Slots of a cluster.
const SLOTS: u16 = 16384;

/// What a connection is for: a call that reads does not wait behind a batch that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
}

/// A server, and the connections to it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) info: ConnectionInfo,
    server: Server,
    reads: Connection,
    writes: Connection,
}

impl Node {
    pub(super) fn new(server: Server, info: ConnectionInfo) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(RESPONSE_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_concurrency_limit(COMMANDS_IN_FLIGHT);
        let connection = |purpose| Connection::new(server.clone(), purpose, config.clone());
        Self { reads: connection(Purpose::Read), writes: connection(Purpose::Write), server, info }
    }

    pub(super) const fn of(&self, purpose: Purpose) -> &Connection {
        match purpose {
            Purpose::Read => &self.reads,
            Purpose::Write => &self.writes,
        }
    }

    /// Where it is, for people.
    pub(super) fn name(&self) -> String {
        self.server.name()
    }

    pub(super) const fn server(&self) -> &Server {
        &self.server
    }

    /// A connection that nobody shares.
    pub(super) async fn dedicated(&self, config: &AsyncConnectionConfig) -> RedisResult<Opened> {
        self.server.connect(config, Purpose::Read).await
    }
}

/// The way to every slot.
#[derive(Clone, Debug)]
pub(super) enum Route {
    Single(Arc<Node>),
    Cluster(Arc<Cluster>),
}

impl Route {
    /// The way by this address. Nothing has to be reachable yet. Needs a tokio runtime.
    pub(super) fn new(address: RedisAddress, tls: Option<&TlsCertificates>, expected: &Expected) -> RedisResult<Self> {
        Ok(match address {
            RedisAddress::Node(info) => Self::Single(Arc::new(Node::new(Server::at((*info).clone(), tls, expected.of_single())?, *info))),
            RedisAddress::Sentinel(address) => {
                let info = (*address.server).clone();
                let sentinels = Sentinels::start(address, tls)?;
                Self::Single(Arc::new(Node::new(Server::named(sentinels, expected.of_single()), info)))
            }
            RedisAddress::Cluster(seeds) => Self::Cluster(Cluster::new(seeds, tls.cloned(), expected.clone())),
        })
    }

    /// What a command for one slot is sent to.
    pub(super) fn to(&self, slot: u16, purpose: Purpose) -> Endpoint {
        Endpoint { route: self.clone(), slot, purpose, answered_by: None }
    }

    /// The server that has a slot now.
    pub(super) fn owner(&self, slot: u16) -> RedisResult<Arc<Node>> {
        match self {
            Self::Single(node) => Ok(Arc::clone(node)),
            Self::Cluster(cluster) => cluster.owner(slot),
        }
    }

    /// Where an answer says that its slot is, if it says so while the slot moves there.
    pub(super) fn asked_elsewhere(&self, error: &RedisError, from: &Node) -> Option<Arc<Node>> {
        match self {
            Self::Cluster(cluster) if error.kind() == ErrorKind::Server(ServerErrorKind::Ask) => cluster.redirected(error, from).ok()?,
            _ => None,
        }
    }

    /// Learns from an error.
    pub(super) fn look_at(&self, error: &RedisError) {
        if let Self::Cluster(cluster) = self {
            cluster.look_at(error);
        }
    }

    /// Asks again who has which slot: nobody has to say so where slots come back to a node that was left.
    pub(super) fn renew(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.renew_soon();
        }
    }

    /// What an error means, and which server said so.
    pub(super) fn explain(&self, slot: u16, error: &RedisError) -> StoreError {
        match self.owner(slot) {
            Ok(node) => reply::store_error(&node.name(), error),
            Err(_) => reply::store_error("the cluster", error),
        }
    }

    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

/// Where the commands for one slot go.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    route: Route,
    slot: u16,
    purpose: Purpose,
    answered_by: Option<ServerId>,
}

impl Endpoint {
    /// Which server gave the last answer.
    pub(super) fn answered_by(&self) -> Option<ServerId> {
        self.answered_by.clone()
    }

    /// What an error means, and which server said so.
    pub(super) fn explain(&self, error: &RedisError) -> StoreError {
        self.route.explain(self.slot, error)
    }
}

impl ConnectionLike for Endpoint {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let answered = match &self.route {
                Route::Single(node) => node.of(self.purpose).send(command, Asking::No).await,
                Route::Cluster(cluster) => cluster.send(self.slot, self.purpose, command).await,
            }?;
            self.answered_by = Some(answered.server_id);
            Ok(answered.value)
        }
        .boxed()
    }

    /// One by one: a node that redirects does so for each.
    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        async move {
            let mut answers = Vec::with_capacity(count);
            for command in pipeline.cmd_iter().skip(offset).take(count) {
                answers.push(self.req_packed_command(command).await?);
            }
            Ok(answers)
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// The slot of a key: of what its first pair of braces holds, or else of all of it.
pub fn slot(key: &str) -> u16 {
    const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag).filter(|tag| !tag.is_empty());
    CRC.checksum(tag.unwrap_or(key).as_bytes()) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // As `CLUSTER KEYSLOT` has them.
        assert_eq!((slot("123456789"), slot("foo"), slot("{foo}.bar"), slot("a{}foo")), (12739, 12182, 12182, slot("a{}foo")));
        assert_eq!(slot("leadfold:{12}:lead:L{9}"), slot("12"));
    }
}
