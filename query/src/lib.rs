//! Query: search over hot and cold, replay, and the HTTP interface.

mod append;
mod elastic;
pub mod http;
pub mod message;
mod prune;
pub mod replay;
pub mod search;
pub mod time;
