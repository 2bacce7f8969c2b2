//! What the main job costs, as ratios within one run: `cargo bench --bench throughput`.
//!
//! The server, Redis and the clients share this machine. Every figure is the median of three rounds, and the
//! rounds of what is compared take turns, so that a busy moment hits both.

mod common;
#[allow(unused)] // each benchmark uses its part
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::time::Duration;

use common::{Sample, grpc, http, lead_id, rate, verdict};
use leadfold::api::GetLeadRequest;
use support::redis::RedisServer;
use support::server::{Options, Server};
use tonic_health::pb::HealthCheckRequest;

const ROUND: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;
const CONNECTIONS: usize = 64;
const LEADS: u64 = 20_000;
const GET_LEAD: &str = "/leadfold.v1.LeadService/GetLead";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis).env("LEADFOLD_NOOP_ROUTE", "true"));
    webhooks(&server, &redis).await;
    reads(&server).await;
    long_history(&server, &redis).await;
    memory().await;
}

/// Webhooks and the no-op route in turns; the share of Redis in it.
async fn webhooks(server: &Server, redis: &RedisServer) {
    let (mut noop, mut webhook, mut evalsha, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        noop.push(post(server, "/noop", LEADS, CONNECTIONS).await);
        let before = Usage::of(redis);
        let events = post(server, support::server::WEBHOOK, LEADS, CONNECTIONS).await;
        let used = Usage::of(redis).since(&before);
        let count = events * ROUND.as_secs_f64();
        webhook.push(events);
        evalsha.push(used.scripts / count);
        cpu.push(used.cpu / count);
    }
    let (noop, webhook, evalsha) = (median(noop), median(webhook), median(evalsha));
    let ratio = webhook / noop;
    println!("no-op POSTs/s                     {noop:>10.0}");
    println!("webhooks/s, {LEADS} leads          {webhook:>10.0}   {ratio:.2} of no-op (0.45 wanted: {})", verdict(ratio >= 0.45));
    println!("Redis, script time per event      {evalsha:>10.1} µs   (10 wanted: {})", verdict(evalsha <= 10.0));
    println!("Redis, CPU time per event         {:>10.1} µs", median(cpu));
}

/// `GetLead` and a unary call that does nothing, in turns.
async fn reads(server: &Server) {
    let (mut noop, mut get) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        noop.push(call(server, HEALTH_CHECK, |_| HealthCheckRequest::default()).await);
        get.push(call(server, GET_LEAD, |number| get_lead(number % LEADS)).await);
    }
    let (noop, get) = (median(noop), median(get));
    let ratio = get / noop;
    println!("no-op unary calls/s               {noop:>10.0}");
    println!("GetLead/s                         {get:>10.0}   {ratio:.2} of no-op (0.60 wanted: {})", verdict(ratio >= 0.6));
}

/// A lead with 10,000 activities against leads with 10: the cost of one event more, and of `GetLead`.
async fn long_history(server: &Server, redis: &RedisServer) {
    const LONG: u64 = 2_000_000;
    let short: Vec<u64> = (1_000_000..1_000_020).collect();
    add(server, &[LONG], 0..10_000, 16).await;
    add(server, &short, 0..10, 1).await;
    let (mut costs, mut gets) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS as u64 {
        let first = 20_000 + round * 100;
        // Few enough for the short ones to stay short.
        for (at, leads, numbers) in [(0, &short[..], first..first + 5), (1, &[LONG], first..first + 100)] {
            let before = Usage::of(redis);
            add(server, leads, numbers, 1).await;
            costs[at].push(Usage::of(redis).since(&before).scripts / 100.0);
            let leads: Vec<_> = leads.to_vec();
            gets[at].push(call(server, GET_LEAD, move |number| get_lead(leads[number as usize % leads.len()])).await);
        }
    }
    let ([short, long], [few, many]) = (costs.map(median), gets.map(median));
    let (event, get) = (long / short, few / many);
    println!(
        "an event, 10,000 activities to 10 {event:>10.2} ×   (1.5 wanted: {})   {long:.1} µs to {short:.1} µs of Redis, one at a time",
        verdict(event <= 1.5)
    );
    println!("GetLead, 10,000 activities to 10  {get:>10.2} ×   (1.5 wanted: {})", verdict(get <= 1.5));
}

/// Posts an event of each number to each lead, over so many connections.
async fn add(server: &Server, leads: &[u64], numbers: std::ops::Range<u64>, connections: u64) {
    let mut clients = Vec::new();
    for first in 0..connections {
        let (mut client, mut sample) = (http::Client::connect(&server.http).await, Sample::without_documents(support::server::WEBHOOK));
        let (leads, numbers) = (leads.to_vec(), numbers.clone());
        clients.push(tokio::spawn(async move {
            for number in numbers.skip(usize::try_from(first).unwrap_or(0)).step_by(usize::try_from(connections).unwrap_or(1)) {
                for lead in &leads {
                    client.send(sample.with(*lead, lead << 16 | number)).await;
                }
            }
        }));
    }
    for client in clients {
        client.await.expect("a client");
    }
}

/// What 20 activities and 3 documents take in Redis. The feed does not grow with the leads.
async fn memory() {
    const LEADS: u64 = 2_000;
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let used = |redis: &RedisServer| -> f64 {
        let mut connection = redis.connection();
        let total = info(&mut connection, "memory", "used_memory");
        let feeds: Vec<String> = redis::cmd("KEYS").arg("*:feed").query(&mut connection).expect("KEYS");
        let size =
            |key: &String| redis::cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0).query::<f64>(&mut connection).expect("MEMORY");
        total - feeds.iter().map(size).sum::<f64>()
    };
    let empty = used(&redis);
    let mut clients = Vec::new();
    for first in 0..16 {
        let (mut client, mut sample) = (http::Client::connect(&server.http).await, Sample::to(support::server::WEBHOOK));
        let plain = Sample::without_documents(support::server::WEBHOOK);
        clients.push(tokio::spawn(async move {
            let mut plain = plain;
            for lead in (first..LEADS).step_by(16) {
                for number in 0..20 {
                    let sample = if number < 3 { &mut sample } else { &mut plain };
                    client.send(sample.with(lead, lead << 8 | number)).await;
                }
            }
        }));
    }
    for client in clients {
        client.await.expect("a client");
    }
    let bytes = (used(&redis) - empty) / LEADS as f64;
    println!(
        "Redis memory per lead             {bytes:>10.0} B   (3,584 wanted: {})   20 activities, 3 documents",
        verdict(bytes <= 3584.0)
    );
}

async fn post(server: &Server, path: &str, leads: u64, connections: usize) -> f64 {
    let mut workers = Vec::new();
    for _ in 0..connections {
        workers.push((http::Client::connect(&server.http).await, Sample::to(path)));
    }
    rate(workers, ROUND, move |(mut client, mut sample), number| async move {
        client.send(sample.with(number % leads, number)).await;
        (client, sample)
    })
    .await
}

fn get_lead(lead: u64) -> GetLeadRequest {
    GetLeadRequest { lead_id: lead_id(lead) }
}

async fn call<M: prost::Message>(server: &Server, path: &'static str, message: impl Fn(u64) -> M + Clone + Send + 'static) -> f64 {
    let mut workers = Vec::new();
    for _ in 0..8 {
        let client = grpc::Client::connect(&server.grpc).await;
        workers.extend((0..8).map(|_| client.clone()));
    }
    rate(workers, ROUND, move |client, number| {
        let message = message(number);
        async move {
            client.unary(path, &message).await;
            client
        }
    })
    .await
}

/// What Redis has used so far, in microseconds.
struct Usage {
    scripts: f64,
    cpu: f64,
}

impl Usage {
    fn of(redis: &RedisServer) -> Self {
        let mut connection = redis.connection();
        let scripts = {
            let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).expect("INFO");
            let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).unwrap_or_default().to_owned();
            line.split(',').find_map(|part| part.strip_prefix("usec=")).map_or(0.0, |usec| usec.parse().expect("a number"))
        };
        let cpu = info(&mut connection, "cpu", "used_cpu_user") + info(&mut connection, "cpu", "used_cpu_sys");
        Self { scripts, cpu: cpu * 1e6 }
    }

    fn since(&self, before: &Self) -> Self {
        Self { scripts: self.scripts - before.scripts, cpu: self.cpu - before.cpu }
    }
}

fn info(connection: &mut redis::Connection, section: &str, field: &str) -> f64 {
    let text: String = redis::cmd("INFO").arg(section).query(connection).expect("INFO");
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect(field);
    value.trim().parse().expect("a number")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
