//! leadfold folds a platform's webhook events into one live aggregate per lead, and serves it over gRPC.

pub mod api;
pub mod event;
pub mod fold;
pub mod lead;
pub mod store;
pub mod time;
