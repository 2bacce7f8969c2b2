//! The way to the server that has a slot. Without a cluster there is one server, which has them all.

use std::sync::Arc;
use std::time::Duration;

use crc::{CRC_16_XMODEM, Crc};
use futures::FutureExt;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind,
    TlsCertificates, Value,
};

use super::cluster::Cluster;
use super::connection::{Asking, Connection};
use super::server::Server;
use crate::config::RedisAddress;

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
        let connection = || Connection::new(server.clone(), config.clone());
        Self { reads: connection(), writes: connection(), server, info }
    }

    pub(super) fn of(&self, purpose: Purpose) -> &Connection {
        match purpose {
            Purpose::Read => &self.reads,
            Purpose::Write => &self.writes,
        }
    }

    /// Whether it may become a replica, and answer reads as if nothing had happened. A node of a cluster redirects then.
    pub(super) const fn may_be_demoted(&self) -> bool {
        matches!(self.server, Server::Named(_))
    }

    /// A connection that nobody shares.
    pub(super) async fn dedicated(&self, config: &AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        self.server.connect(config).await
    }
}

/// The way to every slot.
#[derive(Clone, Debug)]
pub(super) enum Route {
    Single(Arc<Node>),
    Cluster(Arc<Cluster>),
}

impl Route {
    /// Finds the way. Only a cluster has to be asked for it.
    pub(super) async fn find(address: RedisAddress, tls: Option<&TlsCertificates>) -> RedisResult<Self> {
        Ok(match address {
            RedisAddress::Node(info) => Self::Single(Arc::new(Node::new(Server::at((*info).clone(), tls)?, *info))),
            RedisAddress::Sentinel(address) => {
                let info = (*address.server).clone();
                Self::Single(Arc::new(Node::new(Server::named(address, tls)?, info)))
            }
            RedisAddress::Cluster(seeds) => Self::Cluster(Cluster::connect(seeds, tls.cloned()).await?),
        })
    }

    /// What a command for one slot is sent to.
    pub(super) fn to(&self, slot: u16, purpose: Purpose) -> Endpoint {
        Endpoint { route: self.clone(), slot, purpose }
    }

    /// The servers that have slots.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        match self {
            Self::Single(node) => vec![Arc::clone(node)],
            Self::Cluster(cluster) => cluster.owners(),
        }
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
}

impl ConnectionLike for Endpoint {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            match &self.route {
                Route::Single(node) => node.of(self.purpose).send(command, Asking::No).await,
                Route::Cluster(cluster) => cluster.send(self.slot, self.purpose, command).await,
            }
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
