//! The scripts, and how they are called.

use std::time::Instant;

use metrics::Histogram;
use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, RedisResult, ServerErrorKind, Value};

use super::reply;

macro_rules! script {
    ($header:literal, $file:literal) => {
        concat!($header, "\n", include_str!("lua/common.lua"), include_str!(concat!("lua/", $file)))
    };
}

/// A Lua script and the hash that names it. Old and new versions of a script live side by side.
#[derive(Debug)]
pub(super) struct Script {
    code: &'static str,
    hash: String,
    calls: Calls,
}

/// Measures calls of one kind.
#[derive(Debug)]
pub(super) struct Calls {
    name: &'static str,
    durations: Histogram,
}

impl Calls {
    fn new(name: &'static str) -> Self {
        Self { name, durations: metrics::histogram!("leadfold_redis_call_duration_seconds", "call" => name) }
    }

    /// One call, measured.
    pub(super) async fn measured<T>(&self, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let began = Instant::now();
        let result = call.await;
        self.durations.record(began.elapsed());
        if let Err(error) = &result {
            reply::count(self.name, error);
        }
        result
    }
}

impl Script {
    fn new(name: &'static str, code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned(), calls: Calls::new(name) }
    }

    /// Calls it by its hash; a server that does not know it, after a restart or failover, is sent the whole of
    /// it. (Not `SCRIPT LOAD`: in a cluster that goes to every primary, so that a dead one stops the others.)
    pub(super) async fn call<C: ConnectionLike>(&self, connection: &mut C, keys: &[&[u8]], args: &[&[u8]]) -> RedisResult<Value> {
        let call = async {
            match self.command("EVALSHA", &self.hash, keys, args).query_async(connection).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    self.command("EVAL", self.code, keys, args).query_async(connection).await
                }
                result => result,
            }
        };
        self.calls.measured(call).await
    }

    fn command(&self, name: &str, script: &str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(keys.len());
        for part in keys.iter().chain(args) {
            command.arg(*part);
        }
        command
    }
}

/// All of them. `#!lua` makes Redis refuse a script that cannot finish (out of memory, read only) before its
/// first write, and keeps it within one slot.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) apply: Script,
    pub(super) read: Script,
    pub(super) activities: Script,
    pub(super) list: Script,
    pub(super) delete: Script,
    pub(super) probe: Script,
    pub(super) probe_reads: Script,
    /// Not a script: the read of a lead's version, which most reads are.
    pub(super) version: Calls,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            apply: Script::new("apply", script!("#!lua", "apply.lua")),
            read: Script::new("read", script!("#!lua flags=no-writes", "read.lua")),
            activities: Script::new("activities", script!("#!lua flags=no-writes", "activities.lua")),
            list: Script::new("list", script!("#!lua flags=no-writes", "list.lua")),
            delete: Script::new("delete", script!("#!lua", "delete.lua")),
            probe: Script::new("probe", script!("#!lua", "probe.lua")),
            probe_reads: Script::new("probe_reads", script!("#!lua flags=no-writes", "probe_reads.lua")),
            version: Calls::new("version"),
        }
    }
}
