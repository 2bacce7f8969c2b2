//! A connection that comes back, whatever ended it.
//!
//! The crate's own manager connects again after an I/O error only. Where connecting itself was refused (a password
//! that was changed, too many clients) it answers that refusal for ever, even when Redis would take it again. So it is
//! replaced then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value};

/// How often the manager is replaced at most.
const REPLACE: Duration = Duration::from_millis(500);
/// What Redis answers to commands on a connection that is well.
const ANSWERS: [&str; 17] = [
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "MISCONF",
    "NOREPLICAS",
    "NOPERM",
    "WRONGTYPE",
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "CROSSSLOT",
    "EXECABORT",
    "BUSYKEY",
];

/// One connection that many share.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    client: Client,
    config: ConnectionManagerConfig,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    manager: ConnectionManager,
    since: Instant,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(client: Client, config: ConnectionManagerConfig) -> RedisResult<Self> {
        let manager = ConnectionManager::new_with_config(client.clone(), config.clone()).await?;
        Ok(Self { client, config, shared: Arc::new(Mutex::new(Shared { manager, since: Instant::now() })) })
    }

    fn manager(&self) -> ConnectionManager {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).manager.clone()
    }

    fn look_at(&self, error: &RedisError) {
        if error.is_io_error() || error.code().is_some_and(|code| ANSWERS.contains(&code)) {
            return;
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.since.elapsed() >= REPLACE
            && let Ok(manager) = ConnectionManager::new_lazy_with_config(self.client.clone(), self.config.clone())
        {
            *shared = Shared { manager, since: Instant::now() };
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let result = self.manager().send_packed_command(command).await;
            result.inspect_err(|error| self.look_at(error))
        })
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let result = self.manager().send_packed_commands(pipeline, offset, count).await;
            result.inspect_err(|error| self.look_at(error))
        })
    }

    fn get_db(&self) -> i64 {
        self.client.get_connection_info().redis_settings().db()
    }
}
