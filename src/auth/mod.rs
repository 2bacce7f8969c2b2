//! Who is calling, and what they may see: bearer tokens, and the files that secrets come from.
//!
//! The edges ask [`Tokens::authenticate`] who a request is from, and the [`Caller`] what it may see. Without a file
//! of tokens everybody is the caller who may do everything.

pub mod files;
mod grants;
pub mod guard;
mod tokens;

pub use tokens::{Caller, Denied, Standing, TokenWatches, Tokens};
