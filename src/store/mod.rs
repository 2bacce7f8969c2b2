//! Where leads are kept: the face that both stores show.
//!
//! A store applies what the fold says and knows no rule of its own. [`embedded`] needs nothing installed;
//! [`redis`] is shared by any number of instances. Both pass one conformance suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::lead::{Activity, Change, Lead};
use crate::time::{Clock, Timestamp};

pub mod embedded;
pub(crate) mod record;
pub mod redis;

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The lead changed, to this version.
    Applied {
        /// The lead's new version.
        version: u64,
    },
    /// The lead held it already, at this version.
    Duplicate {
        /// The lead's present version.
        version: u64,
    },
    /// The lead was deleted less than 30 days ago.
    Deleted,
    /// An action that is older than the history that is kept: whether it was counted before is not known.
    TooOld,
}

/// Why a store could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The lead belongs to another workspace.
    #[error("the lead belongs to another workspace")]
    OtherWorkspace,
    /// The store cannot be reached or is not able to work now; the same call may succeed later.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store answers, and will not work until somebody sets it right: what it said, and what to do. The same call
    /// may succeed after that.
    #[error("the store refuses to work: {0}: {1}")]
    Refusing(String, &'static str),
    /// The store answers and is not one that can be used: another version, another kind of server, another layout. The
    /// sentence says which, and what to do. The same call succeeds once that was done.
    #[error("the store cannot be used: {0}")]
    Misconfigured(String),
    /// Other writers of the same lead were always faster. The store itself is well; the same call may succeed later.
    #[error("the lead changes too fast: try again")]
    Contended,
    /// What is stored, or the store's answer, makes no sense: retrying will not help.
    #[error("the store holds something unexpected: {0}")]
    Corrupt(String),
}

/// For how long late events of a deleted lead stay out.
pub const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How many missed activities are told at most when a watch resumes.
pub const MAX_MISSED: usize = 256;

/// A lead as it was read, and what its reader had missed.
#[derive(Clone, Debug)]
pub struct Read {
    /// The aggregate.
    pub lead: Lead,
    /// Activities with a version above the one that was asked for, oldest version first.
    pub missed: Vec<Activity>,
    /// Whether `missed` holds them all.
    pub complete: bool,
}

/// Which leads to list.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// Whose.
    pub workspace_id: String,
    /// Only those whose latest activity is after it.
    pub after: Option<Timestamp>,
    /// Only those whose latest activity is before it.
    pub before: Option<Timestamp>,
    /// Continue behind this place.
    pub cursor: Option<Place>,
    /// How many at most.
    pub limit: usize,
}

/// A lead's place in the order of its workspace: latest activity first, those without any last, equal times
/// by descending stored id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The latest activity; zero if there is none.
    pub time: Timestamp,
    /// The lead.
    pub lead_id: String,
}

/// A place in a lead's history: newest first, equal times by descending stored id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivityPlace {
    /// When it happened.
    pub time: Timestamp,
    /// The action.
    pub action_id: String,
}

/// What a store's feed tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    /// A lead changed.
    Changed {
        /// Which.
        lead_id: String,
        /// Its workspace, empty if not known yet.
        workspace_id: String,
        /// Its new version; zero if it was deleted.
        version: u64,
        /// Its version before; zero if it is new.
        previous: u64,
    },
    /// Changes may have been missed: read again whatever matters.
    Gap,
    /// A part of the feed is connected, but whether its server is the one that takes the changes nobody confirms now.
    Unconfirmed {
        /// Which, as in [`FeedEvent::Alive`].
        part: u16,
    },
    /// Everything that happened in a part of the store until this moment has been told.
    Alive {
        /// Which: [`Store::feed_part`] says where a lead is.
        part: u16,
    },
}

/// What is called with the events of a feed.
pub type FeedReceiver = mpsc::Receiver<FeedEvent>;

/// How the servers of a store are: one, or the nodes of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// How many there are.
    pub servers: usize,
    /// Those that do not work, by name, and why.
    pub failing: Vec<(String, StoreError)>,
}

impl Condition {
    /// Of a store that is one server.
    pub fn of_one(name: &str, result: Result<(), StoreError>) -> Self {
        Self { servers: 1, failing: result.err().map(|error| (name.to_owned(), error)).into_iter().collect() }
    }

    /// Whether some server works.
    pub fn is_usable(&self) -> bool {
        self.failing.len() < self.servers
    }
}

/// A place where leads are kept.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies a change: wholly or not at all, durably before it returns, and only once however often it is
    /// called with the same.
    async fn apply(&self, change: Change) -> Result<Outcome, StoreError>;

    /// Reads a lead in one consistent state; with `since`, also the activities above that version. `None`: it
    /// does not exist.
    async fn read(&self, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError>;

    /// The version of a lead, for far less than reading it; `None` if there is no such lead.
    async fn version(&self, lead_id: &str) -> Result<Option<u64>, StoreError>;

    /// Whether a lead that cannot be read was deleted, rather than never heard of.
    async fn is_deleted(&self, lead_id: &str) -> Result<bool, StoreError>;

    /// Lists the leads of a workspace.
    async fn list(&self, query: &ListQuery) -> Result<Vec<Place>, StoreError>;

    /// Lists at most `limit` activities of a lead behind a place. `None`: the lead does not exist.
    async fn activities(&self, lead_id: &str, behind: Option<&ActivityPlace>, limit: usize) -> Result<Option<Vec<Activity>>, StoreError>;

    /// Deletes a lead and all its records, and leaves a tombstone. `false`: it did not exist.
    async fn delete(&self, lead_id: &str) -> Result<bool, StoreError>;

    /// Starts to tell every change from now on, this instance's and every other's. While the channel is full the
    /// feed waits; a feed that fell behind too far tells a [`FeedEvent::Gap`]. No [`FeedEvent::Alive`] is sent of a
    /// part whose connection is in doubt. The feed ends when the receiver is dropped.
    fn feed(&self) -> FeedReceiver;

    /// How many parts the feed has. Each proves by itself that it has told everything.
    fn feed_parts(&self) -> u16 {
        1
    }

    /// The part of the feed that tells of a lead: less than [`Store::feed_parts`].
    fn feed_part(&self, lead_id: &str) -> u16 {
        let _ = lead_id;
        0
    }

    /// The partition that keeps a lead.
    fn partition(&self, lead_id: &str) -> u16 {
        let _ = lead_id;
        0
    }

    /// The server that has a partition now, by name. Servers fail one by one.
    fn server(&self, partition: u16) -> Arc<str> {
        let _ = partition;
        Arc::from("store")
    }

    /// Tries to write to a partition, without changing anything.
    async fn probe(&self, partition: u16) -> Result<(), StoreError> {
        let _ = partition;
        match self.check_writes().await.failing.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Reads from each server of the store.
    async fn check(&self) -> Condition;

    /// Tries on each server of the store whether it would take a change now. Some can be read and take none.
    async fn check_writes(&self) -> Condition {
        self.check().await
    }

    /// The store's time.
    fn clock(&self) -> &Clock;

    /// Waits until changes that have to be applied again, since a server may have lost them, have been applied.
    async fn settled(&self) {}

    /// Takes out what was acknowledged just before, and whose server is away now or was replaced: it may be lost, and nobody
    /// else knows of it.
    async fn take_unsettled(&self) -> Vec<Change> {
        Vec::new()
    }

    /// Its name, for people.
    fn name(&self) -> &'static str;
}
