//! leadfold folds a lending platform's webhook events into one live aggregate per lead, and serves it over gRPC.
//!
//! # The map of the house
//!
//! ```text
//!  sender ── POST ──▶ webhook ─▶ event ─▶ fold ─▶ store ─▶ watch ─▶ grpc ── streams ──▶ clients
//!                                                   ▲                 │
//!                                                   └───── reads ─────┘
//! ```
//!
//! The core knows no protocol and no database:
//! - [`time`]: points in time, and the clock that follows the store's; [`lead`]: what is known of a lead, in the words of its domain.
//! - [`event`]: the sender's JSON, checked and borrowed. What is never stored is never copied.
//! - [`fold`]: the rules. An event becomes a change; what is stored and a change become an effect. Nothing else
//!   decides what an event means.
//!
//! The stores apply changes, and tell of them:
//! - [`store`]: the interface, and the records that both stores keep. [`store::embedded`] is redb on the local disk,
//!   [`store::redis`] is a Redis that several instances share; its `lua/` has the scripts.
//! - [`watch`]: follows a store's feed, reads each watched lead once per change, and hands one state to all its
//!   watchers.
//! - [`spool`]: events on disk while a Redis is away, and what applies them when it is back; the circuit breaker.
//! - [`dead_letters`]: events that were refused, and changes that can never be applied, to be tried again.
//! - `database`: the redb files of the embedded store and of the dead letters: created whole, opened again after a failure of
//!   the disk. `durable`: names that survive a power cut.
//! - [`intake`]: an event's way in, whoever brings it: store, spool or dead letter. [`alarm`]: what operators must know.
//!
//! The edges turn this into protocols:
//! - [`webhook`]: HTTP in. [`grpc`]: reads and streams out; [`api`] is generated from `proto/`.
//! - [`board`]: a page that shows leads live, a client of the gRPC service. [`admin`]: liveness, readiness, metrics;
//!   [`health`] is what readiness is made of.
//! - [`listener`]: the accept loop under all three. [`auth`]: who is calling, and what they may see.
//!   [`origin`]: which web pages may send requests.
//!
//! And the program around it: [`config`] (the command line and what it demands), [`serve`] (build, start, drain),
//! [`telemetry`] (logs, metrics, traces), [`cli`] (the commands that talk to a server), [`simulation`] (histories that never
//! happened, to try it with). `fuzzing` has what must hold of any bytes from outside; only tests and the fuzzer build it.
//!
//! Imports run one way: `time` ← `lead` ← `event` ← `fold` ← `store` ← `watch`, `dead_letters` ← `spool` ← `intake` ←
//! `health`, `webhook`, `grpc` ← `board` ← `admin` ← `serve`. `durable` ← `database` ← `store`,
//! `dead_letters`. `api`, `alarm`, `auth` and `origin` import none of these; `listener` imports only `auth`, `config` only `auth` and `listener`;
//! `telemetry` only `config`, and the names in `alarm`, `event` and `fold` that are labels; `cli` only `api`, `auth`, `config` and `durable`,
//! and what it needs to send events: `event` and `fold` to check them, `simulation` to make them, `serve` and `telemetry`
//! for the demo.

pub mod admin;
pub mod alarm;
pub mod api;
pub mod auth;
pub mod board;
pub mod cli;
pub mod config;
mod database;
pub mod dead_letters;
mod durable;
pub mod event;
pub mod fold;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod grpc;
pub mod health;
pub mod intake;
pub mod lead;
pub mod listener;
pub mod origin;
pub mod serve;
pub mod simulation;
pub mod spool;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod watch;
pub mod webhook;
