//! Tiering: the archive pipeline from sealed segment to manifest commit, and the one reader over hot and cold.

pub mod cache;
mod cold;
mod columns;
pub mod encode;
pub mod janitor;
pub mod manifest;
pub mod merge;
pub mod metrics;
pub mod parquet;
pub mod parquet_read;
pub mod paths;
pub mod pipeline;
pub mod reader;
pub mod retention;
pub mod split;
pub mod store;
pub mod verify;
pub mod worker;

#[cfg(test)]
mod testing;
