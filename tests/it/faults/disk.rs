//! Disks that are full, and are not any more: of the embedded store, the spool and the dead letters. Disks that hang.
//!
//! Small file systems can only be mounted by root. What stands in for them elsewhere is a limit of the size of files,
//! which [`LimitedFiles`] sets and lifts: nothing can grow any more.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leadfold::api::{DeleteLeadRequest, GetLeadRequest};
use serde_json::json;
use tonic::Code;

use crate::support::events::{SAMPLE_TIME, WORKSPACE, message};
use crate::support::ledger::{Ledger, PROMPT};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::{eventually, fresh_id};

/// A small file system of its own; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`: whoever runs the tests may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("SKIPPED: mounting a small file system is not permitted here");
        }
        mounted.then(|| Self(dir))
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

/// A disk that a test can fill and free.
trait Disk {
    fn path(&self) -> &Path;

    /// What a server on it needs.
    fn options(&self, options: Options) -> Options {
        options.data_dir(self.path())
    }

    /// From now on, there is no room for more, for this server.
    fn fill(&self, server: &Server);

    fn free(&self, server: &Server);
}

impl Disk for SmallDisk {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self, _: &Server) {
        let mut filler = File::create(self.path().join("filler")).expect("a file");
        for size in [65_536, 4096, 256, 1] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn free(&self, _: &Server) {
        std::fs::remove_file(self.path().join("filler")).expect("the filler");
    }
}

/// No file may grow beyond what the largest has.
struct LimitedFiles(tempfile::TempDir);

impl LimitedFiles {
    fn limit(server: &Server, bytes: &str) {
        let limited = Command::new("prlimit").args([&format!("--pid={}", server.pid()), &format!("--fsize={bytes}:")]).status();
        assert!(limited.expect("prlimit").success());
    }
}

impl Disk for LimitedFiles {
    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A process that goes beyond its limit is killed unless it ignores that signal.
    fn options(&self, options: Options) -> Options {
        options.data_dir(self.path()).in_shell("trap '' XFSZ")
    }

    fn fill(&self, server: &Server) {
        let sizes =
            std::fs::read_dir(self.path()).expect("the directory").map(|entry| entry.expect("a file").metadata().expect("a file").len());
        Self::limit(server, &sizes.max().expect("a file").to_string());
    }

    fn free(&self, server: &Server) {
        Self::limit(server, "unlimited");
    }
}

fn limited_files() -> LimitedFiles {
    LimitedFiles(tempfile::tempdir().expect("a temporary directory"))
}

async fn is_ready_for_webhooks(server: &Server) -> bool {
    server.admin("/readyz?for=webhooks").await.0 == 200
}

/// The gauge that alerts look at.
async fn writes_are_up(server: &Server) -> bool {
    let (_, metrics) = server.admin("/metrics").await;
    metrics.lines().any(|line| line == "leadfold_part_up{part=\"writes\"} 1")
}

/// Events until there is no more room; none for a while; then there is room, and nobody restarts anything.
async fn embedded_store_heals(disk: &impl Disk) {
    let server = Server::start(&disk.options(Options::default()));
    let address = Arc::new(Mutex::new(server.http.clone()));
    let ledger = Ledger::new(16);
    let senders = ledger.flow(4, &address);
    ledger.until("applied", 100).await;
    assert!(is_ready_for_webhooks(&server).await && writes_are_up(&server).await);
    disk.fill(&server);
    ledger.until("503", 20).await;
    eventually("not ready", async || (!is_ready_for_webhooks(&server).await).then_some(())).await;
    eventually("the metric says so", async || (!writes_are_up(&server).await).then_some(())).await;
    let lead_id = ledger.leads()[0].clone();
    eventually("what is there is served", async || server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()).await;
    ledger.until("503", 100).await;
    let complaints = server.logs().lines().filter(|line| line.contains("ERROR")).count();
    assert!(complaints < 15, "{complaints} errors for {} refused events:\n{}", ledger.count("503"), server.logs());
    eventually("the log names the file", async || server.logs().contains("leads.redb").then_some(())).await;

    let freed = Instant::now();
    disk.free(&server);
    ledger.until("applied", 100).await;
    eventually("ready again", async || is_ready_for_webhooks(&server).await.then_some(())).await;
    assert!(freed.elapsed() < Duration::from_secs(8), "it took {:?}", freed.elapsed());
    eventually("the metric says so", async || writes_are_up(&server).await.then_some(())).await;
    ledger.stop(senders).await;
    ledger.settle(&server).await;
    ledger.assert_prompt();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_takes_events_again_when_a_full_disk_is_freed() {
    let Some(disk) = SmallDisk::mount(6 << 20) else { return };
    embedded_store_heals(&disk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_takes_events_again_when_its_file_may_grow_again() {
    embedded_store_heals(&limited_files()).await;
}

fn long_event() -> serde_json::Value {
    let mut event = message(&fresh_id(), "a1", SAMPLE_TIME);
    event["actionLog"]["summary"] = "long ".repeat(400).into();
    event
}

/// Nobody sends anything while the disk is full: health finds out by itself that it is, and that it is not any more.
async fn health_follows_the_disk_without_events(disk: &impl Disk) {
    let server = Server::start(&disk.options(Options::default()));
    disk.fill(&server);
    eventually("an event is refused", async || (server.post(long_event().to_string()).await.status == 503).then_some(())).await;
    for _ in 0..20 {
        assert!(!is_ready_for_webhooks(&server).await, "no event was taken since one was refused, and there is no room");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    disk.free(&server);
    eventually("ready", async || is_ready_for_webhooks(&server).await.then_some(())).await;
    server.apply(&long_event()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_a_full_disk_without_events() {
    let Some(disk) = SmallDisk::mount(3 << 20) else { return };
    health_follows_the_disk_without_events(&disk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_a_file_that_may_not_grow_without_events() {
    health_follows_the_disk_without_events(&limited_files()).await;
}

/// An event that is refused is kept for later: not while there is no room, but when there is some again.
async fn dead_letters_heal(disk: &impl Disk) {
    let redis = RedisServer::start();
    let server = Server::start(&disk.options(Options::on(&redis)));
    let number = std::sync::atomic::AtomicU64::new(0);
    // Each a new one, and large.
    let refuse = async || {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let event = json!({"event": "lead.created", "workspaceId": WORKSPACE, "data": {"firstName": format!("{number}").repeat(50_000)}});
        let began = Instant::now();
        let answer = server.post(event.to_string()).await;
        assert!(answer.status == 400 && began.elapsed() < PROMPT, "{answer:?} after {:?}", began.elapsed());
        server.metric("leadfold_dead_letters_total{reason=\"refused\"}").await
    };
    assert_eq!(refuse().await, 1.0);
    disk.fill(&server);
    let mut kept = 1.0;
    eventually("one is not kept", async || {
        let before = std::mem::replace(&mut kept, refuse().await);
        (before == kept).then_some(())
    })
    .await;
    for said in ["is not kept as a dead letter", "dead-letters.redb"] {
        eventually(said, async || server.logs().contains(said).then_some(())).await;
    }
    let first = message(&fresh_id(), "a1", SAMPLE_TIME);
    server.apply(&first).await;

    disk.free(&server);
    eventually("one is kept", async || (refuse().await > kept).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_kept_again_when_a_full_disk_is_freed() {
    let Some(disk) = SmallDisk::mount(3 << 20) else { return };
    dead_letters_heal(&disk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_kept_again_when_their_file_may_grow_again() {
    dead_letters_heal(&limited_files()).await;
}

/// It says what is wrong, and starts when there is room: whatever it left behind is in nobody's way.
#[test]
fn a_first_start_on_a_full_disk_is_refused_and_succeeds_when_there_is_room() {
    let redis = RedisServer::start();
    for options in [Options::default(), Options::on(&redis)] {
        for room in [0, 1 << 10, 16 << 10, 64 << 10, 128 << 10] {
            let Some(disk) = SmallDisk::mount(1 << 20) else { return };
            let options = options.clone().data_dir(disk.path());
            let filler = disk.path().join("filler");
            std::fs::write(&filler, vec![1; (1 << 20) - room]).expect("a filler");
            match Server::try_start(&options) {
                Ok(server) => drop(server),
                Err(said) => assert!(said.contains("No space left on device") && said.contains(".redb"), "with {room} bytes: {said}"),
            }
            std::fs::remove_file(&filler).expect("the filler");
            drop(Server::start(&options));
        }
    }
}

#[test]
fn a_first_start_whose_files_may_not_grow_is_refused_and_succeeds_when_they_may() {
    let redis = RedisServer::start();
    for options in [Options::default(), Options::on(&redis)] {
        // In blocks of 512 bytes.
        for limit in ["trap '' XFSZ; ulimit -f 0", "trap '' XFSZ; ulimit -f 2", "trap '' XFSZ; ulimit -f 64", "trap '' XFSZ; ulimit -f 130"]
        {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let options = options.clone().data_dir(dir.path());
            let said = options.clone().in_shell(limit).refused();
            assert!(said.contains("File too large") && said.contains(".redb"), "{limit}: {said}");
            drop(Server::start(&options));
        }
    }
}

/// A commit that never ends costs nobody more than a timeout, and afterwards all is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_is_answered_for_in_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hang = dir.path().join("hang");
    let options = Options::default().data_dir(&dir.path().join("data")).env("LEADFOLD_TEST_HANG_WHILE", hang.to_string_lossy());
    let mut server = Server::start(&options);
    let address = Arc::new(Mutex::new(server.http.clone()));
    let ledger = Ledger::new(16);
    // More than may wait for the writer, in time.
    let senders = ledger.flow(256, &address);
    ledger.until("applied", 100).await;
    File::create(&hang).expect("a file");
    ledger.until("503", 256).await;

    let lead_id = ledger.leads()[0].clone();
    let began = Instant::now();
    assert!(!is_ready_for_webhooks(&server).await);
    assert_eq!(server.admin("/livez").await.0, 200);
    server.lead(&lead_id).await;
    let deleted = server.client().delete_lead(DeleteLeadRequest { lead_id: fresh_id() }).await;
    assert_eq!(deleted.expect_err("nothing can be written").code(), Code::Unavailable);
    assert!(began.elapsed() < PROMPT, "it took {:?}", began.elapsed());
    let began = Instant::now();
    server.post(json!({"event": "lead.created", "data": {}}).to_string()).await.assert_refused(400, "data.leadId");
    assert!(began.elapsed() < PROMPT, "it took {:?}", began.elapsed());
    ledger.until("503", 256 * 5).await;

    std::fs::remove_file(&hang).expect("the file");
    ledger.until("applied", 100).await;
    eventually("ready again", async || is_ready_for_webhooks(&server).await.then_some(())).await;
    ledger.stop(senders).await;
    ledger.settle(&server).await;
    ledger.assert_prompt();

    // Nor does it keep the process.
    File::create(&hang).expect("a file");
    assert_eq!(server.post(message(&lead_id, "last", SAMPLE_TIME).to_string()).await.status, 503);
    let exit = server.terminate();
    assert!(exit.status.success() && exit.took < Duration::from_secs(10), "{:?} after {:?}", exit.status, exit.took);
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
    let Some(disk) = SmallDisk::mount(6 << 20) else { return };
    fills_up(|redis| Options::on(redis).data_dir(disk.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_spool_is_full() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fills_up(|redis| Options::on(redis).data_dir(dir.path()).env("LEADFOLD_SPOOL_MAX_BYTES", "1048576")).await;
}
