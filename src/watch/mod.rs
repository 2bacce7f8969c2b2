//! Watching leads: who wants to know of which, and what has changed.
//!
//! The [`Hub`] follows the store's feed. Of a lead that is watched it keeps one [`State`], read once per change
//! however many watch it, and encoded once. A watcher looks at the newest state whenever it is ready for one:
//! a slow one skips what came between, holds nothing back, and costs nothing meanwhile.
//!
//! Nothing is missed because the order is always the same: a watcher is registered, then the lead is read, then
//! every feed event since the registration leads to another read.

mod hub;
mod state;
mod topic;

pub use hub::{Follower, Hub, Next, Watched};
pub use state::{Changed, MessageKind, ResetReason, State, What};
