//! Proof that the cold tier holds what it says: one way to check a file, for the pipeline before it commits, for
//! `thermocline tier verify`, and for the scrub.
//!
//! | object | is sound when |
//! |---|---|
//! | any | it exists, with the size and the xxh3 that the manifest has |
//! | data (`verify/data.rs`) | it decodes; footer, number of rows, every offset, the bounds of time and the content digest agree |
//! | split (`verify/split.rs`) | it opens, and document n has the offset of row n |
//! | raw (`verify/raw.rs`) | every batch is where the manifest says, with a valid CRC and its offsets |
//! | manifest and parts (`verify/survey.rs`) | they load: hashes, names and contiguity are checked by that |
//!
//! # Damage, or only gone
//! Files are replaced while they are checked: merged, or expired, and deleted some time after. What is wrong counts
//! only if the newest manifest, loaded after the attempt, still names the object ([`check_named`]). Nothing of a topic
//! is named any more once its removal has begun. A store that does not answer is no statement about its objects.
//!
//! # Memory
//! One object, decoded row group by row group. Nothing is written and nothing repaired.

mod data;
mod digest;
mod raw;
mod split;
pub mod survey;

use std::fmt::Display;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use thermocline_ingest::model::Offset;
use xxhash_rust::xxh3::xxh3_128;

use crate::background::{Background, BackgroundError};
use crate::budget::Budget;
use crate::manifest::{DataFile, ManifestError, ManifestHead, ManifestStore, ObjectRef};
use crate::paths::{self, PartitionPath};
use crate::pipeline::StagedArchive;
use crate::store::{ColdStore, StoreError, StoreFailure};
pub use digest::ContentDigest;

/// Read at once where reading has a budget.
const PIECE_BYTES: u64 = 4 << 20;
/// What an object costs of a budget at least: a request is not free, however small its answer.
pub(crate) const OBJECT_COST_BYTES: u64 = 64 << 10;

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it is not in the store")]
    Missing,
    #[error("it has {found} bytes, the manifest says {expected}")]
    Size { expected: u64, found: u64 },
    #[error("its bytes have xxh3 {found}, the manifest says {expected}")]
    Hash { expected: String, found: String },
    #[error("{what} is {found}, the manifest says {expected}")]
    Content { what: &'static str, expected: String, found: String },
    #[error("it cannot be read: {reason}")]
    Undecodable { reason: String },
}

/// An object that is not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {fault}")]
pub struct Damage {
    pub key: String,
    pub fault: Fault,
}

/// Why a check failed, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("reading what is to be checked")]
    Store(#[from] StoreError),
    #[error("loading the manifest")]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Damaged(#[from] Damage),
    #[error("checking {key}")]
    Background { key: String, source: BackgroundError },
}

impl VerifyError {
    /// Whether the store gave back something else, as opposed to nothing.
    pub fn is_mismatch(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }
}

/// What a check of a file that a manifest names came to.
#[derive(Debug)]
pub enum FileCheck {
    Sound,
    /// At most one damage per object.
    Damaged(Vec<Damage>),
    /// The newest manifest, which this is, does not name the file any more.
    Replaced(ManifestHead),
}

/// The hash of an object's bytes, lower-case hex, as `ObjectRef::xxh3` has it.
pub fn object_hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// Reads everything of `staged` back from the store and checks it, as nobody has named it yet.
pub async fn read_back(store: &ColdStore, background: &Background, staged: &StagedArchive) -> Result<(), VerifyError> {
    match check_file(store, background, &Arc::new(staged.file().clone()), None).await?.into_iter().next() {
        None => Ok(()),
        Some(damage) => Err(damage.into()),
    }
}

/// The same for the split of a file alone.
pub async fn read_back_split(
    store: &ColdStore,
    background: &Background,
    file: &Arc<DataFile>,
) -> Result<(), VerifyError> {
    match check_split(store, background, file, None).await? {
        None => Ok(()),
        Some(damage) => Err(damage.into()),
    }
}

/// Checks a file that a manifest of `path` names or named.
pub async fn check_named(
    store: &ColdStore,
    background: &Background,
    manifests: &ManifestStore,
    path: &PartitionPath,
    file: &Arc<DataFile>,
    budget: Option<&Budget>,
) -> Result<FileCheck, VerifyError> {
    let mut damage = check_file(store, background, file, budget).await?;
    if damage.is_empty() {
        return Ok(FileCheck::Sound);
    }
    let newest = match load_newest(store, manifests, path).await? {
        Ok(newest) => newest,
        // Nothing says that the file was replaced.
        Err(manifest) => {
            damage.push(manifest);
            return Ok(FileCheck::Damaged(damage));
        }
    };
    let found = newest.manifest().file_for(file.base_offset);
    let is_named = |damage: &Damage| found.is_some_and(|file| file.objects().any(|object| object.key == damage.key));
    if damage.iter().all(is_named) { Ok(FileCheck::Damaged(damage)) } else { Ok(FileCheck::Replaced(newest)) }
}

/// The newest manifest of a partition, or what is damaged of it; an empty one where the topic's removal has begun, for
/// then its objects go in any order.
pub(crate) async fn load_newest(
    store: &ColdStore,
    manifests: &ManifestStore,
    path: &PartitionPath,
) -> Result<Result<ManifestHead, Damage>, VerifyError> {
    let mut loaded = manifests.load(path).await;
    // A part may go between the reading of the version that names it and its own, when a newer version replaced it.
    if matches!(&loaded, Err(ManifestError::Store { source, .. }) if source.is_not_found()) {
        loaded = manifests.load(path).await;
    }
    let newest = match loaded {
        Ok(head) => Ok(head),
        Err(ManifestError::Corrupt { key, reason }) => Err(Damage { key, fault: Fault::Undecodable { reason } }),
        Err(ManifestError::Store { partition, source }) => match source.source {
            StoreFailure::Length { expected, found } => {
                Err(Damage { key: source.key, fault: Fault::Size { expected, found } })
            }
            _ if source.is_not_found() => Err(Damage { key: source.key, fault: Fault::Missing }),
            _ => return Err(ManifestError::Store { partition, source }.into()),
        },
        Err(error) => return Err(error.into()),
    };
    // Asked last: what a removal deletes, it deletes after it has made the mark.
    let tombstone = paths::tombstone(&path.topic, path.topic_id);
    let is_being_removed = store.size_bytes(&tombstone).await?.is_some();
    Ok(if is_being_removed { Ok(ManifestHead::empty(path)) } else { newest })
}

/// The bytes of an object, which must be those that `object` was made for.
pub(crate) async fn fetch_checked(
    store: &ColdStore,
    background: &Background,
    object: &ObjectRef,
) -> Result<Bytes, VerifyError> {
    let damaged = |fault| VerifyError::Damaged(Damage { key: object.key.clone(), fault });
    let bytes = fetch(store, object, None).await?.map_err(damaged)?;
    let expected = object.clone();
    let checking = move || check_bytes(&expected, &bytes).map(|()| bytes);
    let checked = background.run("archive-verify", checking).await;
    let failed = |source| VerifyError::Background { key: object.key.clone(), source };
    checked.map_err(failed)?.map_err(damaged)
}

/// Bytes that [`check_named`] reads.
pub fn file_bytes(file: &DataFile) -> u64 {
    file.objects().map(|object| object.size_bytes).sum()
}

/// Everything that is wrong with the objects of a file, at most one damage each; one object after the other.
async fn check_file(
    store: &ColdStore,
    background: &Background,
    file: &Arc<DataFile>,
    budget: Option<&Budget>,
) -> Result<Vec<Damage>, VerifyError> {
    let mut damage = Vec::new();
    let data = file.clone();
    let check = move |bytes| match PartitionPath::of(&data.data.path()) {
        Some(path) => data::check(&path, &data, bytes),
        None => Err(Fault::Undecodable { reason: "its key is not that of a partition's object".to_owned() }),
    };
    damage.extend(check_object(store, background, &file.data, budget, check).await?);
    damage.extend(check_split(store, background, file, budget).await?);
    if let Some(raw) = &file.raw {
        let (file, batches) = (file.clone(), raw.clone());
        damage.extend(
            check_object(store, background, &raw.object, budget, move |bytes| raw::check(&file, &batches, &bytes))
                .await?,
        );
    }
    Ok(damage)
}

async fn check_split(
    store: &ColdStore,
    background: &Background,
    file: &Arc<DataFile>,
    budget: Option<&Budget>,
) -> Result<Option<Damage>, VerifyError> {
    let Some(split) = &file.split else { return Ok(None) };
    let file = file.clone();
    check_object(store, background, split, budget, move |bytes| split::check(&file, bytes)).await
}

/// Reads an object, compares it with its reference, then does `check` on a background thread.
async fn check_object(
    store: &ColdStore,
    background: &Background,
    object: &ObjectRef,
    budget: Option<&Budget>,
    check: impl FnOnce(Bytes) -> Result<(), Fault> + Send + 'static,
) -> Result<Option<Damage>, VerifyError> {
    let checked = match fetch(store, object, budget).await? {
        Err(fault) => Err(fault),
        Ok(bytes) => {
            let expected = object.clone();
            let checking = move || check_bytes(&expected, &bytes).and_then(|()| check(bytes));
            match background.run("archive-verify", checking).await {
                Ok(checked) => checked,
                // A decoder that panics over bytes with the right hash cannot read what was written.
                Err(BackgroundError::Panicked { .. }) => {
                    Err(Fault::Undecodable { reason: "the decoder gave up on it".to_owned() })
                }
                Err(source) => return Err(VerifyError::Background { key: object.key.clone(), source }),
            }
        }
    };
    Ok(checked.err().map(|fault| Damage { key: object.key.clone(), fault }))
}

async fn fetch(
    store: &ColdStore,
    object: &ObjectRef,
    budget: Option<&Budget>,
) -> Result<Result<Bytes, Fault>, StoreError> {
    let (key, expected) = (object.path(), object.size_bytes);
    if let Some(budget) = budget {
        budget.take(OBJECT_COST_BYTES.saturating_sub(expected)).await;
    }
    match store.size_bytes(&key).await? {
        None => return Ok(Err(Fault::Missing)),
        Some(found) if found != expected => return Ok(Err(Fault::Size { expected, found })),
        Some(_) => {}
    }
    let read = match budget {
        None => store.get_sized(&key, expected).await,
        Some(budget) => fetch_in_pieces(store, object, budget).await,
    };
    match read {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(error) if error.is_not_found() => Ok(Err(Fault::Missing)),
        Err(error) => Err(error),
    }
}

/// One piece after the other, each when its time has come.
async fn fetch_in_pieces(store: &ColdStore, object: &ObjectRef, budget: &Budget) -> Result<Bytes, StoreError> {
    let key = object.path();
    let mut bytes = BytesMut::new();
    let mut start = 0;
    while start < object.size_bytes {
        let end = object.size_bytes.min(start.saturating_add(PIECE_BYTES));
        budget.take(end - start).await;
        bytes.extend_from_slice(&store.get_range(&key, start..end).await?);
        start = end;
    }
    Ok(bytes.freeze())
}

fn check_bytes(object: &ObjectRef, bytes: &[u8]) -> Result<(), Fault> {
    let found_bytes = bytes.len() as u64;
    if found_bytes != object.size_bytes {
        return Err(Fault::Size { expected: object.size_bytes, found: found_bytes });
    }
    let found = object_hash(bytes);
    if found == object.xxh3 { Ok(()) } else { Err(Fault::Hash { expected: object.xxh3.clone(), found }) }
}

/// The offsets that rows of a data file, or documents of its split, are still expected at. Which of them were dropped
/// the manifest does not say, only how many.
struct RowOffsets<I> {
    offsets: I,
    /// how many of them may have no row
    dropped: u64,
}

impl<I: Iterator<Item = Offset>> RowOffsets<I> {
    /// The next row is at `found`.
    fn expect(&mut self, found: i64) -> Result<(), Fault> {
        loop {
            match self.offsets.next() {
                Some(expected) if expected.0 == found => return Ok(()),
                Some(expected) if expected.0 < found && self.dropped > 0 => self.dropped -= 1,
                Some(expected) => return Err(content("offset", &expected, &found)),
                None => return Err(content("offset", &"no further one", &found)),
            }
        }
    }

    /// There are no more rows.
    fn finish(self) -> Result<(), Fault> {
        let may_lack = usize::try_from(self.dropped).unwrap_or(usize::MAX);
        match { self.offsets }.nth(may_lack) {
            Some(missing) => Err(content("offset", &missing, &"no further one")),
            None => Ok(()),
        }
    }
}

fn row_offsets(file: &DataFile) -> RowOffsets<impl Iterator<Item = Offset>> {
    RowOffsets { offsets: not_raw(file), dropped: file.dropped }
}

/// The offsets of a file, ascending, but those that are kept raw.
fn not_raw(file: &DataFile) -> impl Iterator<Item = Offset> {
    let mut raw = file.raw.iter().flat_map(|raw| &raw.batches).peekable();
    let (mut next, last) = (file.base_offset, file.last_offset);
    std::iter::from_fn(move || {
        while let Some(batch) = raw.next_if(|batch| batch.base_offset <= next) {
            next = next.max(batch.last_offset.next());
        }
        let offset = next;
        next = next.next();
        (offset <= last).then_some(offset)
    })
}

fn content(what: &'static str, expected: &dyn Display, found: &dyn Display) -> Fault {
    Fault::Content { what, expected: expected.to_string(), found: found.to_string() }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
