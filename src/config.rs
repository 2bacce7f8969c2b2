//! stub
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
#[derive(Parser)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}
#[derive(Subcommand)]
pub enum Command {
    Serve(Box<ServeArgs>),
}
#[derive(Args, Clone)]
pub struct ServeArgs {
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub grpc_addr: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub admin_addr: SocketAddr,
    #[arg(long, default_value = "./leadfold-data")]
    pub data_dir: PathBuf,
    #[arg(long)]
    pub redis_url: Option<String>,
    #[arg(long, default_value = "leadfold")]
    pub key_prefix: String,
    #[arg(long, default_value_t = 64)]
    pub partitions: u16,
    #[arg(long, default_value_t = 10000)]
    pub max_history: usize,
    #[arg(long, default_value_t = 4096)]
    pub feed_length: usize,
    #[arg(long, default_value_t = 1048576)]
    pub max_body_bytes: usize,
    #[arg(long, default_value_t = 10)]
    pub drain_seconds: u64,
    #[arg(long, default_value_t = 100000)]
    pub max_watches: usize,
    #[arg(long, default_value_t = 20000)]
    pub max_watches_per_connection: usize,
    #[arg(long, default_value_t = 1800)]
    pub max_connection_age_seconds: u64,
    #[arg(long, hide = true)]
    pub noop_route: bool,
}
pub struct Secret(pub String);
impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}
pub struct ServeConfig {
    pub http_addr: SocketAddr,
    pub grpc_addr: SocketAddr,
    pub admin_addr: SocketAddr,
    pub data_dir: PathBuf,
    pub redis_url: Option<Secret>,
    pub key_prefix: String,
    pub partitions: u16,
    pub max_history: usize,
    pub feed_length: usize,
    pub max_body_bytes: usize,
    pub drain_timeout: std::time::Duration,
    pub max_watches: usize,
    pub max_watches_per_connection: usize,
    pub max_connections: usize,
    pub max_connection_age: Option<std::time::Duration>,
    pub noop_route: bool,
}
impl ServeArgs {
    pub fn config(self) -> ServeConfig {
        ServeConfig {
            http_addr: self.http_addr,
            grpc_addr: self.grpc_addr,
            admin_addr: self.admin_addr,
            data_dir: self.data_dir,
            redis_url: self.redis_url.map(Secret),
            key_prefix: self.key_prefix,
            partitions: self.partitions,
            max_history: self.max_history,
            feed_length: self.feed_length,
            max_body_bytes: self.max_body_bytes,
            drain_timeout: std::time::Duration::from_secs(self.drain_seconds),
            max_watches: self.max_watches,
            max_watches_per_connection: self.max_watches_per_connection,
            max_connections: 20000,
            max_connection_age: Some(std::time::Duration::from_secs(self.max_connection_age_seconds)),
            noop_route: self.noop_route,
        }
    }
}
