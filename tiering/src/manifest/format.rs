//! How a manifest is stored. JSON, so that a person with a bucket browser can read it and any tool can list the files.
//!
//! ```text
//! manifest/<version>.json                      manifest/parts/<base>-<last>-<attempt>.json
//! {                                            {
//!   "format_version": 1,                         "format_version": 1,
//!   "topic": name, "topic_id": uuid,             "topic_id": uuid,
//!   "partition": number,                         "partition": number,
//!   "version": number,   = the name's            "files": [ data file, ... ]
//!   "epoch": number,                           }
//!   "log_start_offset": number,
//!   "sealed": [ { "object": {key, size_bytes, xxh3}, "base_offset", "last_offset", "files": count }, ... ],
//!   "tail": [ data file, ... ],
//!   "retired": [ { "object": {key, size_bytes, xxh3}, "at": milliseconds }, ... ]    absent where empty
//! }
//! ```
//!
//! The files of all parts, then those of the tail, less those that end below `log_start_offset`, are the partition's
//! archive. Readers ignore fields they do not know; a change that they must not ignore raises `format_version`.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use thermocline_ingest::model::{Offset, PartitionId, TopicId, TopicName};

use super::{DataFile, Manifest, ManifestHead, ObjectRef, Retired};
use crate::paths::{ObjectKind, PartitionPath};

/// The version of both layouts.
pub const FORMAT_VERSION: u32 = 1;
/// Largest manifest object that is read.
pub(super) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Where older entries of a manifest are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    pub object: ObjectRef,
    pub base_offset: Offset,
    /// inclusive
    pub last_offset: Offset,
    pub files: u64,
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
    sealed: Vec<PartRef>,
    tail: Vec<Arc<DataFile>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
}

#[derive(Serialize, Deserialize)]
struct PartFile {
    format_version: u32,
    topic_id: TopicId,
    partition: PartitionId,
    files: Vec<Arc<DataFile>>,
}

/// Read before anything else, so that a layout of the future is told from a damaged one.
#[derive(Deserialize)]
struct AnyVersion {
    format_version: u32,
}

/// A version as it was stored: its parts are still to be read.
pub(super) struct DecodedVersion {
    /// without the files of the sealed parts
    pub manifest: Manifest,
    pub sealed: Vec<PartRef>,
    pub retired: Vec<Retired>,
}

/// The bytes of a version object.
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
        sealed: head.sealed.clone(),
        tail: head.tail().to_vec(),
        retired: head.retired.clone(),
    };
    to_json(&file)
}

/// Reads a version object and checks everything that can be checked without its parts.
pub(super) fn decode_version(path: &PartitionPath, version: u64, bytes: &[u8]) -> Result<DecodedVersion, String> {
    let file: VersionFile = from_json(bytes)?;
    belongs(path, file.topic_id, file.partition)?;
    if file.topic != path.topic || file.version != version {
        return Err(format!("it says topic {} version {}", file.topic, file.version));
    }
    check_files(path, &file.tail)?;
    for part in &file.sealed {
        check_object(path, &part.object, ObjectKind::ManifestPart, part.base_offset, part.last_offset)?;
    }
    let sealed_ranges = file.sealed.iter().map(|part| (part.base_offset, part.last_offset));
    let tail_range = file.tail.first().zip(file.tail.last()).map(|(first, last)| (first.base_offset, last.last_offset));
    check_contiguous(sealed_ranges.chain(tail_range))?;
    let manifest = Manifest {
        topic: file.topic,
        topic_id: file.topic_id,
        partition: file.partition,
        version,
        epoch: file.epoch,
        log_start_offset: file.log_start_offset,
        files: file.tail,
    };
    for Retired { object, .. } in &file.retired {
        let key = ObjectPath::parse(&object.key).map_err(|error| error.to_string())?;
        if path.parse_object(&key).is_none() {
            return Err(format!("{:?}, said to be retired, is not the name of an object", object.key));
        }
    }
    Ok(DecodedVersion { manifest, sealed: file.sealed, retired: file.retired })
}

/// The bytes of a part object.
pub(super) fn encode_part(path: &PartitionPath, files: &[Arc<DataFile>]) -> Result<Bytes, String> {
    to_json(&PartFile {
        format_version: FORMAT_VERSION,
        topic_id: path.topic_id,
        partition: path.partition,
        files: files.to_vec(),
    })
}

/// Reads a part object, whose bytes must be those that `part` was made for.
pub(super) fn decode_part(path: &PartitionPath, part: &PartRef, bytes: &[u8]) -> Result<Vec<Arc<DataFile>>, String> {
    let found = crate::verify::object_hash(bytes);
    if found != part.object.xxh3 {
        return Err(format!("its bytes have xxh3 {found}, the manifest says {}", part.object.xxh3));
    }
    let file: PartFile = from_json(bytes)?;
    belongs(path, file.topic_id, file.partition)?;
    check_files(path, &file.files)?;
    let range = file.files.first().zip(file.files.last()).map(|(first, last)| (first.base_offset, last.last_offset));
    if range != Some((part.base_offset, part.last_offset)) || file.files.len() as u64 != part.files {
        return Err(format!("it holds {} files over {range:?}, the manifest says {part:?}", file.files.len()));
    }
    Ok(file.files)
}

fn to_json(value: &impl Serialize) -> Result<Bytes, String> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|error| error.to_string())?;
    json.push(b'\n');
    Ok(json.into())
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let any: AnyVersion = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if any.format_version != FORMAT_VERSION {
        let found = any.format_version;
        return Err(format!("it has format version {found}, this program reads {FORMAT_VERSION}; use a newer program"));
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
        if file.rows != offsets {
            return Err(format!("file {base}..={last} has {} rows where {offsets} are left for it", file.rows));
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
