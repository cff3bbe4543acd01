//! Query: search over hot and cold, replay, and the HTTP interface.

pub mod http;
pub mod message;
mod prune;
pub mod replay;
pub mod search;
