//! One consistent view of a partition over both tiers: every message in exactly one split.
//!
//! The seam is where the archive ends. It only moves up, and three things move it along, in this order: the archiver
//! commits a manifest; the live index drops the splits which that manifest covers; the log is trimmed. A search reads
//! in the opposite order:
//!
//! 1. the live snapshot,
//! 2. then the manifest, whose end is the seam,
//! 3. and restricts the live splits to offsets at or above the seam, the archived ones lie below it by definition.
//!
//! *Nothing is doubled*: below the seam only the archive answers, from it on only the live index.
//! *Nothing is missing*: what the live snapshot no longer held had been dropped because a manifest covered it, and the
//! manifest read afterwards covers at least as much; so the snapshot reaches down to the seam or below. What it holds
//! is immutable and its files stay while it is held. (The other order fails: between reading an old manifest and the
//! live index, a commit and a drop would leave a gap.)
//!
//! Offsets below the log start are in neither tier any more, whatever a split still holds.

use std::collections::HashMap;
use std::sync::Arc;

use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, TopicPartition};
use thermocline_ingest::topics::Topic;
use thermocline_tiering::manifest::{DataFile, ObjectRef};
use thermocline_tiering::worker::Tiering;

use super::live::{LiveIndex, LiveSplit, Spans};
use crate::prune::Extent;

/// Where a split is read from.
#[derive(Clone)]
pub(crate) enum Source {
    Live(Arc<LiveSplit>),
    Cold(ObjectRef),
}

/// What a search sees, from its start to its end.
#[derive(Default)]
pub(crate) struct View {
    pub splits: Vec<(Extent, Source)>,
    pub partitions: HashMap<TopicPartition, Arc<Partition>>,
    /// Version of each partition's manifest.
    versions: HashMap<TopicPartition, u64>,
    /// Data files that were archived without an index; their messages cannot be found.
    pub files_unindexed: usize,
}

impl View {
    pub fn take(live: &LiveIndex, tiering: &Tiering, topics: &[Arc<Topic>]) -> Self {
        let mut view = Self::default();
        for partition in topics.iter().flat_map(|topic| &topic.partitions) {
            view.add(live, tiering, partition);
        }
        view
    }

    /// Whether the archive has changed since, so that what the view names may have been merged and deleted.
    pub fn has_changed(&self, tiering: &Tiering) -> bool {
        self.partitions.iter().any(|(name, partition)| {
            self.versions.get(name).is_none_or(|version| *version != tiering.manifest(partition).version)
        })
    }

    fn add(&mut self, live: &LiveIndex, tiering: &Tiering, partition: &Arc<Partition>) {
        let name = partition.topic_partition();
        let snapshot = live.snapshot(partition);
        // Only now: see above.
        let manifest = tiering.manifest(partition);
        let seam = manifest.archived_through();
        let log_start = partition.log_start_offset().max(manifest.log_start_offset);
        for file in manifest.files.iter().filter(|file| file.last_offset >= log_start) {
            match &file.split {
                Some(split) => self.splits.push((cold_extent(name, file, log_start), Source::Cold(split.clone()))),
                None => self.files_unindexed += 1,
            }
        }
        for (visible, split) in snapshot.iter().flat_map(|live| live.from(seam.max(log_start))) {
            let extent = Extent {
                topic: name.topic.clone(),
                partition: name.partition,
                visible,
                stored: split.span(),
                min_timestamp: split.min_timestamp,
                max_timestamp: split.max_timestamp,
            };
            self.splits.push((extent, Source::Live(split.clone())));
        }
        self.versions.insert(name.clone(), manifest.version);
        self.partitions.insert(name.clone(), partition.clone());
    }
}

fn cold_extent(name: &TopicPartition, file: &DataFile, log_start: Offset) -> Extent {
    let stored = file.base_offset..file.last_offset.next();
    Extent {
        topic: name.topic.clone(),
        partition: name.partition,
        visible: stored.start.max(log_start)..stored.end,
        stored,
        min_timestamp: file.min_timestamp,
        max_timestamp: file.max_timestamp,
    }
}
