//! leadfold from outside: the real binary, a real redis-server, real clients.
//!
//! One binary, so that it links once. Each module is one door of the house or one promise; `support` starts
//! what they need. Most tests run on both stores: see [`support::on_both_stores`].

mod abuse;
mod abusive_senders;
mod accepted_forms;
mod aged;
mod board;
mod board_browser;
mod board_calls;
mod cli;
mod clients;
mod conformance;
mod connections;
mod dead_letters;
mod deploy;
mod faults;
mod foreign;
mod foreign_pages;
mod grpc_port;
mod grpcurl;
mod guarantees;
mod health;
mod history_checker;
mod hostile;
mod http_edge;
mod limits;
mod lists;
mod logs;
mod metrics;
mod model;
mod operators;
mod outage;
mod overload;
mod polite_end;
mod privacy;
mod proxied;
mod required;
mod secrets;
mod service;
mod stalled;
mod statuses;
mod support;
mod through_proxies;
mod tls;
mod tokens;
mod topology;
mod traces;
mod trimmed_feed;
mod watch;
mod watch_many;
mod web;
mod webhook;
mod webhook_auth;
mod webhook_pages;
mod wire;
