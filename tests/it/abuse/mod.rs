//! Peers that take what they can: what they cost is bounded, and nobody else is held up.
//!
//! Each test lets one peer do its worst, and asserts bounds on the server's memory, on the time after which it is rid of it,
//! and on what a well-behaved client sees meanwhile.

mod answers;
pub mod peer;
mod requests;
mod streams;

use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;

use crate::support::server::Server;

/// What a well-behaved client has to be answered within, whatever goes on.
const PROMPT: Duration = Duration::from_secs(1);

/// A server's memory since it was first looked at.
struct Memory<'a> {
    server: &'a Server,
    before: u64,
}

impl<'a> Memory<'a> {
    fn of(server: &'a Server) -> Self {
        Self { server, before: server.memory() }
    }

    /// MiB more than before.
    fn grown(&self) -> u64 {
        self.server.memory().saturating_sub(self.before) >> 20
    }

    #[track_caller]
    fn assert_grown_less_than(&self, mib: u64) {
        let grown = self.grown();
        println!("memory has grown by {grown} MiB, of {mib} that it may");
        assert!(grown < mib, "{grown} MiB");
    }
}

/// Reads a lead on connections of its own, one after the other, and returns how long the slowest took.
async fn read_promptly(server: &Server, lead_id: &str, times: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..times {
        let began = Instant::now();
        let answer = server.client().get_lead(GetLeadRequest { lead_id: lead_id.to_owned() }).await;
        answer.unwrap_or_else(|status| panic!("a well-behaved client is turned away: {status:?}"));
        slowest = slowest.max(began.elapsed());
    }
    println!("a well-behaved client was answered within {slowest:?}");
    assert!(slowest < PROMPT, "{slowest:?}");
    slowest
}
