//! Tiering: the archive pipeline from sealed segment to manifest commit, and the one reader over hot and cold.

pub mod archived;
pub mod background;
pub mod budget;
pub mod cache;
mod cold;
mod columns;
pub mod encode;
pub mod epoch;
pub mod janitor;
pub mod manifest;
pub mod merge;
pub mod metrics;
pub mod parquet;
pub mod parquet_read;
pub mod paths;
pub mod pipeline;
pub mod reader;
pub mod reindex;
pub mod restore;
pub mod retention;
pub mod scrub;
pub mod split;
pub mod store;
pub mod throttle;
pub mod verify;
pub mod worker;

#[cfg(test)]
mod testing;
