//! The nodes of a cluster, and which of them has a slot.
//!
//! Not the crate's cluster client: while that one learns the slots anew, every shard waits, for a second or more where
//! a node hangs, and nothing limits what it queues. All that is sent here is for one slot, which makes following a
//! cluster simple: go where the map says, go where `MOVED` or `ASK` says instead, and renew the map in the background.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use redis::{Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, ServerErrorKind, TlsCertificates, Value};
use tokio::time::timeout_at;

use super::connection::{Answered, Asking};
use super::handshake::{Expected, explain_refusal};
use super::reply;
use super::route::{Node, Purpose};
use super::server::{Server, with_host};

/// How often one request follows the word of a node that the slot is elsewhere.
const MAX_REDIRECTS: usize = 8;
/// The map is renewed this often at most.
const RENEW: Duration = Duration::from_millis(100);
/// How long the other nodes have to answer when one has.
const OTHERS: Duration = Duration::from_millis(200);

/// A cluster, as far as it is known.
pub(super) struct Cluster {
    this: Weak<Self>,
    seeds: Vec<ConnectionInfo>,
    tls: Option<TlsCertificates>,
    expected: Expected,
    map: RwLock<Map>,
    renewing: AtomicBool,
    renewed: Mutex<Option<Instant>>,
    /// Why the map could not be renewed.
    failed: Mutex<Option<RedisError>>,
}

#[derive(Default)]
struct Map {
    /// Ranges of slots by their last one: the first, and who has them.
    owners: BTreeMap<u16, (u16, String)>,
    nodes: HashMap<String, Arc<Node>>,
}

impl Map {
    fn owner(&self, slot: u16) -> Option<Arc<Node>> {
        let (_, (first, address)) = self.owners.range(slot..).next()?;
        if *first <= slot { self.nodes.get(address).cloned() } else { None }
    }

    fn is_owner(&self, slot: u16, name: &str) -> bool {
        self.owners.range(slot..).next().is_some_and(|(_, (first, address))| *first <= slot && address == name)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// A cluster that some of these nodes know. The map is learned when it is needed.
    pub(super) fn new(seeds: Vec<ConnectionInfo>, tls: Option<TlsCertificates>, expected: Expected) -> Arc<Self> {
        let cluster = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            seeds,
            tls,
            expected,
            map: RwLock::default(),
            renewing: AtomicBool::new(false),
            renewed: Mutex::default(),
            failed: Mutex::default(),
        });
        cluster.renew_soon();
        cluster
    }

    /// The node that has a slot, as far as is known.
    pub(super) fn owner(&self, slot: u16) -> RedisResult<Arc<Node>> {
        let owner = self.map.read().unwrap_or_else(PoisonError::into_inner).owner(slot);
        owner.ok_or_else(|| {
            let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            failed.unwrap_or_else(|| RedisError::from((ErrorKind::Server(ServerErrorKind::ClusterDown), "no node has the slot")))
        })
    }

    /// Sends a command for one slot, wherever that is.
    pub(super) async fn send(self: &Arc<Self>, slot: u16, purpose: Purpose, command: &Cmd) -> RedisResult<Answered> {
        let mut node = self.owner(slot).inspect_err(|_| self.renew_soon())?;
        let mut asking = Asking::No;
        for _ in 0..MAX_REDIRECTS {
            let error = match node.of(purpose).send(command, asking).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(elsewhere) = self.redirected(&error, &node)? else {
                self.look_at(&error);
                return Err(error);
            };
            asking = if error.kind() == ErrorKind::Server(ServerErrorKind::Ask) { Asking::Yes } else { Asking::No };
            // After `MOVED` the map of before would lead there again and again.
            self.look_at(&error);
            node = elsewhere;
        }
        Err(RedisError::from((ErrorKind::Server(ServerErrorKind::TryAgain), "the slot is moving")))
    }

    /// The node that an answer leads to.
    pub(super) fn redirected(&self, error: &RedisError, from: &Node) -> RedisResult<Option<Arc<Node>>> {
        let Some((address, _)) = error.redirect_node() else { return Ok(None) };
        let malformed = || RedisError::from((ErrorKind::Parse, "a redirection to nowhere"));
        let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().map_err(|_| malformed())?;
        self.node(host, port, &from.info).map(Some)
    }

    /// Renews the map where an error says that it may be wrong.
    pub(super) fn look_at(self: &Arc<Self>, error: &RedisError) {
        use ServerErrorKind::{Ask, CrossSlot, ExecAbort, NoScript, NotBusy, ResponseError, TryAgain};
        // These come from a node that works. Any other error, also a refusal of the password or of the server as a whole, may
        // mean that another node has the slot by now.
        let works = [Ask, CrossSlot, ExecAbort, NoScript, NotBusy, ResponseError, TryAgain];
        if !matches!(error.kind(), ErrorKind::Server(kind) if works.contains(&kind)) {
            self.renew_soon();
        }
    }

    fn node(&self, host: &str, port: u16, like: &ConnectionInfo) -> RedisResult<Arc<Node>> {
        let name = format!("{host}:{port}");
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = map.nodes.get(&name) {
            return Ok(Arc::clone(node));
        }
        let node = Arc::new(self.new_node(like.clone().set_addr(with_host(like.addr(), host.to_owned(), port)), name.clone())?);
        map.nodes.insert(name, Arc::clone(&node));
        Ok(node)
    }

    fn new_node(&self, info: ConnectionInfo, name: String) -> RedisResult<Node> {
        let (cluster, keys) = (Weak::clone(&self.this), self.expected.keys.clone());
        let config_keys = move || {
            let Some(cluster) = cluster.upgrade() else { return Vec::new() };
            let map = cluster.map.read().unwrap_or_else(PoisonError::into_inner);
            let own = (0..keys.partitions()).filter(|partition| map.is_owner(keys.slot(*partition), &name));
            own.map(|partition| keys.config_of(partition)).collect()
        };
        let handshake = self.expected.of_node(Box::new(config_keys));
        Ok(Node::new(Server::at(info.clone(), self.tls.as_ref(), handshake)?, info))
    }

    /// Renews the map in the background.
    pub(super) fn renew_soon(self: &Arc<Self>) {
        if self.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            let since = cluster.renewed.lock().unwrap_or_else(PoisonError::into_inner).map_or(RENEW, |renewed| renewed.elapsed());
            tokio::time::sleep(RENEW.saturating_sub(since)).await;
            cluster.renewing.store(false, Ordering::Release);
            let failed = cluster.renew().await.err();
            *cluster.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        });
    }

    /// Asks the nodes that are known, and those that were named at first. A node that was cut off still has the map of
    /// before, and may be the first to answer: so the others have a moment to answer too, and the newest map counts.
    async fn renew(self: &Arc<Self>) -> RedisResult<()> {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let mut asked: Vec<Arc<Node>> = self.map.read().unwrap_or_else(PoisonError::into_inner).nodes.values().cloned().collect();
        for seed in &self.seeds {
            if !asked.iter().any(|node| node.info.addr() == seed.addr()) {
                asked.push(Arc::new(self.new_node(seed.clone(), seed.addr().to_string())?));
            }
        }
        let mut answers: FuturesUnordered<_> = asked.into_iter().map(view).collect();
        let mut newest: Option<View> = None;
        let mut failed = RedisError::from((ErrorKind::Server(ServerErrorKind::ClusterDown), "no node is known"));
        let mut deadline = None;
        loop {
            let answer = match deadline {
                None => answers.next().await,
                Some(deadline) => timeout_at(deadline, answers.next()).await.unwrap_or(None),
            };
            match answer {
                None => break,
                Some(Ok(view)) => {
                    deadline.get_or_insert_with(|| tokio::time::Instant::now() + OTHERS);
                    if newest.as_ref().is_none_or(|newest| newest.age() < view.age()) {
                        newest = Some(view);
                    }
                }
                Some(Err(error)) => failed = error,
            }
        }
        drop(answers);
        let View { owners, node: told, .. } = newest.ok_or(failed)?;
        let mut nodes = HashMap::new();
        for (_, _, host, port) in &owners {
            nodes.insert(format!("{host}:{port}"), self.node(host, *port, &told.info)?);
        }
        let owners = owners.into_iter().map(|(first, last, host, port)| (last, (first, format!("{host}:{port}")))).collect();
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Map { owners, nodes };
        Ok(())
    }
}

/// What one node knows of the cluster.
struct View {
    /// Whether it takes part in the cluster: one that was cut off from the others does not, after a while.
    is_well: bool,
    /// Grows with each failover.
    epoch: u64,
    owners: Vec<Range>,
    node: Arc<Node>,
}

impl View {
    /// The greater, the newer.
    const fn age(&self) -> (bool, u64) {
        (self.is_well, self.epoch)
    }
}

async fn view(node: Arc<Node>) -> RedisResult<View> {
    let ask = async |what: &str| Ok::<_, RedisError>(node.of(Purpose::Read).send(redis::cmd("CLUSTER").arg(what), Asking::No).await?.value);
    let slots = ask("SLOTS").await.map_err(explain_refusal)?;
    let owners = owners(slots, node.info.addr())?;
    if owners.is_empty() {
        return Err(RedisError::from((ErrorKind::Server(ServerErrorKind::ClusterDown), "no node has a slot")));
    }
    // A user without this right: then the first to answer is believed, and where it is wrong the nodes will say so.
    let info = ask("INFO").await.ok().and_then(|info| reply::text(info).ok()).unwrap_or_default();
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let epoch = field("cluster_current_epoch:").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok(View { is_well: field("cluster_state:") == Some("ok"), epoch, owners, node })
}

/// First and last slot, host and port.
type Range = (u16, u16, String, u16);

/// What `CLUSTER SLOTS` says of the primaries. A node that does not know its own name leaves it out.
fn owners(slots: Value, told_by: &ConnectionAddr) -> RedisResult<Vec<Range>> {
    let own = match told_by {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    };
    let range = |range: Value| -> Result<Range, crate::store::StoreError> {
        let mut parts = reply::array(range)?.into_iter();
        let mut next = || parts.next().unwrap_or(Value::Nil);
        let (first, last) = (reply::number(&reply::text(next())?)?, reply::number(&reply::text(next())?)?);
        let mut node = reply::array(next())?.into_iter();
        let host = match node.next() {
            Some(Value::Nil) | None => String::new(),
            Some(host) => reply::text(host)?,
        };
        let port = reply::number(&reply::text(node.next().unwrap_or(Value::Nil))?)?;
        Ok((first, last, if host.is_empty() || host == "?" { own.clone() } else { host }, port))
    };
    let ranges = reply::array(slots).and_then(|ranges| ranges.into_iter().map(range).collect());
    ranges.map_err(|_| RedisError::from((ErrorKind::Parse, "CLUSTER SLOTS is not as expected")))
}
