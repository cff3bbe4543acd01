//! Looking at many files at once: a walk down the tree that opens only what it wants to see closer.

use std::sync::Arc;

use thermocline_ingest::model::{Offset, Timestamp};

use super::{Entries, FileList, Part};
use crate::manifest::DataFile;

/// A file, or neighbouring files of which the bounds say enough for now.
#[derive(Clone, Debug)]
pub enum FileNode {
    File(Arc<DataFile>),
    Files(FileGroup),
}

/// At least one file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FileGroup(Arc<Part>);

impl FileList {
    /// All files in offset order, grouped as they are stored: a few nodes, whatever their number.
    pub fn nodes(&self) -> impl Iterator<Item = FileNode> {
        let groups = self.parts.iter().map(|part| FileNode::Files(FileGroup(part.clone())));
        groups.chain(self.tail.iter().map(|file| FileNode::File(file.clone())))
    }

    /// Files without a split.
    pub fn unindexed(&self) -> usize {
        self.parts.iter().map(|part| part.unindexed).sum::<usize>() + unindexed(&self.tail)
    }
}

impl FileGroup {
    pub fn base_offset(&self) -> Offset {
        self.0.base_offset
    }

    /// Inclusive.
    pub fn last_offset(&self) -> Offset {
        self.0.last_offset
    }

    pub fn min_timestamp(&self) -> Timestamp {
        self.0.min_timestamp
    }

    /// Inclusive.
    pub fn max_timestamp(&self) -> Timestamp {
        self.0.max_timestamp
    }

    /// What is in it, in offset order.
    pub fn nodes(&self) -> Vec<FileNode> {
        match &self.0.entries {
            Entries::Files(files) => files.iter().cloned().map(FileNode::File).collect(),
            Entries::Parts(parts) => parts.iter().cloned().map(FileGroup).map(FileNode::Files).collect(),
        }
    }
}

pub(super) fn unindexed(files: &[Arc<DataFile>]) -> usize {
    files.iter().filter(|file| file.split.is_none()).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::ObjectRef;

    fn object(key: String) -> ObjectRef {
        ObjectRef { key, size_bytes: 1, xxh3: String::new() }
    }

    fn files_of(group: &FileGroup) -> Vec<Arc<DataFile>> {
        let mut found = Vec::new();
        for node in group.nodes() {
            match node {
                FileNode::File(file) => found.push(file),
                FileNode::Files(inner) => found.extend(files_of(&inner)),
            }
        }
        let ends = (found.first().map(|file| file.base_offset), found.last().map(|file| file.last_offset));
        assert_eq!(ends, (Some(group.base_offset()), Some(group.last_offset())));
        assert_eq!(found.iter().map(|file| file.min_timestamp).min(), Some(group.min_timestamp()));
        assert_eq!(found.iter().map(|file| file.max_timestamp).max(), Some(group.max_timestamp()));
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn nodes_are_all_files_and_their_bounds(times in prop::collection::vec((0_i64..1000, 0_i64..50, any::<bool>()), 0..5000)) {
            let mut list = FileList::default();
            for (n, (min, span, is_indexed)) in (0..).zip(&times) {
                list.push(Arc::new(DataFile {
                    base_offset: Offset(n * 10),
                    last_offset: Offset(n * 10 + 9),
                    rows: 10,
                    dropped: 0,
                    min_timestamp: Timestamp(*min),
                    max_timestamp: Timestamp(min + span),
                    log_bytes: 1,
                    digest: String::new(),
                    data: object(format!("{n}.parquet")),
                    split: is_indexed.then(|| object(format!("{n}.split"))),
                    indexed: None,
                    raw: None,
                }));
                list.seal();
            }
            let nodes: Vec<FileNode> = list.nodes().collect();
            prop_assert!(nodes.len() < 4 * super::super::PART_FILES + 2 * super::super::PART_FANOUT);
            let found: Vec<Arc<DataFile>> = nodes
                .iter()
                .flat_map(|node| match node {
                    FileNode::File(file) => vec![file.clone()],
                    FileNode::Files(group) => files_of(group),
                })
                .collect();
            prop_assert!(found.iter().eq(list.iter()));
            prop_assert_eq!(list.unindexed(), times.iter().filter(|file| !file.2).count());
        }
    }
}
