//! Several splits become one without their records: Tantivy merges postings and columns, segment after segment.
//!
//! Tantivy stacks the segments in the order they are given and keeps the documents of each in theirs, as long as an
//! index is not sorted by a field and has no deletes; both holds for every split. So document `n` of the merged split
//! is row `n` of the merged file. That this is so is not left to the library: offsets must ascend over all documents
//! before a merged split is given out, and whoever has a file for it compares the rows of both ([`RowDigest`]).

use bytes::Bytes;
use tantivy::directory::RamDirectory;
use tantivy::indexer::merge_indices;
use thermocline_ingest::model::{Offset, Timestamp};

use super::package::package;
use super::reader::{SplitReader, column};
use super::{RowDigest, SplitError, SplitOptions};

/// How the splits of neighbouring files become one.
pub enum SplitJoin {
    Merge(SplitMerger),
    /// They have other fields or positions, so the records must be indexed again. Whatever could be searched for in
    /// one of the splits can be in all of the file then. Splits of different analysers are not joined: there are no
    /// words that would be found in both.
    IndexAgain(SplitOptions),
}

/// Splits of neighbouring files, in offset order, that were made in the same way.
pub struct SplitMerger {
    splits: Vec<SplitReader>,
    /// The only one of them as it is, where there is nothing to merge.
    whole: Option<Bytes>,
}

impl SplitJoin {
    /// `splits` in offset order. Reads from them: blocking.
    pub fn of(splits: Vec<SplitReader>) -> Result<Self, SplitError> {
        let mut pairs = splits.iter().zip(splits.iter().skip(1));
        if pairs.all(|(a, b)| a.fields.schema == b.fields.schema && a.index.settings() == b.index.settings()) {
            return Ok(Self::Merge(SplitMerger { splits, whole: None }));
        }
        let mut joint: Option<SplitOptions> = None;
        for split in &splits {
            let options = split.options()?;
            joint = Some(match joint {
                Some(joint) if joint.analyser != options.analyser => {
                    let (first, second) = (joint.analyser.name(), options.analyser.name());
                    return Err(SplitError::Analysers { first, second });
                }
                Some(joint) => joint.union(options),
                None => options,
            });
        }
        Ok(Self::IndexAgain(joint.unwrap_or_default()))
    }
}

impl SplitMerger {
    /// Of one split, whose bytes are these.
    pub fn of_whole(split: SplitReader, bytes: Bytes) -> Self {
        Self { splits: vec![split], whole: Some(bytes) }
    }

    /// How the splits were made, and the merged one is.
    pub fn options(&self) -> Option<SplitOptions> {
        self.splits.first().map(|split| split.fields.options())
    }

    /// The packaged split. CPU-bound; holds the inputs and the result in memory.
    pub fn finish(self) -> Result<Bytes, SplitError> {
        self.finish_if(|_| Ok(()))
    }

    /// The packaged split of a file with these rows.
    pub fn finish_for(self, rows: &RowDigest) -> Result<Bytes, SplitError> {
        self.finish_if(|found| match found == rows {
            true => Ok(()),
            false => Err(SplitError::Rows { docs: found.rows(), rows: rows.rows() }),
        })
    }

    fn finish_if(self, check: impl FnOnce(&RowDigest) -> Result<(), SplitError>) -> Result<Bytes, SplitError> {
        if let (Some(bytes), [split]) = (self.whole, self.splits.as_slice()) {
            check(&rows_of(&split.index)?)?;
            return Ok(bytes);
        }
        let indices: Vec<_> = self.splits.into_iter().map(|split| split.index).collect();
        let directory = RamDirectory::create();
        let merged = merge_indices(&indices, directory.clone())?;
        drop(indices);
        check(&rows_of(&merged)?)?;
        package(merged, directory)
    }
}

/// The documents, whose offsets ascend.
fn rows_of(index: &tantivy::Index) -> Result<RowDigest, SplitError> {
    let searcher = index.reader()?.searcher();
    let (mut rows, mut before) = (RowDigest::default(), None);
    for segment in searcher.segment_readers() {
        let (offsets, timestamps) = (column(segment, "offset")?, column(segment, "timestamp")?);
        for doc in 0..segment.max_doc() {
            let offset = offsets.get_val(doc);
            if let Some(before) = before.filter(|before| *before >= offset) {
                return Err(SplitError::Order { doc, offset, before });
            }
            before = Some(offset);
            rows.add(Offset(offset), Timestamp(timestamps.get_val(doc)));
        }
    }
    Ok(rows)
}
