//! What leadfold may do in Redis. All tests run with no more than that: `deploy/redis-users.acl`.

use crate::support::redis::{RedisServer, USERS};
use crate::support::redis_cluster::tell;
use crate::support::server::Options;

#[test]
fn the_readme_lists_the_rights_that_the_tests_run_with() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README");
    assert!(readme.contains(USERS.trim()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_lacks_a_right_is_told_at_the_start() {
    let redis = RedisServer::start();
    for lacks in ["-info", "-hsetnx", "resetkeys"] {
        let mut rights = vec!["ACL", "SETUSER", "somebody", "reset", "on", ">secret"];
        rights.extend(USERS.split_whitespace().skip_while(|word| *word != "resetkeys").chain([lacks]));
        tell(&redis, &rights);
        let said = Options::at(&redis.url_as("somebody", "secret")).env("LEADFOLD_SPOOL_MAX_BYTES", "0").refused();
        assert!(said.contains("NOPERM") && said.contains("README") && !said.contains("secret"), "{lacks}: {said}");
    }
}
