//! All of it, in any order: what no single test thought of. `LEADFOLD_TEST_CHAOS_SECONDS` makes it longer, and
//! `LEADFOLD_TEST_SEED` repeats the order of a run.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::{DURABLE, Scene};
use crate::support::redis::RedisServer;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_whatever_goes_wrong_and_in_whatever_order() {
    let seed = number("LEADFOLD_TEST_SEED").unwrap_or_else(rand::random);
    let lasting = Duration::from_secs(number("LEADFOLD_TEST_CHAOS_SECONDS").unwrap_or(8));
    println!("LEADFOLD_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::begin(RedisServer::start_with(&DURABLE)).await;
    let ends = Instant::now() + lasting;
    let (mut alive, mut hung) = (true, false);
    while Instant::now() < ends {
        sleep(Duration::from_millis(random.random_range(0..700))).await;
        match random.random_range(0..6) {
            0 if alive => {
                scene.redis.kill();
                (alive, hung) = (false, false);
            }
            1 if alive && !hung => {
                scene.redis.signal("STOP");
                hung = true;
            }
            2 if alive && !hung => {
                let limit = if random.random_bool(0.5) { "1" } else { "0" };
                let _: redis::RedisResult<()> =
                    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(limit).query(&mut scene.redis.connection());
            }
            3 => {
                scene.kill_server();
                scene.start_server();
            }
            4 if hung => {
                scene.redis.signal("CONT");
                hung = false;
            }
            _ if !alive => {
                scene.redis.restart();
                alive = true;
            }
            _ => {}
        }
    }
    // A Redis that is started again has its memory back.
    scene.redis.restart();
    scene.end().await;
}
