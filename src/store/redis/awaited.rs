//! A Redis that was away when the service started: events are spooled, and reads are told so, until it comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::keys::Keys;
use super::{Options, RedisStore};
use crate::lead::{Activity, Change};
use crate::store::{ActivityPlace, FeedReceiver, ListQuery, Outcome, Place, Read, Store, StoreError};

/// How long the start waits for a Redis that hangs: events can be taken without it.
const FIRST_TRY: Duration = Duration::from_secs(2);
/// The first and the longest wait between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Events of the feed that wait for their receiver.
const CHANNEL: usize = 64;

/// Leads in a Redis, as soon as it can be reached.
#[derive(Debug)]
pub struct AwaitedRedisStore {
    keys: Keys,
    connected: watch::Receiver<Option<Arc<RedisStore>>>,
    /// Why it is not there yet.
    why: Arc<Mutex<StoreError>>,
}

impl AwaitedRedisStore {
    /// Connects now, or goes on trying in the background.
    ///
    /// # Errors
    /// The Redis can be reached and cannot be used: it evicts keys, or holds leads in another number of partitions.
    pub async fn connect(url: &str, options: &Options) -> Result<Arc<dyn Store>, StoreError> {
        let hangs = |_| Err(StoreError::Unavailable("Redis did not answer in time".to_owned()));
        let error = match timeout(FIRST_TRY, RedisStore::connect(url, options)).await.unwrap_or_else(hangs) {
            Ok(store) => return Ok(Arc::new(store)),
            Err(error @ (StoreError::Unavailable(_) | StoreError::Refusing(..))) => error,
            Err(error) => return Err(error),
        };
        tracing::warn!(%error, "Redis cannot be used yet: events are spooled until it can");
        let why = Arc::new(Mutex::new(error));
        let (connect, connected) = watch::channel(None);
        let keys = Keys::new(&options.key_prefix, options.partitions);
        tokio::spawn(try_until_connected(url.to_owned(), options.clone(), connect, Arc::clone(&why)));
        Ok(Arc::new(Self { keys, connected, why }))
    }

    fn store(&self) -> Result<Arc<RedisStore>, StoreError> {
        let store = self.connected.borrow().clone();
        store.ok_or_else(|| self.why.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn try_until_connected(
    url: String,
    options: Options,
    connected: watch::Sender<Option<Arc<RedisStore>>>,
    why: Arc<Mutex<StoreError>>,
) {
    let mut wait = BACKOFF.0;
    while !connected.is_closed() {
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
        wait = (wait * 2).min(BACKOFF.1);
        match RedisStore::connect(&url, &options).await {
            Ok(store) => {
                tracing::info!("connected to Redis");
                connected.send_replace(Some(Arc::new(store)));
                return;
            }
            Err(error) => {
                let mut last = why.lock().unwrap_or_else(PoisonError::into_inner);
                if last.to_string() != error.to_string() {
                    tracing::error!(%error, "Redis cannot be used");
                }
                // To whoever asks it is not there yet: what it holds was not looked at.
                *last = match error {
                    StoreError::Corrupt(what) => StoreError::Refusing(what, "set it right; there is no need to restart leadfold"),
                    error => error,
                };
            }
        }
    }
}

#[async_trait]
impl Store for AwaitedRedisStore {
    async fn apply(&self, change: Change) -> Result<Outcome, StoreError> {
        self.store()?.apply(change).await
    }

    async fn read(&self, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError> {
        self.store()?.read(lead_id, since).await
    }

    async fn version(&self, lead_id: &str) -> Result<Option<u64>, StoreError> {
        self.store()?.version(lead_id).await
    }

    async fn is_deleted(&self, lead_id: &str) -> Result<bool, StoreError> {
        self.store()?.is_deleted(lead_id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Place>, StoreError> {
        self.store()?.list(query).await
    }

    async fn activities(&self, lead_id: &str, behind: Option<&ActivityPlace>, limit: usize) -> Result<Option<Vec<Activity>>, StoreError> {
        self.store()?.activities(lead_id, behind, limit).await
    }

    async fn delete(&self, lead_id: &str) -> Result<bool, StoreError> {
        self.store()?.delete(lead_id).await
    }

    fn feed(&self) -> FeedReceiver {
        let (events, receiver) = mpsc::channel(CHANNEL);
        let mut connected = self.connected.clone();
        tokio::spawn(async move {
            let Ok(store) = connected.wait_for(Option::is_some).await.map(|store| store.clone()) else { return };
            let Some(mut feed) = store.map(|store| store.feed()) else { return };
            while let Some(event) = feed.recv().await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }

    fn partition(&self, lead_id: &str) -> u16 {
        self.keys.partition(lead_id)
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.store()?.check().await
    }

    async fn check_writes(&self) -> Result<(), StoreError> {
        self.store()?.check_writes().await
    }

    fn name(&self) -> &'static str {
        "redis"
    }
}
