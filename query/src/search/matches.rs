//! Every match of a query in a range of one partition, in offset order: what a replay, a live tail and an aggregation
//! over messages are made of.
//!
//! Invariants:
//! - The answer is that of a search (`view.rs`), piece by piece: each piece is looked up when the one before has been
//!   given out, and begins where that one ended. So segments may move from hot to cold, and files be merged, between
//!   any two pieces; each match comes once.
//! - Memory is bounded by one bit for each document of one split.
//! - What is not indexed yet is waited for; what never will be is an error, or left out where the caller says so.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tantivy::DocId;
use tantivy::columnar::ColumnValues;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, Timestamp, TopicName};
use thermocline_ingest::topics::Topic;
use thermocline_tiering::split::{SplitOptions, SplitReader};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::ast::SearchQuery;
use super::collect::{Beside, BesideSplit};
use super::execute::{self, Job};
use super::view::{ColdFiles, Piece, Source};
use super::{ATTEMPTS_MAX, Search, SearchError};
use crate::prune::{Extent, Node, Plan, Planned, Scope};

/// Most offsets given out at once.
pub(crate) const OFFSETS_MAX: usize = 4096;
/// How long the live index may take to reach a message before that is an error.
const INDEX_PATIENCE: Duration = Duration::from_secs(60);
/// How often an archive that moves is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A query that fits the topics it is for.
#[derive(Clone, Debug)]
pub struct CheckedQuery(Arc<SearchQuery>);

/// What becomes of messages without an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unindexed {
    /// They end the stream with an error.
    #[default]
    Stop,
    /// They are left out.
    Skip,
}

/// What is asked of a partition.
#[derive(Clone, Debug)]
pub(crate) struct MatchRange {
    pub from: Offset,
    /// Exclusive.
    pub until: Offset,
    /// For its time range.
    pub scope: Scope,
    pub unindexed: Unindexed,
}

/// Matches that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Matched {
    /// Strictly ascending; at most [`OFFSETS_MAX`].
    pub offsets: Vec<Offset>,
    /// Every match below (exclusive) has been given out.
    pub through: Offset,
}

/// The matches of one partition.
pub(crate) struct Matches {
    search: Arc<Search>,
    query: CheckedQuery,
    partition: Arc<Partition>,
    range: MatchRange,
    /// Where the next piece begins.
    at: Offset,
    split: Option<SplitMatches>,
    progress: watch::Receiver<()>,
}

/// The matches of one split that are still to be given out.
struct SplitMatches {
    docs: DocSet,
    /// The next document to look at.
    next: DocId,
    offset: Option<Arc<dyn ColumnValues<i64>>>,
    /// Where the split's answer ends.
    end: Offset,
}

/// One bit for each document.
#[derive(Debug, Default)]
struct DocSet {
    words: Vec<u64>,
}

/// The documents of a split that match, and their offsets.
#[derive(Default)]
struct SplitDocs {
    docs: DocSet,
    /// None of a split without documents.
    offset: Option<Arc<dyn ColumnValues<i64>>>,
}

/// Where a search of one split leaves what it finds.
#[derive(Default)]
struct Found(Arc<Mutex<SplitDocs>>);

struct Collecting {
    docs: SplitDocs,
    found: Arc<Mutex<SplitDocs>>,
}

impl CheckedQuery {
    /// Whether messages of `topic` can match at all.
    pub fn may_match(&self, topic: &TopicName) -> bool {
        self.0.may_match(topic)
    }
}

impl Search {
    /// Reads a query for these topics; refused as a search is. No names mean every topic that is not internal. `now` is
    /// what the query means by it. The topics are those that can have matches.
    pub async fn checked(
        &self,
        query: &str,
        now: Timestamp,
        topics: Vec<TopicName>,
    ) -> Result<(CheckedQuery, Vec<Arc<Topic>>), SearchError> {
        let mut topics = self.topics((!topics.is_empty()).then_some(topics))?;
        let query = SearchQuery::parse(query, now)?;
        topics.retain(|topic| query.may_match(&topic.name));
        self.check(&query, &topics).await?;
        Ok((CheckedQuery(Arc::new(query)), topics))
    }

    /// The matches of `range`. Nothing is read before the first is asked for.
    pub(crate) fn matches(
        self: &Arc<Self>,
        query: &CheckedQuery,
        partition: &Arc<Partition>,
        range: MatchRange,
    ) -> Matches {
        let (query, partition, at) = (query.clone(), partition.clone(), range.from);
        Matches { search: self.clone(), query, partition, range, at, split: None, progress: self.live.watch() }
    }

    /// Whether new messages of a partition become searchable.
    pub(crate) fn is_indexed(partition: &Partition) -> bool {
        SplitOptions::of_topic(&partition.config()).is_some()
    }
}

impl Matches {
    /// The next matches, maybe none of a stretch without any; `None` at the end of the range.
    pub async fn next(&mut self) -> Result<Option<Matched>, SearchError> {
        let (mut patience, mut attempts) = (None, 0);
        loop {
            if let Some(split) = &mut self.split {
                let matched = split.next_offsets();
                if split.is_exhausted() {
                    self.split = None;
                }
                self.at = matched.through;
                return Ok(Some(matched));
            }
            if self.at >= self.range.until {
                return Ok(None);
            }
            if self.partition.is_closed() {
                return Err(SearchError::UnknownTopic(self.partition.topic_partition().topic.clone()));
            }
            self.progress.mark_unchanged();
            let version = self.manifest_version();
            match Piece::take(&self.search.live, &self.search.tiering, &self.partition, self.at) {
                Piece::Split(mut extent, source) => {
                    extent.visible.end = extent.visible.end.min(self.range.until);
                    let end = extent.visible.end.max(self.at);
                    let split = Node::<_, ColdFiles>::Split(extent, source);
                    let Some(planned) = Plan::new([split], &self.range.scope).next() else {
                        return Ok(Some(self.nothing_until(end)));
                    };
                    match self.search_split(planned).await {
                        Ok(split) => self.split = Some(split),
                        // The split was merged into another and deleted as we came.
                        Err(SearchError::Open { .. } | SearchError::Split { .. })
                            if attempts + 1 < ATTEMPTS_MAX && self.manifest_version() != version =>
                        {
                            attempts += 1;
                        }
                        Err(error) => return Err(error),
                    }
                }
                Piece::Unindexed(range) if range.start < self.range.until => {
                    let end = range.end.min(self.range.until);
                    return self.unindexed(range.start, end).map(Some);
                }
                Piece::Unindexed(_) => return Ok(Some(self.nothing_until(self.range.until))),
                Piece::End(through) if through > self.at => {
                    return Ok(Some(self.nothing_until(through.min(self.range.until))));
                }
                Piece::End(_) if !Search::is_indexed(&self.partition) => {
                    return self.unindexed(self.at, self.range.until).map(Some);
                }
                Piece::End(_) => {
                    let now = Instant::now();
                    let deadline = *patience.get_or_insert(now + INDEX_PATIENCE);
                    if now >= deadline {
                        // It will have an index, so nothing is left out.
                        return Err(self.without_index(self.at, self.range.until));
                    }
                    // It may also be the archive that gets there first.
                    let _ = timeout_at(deadline.min(now + LOOK_EVERY), self.progress.changed()).await;
                }
            }
        }
    }

    fn manifest_version(&self) -> u64 {
        self.search.tiering.manifest(&self.partition).version
    }

    /// As a search of that one split, which is how its permits and its reads are those of any other.
    async fn search_split(&self, planned: Planned<Source>) -> Result<SplitMatches, SearchError> {
        let end = planned.extent.visible.end;
        let found = Arc::new(Found::default());
        let job = Job {
            query: self.query.0.as_ref().clone(),
            scope: self.range.scope.clone(),
            k: 0,
            count_at_least: u64::MAX,
            beside: Some(found.clone()),
        };
        let open = |split: &Planned<Source>| self.search.open(&split.extent, &split.source);
        execute::run(std::iter::once(planned), Arc::new(job), &self.search.resources, open).await?;
        let SplitDocs { docs, offset } = std::mem::take(&mut *found.0.lock());
        Ok(SplitMatches { docs, next: 0, offset, end })
    }

    fn nothing_until(&mut self, through: Offset) -> Matched {
        self.at = through;
        Matched { offsets: Vec::new(), through }
    }

    fn unindexed(&mut self, from: Offset, end: Offset) -> Result<Matched, SearchError> {
        match self.range.unindexed {
            Unindexed::Skip => Ok(self.nothing_until(end)),
            Unindexed::Stop => Err(self.without_index(from, end)),
        }
    }

    fn without_index(&self, from: Offset, end: Offset) -> SearchError {
        let partition = self.partition.topic_partition().clone();
        SearchError::Unindexed { partition, from, last: end.plus(-1) }
    }
}

impl SplitMatches {
    fn next_offsets(&mut self) -> Matched {
        let mut offsets = Vec::new();
        while let (Some(doc), Some(offset)) = (self.docs.first_from(self.next), &self.offset)
            && offsets.len() < OFFSETS_MAX
        {
            offsets.push(Offset(offset.get_val(doc)));
            self.next = doc + 1;
        }
        let through = match offsets.last() {
            Some(last) if self.docs.first_from(self.next).is_some() => last.next(),
            _ => self.end,
        };
        Matched { offsets, through }
    }

    fn is_exhausted(&self) -> bool {
        self.docs.first_from(self.next).is_none()
    }
}

impl DocSet {
    fn with_docs(docs: DocId) -> Self {
        Self { words: vec![0; docs.div_ceil(u64::BITS) as usize] }
    }

    fn insert(&mut self, doc: DocId) {
        if let Some(word) = self.words.get_mut((doc / u64::BITS) as usize) {
            *word |= 1 << (doc % u64::BITS);
        }
    }

    /// The first document at or after `doc`.
    fn first_from(&self, doc: DocId) -> Option<DocId> {
        let mut at = (doc / u64::BITS) as usize;
        let mut word = self.words.get(at)? & (u64::MAX << (doc % u64::BITS));
        while word == 0 {
            at += 1;
            word = *self.words.get(at)?;
        }
        Some(at as u32 * u64::BITS + word.trailing_zeros())
    }
}

impl Beside for Found {
    fn start(&self, split: &SplitReader, _: &Extent) -> tantivy::Result<Box<dyn BesideSplit>> {
        let mut docs = SplitDocs::default();
        if let Some(segment) = split.searcher.segment_readers().first() {
            let name = split.fields.schema.get_field_name(split.fields.offset);
            docs.offset = Some(segment.fast_fields().i64(name)?.first_or_default_col(0));
            docs.docs = DocSet::with_docs(segment.max_doc());
        }
        Ok(Box::new(Collecting { docs, found: self.0.clone() }))
    }
}

impl BesideSplit for Collecting {
    fn collect(&mut self, docs: &[DocId]) {
        docs.iter().for_each(|doc| self.docs.docs.insert(*doc));
    }

    fn finish(self: Box<Self>) -> tantivy::Result<()> {
        *self.found.lock() = self.docs;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_doc_set_is_a_sorted_set(docs in prop::collection::btree_set(0_u32..300, 0..80), from in 0_u32..320) {
            let mut set = DocSet::with_docs(300);
            docs.iter().for_each(|doc| set.insert(*doc));
            prop_assert_eq!(set.first_from(from), docs.range(from..).next().copied());
        }
    }
}
