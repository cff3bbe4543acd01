//! Single records out of data files, row group by row group: see `plan.rs` for how each is read.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use futures::TryStreamExt;
use futures::stream::FuturesOrdered;
use thermocline_ingest::model::Offset;
use thermocline_ingest::record::{BatchDecoder, BatchError, DECOMPRESSED_BATCH_BYTES_MAX, Record, split_batches};
use tokio::task::spawn_blocking;

use super::plan::{Way, choose};
use super::{ColdError, ColdReader};
use crate::cache::{ObjectId, ReadCounts};
use crate::encode::EncodedRowGroup;
use crate::manifest::{DataFile, Manifest};
use crate::parquet_read::ColdFile;
use crate::reader::{Found, OwnedRecord};

/// Row groups read side by side for one request: what an answer that ends early may have read for nothing, or rather
/// for the next one, since both ways keep what they read.
const GROUPS_AT_ONCE: usize = 4;

/// Wanted offsets that one row group answers for.
struct Wanted {
    file: Arc<DataFile>,
    opened: Arc<ColdFile>,
    group: usize,
    offsets: Vec<Offset>,
    /// Their positions among the offsets asked for.
    at: Range<usize>,
}

impl ColdReader {
    /// The records at exactly these offsets (ascending); `None` where there is none. Ends early once the records found
    /// are `max_bytes` or more: the answer is then for the first of the offsets, at least those of one batch.
    pub async fn records(&self, manifest: &Manifest, offsets: &[Offset], max_bytes: usize) -> Result<Found, ColdError> {
        let mut files = by_file(manifest, offsets).into_iter();
        let mut groups = VecDeque::new();
        let mut reads = FuturesOrdered::new();
        let (mut found, mut bytes) = (Found::default(), 0);
        loop {
            while reads.len() < GROUPS_AT_ONCE {
                if let Some(wanted) = groups.pop_front() {
                    reads.push_back(self.clone().of_row_group(wanted, max_bytes));
                } else if let Some((file, at)) = files.next() {
                    groups = self.row_groups(file, offsets, at).await?;
                } else {
                    break;
                }
            }
            let Some((of_group, at)) = reads.try_next().await? else { break };
            found.records.resize(at.start, None);
            let is_cut = of_group.records.len() < at.len();
            bytes += of_group.size_bytes();
            found.append(of_group);
            if is_cut || bytes >= max_bytes {
                return Ok(found);
            }
        }
        found.records.resize(offsets.len(), None);
        Ok(found)
    }

    /// Which row groups of a file hold its part of the offsets.
    async fn row_groups(
        &self,
        file: Arc<DataFile>,
        offsets: &[Offset],
        at: Range<usize>,
    ) -> Result<VecDeque<Wanted>, ColdError> {
        let opened = self.inner.parquet.file(&file).await?;
        let (mut groups, mut start) = (VecDeque::new(), at.start);
        while let Some(rest) = offsets.get(start..at.end).filter(|rest| !rest.is_empty()) {
            let group = rest.first().map_or(0, |offset| opened.row_group_of(*offset));
            // At least one, so that a file that is not what it should be does not keep us here.
            let count = rest.partition_point(|offset| *offset < opened.span(group).end).max(1);
            let (offsets, at) = (rest.iter().take(count).copied().collect(), start..start + count);
            groups.push_back(Wanted { file: file.clone(), opened: opened.clone(), group, offsets, at });
            start += count;
        }
        Ok(groups)
    }

    /// The records of one row group, with their positions among the offsets asked for.
    async fn of_row_group(self, wanted: Wanted, max_bytes: usize) -> Result<(Found, Range<usize>), ColdError> {
        let Wanted { file, opened, group, offsets, at } = wanted;
        let rows: Vec<Option<u64>> = offsets.iter().map(|offset| opened.row_of(*offset)).collect();
        let object = ObjectId::of(&file.data);
        let kept: Vec<_> = rows.iter().map(|row| row.and_then(|row| self.inner.records.get(object, row))).collect();
        let mut missing: Vec<u64> =
            rows.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).filter_map(|(row, _)| *row).collect();
        missing.dedup();
        if missing.is_empty() {
            return Ok((Found { records: kept, ..Found::default() }, at));
        }
        let (stored, decoded) = opened.row_group_bytes(group);
        let is_here = self.inner.batches.contains(&(object, group));
        if is_here || choose(opened.pages_of(group, &missing), stored, decoded) == Way::Scan {
            let encoded = self.row_group(&file, &opened, group).await?;
            let mut picked = spawn_blocking(move || pick(&encoded, &offsets, max_bytes)).await?;
            // What was kept raw is in the batches, and is no row.
            picked.iter_mut().zip(&rows).filter(|(_, row)| row.is_none()).for_each(|(slot, _)| *slot = None);
            return Ok((Found { records: picked, row_groups_scanned: 1, ..Found::default() }, at));
        }
        let (inner, runtime) = (self.inner, tokio::runtime::Handle::current());
        // Pages are decompressed and decoded between the downloads.
        let counts = ReadCounts::current();
        let read = spawn_blocking(move || {
            let read = runtime.block_on(ReadCounts::carry(counts, inner.parquet.rows(&opened, &missing)))?;
            missing.iter().zip(&read).for_each(|(row, record)| inner.records.insert(object, *row, record));
            Ok::<_, ColdError>((missing, read))
        });
        let (missing, read) = read.await??;
        let rows_fetched = read.len() as u64;
        let of_row = |row: u64| missing.binary_search(&row).ok().and_then(|at| read.get(at)).cloned();
        let records = kept.into_iter().zip(rows).map(|(kept, row)| kept.or_else(|| row.and_then(of_row))).collect();
        Ok((Found { records, rows_fetched, ..Found::default() }, at))
    }
}

/// The files that hold the offsets, with the positions of theirs. Offsets that no file covers are in none.
fn by_file(manifest: &Manifest, offsets: &[Offset]) -> Vec<(Arc<DataFile>, Range<usize>)> {
    let (mut files, mut at) = (Vec::new(), 0);
    while let Some(file) = offsets.get(at).and_then(|offset| manifest.file_for(*offset)) {
        let start = offsets.partition_point(|offset| *offset < file.base_offset).max(at);
        let end = offsets.partition_point(|offset| *offset <= file.last_offset);
        if start < end {
            files.push((file.clone(), start..end));
        }
        at = end.max(start);
    }
    files
}

/// The records at `offsets`, decoding only batches that hold one. Blocking.
fn pick(encoded: &EncodedRowGroup, offsets: &[Offset], max_bytes: usize) -> Vec<Option<OwnedRecord>> {
    let mut decoder = BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX);
    let mut found: Vec<Option<OwnedRecord>> = vec![None; offsets.len()];
    let (mut at, mut bytes) = (0, 0);
    while let Some(offset) = offsets.get(at).copied() {
        if at > 0 && bytes >= max_bytes {
            found.truncate(at);
            break;
        }
        let slice = encoded.slice(offset, offset.next(), 1, true);
        for batch in split_batches(slice.bytes).flatten() {
            let take = |record: Record<'_>| -> Result<(), BatchError> {
                if let Some(slot) = offsets.binary_search(&record.offset).ok().and_then(|at| found.get_mut(at)) {
                    let record = OwnedRecord::from(&record);
                    bytes += record.size_bytes();
                    *slot = Some(record);
                }
                Ok(())
            };
            // What was kept raw need not be decodable.
            if let Err(error) = decoder.for_each(&batch, take) {
                tracing::debug!(%offset, %error, "a batch that was kept raw cannot be decoded");
            }
        }
        at = (at + 1).max(offsets.partition_point(|wanted| *wanted < slice.next));
    }
    found
}
