//! The instances and their Redis, and what breaks.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leadfold::api::lead_service_client::LeadServiceClient;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::support::PATIENCE;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};

/// Where an instance is, for writers and watchers.
#[derive(Clone)]
pub struct Instance {
    pub http: String,
    pub grpc: String,
    /// Grows when it goes and when it is back.
    pub run: u32,
}

impl Instance {
    /// A connection of its own; `window`: of each stream.
    pub fn client(&self, window: Option<u32>) -> LeadServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).expect("a valid address");
        LeadServiceClient::new(endpoint.initial_stream_window_size(window).timeout(PATIENCE).connect_lazy())
    }
}

/// All instances, as they are now.
#[derive(Clone)]
pub struct Instances {
    all: Arc<Mutex<Vec<Instance>>>,
    /// When something broke last; `None`: just now.
    trouble: Arc<Mutex<Option<Instant>>>,
}

impl Instances {
    pub fn get(&self, number: usize) -> Instance {
        self.all.lock().expect("the instances")[number].clone()
    }

    pub fn any(&self, rng: &mut StdRng) -> (usize, Instance) {
        let number = rng.random_range(0..self.all.lock().expect("the instances").len());
        (number, self.get(number))
    }

    /// For how long nothing has been broken.
    pub fn calm(&self) -> Duration {
        self.trouble.lock().expect("the trouble").map_or(Duration::ZERO, |at| at.elapsed())
    }

    fn set(&self, number: usize, change: impl FnOnce(&mut Instance)) {
        let instance = &mut self.all.lock().expect("the instances")[number];
        instance.run += 1;
        change(instance);
    }
}

pub struct Cluster {
    servers: Vec<Option<Server>>,
    instances: Instances,
    redis: RedisServer,
    dirs: Vec<TempDir>,
}

/// How long nothing breaks after each thing has: every reconnect repairs what was overlooked before.
const CALM: Duration = Duration::from_secs(6);

#[derive(Clone, Copy)]
enum Fault {
    Connections,
    Redis,
    Instance,
}

/// What broke, and how often.
#[derive(Default)]
pub struct Faults {
    connections: usize,
    redis: usize,
    ended: usize,
    killed: usize,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, redis, ended, killed } = self;
        write!(f, "faults: {connections}x all connections to Redis, {redis}x Redis, {ended} instances ended and {killed} killed")
    }
}

impl Cluster {
    pub fn start(count: usize) -> Self {
        let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        let dirs: Vec<_> = (0..count).map(|_| tempfile::tempdir().expect("a temporary directory")).collect();
        let servers: Vec<_> = dirs.iter().map(|dir| Server::start(&Options::on(&redis).data_dir(dir.path()))).collect();
        let instances = servers.iter().map(|server| Instance { http: server.http.clone(), grpc: server.grpc.clone(), run: 0 }).collect();
        let servers = servers.into_iter().map(Some).collect();
        Self {
            servers,
            instances: Instances { all: Arc::new(Mutex::new(instances)), trouble: Arc::new(Mutex::new(Some(Instant::now()))) },
            redis,
            dirs,
        }
    }

    pub fn instances(&self) -> Instances {
        self.instances.clone()
    }

    pub fn client(&self, number: usize) -> LeadServiceClient<Channel> {
        self.instances.get(number).client(None)
    }

    /// Breaks one thing after the other, and returns when all is well again.
    pub async fn break_things(&mut self, rng: &mut StdRng, long: Duration) -> Faults {
        let began = Instant::now();
        let (mut faults, mut next) = (Faults::default(), Vec::new());
        loop {
            tokio::time::sleep(Duration::from_millis(rng.random_range(700..1500))).await;
            if began.elapsed() >= long {
                return faults;
            }
            if next.is_empty() {
                next = vec![Fault::Connections, Fault::Redis, Fault::Instance];
                next.shuffle(rng);
            }
            let fault = next.pop().expect("one of them");
            let trouble = Arc::clone(&self.instances.trouble);
            *trouble.lock().expect("the trouble") = None;
            // What follows waits for processes.
            tokio::task::block_in_place(|| self.break_one(fault, rng, &mut faults));
            *trouble.lock().expect("the trouble") = Some(Instant::now());
            if next.is_empty() {
                tokio::time::sleep(CALM.min(long.saturating_sub(began.elapsed()))).await;
            }
        }
    }

    fn break_one(&mut self, fault: Fault, rng: &mut StdRng, faults: &mut Faults) {
        match fault {
            Fault::Connections => {
                let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").query::<usize>(&mut self.redis.connection());
                assert!(kill.expect("CLIENT KILL") > 0);
                faults.connections += 1;
            }
            Fault::Redis => {
                self.redis.kill();
                std::thread::sleep(Duration::from_millis(rng.random_range(0..600)));
                self.redis.restart();
                faults.redis += 1;
            }
            Fault::Instance => {
                let number = rng.random_range(0..self.servers.len());
                self.instances.set(number, |_| {});
                let mut server = self.servers[number].take().expect("it runs");
                if rng.random() {
                    assert!(server.terminate().status.success());
                    faults.ended += 1;
                } else {
                    faults.killed += 1;
                }
                drop(server);
                let server = Server::start(&Options::on(&self.redis).data_dir(self.dirs[number].path()));
                self.instances.set(number, |instance| (instance.http, instance.grpc) = (server.http.clone(), server.grpc.clone()));
                self.servers[number] = Some(server);
            }
        }
    }
}
