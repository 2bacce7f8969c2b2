//! What answers in a server's place, while that is not there: pages, with the statuses that clients of gRPC read as refusals.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{Client, Running, Told};
use crate::support::redis::free_port;
use crate::support::server::{Options, Server};
use crate::support::{eventually, fresh_id};

/// Read by clients as INTERNAL, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED and UNAVAILABLE; and as no status at all.
const STATUSES: [u16; 6] = [400, 401, 403, 404, 502, 200];

/// Answers each call with the next page, and ends when it is dropped.
async fn serve(address: &str, answered: Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).await.expect("the port");
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.expect("a connection");
        let answered = Arc::clone(&answered);
        connections.spawn(async move {
            let page = service_fn(move |_| {
                let status = STATUSES[answered.fetch_add(1, Ordering::Relaxed) % STATUSES.len()];
                let page = Response::builder().status(StatusCode::from_u16(status).expect("a status")).header("content-type", "text/html");
                async move { Ok::<_, Infallible>(page.body(Full::new(Bytes::from("<html><h1>Oops</h1></html>"))).expect("a page")) }
            });
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), page).await;
        });
    }
}

/// A client that is answered with such pages goes on, and finds the server when it is there.
pub(super) async fn are_not_the_servers_word(client: Client) {
    let Some(command) = client.command() else { return };
    let (address, answered) = (format!("127.0.0.1:{}", free_port()), Arc::new(AtomicUsize::new(0)));
    let pages = tokio::spawn({
        let (address, answered) = (address.clone(), Arc::clone(&answered));
        async move { serve(&address, answered).await }
    });
    let (dir, lead_id) = (tempfile::tempdir().expect("a directory"), fresh_id());
    let mut running = Running::start(client, command, &format!("http://{address}"), &lead_id, dir.path());
    for page in 1..=STATUSES.len() {
        eventually("it calls again", async || {
            let ended = running.process.0.try_wait().expect("its state");
            assert!(ended.is_none(), "{ended:?} after {page} pages: {}", running.stderr());
            (answered.load(Ordering::Relaxed) >= page).then_some(())
        })
        .await;
    }
    pages.abort();
    let _ = pages.await;
    let _server = Server::start(&Options::default().grpc(&address));
    assert_eq!(running.next(), Told::Snapshot(0));
}
