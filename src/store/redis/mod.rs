//! The store in a Redis.
