//! Clients of other people see every status of every rpc, and every message: directly, and through the proxies of other
//! people.
//!
//! What they must see is a table, `tests/clients/cases.json`. Each client is a script in `tests/clients` that makes the
//! calls and prints what it saw.

pub mod clients;
mod fronts;
pub mod servers;
mod soak;
pub mod table;

use futures::{StreamExt as _, stream};

use crate::grpcurl;
use clients::Client;
use fronts::Front;
use servers::{OwnServers, Servers};
use table::{Table, Variants};

/// Set: every client through every proxy, and every combination of deadline and compression.
const MATRIX: &str = "LEADFOLD_TEST_PROXY_MATRIX";

/// Clients that run at the same time.
const AT_ONCE: usize = 3;

/// Runs one client through one front, and returns what it should have seen differently.
async fn run(client: Client, front: Front, servers: &Servers) -> Vec<String> {
    let Some(dir) = grpcurl::clients() else { return Vec::new() };
    let own = OwnServers::start().await;
    let addresses = servers.addresses().into_iter().chain(own.addresses()).collect();
    let Some(opened) = fronts::open(front, client.traffic(), addresses, &dir) else { return Vec::new() };
    let variants = if whole_matrix() { Variants::All } else { Variants::Two };
    let cases: Vec<_> = Table::read().cases(variants).into_iter().filter(|case| client.can_make(case)).collect();
    let began = std::time::Instant::now();
    let ends = own.end_watches();
    let failures = clients::run(client, &dir, &cases, &opened).await;
    ends.abort();
    eprintln!("{client:?} {front:?}: {} calls in {:?}, {} wrong", cases.len(), began.elapsed(), failures.len());
    failures.into_iter().map(|failure| format!("{client:?} {front:?}: {failure}")).collect()
}

async fn run_all(pairs: Vec<(Client, Front)>) {
    if grpcurl::clients().is_none() {
        return;
    }
    let servers = Servers::start().await;
    // Most of their time they wait.
    let runs = stream::iter(pairs).map(|(client, front)| run(client, front, &servers)).buffer_unordered(AT_ONCE);
    let failures: Vec<String> = runs.collect::<Vec<_>>().await.concat();
    // Cancelled by the client, or ended by its deadline: the server knows of it.
    assert!(servers.open.eventually_has_no_watches().await, "streams that clients have ended stay open at the server");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Whether everything is asked for.
fn whole_matrix() -> bool {
    std::env::var_os(MATRIX).is_some()
}

fn all_clients() -> Vec<Client> {
    let ruby = (whole_matrix() && Client::has_ruby()).then_some(Client::Ruby);
    Client::ALL.into_iter().chain(ruby).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_sees_every_status() {
    run_all(all_clients().into_iter().map(|client| (client, Front::Direct)).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_sees_every_status_through_a_proxy() {
    let pairs = if whole_matrix() {
        all_clients().into_iter().flat_map(|client| Front::PROXIES.map(|front| (client, front))).collect()
    } else {
        // Each client once, and each proxy with each protocol that it passes on.
        vec![
            (Client::Grpcio, Front::Nginx),
            (Client::GrpcJs, Front::Envoy),
            (Client::Grpcurl, Front::Haproxy),
            (Client::ConnectGrpc, Front::EnvoyWithTls),
            (Client::ConnectWeb, Front::Nginx),
            (Client::ConnectWebHttp2, Front::Haproxy),
            (Client::CurlGrpc, Front::Nginx),
            (Client::CurlWeb, Front::Haproxy),
            (Client::CurlWebHttp2, Front::Envoy),
        ]
    };
    run_all(pairs).await;
}
