//! What can never be applied does not stop what can.

use leadfold::api::GetLeadRequest;
use serde_json::json;

use crate::dead_letters::dead_letters;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::{eventually, fresh_id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_in_the_spool_blocks_nobody() {
    let mut redis = RedisServer::start_with(&super::DURABLE);
    let server = Server::start(&Options::on(&redis));
    let (foreign, broken, well) = (fresh_id(), fresh_id(), fresh_id());
    server.apply(&message(&foreign, "a1", SAMPLE_TIME)).await;
    server.apply(&message(&broken, "a1", SAMPLE_TIME)).await;
    // A stranger's value stands in the place of a lead's history.
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("*:history:{broken}")).query(&mut redis.connection()).expect("KEYS");
    let () = redis::cmd("SET").arg(&keys[0]).arg("a stranger's").query(&mut redis.connection()).expect("SET");
    redis.kill();

    let mut elsewhere = message(&foreign, "a2", SAMPLE_TIME);
    elsewhere["workspaceId"] = json!("another workspace");
    for (number, event) in [elsewhere, message(&broken, "a2", SAMPLE_TIME)].into_iter().enumerate() {
        assert_eq!(server.post(event.to_string()).await.outcome(), "queued", "{number}");
    }
    for number in 0..20 {
        let lead_id = [&foreign, &well][number % 2];
        assert_eq!(server.post(message(lead_id, &format!("b{number}"), SAMPLE_TIME).to_string()).await.outcome(), "queued");
    }
    redis.restart();
    server.eventually_metric("leadfold_spool_events", 0.0).await;
    eventually("reads are served again", async || server.client().get_lead(GetLeadRequest { lead_id: well.clone() }).await.ok()).await;
    assert_eq!(server.lead(&well).await.message_count, 10);
    assert_eq!(server.lead(&foreign).await.message_count, 11);
    assert_eq!(server.metric("leadfold_dead_letters").await, 2.0);

    // Nothing was lost: what can be applied when the key is right again is applied.
    let () = redis::cmd("DEL").arg(&keys[0]).query(&mut redis.connection()).expect("DEL");
    let retried = dead_letters(&server, &["retry", "--all"]);
    assert!(String::from_utf8_lossy(&retried.stdout).ends_with("1 applied, 1 refused\n"), "{retried:?}");
    server.eventually_metric("leadfold_dead_letters", 1.0).await;
}
