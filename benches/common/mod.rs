//! What the benchmarks share: clients that cost little, the sample event, and figures.

#![allow(dead_code)] // each benchmark uses its part

pub mod grpc;
pub mod http;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SAMPLE: &str = include_str!("../../tests/fixtures/action_log.completed.json");
const ACTION: &str = "59ac65a5-33fe-43a6-924b-134c582a285e";
const LEAD: &str = "4cc8af99-b313-4c1f-b98b-009f38a4721a";
const PARTS: &str = "2421bef7-95bc-4546-92a3-c7e5600fbb6a";

/// The specification's sample, as a request whose ids can be exchanged in place.
#[derive(Clone)]
pub struct Sample {
    pub request: Vec<u8>,
    places: [Vec<usize>; 3],
}

impl Sample {
    /// A request to `path`.
    pub fn to(path: &str) -> Self {
        Self::of(path, SAMPLE)
    }

    /// The same, of which the message has no documents.
    pub fn without_documents(path: &str) -> Self {
        let mut event: serde_json::Value = serde_json::from_str(SAMPLE).expect("JSON");
        event["actionLog"]["messages"][0]["documents"] = serde_json::Value::Null;
        Self::of(path, &event.to_string())
    }

    fn of(path: &str, event: &str) -> Self {
        let request = http::request(path, event.as_bytes());
        let text = std::str::from_utf8(&request).expect("text");
        let places = [LEAD, ACTION, PARTS].map(|id| text.match_indices(id).map(|(at, _)| at).collect());
        Self { places, request }
    }

    /// With fresh ids for its action, message and document.
    pub fn with(&mut self, lead: u64, action: u64) -> &[u8] {
        for (places, id) in self.places.iter().zip([uuid(0x1ead, lead), uuid(0xac71, action), uuid(0xd0c5, action)]) {
            for &at in places {
                self.request[at..at + 36].copy_from_slice(&id);
            }
        }
        &self.request
    }
}

/// The UUID of a number, spread as random ones are.
pub fn uuid(kind: u16, number: u64) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = u128::from(spread) << 64 | u128::from(kind) << 48 | u128::from(number & 0xffff_ffff_ffff);
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (at, place) in text.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&at) {
            shift -= 4;
            *place = HEX[(number >> shift & 15) as usize];
        }
    }
    text
}

/// The lead that [`Sample::with`] means by a number.
pub fn lead_id(lead: u64) -> String {
    String::from_utf8_lossy(&uuid(0x1ead, lead)).into_owned()
}

/// Runs all workers at once for a while, and returns how often one was done in a second. Each call of `work` gets
/// a number that no other gets.
pub async fn rate<W, F>(workers: Vec<W>, lasting: Duration, work: impl Fn(W, u64) -> F + Clone + Send + 'static) -> f64
where
    W: Send + 'static,
    F: Future<Output = W> + Send,
{
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    let start = Instant::now();
    let tasks: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let work = work.clone();
            tokio::spawn(async move {
                let mut done = 0_u64;
                while start.elapsed() < lasting {
                    worker = work(worker, NUMBERS.fetch_add(1, Ordering::Relaxed)).await;
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
    done as f64 / start.elapsed().as_secs_f64()
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

/// Whether a figure is as DESIGN.md wants it, as a word.
pub fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "missed" }
}
