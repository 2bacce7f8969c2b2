//! leadfold from outside: the real binary, a real redis-server, real clients.

mod model;
mod support;
mod webhook;
