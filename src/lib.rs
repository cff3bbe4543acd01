//! Thermocline: a tiered event broker. This crate wires the stations together: `config <- ingest <- tiering <- query`.
//!
//! [`Broker::start`] has the start order, [`Broker::shutdown`] the order of the drain; tests use both in-process, with
//! port 0 and a temporary data directory.

mod broker;
mod listeners;
mod supervisor;

pub use broker::{Broker, ShutdownError, StartError};
pub use supervisor::TaskFailed;
