//! What the benchmarks share: the real server, a real Redis, and clients that cost little.

#![allow(dead_code)] // each benchmark uses its part

pub mod grpc;
pub mod http;

use std::time::{Duration, Instant};

/// The specification's sample, with ids that can be put in.
const SAMPLE: &str = include_str!("../../tests/fixtures/action_log.completed.json");

/// A v4-like UUID of a number.
pub fn uuid(kind: u16, number: u64) -> String {
    format!("{:08x}-{kind:04x}-4000-8000-{:012x}", number as u32 ^ 0x5eed_0000, number)
}

/// The specification's sample for a lead, with fresh ids.
pub fn sample(lead: u64, action: u64) -> Vec<u8> {
    let sample = SAMPLE.replace("59ac65a5-33fe-43a6-924b-134c582a285e", &uuid(0xac, action));
    sample.replace("4cc8af99-b313-4c1f-b98b-009f38a4721a", &uuid(0x1e, lead)).replace("2421bef7-95bc-4546-92a3-c7e5600fbb6a", &uuid(0xd0, action)).into_bytes()
}

/// How often something ended within a time, per second.
pub struct Rate {
    pub per_second: f64,
}

/// Runs `workers` at once for a while; each call of `work` gets a number of its own.
pub async fn rate<W, F>(workers: Vec<W>, seconds: f64, work: impl Fn(W, u64) -> F + Clone + Send + 'static) -> Rate
where
    W: Send + 'static,
    F: Future<Output = W> + Send,
{
    static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let work = work.clone();
            tokio::spawn(async move {
                let mut done = 0u64;
                while Instant::now() < until {
                    worker = work(worker, NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed)).await;
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.expect("a worker");
    }
    Rate { per_second: done as f64 / start.elapsed().as_secs_f64() }
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux's /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The value at a share of sorted values.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}
