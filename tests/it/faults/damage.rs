//! Bits of the embedded store's file are flipped. Before a start: nobody is told anything wrong, for the whole file is
//! checked. While the server runs, pages are not checked again: nothing ends or hangs, and the next start finds it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use leadfold::api::{GetLeadRequest, Lead};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::support::events::{SAMPLE_TIME, lead_updated, message, message_with_document};
use crate::support::fresh_id;
use crate::support::ledger::PROMPT;
use crate::support::server::{Options, Server};

const LEADS: usize = 300;
const COPIES: usize = 40;

/// How many copies are damaged: more on demand.
fn copies() -> usize {
    std::env::var("LEADFOLD_TEST_DAMAGED_COPIES").ok().and_then(|copies| copies.parse().ok()).unwrap_or(COPIES)
}

fn random() -> StdRng {
    let seed = std::env::var("LEADFOLD_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("LEADFOLD_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A store with some leads, and what it answers of each.
async fn original() -> (TempDir, BTreeMap<String, Lead>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = Server::start(&Options::default().data_dir(dir.path()));
    let mut leads = BTreeMap::new();
    for number in 0..LEADS {
        let lead_id = fresh_id();
        server.apply(&message_with_document(&lead_id, "a1", SAMPLE_TIME, &format!("d{number}"))).await;
        if number % 3 == 0 {
            server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
            server.apply(&lead_updated(&lead_id)).await;
        }
        let lead = server.lead(&lead_id).await;
        leads.insert(lead_id, lead);
    }
    assert!(server.terminate().status.success());
    (dir, leads)
}

fn copy_of(original: &TempDir) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::copy(original.path().join("leads.redb"), dir.path().join("leads.redb")).expect("a copy");
    dir
}

fn flip_bits(file: &Path, random: &mut StdRng) {
    let file = File::options().read(true).write(true).open(file).expect("the file");
    let length = file.metadata().expect("its length").len();
    for _ in 0..random.random_range(1..=8) {
        let (at, mut byte) = (random.random_range(0..length), [0]);
        file.read_exact_at(&mut byte, at).expect("a byte");
        byte[0] ^= 1 << random.random_range(0..8);
        file.write_all_at(&byte, at).expect("a byte");
    }
}

fn assert_is_a_clear_refusal(said: &str) {
    let line = said.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: ") && ["leads.redb", "damaged", "backup"].iter().all(|word| line.contains(word)), "{said}");
}

/// What is answered of a lead within the time that any answer may take; `None`: an error.
async fn answered(server: &Server, lead_id: &str) -> Option<Lead> {
    let began = Instant::now();
    let answer = server.client().get_lead(GetLeadRequest { lead_id: lead_id.to_owned() }).await;
    assert!(began.elapsed() < PROMPT, "it took {:?}", began.elapsed());
    answer.ok().map(|answer| answer.into_inner().lead.expect("a lead"))
}

/// The status of an event's answer, which comes in time. 409: the workspace of the lead is what was damaged.
async fn sent(server: &Server, lead_id: &str, action_id: &str) -> u16 {
    let began = Instant::now();
    let answer = server.post(message(lead_id, action_id, SAMPLE_TIME).to_string()).await;
    assert!(began.elapsed() < PROMPT, "it took {:?}", began.elapsed());
    assert!([200, 409, 503].contains(&answer.status), "{answer:?}");
    answer.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_damaged_before_the_start_is_refused_or_does_no_harm() {
    let (original, leads) = original().await;
    let mut random = random();
    let (mut started, mut refused) = (0, 0);
    for _ in 0..copies() {
        let dir = copy_of(&original);
        flip_bits(&dir.path().join("leads.redb"), &mut random);
        let damaged = std::fs::read(dir.path().join("leads.redb")).expect("the file");
        let mut server = match Server::try_start(&Options::default().data_dir(dir.path())) {
            Ok(server) => server,
            Err(said) => {
                assert_is_a_clear_refusal(&said);
                assert_eq!(std::fs::read(dir.path().join("leads.redb")).expect("the file").len(), damaged.len(), "it is left alone");
                refused += 1;
                continue;
            }
        };
        started += 1;
        for (lead_id, lead) in &leads {
            assert_eq!(answered(&server, lead_id).await.as_ref(), Some(lead), "what starts is whole");
        }
        for lead_id in leads.keys().choose_multiple(&mut random, 20) {
            assert_eq!(sent(&server, lead_id, "b1").await, 200);
        }
        assert_eq!(sent(&server, &fresh_id(), "b1").await, 200);
        assert!(server.is_running());
    }
    println!("{started} started, {refused} refused to");
    assert!(refused > 0, "nothing that matters was damaged");
}

/// A disk that forgets while the server runs. What the server has not in its memory it reads damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_while_it_runs_ends_and_hangs_nothing() {
    let (original, leads) = original().await;
    let mut random = random();
    let (mut errors, mut refused) = (0, 0);
    for _ in 0..copies() / 2 {
        let dir = copy_of(&original);
        let options = Options::default().data_dir(dir.path());
        let mut server = Server::start(&options);
        for _ in 0..8 {
            flip_bits(&dir.path().join("leads.redb"), &mut random);
        }
        for lead_id in leads.keys() {
            errors += usize::from(answered(&server, lead_id).await.is_none());
        }
        let mut taken = 0;
        for lead_id in leads.keys().choose_multiple(&mut random, 40) {
            let fresh = fresh_id();
            let (known, fresh) = tokio::join!(sent(&server, lead_id, "b1"), sent(&server, &fresh, "b1"));
            taken += usize::from(known == 200) + usize::from(fresh == 200);
            errors += usize::from(known != 200) + usize::from(fresh != 200);
        }
        assert!(server.is_running() && server.admin("/livez").await.0 == 200, "{}", server.logs());
        // Either it goes on for those that are not concerned, or it says that it does not.
        let deadline = Instant::now() + Duration::from_secs(5);
        while taken == 0 && server.admin("/readyz?for=webhooks").await.0 == 200 {
            assert!(Instant::now() < deadline, "no event is taken, and health says that all is well:\n{}", server.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(server);
        match Server::try_start(&options) {
            Ok(_) => {}
            Err(said) => {
                assert_is_a_clear_refusal(&said);
                refused += 1;
            }
        }
    }
    println!("{errors} errors, {refused} restarts were refused");
    assert!(errors + refused > 0, "nothing that matters was damaged");
}
