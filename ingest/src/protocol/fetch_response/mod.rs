//! The Fetch response, written by hand so that record bytes go from the log or the cache to the socket uncopied:
//! metadata in small buffers, the chunks of records between them as they are, in memory or in their file.
//!
//! Layout (Kafka's `FetchResponse.json`; "compact" lengths and tag sections from version 12):
//!
//! ```text
//!     throttle_time_ms i32 | error_code i16 (7+) | session_id i32 (7+) | topics [
//!       name (to 12) or topic_id uuid (13+) | partitions [
//!         index i32 | error_code i16 | high_watermark i64 | last_stable_offset i64 | log_start_offset i64 (5+)
//!         | aborted_transactions [ producer_id i64 | first_offset i64 ] | preferred_read_replica i32 (11+) | records length + bytes ] ]
//! ```
//!
//! Records are empty where there are none, never null: librdkafka takes a null for a broken response.

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::TopicName;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::encode::{EncodeError, Response, set_frame_length};
use crate::read::{Chunk, SendRun};

const FLEXIBLE_SINCE: i16 = 12;
const SESSIONS_SINCE: i16 = 7;
const LOG_START_SINCE: i16 = 5;
const READ_REPLICA_SINCE: i16 = 11;
const TOPIC_IDS_SINCE: i16 = 13;

/// Bytes of metadata a partition takes at most, for sizing buffers.
const PARTITION_LEN: usize = 64;

/// What a Fetch answers.
#[derive(Debug, Default)]
pub struct FetchReply {
    /// Code for the whole request; told from version 7 on.
    pub error_code: i16,
    /// 0 where the client has no session; told from version 7 on.
    pub session_id: i32,
    pub topics: Vec<FetchedTopic>,
    /// Room that the records hold in the memory and among the open files of responses.
    pub room: Vec<OwnedSemaphorePermit>,
}

#[derive(Debug)]
pub struct FetchedTopic {
    pub name: TopicName,
    pub id: Uuid,
    pub partitions: Vec<FetchedPartition>,
}

#[derive(Debug)]
pub struct FetchedPartition {
    pub index: i32,
    pub error_code: i16,
    pub high_watermark: i64,
    pub last_stable_offset: i64,
    pub log_start_offset: i64,
    /// Producer id and first offset, by the latter: clients drop the producer's batches from there to its next marker.
    pub aborted: Vec<(i64, i64)>,
    pub records: SendRun,
}

/// Encodes the reply as one response frame for `version` (4 to 17).
pub fn encode(correlation_id: i32, version: i16, reply: FetchReply) -> Result<Response, EncodeError> {
    let mut out = Chunks { version, flexible: version >= FLEXIBLE_SINCE, done: Vec::new(), open: BytesMut::new() };
    let partitions: usize = reply.topics.iter().map(|topic| topic.partitions.len()).sum();
    out.open.reserve(64 + partitions * PARTITION_LEN);
    // The frame's length field, set at the end: the first chunk always starts with it.
    out.open.put_i32(0);
    out.open.put_i32(correlation_id);
    out.no_tags();
    out.open.put_i32(0);
    if version >= SESSIONS_SINCE {
        out.open.put_i16(reply.error_code);
        out.open.put_i32(reply.session_id);
    }
    out.array_length(reply.topics.len());
    for topic in reply.topics {
        out.topic(topic)?;
    }
    out.no_tags();
    out.finish(reply.room)
}

struct Chunks {
    version: i16,
    flexible: bool,
    /// What comes before `open`; the first part is metadata and begins with the frame's length.
    done: Vec<Part>,
    open: BytesMut,
}

enum Part {
    Metadata(BytesMut),
    Records(Chunk),
}

impl Chunks {
    fn topic(&mut self, topic: FetchedTopic) -> Result<(), EncodeError> {
        if self.version >= TOPIC_IDS_SINCE {
            self.open.put_slice(topic.id.as_bytes());
        } else {
            self.text(&topic.name)?;
        }
        self.array_length(topic.partitions.len());
        for partition in topic.partitions {
            self.partition(partition)?;
        }
        self.no_tags();
        Ok(())
    }

    fn partition(&mut self, partition: FetchedPartition) -> Result<(), EncodeError> {
        self.open.put_i32(partition.index);
        self.open.put_i16(partition.error_code);
        self.open.put_i64(partition.high_watermark);
        self.open.put_i64(partition.last_stable_offset);
        if self.version >= LOG_START_SINCE {
            self.open.put_i64(partition.log_start_offset);
        }
        self.array_length(partition.aborted.len());
        for (producer_id, first_offset) in partition.aborted {
            self.open.put_i64(producer_id);
            self.open.put_i64(first_offset);
            self.no_tags();
        }
        if self.version >= READ_REPLICA_SINCE {
            self.open.put_i32(-1);
        }
        self.records(partition.records)?;
        self.no_tags();
        Ok(())
    }

    fn records(&mut self, records: SendRun) -> Result<(), EncodeError> {
        let length = records.len_bytes();
        let field = i32::try_from(length).map_err(|_| EncodeError::TooLarge(length))?;
        if self.flexible {
            self.varint(length + 1);
        } else {
            self.open.put_i32(field);
        }
        for chunk in records.chunks.into_iter().filter(|chunk| !chunk.is_empty()) {
            if !self.open.is_empty() {
                let metadata = self.open.split();
                self.done.push(Part::Metadata(metadata));
            }
            self.done.push(Part::Records(chunk));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), EncodeError> {
        if self.flexible {
            self.varint(text.len() + 1);
        } else {
            self.open.put_i16(i16::try_from(text.len()).map_err(|_| EncodeError::TooLarge(text.len()))?);
        }
        self.open.put_slice(text.as_bytes());
        Ok(())
    }

    fn array_length(&mut self, length: usize) {
        if self.flexible {
            self.varint(length + 1);
        } else {
            // A request frame cannot name as many topics or partitions as would not fit.
            self.open.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
        }
    }

    fn no_tags(&mut self) {
        if self.flexible {
            self.open.put_u8(0);
        }
    }

    fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.open.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.open.put_u8(value as u8);
    }

    fn finish(mut self, room: Vec<OwnedSemaphorePermit>) -> Result<Response, EncodeError> {
        self.done.push(Part::Metadata(self.open));
        let more = self.done.iter().skip(1).map(Part::len).sum();
        if let Some(Part::Metadata(head)) = self.done.first_mut() {
            set_frame_length(head, more)?;
        }
        Ok(Response::new(self.done.into_iter().map(Part::into_chunk), room))
    }
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Metadata(bytes) => bytes.len(),
            Self::Records(chunk) => chunk.len(),
        }
    }
    fn into_chunk(self) -> Chunk {
        match self {
            Self::Metadata(bytes) => Chunk::Bytes(bytes.freeze()),
            Self::Records(chunk) => chunk,
        }
    }
}

#[cfg(test)]
mod tests;
