//! What each fuzz target does with an input: a function that panics where the broker would do what it must never do.
//! The bytes may come from a fuzzer (`src/bin/`) or from the corpus (`ingest/tests/fuzz_corpus.rs`).
//!
//! | target | reads | what must hold beside "no panic" |
//! |---|---|---|
//! | `frame` | a client's stream | the frames are those of the protocol, however the bytes arrive; memory follows what arrived |
//! | `request` | a body of any API and version | the guard and the decoder agree on its end; memory is a bounded multiple; it encodes and decodes to itself |
//! | `batch` | a batch as a producer sends it | what is accepted can be read, or is said to be undecodable; memory is bounded; it encodes and decodes to itself |
//! | `coordinator` | records of the internal topics, and what group members send each other | memory is a bounded multiple; what is written reads back |

pub mod batch;
pub mod coordinator;
pub mod frame;
pub mod memory;
pub mod request;

#[global_allocator]
static ALLOCATOR: memory::Meter = memory::Meter;

/// Takes one input.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its corpus.
pub const TARGETS: [(&str, Target); 4] =
    [("frame", frame::run), ("request", request::run), ("batch", batch::run), ("coordinator", coordinator::run)];
