//! The spool's disk is full, or the spool is.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::support::ledger::Ledger;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};

/// A small file system of its own; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`: whoever runs the tests may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// Takes events until there is no more room, in a directory that can hold few; more when Redis is back.
async fn fills_up(options: impl Fn(&RedisServer) -> Options) {
    let mut redis = RedisServer::start_with(&super::DURABLE);
    let mut server = Server::start(&options(&redis));
    redis.kill();
    let address = Arc::new(Mutex::new(server.http.clone()));
    let ledger = Ledger::new(16);
    let senders = ledger.flow(8, &address);
    ledger.until("503", 50).await;
    assert!(ledger.count("queued") > 500, "{:?}", ledger.answers());
    assert!(server.logs().lines().any(|line| line.contains("ERROR") && line.contains("spool")), "{}", server.logs());
    // What is on the disk is found again, though there is no room to write.
    server.signal("KILL");
    drop(server);
    server = Server::start(&options(&redis));
    *address.lock().expect("the address") = server.http.clone();
    ledger.until("503", 5).await;
    redis.restart();
    ledger.until("applied", 50).await;
    ledger.stop(senders).await;
    ledger.settle(&server).await;
    ledger.assert_prompt();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_disk_of_the_spool_is_full() {
    let Some(disk) = SmallDisk::mount(6 << 20) else {
        eprintln!("SKIPPED: mounting a small file system is not permitted here");
        return;
    };
    fills_up(|redis| Options::on(redis).data_dir(disk.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_spool_is_full() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fills_up(|redis| Options::on(redis).data_dir(dir.path()).env("LEADFOLD_SPOOL_MAX_BYTES", "1048576")).await;
}
