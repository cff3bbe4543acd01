//! The file of a partition's producer state, written when a segment rolls and when the log closes.
//!
//! ```text
//! <next offset, 20 digits>.snapshot, big-endian:
//! magic "TCPS" | version u16 = 2 | producer count u32
//! per producer, by id: id i64 | epoch i16 | last append i64 (ms) | first offset of its open transaction i64 (-1 none)
//!     | batch count u8
//!     per batch, oldest first: first sequence i32 | last sequence i32 | base offset i64 | log append time i64 (-1 none)
//! crc32c u32 of all before it
//! ```
//! Version 1 has no transactions; it is read, not written.
//! It holds the state as of the batch before `next offset`. Recovery takes the newest one that reads well and replays
//! the batch headers after it; a bad one is skipped, and another written in its stead.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::error::{IoContext, LogError};
use super::producer_state::{BATCHES_PER_PRODUCER, Producer, ProducerState, SequencedBatch};
use super::segment::{file_path, offset_of, remove_if_there, sync_dir};
use crate::model::{Offset, Timestamp};

pub const SNAPSHOT: &str = "snapshot";
const MAGIC: &[u8; 4] = b"TCPS";
const VERSION: u16 = 2;
/// Without transactions.
const VERSION_1: u16 = 1;
/// What stands for no open transaction.
const NOT_OPEN: Offset = Offset(-1);
/// Newest snapshots that are kept: one may turn out bad.
const KEPT: usize = 2;

/// Writes the snapshot durably and removes all but the newest.
pub fn write(dir: &Path, next: Offset, state: &ProducerState) -> Result<(), LogError> {
    let path = file_path(dir, next, SNAPSHOT);
    File::create(&path)
        .and_then(|mut file| file.write_all(&encode(state)).and_then(|()| file.sync_all()))
        .on("write", &path)?;
    sync_dir(dir)?;
    for older in list(dir)?.into_iter().rev().skip(KEPT) {
        remove_if_there(&file_path(dir, older, SNAPSHOT))?;
    }
    Ok(())
}

/// The newest good snapshot at or below `end`, and its offset. Those beyond `end` are removed: they speak of batches
/// that are no more. Also says whether a newer one is damaged.
pub fn load(dir: &Path, end: Offset) -> Result<(Option<(Offset, ProducerState)>, bool), LogError> {
    let mut is_damaged = false;
    for offset in list(dir)?.into_iter().rev() {
        let path = file_path(dir, offset, SNAPSHOT);
        if offset > end {
            remove_if_there(&path)?;
        } else if let Some(state) = decode(&fs::read(&path).on("read", &path)?) {
            return Ok((Some((offset, state)), is_damaged));
        } else {
            tracing::warn!(path = %path.display(), "producer snapshot is damaged; reading batch headers instead");
            is_damaged = true;
        }
    }
    Ok((None, is_damaged))
}

/// Offset of the oldest snapshot, good or not: recovery may start from it.
pub fn oldest(dir: &Path) -> Result<Option<Offset>, LogError> {
    Ok(list(dir)?.first().copied())
}

fn list(dir: &Path) -> Result<Vec<Offset>, LogError> {
    let mut offsets = Vec::new();
    for entry in fs::read_dir(dir).on("list", dir)? {
        offsets.extend(offset_of(&entry.on("list", dir)?.path(), SNAPSHOT));
    }
    offsets.sort_unstable();
    Ok(offsets)
}

fn encode(state: &ProducerState) -> Vec<u8> {
    let mut producers: Vec<_> = state.producers.iter().collect();
    producers.sort_unstable_by_key(|(id, _)| **id);
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&u32::try_from(producers.len()).unwrap_or(u32::MAX).to_be_bytes());
    for (id, producer) in producers {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&producer.epoch.to_be_bytes());
        out.extend_from_slice(&producer.last_append.0.to_be_bytes());
        out.extend_from_slice(&producer.open.unwrap_or(NOT_OPEN).0.to_be_bytes());
        out.push(u8::try_from(producer.batches.len()).unwrap_or(u8::MAX));
        for batch in &producer.batches {
            out.extend_from_slice(&batch.first_sequence.to_be_bytes());
            out.extend_from_slice(&batch.last_sequence.to_be_bytes());
            out.extend_from_slice(&batch.base_offset.0.to_be_bytes());
            out.extend_from_slice(&batch.log_append_time.0.to_be_bytes());
        }
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

/// None where the bytes are not a whole snapshot of a known version.
fn decode(bytes: &[u8]) -> Option<ProducerState> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*crc) {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?;
    let version = u16::from_be_bytes(take(&mut rest)?);
    if version != VERSION && version != VERSION_1 {
        return None;
    }
    let count = u32::from_be_bytes(take(&mut rest)?);
    let mut state = ProducerState::default();
    for _ in 0..count {
        let id = i64::from_be_bytes(take(&mut rest)?);
        let epoch = i16::from_be_bytes(take(&mut rest)?);
        let last_append = Timestamp(i64::from_be_bytes(take(&mut rest)?));
        let open = if version == VERSION_1 { NOT_OPEN } else { Offset(i64::from_be_bytes(take(&mut rest)?)) };
        let [batch_count] = take(&mut rest)?;
        if usize::from(batch_count) > BATCHES_PER_PRODUCER {
            return None;
        }
        let mut batches = Vec::with_capacity(BATCHES_PER_PRODUCER);
        for _ in 0..batch_count {
            batches.push(SequencedBatch {
                first_sequence: i32::from_be_bytes(take(&mut rest)?),
                last_sequence: i32::from_be_bytes(take(&mut rest)?),
                base_offset: Offset(i64::from_be_bytes(take(&mut rest)?)),
                log_append_time: Timestamp(i64::from_be_bytes(take(&mut rest)?)),
            });
        }
        let open = Some(open).filter(|open| *open != NOT_OPEN);
        state.insert(id, Producer { epoch, last_append, batches, open });
    }
    rest.is_empty().then_some(state)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(open: Option<i64>) -> ProducerState {
        let batch = |first_sequence, base| SequencedBatch {
            first_sequence,
            last_sequence: first_sequence + 1,
            base_offset: Offset(base),
            log_append_time: Timestamp(base - 11),
        };
        let producer =
            |epoch, batches, open| Producer { epoch, last_append: Timestamp(1_431_860_400_000), batches, open };
        let mut state = ProducerState::default();
        state.insert(1000, producer(3, vec![batch(4, 10), batch(6, 12)], open.map(Offset)));
        state.insert(7, producer(0, vec![batch(0, 20)], None));
        state
    }

    fn golden(version: u16) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/producers-v{version}.snapshot"))
    }

    #[test]
    fn golden_snapshot() {
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(golden(VERSION), encode(&state(Some(10)))).unwrap();
        }
        let stored = fs::read(golden(VERSION)).unwrap();
        assert_eq!(encode(&state(Some(10))), stored);
        assert_eq!(decode(&stored), Some(state(Some(10))));
        assert_eq!(decode(&fs::read(golden(VERSION_1)).unwrap()), Some(state(None)), "as earlier versions wrote it");
    }

    #[test]
    fn damage_is_noticed() {
        let good = encode(&state(Some(10)));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
            assert_eq!(decode(&good[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn the_newest_good_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        for offset in [10, 20, 30, 40] {
            let mut state = state(None);
            state.producers.remove(&(offset % 40));
            write(dir.path(), Offset(offset), &state).unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [Offset(30), Offset(40)]);
        assert!(matches!(load(dir.path(), Offset(35)).unwrap(), (Some((Offset(30), _)), false)));
        assert_eq!(list(dir.path()).unwrap(), [Offset(30)]);
        fs::write(file_path(dir.path(), Offset(30), SNAPSHOT), b"TCPS").unwrap();
        assert_eq!(load(dir.path(), Offset(35)).unwrap(), (None, true));
    }
}
