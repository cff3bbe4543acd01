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
use std::ops::Range;
use std::sync::Arc;

use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, Timestamp, TopicPartition};
use thermocline_ingest::topics::Topic;
use thermocline_tiering::manifest::{DataFile, FileGroup, FileNode, Manifest, ObjectRef};
use thermocline_tiering::worker::Tiering;

use super::Search;
use super::live::{LiveIndex, LiveSplit, Spans};
use crate::prune::{Extent, Group, Node};

/// Where a split is read from.
#[derive(Clone)]
pub(crate) enum Source {
    Live(Arc<LiveSplit>),
    Cold(ObjectRef),
}

/// Neighbouring archived files of one partition.
pub(crate) struct ColdFiles {
    name: TopicPartition,
    log_start: Offset,
    files: FileGroup,
}

/// What a search sees, from its start to its end. Its size does not grow with the files of the archive.
#[derive(Default)]
pub(crate) struct View {
    live: Vec<(Extent, Arc<LiveSplit>)>,
    cold: Vec<Cold>,
    pub partitions: HashMap<TopicPartition, Arc<Partition>>,
    /// Of partitions that are indexed: the first offset that is in no split yet.
    indexed: Vec<(Arc<Partition>, Offset)>,
}

/// The archive of a partition.
struct Cold {
    name: TopicPartition,
    log_start: Offset,
    manifest: Arc<Manifest>,
}

impl View {
    pub fn take(live: &LiveIndex, tiering: &Tiering, topics: &[Arc<Topic>]) -> Self {
        let mut view = Self::default();
        for partition in topics.iter().flat_map(|topic| &topic.partitions) {
            view.add(live, tiering, partition);
        }
        view
    }

    /// Splits of both tiers.
    pub fn splits(&self) -> usize {
        let cold = self.cold.iter().map(|cold| cold.manifest.files.len()).sum::<usize>();
        self.live.len() + cold.saturating_sub(self.files_unindexed())
    }

    /// Data files that were archived without an index; their messages cannot be found.
    pub fn files_unindexed(&self) -> usize {
        self.cold.iter().map(|cold| cold.manifest.files.unindexed()).sum()
    }

    /// Messages in live splits.
    pub fn hot_docs(&self) -> u64 {
        self.live.iter().map(|(_, split)| split.docs).sum()
    }

    /// Committed offsets of indexed topics that are in no split yet, counted now.
    pub fn offsets_unindexed(&self) -> u64 {
        let behind = |(partition, indexed): &(Arc<Partition>, Offset)| {
            partition.last_stable_offset().0.saturating_sub(indexed.0).max(0).cast_unsigned()
        };
        self.indexed.iter().map(behind).sum()
    }

    /// The splits, as far as they are grouped.
    pub fn nodes(&self) -> impl Iterator<Item = Node<Source, ColdFiles>> {
        let live = self.live.iter().map(|(extent, split)| Node::Split(extent.clone(), Source::Live(split.clone())));
        let cold = self.cold.iter().flat_map(|cold| {
            cold.manifest.files.nodes().filter_map(|node| cold_node(&cold.name, cold.log_start, node))
        });
        live.chain(cold)
    }

    /// Whether the archive has changed since, so that what the view names may have been merged and deleted.
    pub fn has_changed(&self, tiering: &Tiering) -> bool {
        self.cold.iter().any(|cold| {
            let partition = self.partitions.get(&cold.name);
            partition.is_none_or(|partition| tiering.manifest(partition).version != cold.manifest.version)
        })
    }

    fn add(&mut self, live: &LiveIndex, tiering: &Tiering, partition: &Arc<Partition>) {
        let name = partition.topic_partition();
        let snapshot = live.snapshot(partition);
        // Only now: see above.
        let manifest = tiering.manifest(partition);
        let seam = manifest.archived_through();
        let log_start = partition.log_start_offset().max(manifest.log_start_offset);
        for (visible, split) in snapshot.iter().flat_map(|live| live.from(seam.max(log_start))) {
            self.live.push((live_extent(name, split, visible.start), split.clone()));
        }
        if Search::is_indexed(partition) {
            let indexed = snapshot.map_or(Offset::ZERO, |live| live.indexed_through).max(seam).max(log_start);
            self.indexed.push((partition.clone(), indexed));
        }
        self.cold.push(Cold { name: name.clone(), log_start, manifest });
        self.partitions.insert(name.clone(), partition.clone());
    }
}

impl Group<Source> for ColdFiles {
    fn nodes(self) -> Vec<Node<Source, Self>> {
        let nodes = self.files.nodes().into_iter();
        nodes.filter_map(|node| cold_node(&self.name, self.log_start, node)).collect()
    }
}

/// None of a file without a split.
fn cold_node(name: &TopicPartition, log_start: Offset, node: FileNode) -> Option<Node<Source, ColdFiles>> {
    match node {
        FileNode::File(file) => {
            let split = file.split.clone()?;
            Some(Node::Split(cold_extent(name, &file, log_start), Source::Cold(split)))
        }
        FileNode::Files(files) => {
            let stored = files.base_offset()..files.last_offset().next();
            let times = (files.min_timestamp(), files.max_timestamp());
            let extent = extent(name, stored, log_start, times);
            Some(Node::Group(extent, ColdFiles { name: name.clone(), log_start, files }))
        }
    }
}

/// What answers for a partition from one offset on: a view taken piece by piece, for what lasts longer than a search.
pub(crate) enum Piece {
    /// The split that answers at the offset, or the first after it; it answers for nothing below.
    Split(Extent, Source),
    /// A data file that was archived without an index.
    Unindexed(Range<Offset>),
    /// Nothing from there on; everything below (exclusive) has been answered for.
    End(Offset),
}

impl Piece {
    /// Going on where the piece before ended, however the seam has moved since, gives each message once: a piece is a
    /// part of the view of its moment, and views differ in which split holds a message, not in whether one does.
    pub fn take(live: &LiveIndex, tiering: &Tiering, partition: &Partition, at: Offset) -> Self {
        let name = partition.topic_partition();
        let snapshot = live.snapshot(partition);
        // Only now: see above.
        let manifest = tiering.manifest(partition);
        let at = at.max(partition.log_start_offset()).max(manifest.log_start_offset);
        if let Some(file) = manifest.file_for(at) {
            return match &file.split {
                Some(split) => Self::Split(cold_extent(name, file, at), Source::Cold(split.clone())),
                None => Self::Unindexed(file.base_offset.max(at)..file.last_offset.next()),
            };
        }
        // Not in the archive, so at or above the seam.
        let Some(snapshot) = snapshot else { return Self::End(at) };
        match snapshot.from(at).next() {
            Some((visible, split)) => Self::Split(live_extent(name, split, visible.start), Source::Live(split.clone())),
            None => Self::End(snapshot.indexed_through.max(at)),
        }
    }
}

fn live_extent(name: &TopicPartition, split: &LiveSplit, start: Offset) -> Extent {
    extent(name, split.span(), start, (split.min_timestamp, split.max_timestamp))
}

fn cold_extent(name: &TopicPartition, file: &DataFile, start: Offset) -> Extent {
    extent(name, file.base_offset..file.last_offset.next(), start, (file.min_timestamp, file.max_timestamp))
}

/// Of what is stored, offsets from `start` on are visible.
fn extent(name: &TopicPartition, stored: Range<Offset>, start: Offset, times: (Timestamp, Timestamp)) -> Extent {
    Extent {
        topic: name.topic.clone(),
        partition: name.partition,
        visible: stored.start.max(start)..stored.end,
        stored,
        min_timestamp: times.0,
        max_timestamp: times.1,
    }
}
