//! What a client sends, from the first byte: frames, their headers, their bodies.
//!
//! ```text
//! input   step u8 | stream
//! ```
//! The stream arrives `step` bytes at a time (0 is all at once). Between two reads there is always one that has nothing
//! yet, and each time the reader's future is dropped and begun again, as a connection does that waits for several
//! things.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use kafka_protocol::messages::ApiKey;
use thermocline_ingest::protocol::decode::{self, HEADER_FIXED_LEN};
use thermocline_ingest::protocol::frame::{FrameLimits, FrameMemory, FrameReader};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Runtime;

use super::memory::peak_of;
use super::request;

/// Far more than any input has: a length that is only claimed must not cost memory.
const PRODUCE_MAX: usize = 100 << 20;
/// Little enough for inputs to exceed it: libFuzzer makes none above 4 KiB.
const CONTROL_MAX: usize = 1 << 10;
/// The buffer doubles, and moves when it does.
const HELD_PER_BYTE_MAX: usize = 4;
/// What an idle connection costs, and what tokio's clock does.
const HELD_IDLE_MAX: usize = 64 << 10;
/// Longest part of a client id that is kept.
const CLIENT_ID_LEN_MAX: usize = 256;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime for its clock")
});

/// See the [module](self).
pub fn run(input: &[u8]) {
    let Some((&step, stream)) = input.split_first() else { return };
    let expected = frames(stream);
    let _clock = RUNTIME.enter();
    let (count, held) = peak_of(|| read(stream, usize::from(step), &expected));
    assert_eq!(count, expected.len(), "frames");
    let allowed = HELD_PER_BYTE_MAX * stream.len() + HELD_IDLE_MAX;
    assert!(held <= allowed, "reading {} bytes held {held}", stream.len());
    for frame in expected {
        check_request(frame);
    }
}

/// The frames of a stream up to what cannot be one, as the protocol has it.
fn frames(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk() {
        let limit = if rest.starts_with(&(ApiKey::Produce as i16).to_be_bytes()) { PRODUCE_MAX } else { CONTROL_MAX };
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let Some((frame, rest)) = rest.split_at_checked(length) else { break };
        if !(HEADER_FIXED_LEN..=limit).contains(&length) {
            break;
        }
        frames.push(frame);
        stream = rest;
    }
    frames
}

/// Reads the stream to its end or to an error; how many frames there were, each as expected.
fn read(stream: &[u8], step: usize, expected: &[&[u8]]) -> usize {
    let limits = FrameLimits { produce_max: PRODUCE_MAX, control_max: CONTROL_MAX };
    let step = if step == 0 { usize::MAX } else { step };
    let trickle = Trickle { rest: stream, step, dry: false };
    let mut reader = FrameReader::new(trickle, limits, FrameMemory::new(PRODUCE_MAX));
    let mut count = 0;
    loop {
        let Some(outcome) = reader.next().now_or_never() else { continue };
        match outcome {
            Ok(Some(frame)) => assert_eq!(Some(&frame.bytes[..]), expected.get(count).copied(), "frame {count}"),
            Ok(None) => {
                let read: usize = expected.iter().map(|frame| size_of::<i32>() + frame.len()).sum();
                assert_eq!(read, stream.len(), "the stream ended between two frames");
                return count;
            }
            Err(_) => return count,
        }
        count += 1;
    }
}

/// Reads the header of a frame, and its body if it is a request that is served.
fn check_request(frame: &[u8]) {
    let frame = Bytes::copy_from_slice(frame);
    let (decoded, held) = peak_of(|| decode::request(frame.clone()));
    assert!(held <= request::allowed(frame.len()), "the header of {} bytes held {held}", frame.len());
    let Ok(request) = decoded else { return };
    assert!(request.api.serves(request.version) && request.client_id.len() <= CLIENT_ID_LEN_MAX);
    assert!(frame.ends_with(&request.body));
    request::check(request.api.key, request.version, &request.body);
}

/// A stream that comes in small pieces, with nothing in between.
struct Trickle<'a> {
    rest: &'a [u8],
    step: usize,
    dry: bool,
}

impl AsyncRead for Trickle<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.dry = !self.dry;
        if self.dry {
            // Nobody has to be woken: who reads here polls again at once.
            return Poll::Pending;
        }
        let count = self.step.min(self.rest.len()).min(into.remaining());
        let (piece, rest) = self.rest.split_at(count);
        into.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}
