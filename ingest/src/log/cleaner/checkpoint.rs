//! How far a partition was compacted, in a file beside its segments.
//!
//! ```text
//! cleaner.checkpoint, big-endian:
//! magic "TCCL" | version u16 = 1 | holes below i64 | clean through i64 | next horizon i64 (ms, -1 none)
//! crc32c u32 of all before it
//! ```
//! It is written beside and renamed into place. `holes below` is on disk before a compacted segment is, so that a hole
//! is never taken for a lost segment. `clean through` follows when everything below was compacted: one that is too low
//! costs work, one that is too high would keep old records.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::crash_point;
use crate::log::error::{IoContext, LogError};
use crate::log::segment::{remove_if_there, sync_dir};
use crate::model::{Offset, Timestamp};

const FILE: &str = "cleaner.checkpoint";
const NEW_FILE: &str = "cleaner.checkpoint.new";
const MAGIC: &[u8; 4] = b"TCCL";
const VERSION: u16 = 1;

/// How far a partition was compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Segments that start below may have holes. Never falls.
    pub holes_below: Offset,
    /// Below, each key is there once, if at all, but for what may not be touched. Exclusive.
    pub clean_through: Offset,
    /// When the first of the tombstones below may go.
    pub next_horizon: Option<Timestamp>,
}

impl Checkpoint {
    /// Of a partition that was never compacted.
    pub const NONE: Self = Self { holes_below: Offset::ZERO, clean_through: Offset::ZERO, next_horizon: None };
    /// Of one of which nothing is known: there may be holes anywhere, and all of it is to be compacted.
    const UNKNOWN: Self = Self { holes_below: Offset(i64::MAX), ..Self::NONE };

    /// Reads the file of the folder `dir`.
    pub fn load(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(FILE);
        remove_if_there(&dir.join(NEW_FILE))?;
        match fs::read(&path) {
            Ok(bytes) => Ok(decode(&bytes).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "damaged; the partition will be compacted from its start");
                Self::UNKNOWN
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::NONE),
            Err(error) => Err(error).on("read", &path),
        }
    }

    /// Writes the file durably.
    pub fn write(&self, dir: &Path) -> Result<(), LogError> {
        let (path, new): (PathBuf, PathBuf) = (dir.join(FILE), dir.join(NEW_FILE));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&encode(self))?;
            file.sync_all()
        });
        written.on("write", &new)?;
        crash_point();
        fs::rename(&new, &path).on("rename", &new)?;
        sync_dir(dir)
    }
}

fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&checkpoint.holes_below.0.to_be_bytes());
    out.extend_from_slice(&checkpoint.clean_through.0.to_be_bytes());
    out.extend_from_slice(&checkpoint.next_horizon.unwrap_or(Timestamp::NONE).0.to_be_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

/// None where the bytes are not a whole checkpoint of a known version.
fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*crc) {
        return None;
    }
    let fields = body.strip_prefix(MAGIC)?.strip_prefix(&VERSION.to_be_bytes())?;
    let mut numbers = fields.chunks_exact(8).filter_map(|field| Some(i64::from_be_bytes(*field.first_chunk()?)));
    let (holes_below, clean_through) = (Offset(numbers.next()?), Offset(numbers.next()?));
    let next_horizon = Some(Timestamp(numbers.next()?)).filter(|horizon| *horizon != Timestamp::NONE);
    (fields.len() == 24).then_some(Checkpoint { holes_below, clean_through, next_horizon })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let next_horizon = Some(Timestamp(1_431_860_400_000));
        Checkpoint { holes_below: Offset(500), clean_through: Offset(480), next_horizon }
    }

    #[test]
    fn golden_checkpoint() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cleaner-v1.checkpoint");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, encode(&checkpoint())).unwrap();
        }
        let stored = fs::read(&path).unwrap();
        assert_eq!(encode(&checkpoint()), stored);
        assert_eq!(decode(&stored), Some(checkpoint()));
    }

    #[test]
    fn damage_is_noticed_and_costs_a_compaction() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), Checkpoint::NONE);
        checkpoint().write(dir.path()).unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), checkpoint());
        let good = encode(&checkpoint());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!((decode(&bad), decode(&good[..at])), (None, None), "byte {at}");
        }
        fs::write(dir.path().join(FILE), &good[1..]).unwrap();
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), Checkpoint::UNKNOWN);
    }
}
