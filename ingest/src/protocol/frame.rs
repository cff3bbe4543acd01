//! Cuts request frames from a stream: `length i32 | length bytes`.
//!
//! Invariants:
//! - The buffer grows with the bytes that have arrived (it doubles), never to the length a client claims.
//! - Only Produce may be as large as `kafka.request_max_bytes`; any other key is held to `control_request_max_bytes`,
//!   and is known before more than the first eight bytes are read.
//! - The frames held by all connections together stay within `kafka.request_memory_max`. A frame reserves its whole
//!   length before its body is read: were room taken step by step, half-read frames could wait for each other for ever.
//!   Requests other than Produce have a part of it to themselves, and a frame that has room must come in time.
//! - Waiting for a frame may be given up and begun again at any moment without losing a byte.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::decode::{self, HEADER_FIXED_LEN};

const LENGTH_LEN: usize = 4;
/// First step of a read, and what an idle connection costs.
const READ_STEP_MIN: usize = 8 << 10;
/// Longest a frame may stay without a further byte once it has begun; after it the room it reserved is needed
/// elsewhere.
const STALL_MAX: Duration = Duration::from_secs(30);
/// So many bytes a second, and [`STALL_MAX`] beside, must arrive of a frame that has room: a few clients that send a
/// byte now and then would hold the room of all.
const BYTES_PER_SECOND_MIN: usize = 1 << 20;
/// The part of the memory that is for requests other than Produce.
const CONTROL_SHARE: usize = 8;
/// From here on the bytes that arrived behind a frame are copied away from it.
const DETACHED_MIN: usize = 64 << 10;

/// Sizes a frame may have, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    pub produce_max: usize,
    pub control_max: usize,
}

/// Memory that request frames of all connections share, in bytes.
#[derive(Clone, Debug)]
pub struct FrameMemory {
    produce: Pool,
    /// So that who produces slowly keeps nobody's heartbeats waiting.
    control: Pool,
}

#[derive(Clone, Debug)]
struct Pool {
    permits: Arc<Semaphore>,
    total: usize,
}

/// One request, without its length, and the memory it holds until dropped.
#[derive(Debug)]
pub struct Frame {
    pub bytes: Bytes,
    pub memory: OwnedSemaphorePermit,
}

/// Why the stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("reading from the connection: {0}")]
    Io(#[from] std::io::Error),
    #[error("frame length {0} is less than the {HEADER_FIXED_LEN} bytes of a request header")]
    TooShort(i32),
    #[error("frame of {length} bytes exceeds the limit of {limit} (kafka.request_max_bytes)")]
    TooLarge { length: usize, limit: usize },
    #[error(
        "frame of {length} bytes for api key {api_key} exceeds the limit of {limit} (kafka.control_request_max_bytes)"
    )]
    ControlTooLarge { api_key: i16, length: usize, limit: usize },
    #[error("the connection ended {missing} bytes before the end of a frame")]
    Cut { missing: usize },
    #[error("a begun frame stood still for {STALL_MAX:?}, or came slower than {BYTES_PER_SECOND_MIN} bytes a second")]
    Stalled,
    #[error("the memory for request frames is closed")]
    MemoryClosed,
}

impl FrameMemory {
    pub fn new(total: usize) -> Self {
        let control = total / CONTROL_SHARE;
        Self { produce: Pool::new(total - control), control: Pool::new(control) }
    }
}

impl Pool {
    fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(total)), total }
    }

    /// Waits for room. A frame larger than the whole pool takes all of it.
    async fn reserve(&self, length: usize) -> Result<OwnedSemaphorePermit, FrameError> {
        let permits = u32::try_from(length.min(self.total)).unwrap_or(u32::MAX);
        self.permits.clone().acquire_many_owned(permits).await.map_err(|_| FrameError::MemoryClosed)
    }
}

/// The read side of a connection.
pub struct FrameReader<R> {
    io: R,
    /// Bytes read and not yet part of a frame given out.
    buffer: BytesMut,
    limits: FrameLimits,
    memory: FrameMemory,
    /// Room for the frame at the front, and until when it must be there.
    reserved: Option<(OwnedSemaphorePermit, Instant)>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(io: R, limits: FrameLimits, memory: FrameMemory) -> Self {
        Self { io, buffer: BytesMut::new(), limits, memory, reserved: None }
    }

    /// The next frame, or nothing where the stream ended between two frames. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.is_empty() {
            // What is left of the last frame's buffer is as large as that frame; an idle connection must not keep it.
            self.buffer = BytesMut::new();
            if !self.read_step(LENGTH_LEN).await? {
                return Ok(None);
            }
        }
        self.fill(LENGTH_LEN + HEADER_FIXED_LEN, None).await?;
        let (length, is_produce) = self.head()?;
        if self.reserved.is_none() {
            let pool = if is_produce { &self.memory.produce } else { &self.memory.control };
            let memory = pool.reserve(length).await?;
            let longest = STALL_MAX + Duration::from_secs((length / BYTES_PER_SECOND_MIN) as u64);
            self.reserved = Some((memory, Instant::now() + longest));
        }
        let until = self.reserved.as_ref().map(|(_, until)| *until);
        self.fill(LENGTH_LEN + length, until).await?;
        let mut bytes = self.buffer.split_to(LENGTH_LEN + length);
        if length >= DETACHED_MIN {
            // What came after a large frame must not keep its memory.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        let bytes = bytes.split_off(LENGTH_LEN).freeze();
        Ok(self.reserved.take().map(|(memory, _)| Frame { bytes, memory }))
    }

    /// The length of the frame at the front, checked against the limit of its API, and whether that is Produce.
    fn head(&self) -> Result<(usize, bool), FrameError> {
        let missing = FrameError::Cut { missing: LENGTH_LEN + HEADER_FIXED_LEN };
        let Some((length, rest)) = self.buffer.split_first_chunk() else { return Err(missing) };
        let length = i32::from_be_bytes(*length);
        let size = usize::try_from(length).map_err(|_| FrameError::TooShort(length))?;
        if size < HEADER_FIXED_LEN {
            return Err(FrameError::TooShort(length));
        }
        if size > self.limits.produce_max {
            return Err(FrameError::TooLarge { length: size, limit: self.limits.produce_max });
        }
        let head = decode::head(rest).map_err(|_| missing)?;
        let is_produce = head.api_key == ApiKey::Produce as i16;
        if size > self.limits.control_max && !is_produce {
            let (api_key, limit) = (head.api_key, self.limits.control_max);
            return Err(FrameError::ControlTooLarge { api_key, length: size, limit });
        }
        Ok((size, is_produce))
    }

    /// Reads until the buffer holds `wanted` bytes, no longer than `until`.
    async fn fill(&mut self, wanted: usize, until: Option<Instant>) -> Result<(), FrameError> {
        while self.buffer.len() < wanted {
            // A frame that claims less than a header would never get this far; its length is known already.
            if self.buffer.len() >= LENGTH_LEN && wanted == LENGTH_LEN + HEADER_FIXED_LEN {
                self.refuse_short()?;
            }
            let stalled = Instant::now() + STALL_MAX;
            let stalled = until.map_or(stalled, |until| until.min(stalled));
            let read = tokio::time::timeout_at(stalled, self.read_step(wanted)).await;
            if !read.map_err(|_| FrameError::Stalled)?? {
                return Err(FrameError::Cut { missing: wanted - self.buffer.len() });
            }
        }
        Ok(())
    }

    fn refuse_short(&self) -> Result<(), FrameError> {
        match self.buffer.first_chunk() {
            Some(length) if i32::from_be_bytes(*length) < HEADER_FIXED_LEN as i32 => {
                Err(FrameError::TooShort(i32::from_be_bytes(*length)))
            }
            _ => Ok(()),
        }
    }

    /// One read towards `wanted` bytes; false at the end of the stream.
    async fn read_step(&mut self, wanted: usize) -> Result<bool, FrameError> {
        let missing = wanted.saturating_sub(self.buffer.len());
        self.buffer.reserve(missing.min(self.buffer.len()).max(READ_STEP_MIN));
        Ok(self.io.read_buf(&mut self.buffer).await? > 0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const LIMITS: FrameLimits = FrameLimits { produce_max: 1 << 20, control_max: 1 << 10 };

    fn frame(api_key: i16, length: usize) -> Vec<u8> {
        let mut bytes = (length as i32).to_be_bytes().to_vec();
        bytes.extend(api_key.to_be_bytes());
        bytes.resize(4 + length, 7);
        bytes
    }

    fn reader(bytes: &[u8]) -> FrameReader<&[u8]> {
        FrameReader::new(bytes, LIMITS, FrameMemory::new(1 << 20))
    }

    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        let mut stream = frame(18, 10);
        stream.extend(frame(0, 300_000));
        stream.extend(frame(3, 8));
        let mut reader = reader(&stream);
        for length in [10, 300_000, 8] {
            assert_eq!(reader.next().await.unwrap().unwrap().bytes.len(), length);
        }
        assert!(reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_length_alone_buys_no_memory() {
        let claim = &frame(0, 1 << 20)[..12];
        let mut reader = reader(claim);
        assert!(matches!(reader.next().await, Err(FrameError::Cut { .. })));
        assert!(reader.buffer.capacity() <= 2 * READ_STEP_MIN);
    }

    #[tokio::test]
    async fn sizes_outside_the_limits_are_refused_from_the_head() {
        assert!(matches!(reader(&(-1_i32).to_be_bytes()).next().await, Err(FrameError::TooShort(-1))));
        assert!(matches!(reader(&7_i32.to_be_bytes()).next().await, Err(FrameError::TooShort(7))));
        let large = &frame(0, (1 << 20) + 1)[..12];
        assert!(matches!(reader(large).next().await, Err(FrameError::TooLarge { .. })));
        let control = &frame(3, 1025)[..12];
        assert!(matches!(reader(control).next().await, Err(FrameError::ControlTooLarge { api_key: 3, .. })));
    }

    #[tokio::test]
    async fn a_frame_waits_for_room_and_gives_it_back() {
        let mut stream = frame(0, 600);
        stream.extend(frame(0, 600));
        let mut reader = FrameReader::new(&stream[..], LIMITS, FrameMemory::new(1000));
        let first = reader.next().await.unwrap();
        let blocked = futures::FutureExt::now_or_never(reader.next());
        assert!(blocked.is_none());
        drop(first);
        assert!(reader.next().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn waiting_may_be_given_up_without_losing_bytes() {
        let (client, mut server) = tokio::io::duplex(64);
        let stream = frame(3, 40);
        let mut reader = FrameReader::new(client, LIMITS, FrameMemory::new(1000));
        for byte in &stream[..20] {
            server.write_all(&[*byte]).await.unwrap();
            assert!(futures::FutureExt::now_or_never(reader.next()).is_none());
        }
        server.write_all(&stream[20..]).await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap().bytes, stream[4..]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_trickles_in_gives_its_room_back() {
        let (client, mut server) = tokio::io::duplex(64);
        let memory = FrameMemory::new(1 << 20);
        let mut reader = FrameReader::new(client, LIMITS, memory.clone());
        let trickling = async {
            for byte in frame(0, 900 << 10) {
                // Never silent for as long as it may be.
                tokio::time::sleep(STALL_MAX / 2).await;
                if server.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        };
        let reading = async {
            let error = reader.next().await.unwrap_err();
            drop(reader);
            error
        };
        let (error, ()) = tokio::join!(reading, trickling);
        assert!(matches!(error, FrameError::Stalled));
        assert_eq!(memory.produce.permits.available_permits(), memory.produce.total);
    }

    #[tokio::test]
    async fn what_produces_slowly_keeps_no_other_request_waiting() {
        let memory = FrameMemory::new(1 << 20);
        let (client, mut server) = tokio::io::duplex(64);
        let mut slow = FrameReader::new(client, LIMITS, memory.clone());
        server.write_all(&frame(0, 1 << 20)[..12]).await.unwrap();
        assert!(futures::FutureExt::now_or_never(slow.next()).is_none());
        assert_eq!(memory.produce.permits.available_permits(), 0);
        let heartbeat = frame(12, 40);
        let mut other = FrameReader::new(&heartbeat[..], LIMITS, memory);
        assert!(other.next().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_follows_a_large_frame_does_not_keep_its_memory() {
        let mut stream = frame(0, 1 << 20);
        stream.push(0);
        let mut reader = FrameReader::new(&stream[..], LIMITS, FrameMemory::new(2 << 20));
        reader.next().await.unwrap().unwrap();
        assert_eq!(reader.buffer.len(), 1);
        assert!(reader.buffer.capacity() < READ_STEP_MIN);
    }
}
