//! How a manifest is stored. JSON, so that a person with a bucket browser can read it and any tool can list the files.
//!
//! ```text
//! manifest/<version>.json                      manifest/parts/<base>-<last>-<attempt>.json.zst    zstd, JSON inside
//! {                                            {
//!   "format_version": 2,                         "format_version": 2,
//!   "topic": name, "topic_id": uuid,             "topic_id": uuid,
//!   "partition": number,                         "partition": number,
//!   "version": number,   = the name's            "level": number,
//!   "epoch": number,                             "files": [ data file, ... ]    level 0
//!   "log_start_offset": number,                  "parts": [ part, ... ]         above: parts of the level below
//!   "parts": [ part, ... ],                    }
//!   "tail": [ data file, ... ],
//!   "retired": [ { "object": {key, size_bytes, xxh3}, "at": milliseconds }, ... ]    absent where empty
//! }
//! part: { "object": {key, size_bytes, xxh3}, "base_offset", "last_offset", "files": count, "level": number }
//! ```
//!
//! The files of all parts, then those of the tail, less those that end below `log_start_offset`, are the partition's
//! archive. What lies wholly below the log start may be deleted already: a part that ends there is not read. Readers
//! ignore fields they do not know; a change that they must not ignore raises `format_version`.
//!
//! Version 1 had one level of parts, called `sealed`, in plain JSON under `<base>-<last>-<attempt>.json`. It is read:
//! its parts are parts of level 0 and stay as they are.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use thermocline_ingest::model::{Offset, PartitionId, TopicId, TopicName};

use super::files::{Entries, PART_LEVEL_MAX};
use super::{DataFile, Manifest, ManifestHead, ObjectRef, Retired};
use crate::paths::{ObjectKind, PartitionPath};

/// The version of both layouts.
pub const FORMAT_VERSION: u32 = 2;
/// The oldest version that is read.
const FORMAT_VERSION_MIN: u32 = 1;
/// Parts are written once and read at every start: the default level, which shrinks their JSON to about a sixth.
const PART_ZSTD_LEVEL: i32 = 3;
/// How zstd begins. Parts of version 1 are plain JSON.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Largest manifest object that is read, packed or not.
pub(super) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Where older entries of a manifest are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    pub object: ObjectRef,
    pub base_offset: Offset,
    /// inclusive
    pub last_offset: Offset,
    pub files: u64,
    /// 0 for a part of files, n for one of parts of level n - 1
    #[serde(default)]
    pub level: u8,
}

#[derive(Serialize, Deserialize)]
struct VersionFile {
    format_version: u32,
    topic: TopicName,
    topic_id: TopicId,
    partition: PartitionId,
    version: u64,
    epoch: u64,
    log_start_offset: Offset,
    #[serde(alias = "sealed")]
    parts: Vec<PartRef>,
    tail: Vec<Arc<DataFile>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
}

#[derive(Serialize, Deserialize)]
struct PartFile {
    format_version: u32,
    topic_id: TopicId,
    partition: PartitionId,
    #[serde(default)]
    level: u8,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<Arc<DataFile>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartRef>,
}

/// Read before anything else, so that a layout of the future is told from a damaged one.
#[derive(Deserialize)]
struct AnyVersion {
    format_version: u32,
}

/// A version as it was stored: its parts are still to be read.
pub(super) struct DecodedVersion {
    /// without the files of the parts
    pub manifest: Manifest,
    pub parts: Vec<PartRef>,
    pub retired: Vec<Retired>,
}

/// What a part object holds.
pub(super) enum DecodedPart {
    Files(Vec<Arc<DataFile>>),
    Parts(Vec<PartRef>),
}

/// The bytes of a version object, all of whose parts are named.
pub(super) fn encode_version(head: &ManifestHead) -> Result<Bytes, String> {
    let manifest = &head.manifest;
    let file = VersionFile {
        format_version: FORMAT_VERSION,
        topic: manifest.topic.clone(),
        topic_id: manifest.topic_id,
        partition: manifest.partition,
        version: manifest.version,
        epoch: manifest.epoch,
        log_start_offset: manifest.log_start_offset,
        parts: manifest.files.part_refs().cloned().collect(),
        tail: manifest.files.tail().to_vec(),
        retired: head.retired.clone(),
    };
    let mut json = serde_json::to_vec_pretty(&file).map_err(|error| error.to_string())?;
    json.push(b'\n');
    Ok(json.into())
}

/// Reads a version object and checks everything that can be checked without its parts.
pub(super) fn decode_version(path: &PartitionPath, version: u64, bytes: &[u8]) -> Result<DecodedVersion, String> {
    let file: VersionFile = from_json(bytes)?;
    belongs(path, file.topic_id, file.partition)?;
    if file.topic != path.topic || file.version != version {
        return Err(format!("it says topic {} version {}", file.topic, file.version));
    }
    check_files(path, &file.tail)?;
    check_parts(path, &file.parts)?;
    if file.parts.iter().zip(file.parts.iter().skip(1)).any(|(left, right)| left.level < right.level) {
        return Err("a part is followed by one of a higher level".to_owned());
    }
    let part_ranges = file.parts.iter().map(|part| (part.base_offset, part.last_offset));
    let tail_range = file.tail.first().zip(file.tail.last()).map(|(first, last)| (first.base_offset, last.last_offset));
    check_contiguous(part_ranges.chain(tail_range))?;
    let manifest = Manifest {
        topic: file.topic,
        topic_id: file.topic_id,
        partition: file.partition,
        version,
        epoch: file.epoch,
        log_start_offset: file.log_start_offset,
        files: file.tail.into_iter().collect(),
    };
    for Retired { object, .. } in &file.retired {
        let key = ObjectPath::parse(&object.key).map_err(|error| error.to_string())?;
        if path.parse_object(&key).is_none() {
            return Err(format!("{:?}, said to be retired, is not the name of an object", object.key));
        }
    }
    Ok(DecodedVersion { manifest, parts: file.parts, retired: file.retired })
}

/// A part object that has no name yet.
pub(super) struct EncodedPart {
    pub bytes: Bytes,
    pub base_offset: Offset,
    /// inclusive
    pub last_offset: Offset,
    pub files: u64,
}

/// The bytes of a part object, whose own parts are named, and what refers to them.
pub(super) fn encode_part(path: &PartitionPath, level: u8, entries: &Entries) -> Result<EncodedPart, String> {
    let (files, parts) = match entries {
        Entries::Files(files) => (files.clone(), Vec::new()),
        Entries::Parts(parts) => (Vec::new(), parts.iter().filter_map(|part| part.object()).cloned().collect()),
    };
    let (range, count) = match (files.first().zip(files.last()), parts.first().zip(parts.last())) {
        (Some((first, last)), _) => ((first.base_offset, last.last_offset), files.len() as u64),
        (_, Some((first, last))) => {
            ((first.base_offset, last.last_offset), parts.iter().map(|part: &PartRef| part.files).sum())
        }
        _ => return Err("it would be empty".to_owned()),
    };
    let (topic_id, partition) = (path.topic_id, path.partition);
    let part = PartFile { format_version: FORMAT_VERSION, topic_id, partition, level, files, parts };
    let json = serde_json::to_vec(&part).map_err(|error| error.to_string())?;
    let bytes = zstd::encode_all(json.as_slice(), PART_ZSTD_LEVEL).map_err(|error| error.to_string())?;
    Ok(EncodedPart { bytes: bytes.into(), base_offset: range.0, last_offset: range.1, files: count })
}

/// Reads a part object, whose bytes must be those that `part` was made for.
pub(super) fn decode_part(path: &PartitionPath, part: &PartRef, bytes: &[u8]) -> Result<DecodedPart, String> {
    let found = crate::verify::object_hash(bytes);
    if found != part.object.xxh3 {
        return Err(format!("its bytes have xxh3 {found}, the manifest says {}", part.object.xxh3));
    }
    let file: PartFile = match bytes.starts_with(&ZSTD_MAGIC) {
        true => from_json(&unpack(bytes)?)?,
        false => from_json(bytes)?,
    };
    belongs(path, file.topic_id, file.partition)?;
    check_files(path, &file.files)?;
    check_parts(path, &file.parts)?;
    check_contiguous(file.parts.iter().map(|part| (part.base_offset, part.last_offset)))?;
    let is_of_level = match part.level {
        0 => file.parts.is_empty(),
        level => file.files.is_empty() && file.parts.iter().all(|inner| inner.level + 1 == level),
    };
    if file.level != part.level || !is_of_level {
        return Err(format!("it is of level {}, the manifest says {}", file.level, part.level));
    }
    let files = file.files.first().zip(file.files.last()).map(|(first, last)| (first.base_offset, last.last_offset));
    let parts = file.parts.first().zip(file.parts.last()).map(|(first, last)| (first.base_offset, last.last_offset));
    let inner_files = file.parts.iter().fold(0_u64, |sum, inner| sum.saturating_add(inner.files));
    let (range, count) = (files.or(parts), inner_files.saturating_add(file.files.len() as u64));
    if range != Some((part.base_offset, part.last_offset)) || count != part.files {
        return Err(format!("it holds {count} files over {range:?}, the manifest says {part:?}"));
    }
    Ok(if part.level == 0 { DecodedPart::Files(file.files) } else { DecodedPart::Parts(file.parts) })
}

/// At most [`MANIFEST_BYTES_MAX`] bytes, whatever the object claims.
fn unpack(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut json = Vec::new();
    let unpacked = zstd::Decoder::new(bytes)
        .and_then(|decoder| decoder.take(MANIFEST_BYTES_MAX.saturating_add(1)).read_to_end(&mut json));
    match unpacked {
        Ok(size) if size as u64 > MANIFEST_BYTES_MAX => {
            Err(format!("unpacked it exceeds the limit of {MANIFEST_BYTES_MAX} bytes"))
        }
        Ok(_) => Ok(json),
        Err(error) => Err(format!("it cannot be unpacked: {error}")),
    }
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let any: AnyVersion = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let found = any.format_version;
    if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&found) {
        return Err(format!(
            "it has format version {found}, this program reads {FORMAT_VERSION_MIN} to {FORMAT_VERSION}; \
             use a newer program"
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

fn belongs(path: &PartitionPath, topic_id: TopicId, partition: PartitionId) -> Result<(), String> {
    if topic_id == path.topic_id && partition == path.partition {
        return Ok(());
    }
    Err(format!("it belongs to partition {partition} of topic id {topic_id}"))
}

fn check_files(path: &PartitionPath, files: &[Arc<DataFile>]) -> Result<(), String> {
    check_contiguous(files.iter().map(|file| (file.base_offset, file.last_offset)))?;
    for file in files {
        let (base, last) = (file.base_offset, file.last_offset);
        check_object(path, &file.data, ObjectKind::Data, base, last)?;
        if let Some(split) = &file.split {
            check_object(path, split, ObjectKind::Split, base, last)?;
        }
        let mut offsets = base.distance_to(last.next());
        if let Some(raw) = &file.raw {
            check_object(path, &raw.object, ObjectKind::Raw, base, last)?;
            let mut end_bytes = 0_u64;
            for batch in &raw.batches {
                let inside = batch.base_offset >= base && batch.last_offset <= last && batch.position == end_bytes;
                end_bytes = end_bytes.saturating_add(batch.size_bytes);
                if !inside || batch.base_offset > batch.last_offset || end_bytes > raw.object.size_bytes {
                    return Err(format!("raw batch at {} does not lie in its file or object", batch.base_offset));
                }
                offsets = offsets.saturating_sub(batch.base_offset.distance_to(batch.last_offset.next()));
            }
        }
        if file.rows.saturating_add(file.dropped) != offsets {
            let (rows, dropped) = (file.rows, file.dropped);
            return Err(format!("file {base}..={last} has {rows} rows and {dropped} dropped where {offsets} are left"));
        }
    }
    Ok(())
}

fn check_parts(path: &PartitionPath, parts: &[PartRef]) -> Result<(), String> {
    for part in parts {
        check_object(path, &part.object, ObjectKind::ManifestPart, part.base_offset, part.last_offset)?;
        if part.level > PART_LEVEL_MAX {
            return Err(format!("a part of level {} exceeds the limit of {PART_LEVEL_MAX}", part.level));
        }
    }
    Ok(())
}

fn check_contiguous(ranges: impl Iterator<Item = (Offset, Offset)>) -> Result<(), String> {
    let mut expected = None;
    for (base, last) in ranges {
        if base > last || base < Offset::ZERO || expected.is_some_and(|expected| expected != base) {
            return Err(format!("offsets {base}..={last} do not follow what ends before {expected:?}"));
        }
        expected = Some(last.next());
    }
    Ok(())
}

/// A manifest names only objects of its own partition, under the names that this program gives.
fn check_object(
    path: &PartitionPath,
    object: &ObjectRef,
    kind: ObjectKind,
    base: Offset,
    last: Offset,
) -> Result<(), String> {
    let key = ObjectPath::parse(&object.key).map_err(|error| error.to_string())?;
    match path.parse_object(&key) {
        Some(name) if name.kind == kind && name.base == base && name.last == last => Ok(()),
        _ => Err(format!("{:?} is not the name of a {kind:?} object for offsets {base}..={last}", object.key)),
    }
}
