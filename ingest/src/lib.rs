//! Ingest: the Kafka protocol, the hot log behind it, and the coordinators.

pub mod clock;
pub mod coordinator;
#[cfg(test)]
mod fuzz_seeds;
pub mod handlers;
pub mod latency;
pub mod log;
pub mod metadata;
pub mod metrics;
pub mod model;
pub mod page_cache;
pub mod protocol;
pub mod read;
pub mod record;
pub mod server;
pub mod topics;
