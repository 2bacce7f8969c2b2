//! Streams that cost more than they seem to: health, reflection, and watches of leads that nobody has heard of.

use std::time::Duration;

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::{GetLeadRequest, LeadIds, WatchLeadsRequest, watch_leads_request};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse};

use super::peer::{Answer, Peer};
use super::{Memory, read_promptly};
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server};
use crate::support::tokens::{ALL, ONE, OTHER, WORKSPACE_ONE, WORKSPACE_OTHER, client, entry, usual, with_tokens, write};
use crate::support::{PATIENCE, Setup, eventually, fresh_id};

const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
/// Health and reflection streams of one connection.
const PER_CONNECTION: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_watches_are_few_and_anybody_can_still_ask() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&with_tokens(Options::default(), dir.path()));
    let memory = Memory::of(&server);
    let (mut open, mut refused, mut peers) = (Vec::<Answer>::new(), 0, Vec::new());
    for _ in 0..20 {
        let peer = Peer::connect(&server.grpc, 65_535).await;
        let mut calls = Vec::new();
        for _ in 0..1000 {
            calls.push(peer.call(HEALTH_WATCH, &HealthCheckRequest::default(), &[]).await);
        }
        for call in calls {
            let answer = call.answer().await;
            match answer.grpc_status() {
                None => open.push(answer),
                Some(status) if status == Code::ResourceExhausted as i32 => refused += 1,
                Some(_) => panic!("{answer:?}"),
            }
        }
        peers.push(peer);
    }
    assert_eq!((open.len(), refused), (20 * PER_CONNECTION, 20 * (1000 - PER_CONNECTION)));
    memory.assert_grown_less_than(80);
    let mut health = HealthClient::new(server.channel());
    let answer = health.check(HealthCheckRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(answer.status, 1, "SERVING");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_watches_that_are_half_open_are_few_too() {
    let server = Setup::embedded();
    let peer = Peer::connect(&server.grpc, 65_535).await;
    let mut calls = Vec::new();
    for _ in 0..1000 {
        calls.push(peer.begin(HEALTH_WATCH, &[]).await);
    }
    let answers = calls.into_iter().map(async |call| call.answer().await.grpc_status());
    let statuses = futures::future::join_all(answers).await;
    let count = |code: Code| statuses.iter().filter(|status| **status == Some(code as i32)).count();
    assert_eq!((count(Code::DeadlineExceeded), count(Code::ResourceExhausted)), (PER_CONNECTION, 1000 - PER_CONNECTION));
}

/// A stream of reflection that asks what was sent into it.
struct Reflection {
    ask: tokio::sync::mpsc::Sender<ServerReflectionRequest>,
    answers: Streaming<ServerReflectionResponse>,
}

impl Reflection {
    async fn open(channel: Channel, token: &str) -> Result<Self, Status> {
        let (ask, mut asked) = tokio::sync::mpsc::channel::<ServerReflectionRequest>(4);
        let requests = async_stream::stream! { while let Some(request) = asked.recv().await { yield request } };
        let mut request = Request::new(requests);
        if !token.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a value"));
        }
        let answers = ServerReflectionClient::new(channel).server_reflection_info(request).await?.into_inner();
        Ok(Self { ask, answers })
    }

    async fn list(&mut self) -> Result<(), Status> {
        let asked = ServerReflectionRequest { message_request: Some(MessageRequest::ListServices(String::new())), ..Default::default() };
        self.ask.send(asked).await.expect("it is open");
        self.next().await.map(drop)
    }

    async fn next(&mut self) -> Result<Option<ServerReflectionResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("in time")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_streams_are_few_and_end_with_their_token_and_with_the_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = with_tokens(Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "0"), dir.path());
    let mut server = Server::start(&options);
    let channel = server.channel();
    let status = Reflection::open(channel.clone(), "").await.err().expect("nobody is let in");
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut streams = Vec::new();
    for _ in 0..PER_CONNECTION {
        let mut stream = Reflection::open(channel.clone(), ONE).await.expect("a stream");
        stream.list().await.expect("an answer");
        streams.push(stream);
    }
    let status = Reflection::open(channel.clone(), ONE).await.err().expect("a limit");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let mut other = Reflection::open(server.channel(), OTHER).await.expect("another connection");
    other.list().await.expect("an answer");

    write(dir.path(), "tokens.toml", &entry(OTHER, &[WORKSPACE_OTHER], true));
    for stream in &mut streams {
        assert_eq!(stream.next().await.expect_err("the end").code(), Code::Unauthenticated);
    }
    other.list().await.expect("the other's is good as before");
    server.signal_termination();
    assert_eq!(other.next().await.expect_err("the end").code(), Code::Unavailable);
    let exit = tokio::task::block_in_place(|| server.terminate());
    assert!(exit.status.success() && exit.took < Duration::from_secs(3), "it took {:?}", exit.took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reflection_does_not_find_is_an_answer_and_the_stream_goes_on() {
    let server = Setup::embedded();
    let mut stream = Reflection::open(server.channel(), "").await.expect("a stream");
    let unknown = || {
        use MessageRequest::{AllExtensionNumbersOfType, FileByFilename, FileContainingExtension, FileContainingSymbol};
        let extension = ExtensionRequest { containing_type: "leadfold.v1.Lead".to_owned(), extension_number: 7 };
        [
            (Some(FileByFilename("none.proto".to_owned())), Code::NotFound),
            (Some(FileContainingSymbol("no.such.Symbol".to_owned())), Code::NotFound),
            (Some(FileContainingExtension(extension)), Code::NotFound),
            (Some(AllExtensionNumbersOfType("no.such.Message".to_owned())), Code::NotFound),
            (None, Code::InvalidArgument),
        ]
    };
    for (message_request, code) in unknown() {
        let request = ServerReflectionRequest { host: "h".to_owned(), message_request };
        stream.ask.send(request.clone()).await.expect("it is open");
        let answer = stream.next().await.expect("an answer").expect("before the end");
        assert_eq!((&answer.valid_host, answer.original_request.as_ref()), (&request.host, Some(&request)));
        let Some(MessageResponse::ErrorResponse(error)) = answer.message_response else { panic!("not an error: {request:?}") };
        assert_eq!(error.error_code, code as i32, "{error:?}");
    }
    for symbol in [
        "leadfold.v1.Lead",
        "leadfold.v1.Lead.lead_id",
        "leadfold.v1.LeadService",
        "leadfold.v1.LeadService.GetLead",
        "leadfold.v1.SnapshotReason",
        "leadfold.v1.WatchLeadsRequest.scope",
        "grpc.reflection.v1alpha.ServerReflection",
        "google.protobuf.Timestamp",
    ] {
        let message_request = Some(MessageRequest::FileContainingSymbol(symbol.to_owned()));
        stream.ask.send(ServerReflectionRequest { host: String::new(), message_request }).await.expect("it is open");
        let answer = stream.next().await.expect("an answer").expect("before the end").message_response;
        let Some(MessageResponse::FileDescriptorResponse(files)) = answer else { panic!("{symbol}: {answer:?}") };
        assert!(files.file_descriptor_proto.iter().all(|file| file.len() > 50), "{symbol}");
    }
    let list = ServerReflectionRequest { message_request: Some(MessageRequest::ListServices(String::new())), ..Default::default() };
    stream.ask.send(list).await.expect("it is open");
    let answer = stream.next().await.expect("an answer").expect("before the end").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let mut names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "leadfold.v1.DeadLetterService",
            "leadfold.v1.LeadService"
        ]
    );
    // A question that is far too large.
    let message_request = Some(MessageRequest::FileByFilename("x".repeat(1 << 20)));
    stream.ask.send(ServerReflectionRequest { host: String::new(), message_request }).await.expect("it is open");
    assert_eq!(stream.next().await.expect_err("too large").code(), Code::ResourceExhausted);
}

fn watch_made_up(count: usize) -> WatchLeadsRequest {
    let ids = (0..count).map(|_| fresh_id()).collect();
    WatchLeadsRequest { scope: Some(watch_leads_request::Scope::LeadIds(LeadIds { ids })), skip_initial: true, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_leads_count_one_by_one() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_WATCHES", "2500"));
    let mut watches = Vec::new();
    for _ in 0..2 {
        watches.push(server.client().watch_leads(watch_made_up(1000)).await.expect("a stream").into_inner());
    }
    let status = server.client().watch_leads(watch_made_up(501)).await.expect_err("a limit");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("2500 watches") && status.message().contains("--max-watches"), "{status:?}");
    // An id that stands twice is one.
    let mut request = watch_made_up(500);
    if let Some(watch_leads_request::Scope::LeadIds(named)) = &mut request.scope {
        named.ids.extend(named.ids.clone());
    }
    watches.push(server.client().watch_leads(request).await.expect("a stream").into_inner());
    drop(watches);
    eventually("they are given back", async || server.client().watch_leads(watch_made_up(1000)).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_leads_on_one_connection_cost_a_bounded_sum() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let memory = Memory::of(&server);
    let channel = server.channel();
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..60 {
        match LeadServiceClient::new(channel.clone()).watch_leads(watch_made_up(1000)).await {
            Ok(stream) => open.push(stream),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((open.len(), refused), (20, 40), "20,000 watches a connection");
    memory.assert_grown_less_than(120);
    read_promptly(&server, &lead_id, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_cannot_take_all_watches() {
    for (options, share) in [
        (Options::default().env("LEADFOLD_MAX_WATCHES", "20"), 10),
        (Options::default().env("LEADFOLD_MAX_WATCHES", "20").env("LEADFOLD_MAX_WATCHES_PER_TOKEN", "5"), 5),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::start(&with_tokens(options, dir.path()));
        let watch = async |token: &str, workspace_id: &str| {
            let scope = Some(watch_leads_request::Scope::WorkspaceId(workspace_id.to_owned()));
            client(&server, token).watch_leads(WatchLeadsRequest { scope, ..Default::default() }).await
        };
        let mut open = Vec::new();
        for _ in 0..share {
            open.push(watch(ONE, WORKSPACE_ONE).await.expect("a stream"));
        }
        let status = watch(ONE, WORKSPACE_ONE).await.expect_err("a limit");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("--max-watches-per-token"), "{status:?}");
        open.push(watch(OTHER, WORKSPACE_OTHER).await.expect("another token has its own"));
        open.remove(0);
        open.push(eventually("one is let in again", async || watch(ONE, WORKSPACE_ONE).await.ok()).await);
        assert_eq!(client(&server, ALL).get_lead(GetLeadRequest { lead_id: "l".into() }).await.expect_err("none").code(), Code::NotFound);
        drop((open, usual()));
    }
}
