//! leadfold folds a platform's webhook events into one live aggregate per lead, and serves it over gRPC.

pub mod admin;
pub mod api;
pub mod config;
pub mod event;
pub mod fold;
pub mod grpc;
pub mod lead;
pub mod listener;
pub mod serve;
pub mod store;
pub mod time;
pub mod watch;
pub mod webhook;
