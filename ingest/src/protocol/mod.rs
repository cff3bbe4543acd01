//! The Kafka wire: frames, the table of versions this broker speaks, and the two ways across: bytes to requests (behind
//! a guard, because the decoders trust lengths they read) and responses to bytes (records are never copied).
//!
//! Stations of a request: [`frame`] cuts it from the stream, [`decode`] reads its header, [`versions`] says whether it
//! is served, [`guard`] walks its body, and only then the body is decoded.
//!
//! Invariants:
//! - Nothing is allocated because a length on the wire says so; only bytes that have arrived are paid for.
//! - No body reaches a decoder of `kafka-protocol` that the guard has not walked to its last byte.

pub mod decode;
pub mod encode;
pub mod fetch_response;
pub mod frame;
pub mod guard;
mod schema;
pub mod versions;

#[cfg(test)]
pub(crate) mod samples;
