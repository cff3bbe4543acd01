//! Responses to bytes: frame length, response header, body; as a row of chunks that a vectored write sends uncopied,
//! and ranges of files between them.
//!
//! The header has a tag section (v1) where the response is flexible; ApiVersions alone always has v0, so that a client
//! can read the answer to a version it guessed too high (KIP-511).

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::{Encodable, HeaderVersion};
use tokio::sync::OwnedSemaphorePermit;

use crate::log::FileRange;
use crate::read::Chunk;

/// A response that cannot be written: a bug of ours, never the client's doing.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("encoding a response of version {version}: {reason}")]
    Body { version: i16, reason: String },
    #[error("a response of {0} bytes exceeds what a frame can say")]
    TooLarge(usize),
}

/// One whole response frame on its way to the socket.
#[derive(Debug, Default)]
pub struct Response {
    pub(crate) pieces: Vec<Piece>,
    /// Room in the memory and among the open files of responses, given back when the response has been written or
    /// dropped.
    pub(crate) room: Vec<OwnedSemaphorePermit>,
}

/// What is sent in one way.
#[derive(Debug)]
pub enum Piece {
    Bytes(ByteChunks),
    File(FileRange),
}

/// Neighbouring chunks of bytes. Never empty ones.
#[derive(Debug, Default)]
pub struct ByteChunks(VecDeque<Bytes>);

impl Response {
    /// `chunks` make up the frame including its length.
    pub fn new(chunks: impl IntoIterator<Item = Chunk>, room: Vec<OwnedSemaphorePermit>) -> Self {
        let mut pieces = Vec::new();
        for chunk in chunks.into_iter().filter(|chunk| !chunk.is_empty()) {
            match (chunk, pieces.last_mut()) {
                (Chunk::Bytes(bytes), Some(Piece::Bytes(chunks))) => chunks.0.push_back(bytes),
                (Chunk::Bytes(bytes), _) => pieces.push(Piece::Bytes(bytes.into())),
                (Chunk::File(range), _) => pieces.push(Piece::File(range)),
            }
        }
        Self { pieces, room }
    }
}

#[cfg(test)]
impl Response {
    /// The frame, wherever it lies.
    pub(crate) fn into_bytes(self) -> Bytes {
        let mut frame = BytesMut::new();
        for piece in self.pieces {
            match piece {
                Piece::Bytes(bytes) => frame.put(bytes),
                Piece::File(range) => frame.put(range.read().unwrap()),
            }
        }
        frame.freeze()
    }
}

impl From<Bytes> for ByteChunks {
    fn from(bytes: Bytes) -> Self {
        Self(VecDeque::from([bytes]))
    }
}

impl Buf for ByteChunks {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.0) {
            *slice = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(front) = self.0.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.0.pop_front();
        }
        assert_eq!(count, 0, "advanced past the end of a response");
    }
}

/// Encodes a response of a size that copying does not matter for.
pub fn response<T: Encodable + HeaderVersion>(
    correlation_id: i32,
    version: i16,
    body: &T,
) -> Result<Response, EncodeError> {
    let failed = |reason: String| EncodeError::Body { version, reason };
    let size = body.compute_size(version).map_err(|error| failed(error.to_string()))?;
    // Before the memory is asked for: where there is none, the process ends.
    i32::try_from(size).map_err(|_| EncodeError::TooLarge(size))?;
    let mut frame = BytesMut::with_capacity(size + 9);
    frame.put_i32(0);
    frame.put_i32(correlation_id);
    if T::header_version(version) >= 1 {
        frame.put_u8(0);
    }
    body.encode(&mut frame, version).map_err(|error| failed(error.to_string()))?;
    set_frame_length(&mut frame, 0)?;
    Ok(Response::new([Chunk::Bytes(frame.freeze())], Vec::new()))
}

/// Writes the length of a frame whose first part is `frame` (length field included) and whose rest is `more` bytes.
pub(super) fn set_frame_length(frame: &mut BytesMut, more: usize) -> Result<(), EncodeError> {
    let length = frame.len().saturating_sub(4).saturating_add(more);
    let field = i32::try_from(length).map_err(|_| EncodeError::TooLarge(length))?;
    if let Some(head) = frame.first_chunk_mut() {
        *head = field.to_be_bytes();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_chunks_are_one_buffer() {
        let chunks = ["ab", "", "cde", "f"].map(|text| Chunk::Bytes(Bytes::from_static(text.as_bytes())));
        let mut response = Response::new(chunks, Vec::new());
        let Some(Piece::Bytes(mut bytes)) = response.pieces.pop() else { panic!("{response:?}") };
        assert!(response.pieces.is_empty());
        assert_eq!(bytes.remaining(), 6);
        let mut slices = [IoSlice::new(&[]); 8];
        assert_eq!(bytes.chunks_vectored(&mut slices), 3);
        bytes.advance(3);
        assert_eq!(bytes.chunk(), b"de");
        assert_eq!(bytes.copy_to_bytes(3), "def");
        assert!(!bytes.has_remaining());
    }
}
