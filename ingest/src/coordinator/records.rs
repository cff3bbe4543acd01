//! The records of `__consumer_offsets`, byte for byte as Kafka writes them. All integers are big-endian.
//!
//! ```text
//! key    OffsetCommitKey 0, 1      version i16 | group string | topic string | partition i32
//!        GroupMetadataKey 2        version i16 | group string
//! value  OffsetCommitValue 0..=4   version i16 | offset i64 | leader epoch i32 (3+) | metadata string
//!                                  | commit timestamp i64 | expire timestamp i64 (1 only)
//!        GroupMetadataValue 0..=4  version i16 | protocol type string | generation i32 | protocol string?
//!                                  | leader string? | state timestamp i64 (2+) | count i32 | member...
//!        member                    id string | instance id string? (3+) | client id string | client host string
//!                                  | rebalance timeout i32 (1+) | session timeout i32
//!                                  | subscription bytes | assignment bytes
//! null value                       tombstone of the key
//!
//! string    length i16 | UTF-8           string?   length -1 is null        bytes   length i32 | bytes
//! version 4 is flexible: lengths and counts are unsigned varints of length + 1, and each struct ends in tagged fields
//! ```
//!
//! Written are key 1 with value 3 for offsets, and key 2 with value 3 for groups. Schemas: Kafka's
//! `OffsetCommitKey.json`, `OffsetCommitValue.json`, `GroupMetadataKey.json`, `GroupMetadataValue.json`.

use bytes::{BufMut, Bytes, BytesMut};

use super::offsets::CommittedOffset;
use crate::model::{Offset, Timestamp};

const OFFSET_KEY_VERSION: i16 = 1;
const OFFSET_VALUE_VERSION: i16 = 3;
const GROUP_KEY_VERSION: i16 = 2;
const GROUP_VALUE_VERSION: i16 = 3;
/// From here on strings are compact and structs carry tagged fields.
const FLEXIBLE_VERSION: i16 = 4;
/// Newest value version that is understood.
const VALUE_VERSION_MAX: i16 = 4;
/// Longest string these formats can hold, in bytes.
pub const STRING_BYTES_MAX: usize = i16::MAX as usize;
/// What one member costs at least in a group record; bounds the room taken before members are read.
const MEMBER_BYTES_MIN: usize = 14;

/// The key of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Offset { group: String, topic: String, partition: i32 },
    Group { group: String },
}

/// A consumer group as it is stored: what members need to go on after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMetadata {
    pub protocol_type: String,
    pub generation: i32,
    pub protocol: Option<String>,
    pub leader: Option<String>,
    /// When the group entered its state; [`Timestamp::NONE`] in records before version 2.
    pub state_timestamp: Timestamp,
    pub members: Vec<StoredMember>,
}

/// A member of a stored group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredMember {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    /// -1 in records of version 0, which do not have it.
    pub rebalance_timeout_ms: i32,
    pub session_timeout_ms: i32,
    pub subscription: Bytes,
    pub assignment: Bytes,
}

/// Why a record could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("record ends at byte {len}, inside {field}")]
    Short { field: &'static str, len: usize },
    #[error("{field} of {len} bytes exceeds the {max} that the format can hold")]
    TooLong { field: &'static str, len: usize, max: usize },
    #[error("{field} has length {len}")]
    Length { field: &'static str, len: i64 },
    #[error("{field} is not UTF-8")]
    NotUtf8 { field: &'static str },
    #[error("{what} version {version} is not known; the newest known is {max}")]
    Version { what: &'static str, version: i16, max: i16 },
    #[error("{count} bytes follow the end of the record")]
    Trailing { count: usize },
}

impl Key {
    pub fn encode(&self) -> Result<Bytes, RecordError> {
        match self {
            Self::Offset { group, topic, partition } => offset_key(group, topic, *partition),
            Self::Group { group } => group_key(group),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader { bytes, len: bytes.len(), flexible: false };
        let version = reader.i16("key version")?;
        let key = match version {
            0 | 1 => Self::Offset {
                group: reader.string("group")?,
                topic: reader.string("topic")?,
                partition: reader.i32("partition")?,
            },
            GROUP_KEY_VERSION => Self::Group { group: reader.string("group")? },
            _ => return Err(RecordError::Version { what: "key", version, max: GROUP_KEY_VERSION }),
        };
        reader.end()?;
        Ok(key)
    }
}

/// OffsetCommitKey version 1.
pub fn offset_key(group: &str, topic: &str, partition: i32) -> Result<Bytes, RecordError> {
    let mut out = BytesMut::with_capacity(group.len() + topic.len() + 10);
    out.put_i16(OFFSET_KEY_VERSION);
    put_string(&mut out, "group", group)?;
    put_string(&mut out, "topic", topic)?;
    out.put_i32(partition);
    Ok(out.freeze())
}

/// GroupMetadataKey version 2.
pub fn group_key(group: &str) -> Result<Bytes, RecordError> {
    let mut out = BytesMut::with_capacity(group.len() + 4);
    out.put_i16(GROUP_KEY_VERSION);
    put_string(&mut out, "group", group)?;
    Ok(out.freeze())
}

/// OffsetCommitValue version 3.
pub fn encode_offset(committed: &CommittedOffset) -> Result<Bytes, RecordError> {
    let mut out = BytesMut::with_capacity(committed.metadata.len() + 24);
    out.put_i16(OFFSET_VALUE_VERSION);
    out.put_i64(committed.offset.0);
    out.put_i32(committed.leader_epoch);
    put_string(&mut out, "metadata", &committed.metadata)?;
    out.put_i64(committed.commit_timestamp.0);
    Ok(out.freeze())
}

pub fn decode_offset(bytes: &[u8]) -> Result<CommittedOffset, RecordError> {
    let (version, mut reader) = Reader::versioned(bytes, "offset value", VALUE_VERSION_MAX, FLEXIBLE_VERSION)?;
    let offset = Offset(reader.i64("offset")?);
    let leader_epoch = if version >= 3 { reader.i32("leader epoch")? } else { -1 };
    let metadata = reader.string("metadata")?;
    let commit_timestamp = Timestamp(reader.i64("commit timestamp")?);
    if version == 1 {
        reader.i64("expire timestamp")?;
    }
    reader.tagged_fields()?;
    reader.end()?;
    Ok(CommittedOffset { offset, leader_epoch, metadata, commit_timestamp })
}

impl GroupMetadata {
    /// GroupMetadataValue version 3.
    pub fn encode(&self) -> Result<Bytes, RecordError> {
        let mut out = BytesMut::new();
        out.put_i16(GROUP_VALUE_VERSION);
        put_string(&mut out, "protocol type", &self.protocol_type)?;
        out.put_i32(self.generation);
        put_nullable(&mut out, "protocol", self.protocol.as_deref())?;
        put_nullable(&mut out, "leader", self.leader.as_deref())?;
        out.put_i64(self.state_timestamp.0);
        put_len(&mut out, "members", self.members.len())?;
        for member in &self.members {
            put_string(&mut out, "member id", &member.member_id)?;
            put_nullable(&mut out, "instance id", member.instance_id.as_deref())?;
            put_string(&mut out, "client id", &member.client_id)?;
            put_string(&mut out, "client host", &member.client_host)?;
            out.put_i32(member.rebalance_timeout_ms);
            out.put_i32(member.session_timeout_ms);
            put_bytes(&mut out, "subscription", &member.subscription)?;
            put_bytes(&mut out, "assignment", &member.assignment)?;
        }
        Ok(out.freeze())
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (version, mut reader) = Reader::versioned(bytes, "group value", VALUE_VERSION_MAX, FLEXIBLE_VERSION)?;
        let protocol_type = reader.string("protocol type")?;
        let generation = reader.i32("generation")?;
        let protocol = reader.nullable("protocol")?;
        let leader = reader.nullable("leader")?;
        let state_timestamp = if version >= 2 { Timestamp(reader.i64("state timestamp")?) } else { Timestamp::NONE };
        let count = reader.count("members")?;
        let mut members = Vec::with_capacity(count.min(reader.bytes.len() / MEMBER_BYTES_MIN));
        for _ in 0..count {
            members.push(StoredMember::decode(version, &mut reader)?);
        }
        reader.tagged_fields()?;
        reader.end()?;
        Ok(Self { protocol_type, generation, protocol, leader, state_timestamp, members })
    }
}

impl StoredMember {
    fn decode(version: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let member = Self {
            member_id: reader.string("member id")?,
            instance_id: if version >= 3 { reader.nullable("instance id")? } else { None },
            client_id: reader.string("client id")?,
            client_host: reader.string("client host")?,
            rebalance_timeout_ms: if version >= 1 { reader.i32("rebalance timeout")? } else { -1 },
            session_timeout_ms: reader.i32("session timeout")?,
            subscription: reader.blob("subscription")?,
            assignment: reader.blob("assignment")?,
        };
        reader.tagged_fields()?;
        Ok(member)
    }
}

pub(super) fn put_string(out: &mut BytesMut, field: &'static str, value: &str) -> Result<(), RecordError> {
    let too_long = |_| RecordError::TooLong { field, len: value.len(), max: STRING_BYTES_MAX };
    out.put_i16(i16::try_from(value.len()).map_err(too_long)?);
    out.put_slice(value.as_bytes());
    Ok(())
}

fn put_nullable(out: &mut BytesMut, field: &'static str, value: Option<&str>) -> Result<(), RecordError> {
    match value {
        Some(value) => put_string(out, field, value),
        None => {
            out.put_i16(-1);
            Ok(())
        }
    }
}

fn put_bytes(out: &mut BytesMut, field: &'static str, value: &[u8]) -> Result<(), RecordError> {
    put_len(out, field, value.len())?;
    out.put_slice(value);
    Ok(())
}

pub(super) fn put_len(out: &mut BytesMut, field: &'static str, len: usize) -> Result<(), RecordError> {
    out.put_i32(i32::try_from(len).map_err(|_| RecordError::TooLong { field, len, max: i32::MAX as usize })?);
    Ok(())
}

/// A cursor over untrusted bytes: every length is checked against what is left.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    len: usize,
    flexible: bool,
}

impl<'a> Reader<'a> {
    /// Reads the version, 0 to `max`; from `flexible_since` on strings are compact and structs carry tagged fields.
    pub(super) fn versioned(
        bytes: &'a [u8],
        what: &'static str,
        max: i16,
        flexible_since: i16,
    ) -> Result<(i16, Self), RecordError> {
        let mut reader = Reader { bytes, len: bytes.len(), flexible: false };
        let version = reader.i16(what)?;
        if !(0..=max).contains(&version) {
            return Err(RecordError::Version { what, version, max });
        }
        reader.flexible = version >= flexible_since;
        Ok((version, reader))
    }

    fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], RecordError> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or(RecordError::Short { field, len: self.len })?;
        self.bytes = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], RecordError> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or(RecordError::Short { field, len: self.len })?;
        self.bytes = tail;
        Ok(*head)
    }

    pub(super) fn i16(&mut self, field: &'static str) -> Result<i16, RecordError> {
        Ok(i16::from_be_bytes(self.array(field)?))
    }
    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, RecordError> {
        Ok(i32::from_be_bytes(self.array(field)?))
    }
    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, RecordError> {
        Ok(i64::from_be_bytes(self.array(field)?))
    }

    fn varint(&mut self, field: &'static str) -> Result<u32, RecordError> {
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array(field)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| RecordError::Length { field, len: value as i64 });
            }
        }
        Err(RecordError::Length { field, len: value as i64 })
    }

    /// A length as this version writes it: `None` is null.
    pub(super) fn length(&mut self, field: &'static str, wide: bool) -> Result<Option<usize>, RecordError> {
        let len = if self.flexible {
            i64::from(self.varint(field)?) - 1
        } else if wide {
            i64::from(self.i32(field)?)
        } else {
            i64::from(self.i16(field)?)
        };
        match len {
            -1 => Ok(None),
            _ => usize::try_from(len).map(Some).map_err(|_| RecordError::Length { field, len }),
        }
    }

    fn nullable(&mut self, field: &'static str) -> Result<Option<String>, RecordError> {
        let Some(len) = self.length(field, false)? else { return Ok(None) };
        let text = std::str::from_utf8(self.take(field, len)?).map_err(|_| RecordError::NotUtf8 { field })?;
        Ok(Some(text.to_owned()))
    }

    pub(super) fn string(&mut self, field: &'static str) -> Result<String, RecordError> {
        self.nullable(field)?.ok_or(RecordError::Length { field, len: -1 })
    }

    fn blob(&mut self, field: &'static str) -> Result<Bytes, RecordError> {
        let len = self.length(field, true)?.ok_or(RecordError::Length { field, len: -1 })?;
        Ok(Bytes::copy_from_slice(self.take(field, len)?))
    }

    pub(super) fn count(&mut self, field: &'static str) -> Result<usize, RecordError> {
        self.length(field, true)?.ok_or(RecordError::Length { field, len: -1 })
    }

    pub(super) fn tagged_fields(&mut self) -> Result<(), RecordError> {
        if self.flexible {
            for _ in 0..self.varint("tagged fields")? {
                self.varint("tag")?;
                let len = self.varint("tagged field")?;
                self.take("tagged field", usize::try_from(len).unwrap_or(usize::MAX))?;
            }
        }
        Ok(())
    }

    pub(super) fn end(&self) -> Result<(), RecordError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(RecordError::Trailing { count: self.bytes.len() }) }
    }
}

#[cfg(test)]
mod tests;
