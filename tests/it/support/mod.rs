//! What the tests start and wait for.

pub mod browser;
pub mod certificates;
pub mod envoy;
pub mod events;
pub mod ledger;
pub mod proxies;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod redis_cluster;
pub mod sentinels;
pub mod server;
pub mod tokens;
pub mod watching;

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use prost_types::Timestamp;
use tempfile::TempDir;

use self::redis::RedisServer;
use self::server::{Options, Server};

/// How long anything may take before a test calls it broken: far more than it needs on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A server, and what is behind it: a directory, and a Redis if it has one.
pub struct Setup {
    server: Server,
    redis: Option<RedisServer>,
    dir: TempDir,
}

impl Setup {
    /// On the embedded store.
    pub fn embedded() -> Self {
        Self::start(None)
    }

    /// On a Redis of its own.
    pub fn redis() -> Self {
        Self::start(Some(RedisServer::start()))
    }

    fn start(redis: Option<RedisServer>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = Server::start(&Self::options(redis.as_ref(), &dir));
        Self { server, redis, dir }
    }

    /// Ends the server politely, and starts it again on what it had stored.
    pub fn restart(&mut self) {
        assert!(self.server.terminate().status.success(), "a server that was told to end exits with 0");
        self.server = Server::start(&Self::options(self.redis.as_ref(), &self.dir));
    }

    fn options(redis: Option<&RedisServer>, dir: &TempDir) -> Options {
        redis.map_or_else(Options::default, Options::on).data_dir(dir.path())
    }
}

impl Deref for Setup {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Setup {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Makes a test on each store of every function named; each takes a [`Setup`]. A function that is left out
/// is dead code, so that the compiler tells.
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod on_the_embedded_store {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::Setup::embedded()).await;
            })+
        }
        mod on_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::Setup::redis()).await;
            })+
        }
    };
}
pub(crate) use on_both_stores;

/// Asks again until there is an answer.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A point in time as the API tells it.
pub fn time(rfc3339: &str) -> Timestamp {
    let time = chrono::DateTime::parse_from_rfc3339(rfc3339).expect(rfc3339);
    Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos().cast_signed() }
}

/// Whether a time is that of the last minute: a time of receipt.
pub fn is_about_now(time: Option<&Timestamp>) -> bool {
    let now = chrono::Utc::now().timestamp();
    time.is_some_and(|time| (now - 60..=now + 1).contains(&time.seconds))
}

/// An id that no other test and no other run has.
pub fn fresh_id() -> String {
    let random: u128 = rand::random();
    uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid().to_string()
}
