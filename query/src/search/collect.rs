//! Collecting inside one split: how many documents match, and the keys of the first `k` of them after the cursor.
//!
//! Only the two fast fields are read, never a stored document: a hit is an offset, and its message is fetched when the
//! page is known.

use std::cmp::Ordering;
use std::ops::{Bound, Range};
use std::sync::Arc;

use tantivy::collector::{Collector, SegmentCollector};
use tantivy::columnar::ColumnValues;
use tantivy::query::{BooleanQuery, ConstScoreQuery, Occur, Query, RangeQuery};
use tantivy::schema::Field;
use tantivy::{DocId, Score, SegmentOrdinal, SegmentReader, Term};
use thermocline_ingest::model::{Offset, Timestamp};
use thermocline_tiering::split::SplitReader;

use super::rank::{Rank, Sort, SortKey, TopK};
use crate::prune::{Extent, Scope};

/// What one split answered.
#[derive(Debug, Default)]
pub(crate) struct SplitHits {
    /// Every matching document, also those of earlier pages.
    pub matches: u64,
    /// In page order.
    pub first: Vec<(Rank, Offset)>,
}

/// The cursor as seen from one split, where topic and partition are the same for every document.
#[derive(Clone, Copy, Debug)]
struct After {
    rank: Rank,
    /// How this split's topic and partition compare to the cursor's.
    place: Ordering,
    offset: Offset,
}

struct KeyCollector {
    sort: Sort,
    k: usize,
    after: Option<After>,
    timestamp: String,
    offset: String,
}

struct SegmentKeys {
    sort: Sort,
    after: Option<After>,
    timestamp: Arc<dyn ColumnValues<i64>>,
    offset: Arc<dyn ColumnValues<i64>>,
    matches: u64,
    top: TopK<(Rank, Offset)>,
}

/// Runs `query` over one split. Blocking: a cold split is read as the search goes.
pub(crate) fn search_split(
    split: &SplitReader,
    query: Box<dyn Query>,
    extent: &Extent,
    scope: &Scope,
    k: usize,
) -> tantivy::Result<SplitHits> {
    let after = scope.after.as_ref().map(|after| After::seen_from(extent, after));
    let name = |field| split.fields.schema.get_field_name(field).to_owned();
    let collector = KeyCollector {
        sort: scope.sort,
        k,
        after,
        timestamp: name(split.fields.timestamp),
        offset: name(split.fields.offset),
    };
    split.searcher.search(&bounded(query, split, extent, scope), &collector)
}

/// Adds the bounds that this split does not already keep. They choose documents and leave scores alone.
fn bounded(query: Box<dyn Query>, split: &SplitReader, extent: &Extent, scope: &Scope) -> Box<dyn Query> {
    let mut clauses = vec![(Occur::Must, query)];
    let from = scope.from.filter(|from| *from > extent.min_timestamp);
    let to = scope.to.filter(|to| *to <= extent.max_timestamp);
    if from.is_some() || to.is_some() {
        let millis = |timestamp: Timestamp| timestamp.0;
        clauses.push((Occur::Must, between(split.fields.timestamp, from.map(millis), to.map(millis))));
    }
    let Range { start, end } = extent.visible;
    if start > extent.stored.start || end < extent.stored.end {
        clauses.push((Occur::Must, between(split.fields.offset, Some(start.0), Some(end.0))));
    }
    match clauses.len() {
        1 => clauses.remove(0).1,
        _ => Box::new(BooleanQuery::new(clauses)),
    }
}

/// `start <= field < end`. At least one bound is given.
fn between(field: Field, start: Option<i64>, end: Option<i64>) -> Box<dyn Query> {
    let term = |value| Term::from_field_i64(field, value);
    let start = start.map_or(Bound::Unbounded, |value| Bound::Included(term(value)));
    let end = end.map_or(Bound::Unbounded, |value| Bound::Excluded(term(value)));
    Box::new(ConstScoreQuery::new(Box::new(RangeQuery::new(start, end)), 0.0))
}

impl After {
    fn seen_from(extent: &Extent, after: &SortKey) -> Self {
        let place = (&extent.topic, extent.partition).cmp(&(&after.topic, after.partition));
        Self { rank: after.rank, place, offset: after.offset }
    }

    /// Whether a document comes after the cursor.
    fn passed_by(self, rank: Rank, offset: Offset) -> bool {
        rank.cmp(&self.rank).then(self.place).then(offset.cmp(&self.offset)) == Ordering::Greater
    }
}

impl Collector for KeyCollector {
    type Fruit = SplitHits;
    type Child = SegmentKeys;

    fn for_segment(&self, _ordinal: SegmentOrdinal, segment: &SegmentReader) -> tantivy::Result<SegmentKeys> {
        let column = |name| Ok::<_, tantivy::TantivyError>(segment.fast_fields().i64(name)?.first_or_default_col(0));
        Ok(SegmentKeys {
            sort: self.sort,
            after: self.after,
            timestamp: column(&self.timestamp)?,
            offset: column(&self.offset)?,
            matches: 0,
            top: TopK::new(self.k),
        })
    }

    fn requires_scoring(&self) -> bool {
        self.sort == Sort::Score
    }

    fn merge_fruits(&self, segments: Vec<SplitHits>) -> tantivy::Result<SplitHits> {
        let matches = segments.iter().map(|segment| segment.matches).sum();
        let mut top = TopK::new(self.k);
        segments.into_iter().flat_map(|segment| segment.first).for_each(|key| top.offer(key));
        Ok(SplitHits { matches, first: top.into_sorted() })
    }
}

impl SegmentCollector for SegmentKeys {
    type Fruit = SplitHits;

    fn collect(&mut self, doc: DocId, score: Score) {
        self.matches += 1;
        let rank = match self.sort {
            Sort::NewestFirst => Rank::newest(Timestamp(self.timestamp.get_val(doc))),
            Sort::OldestFirst => Rank::oldest(Timestamp(self.timestamp.get_val(doc))),
            Sort::Score => Rank::score(score),
        };
        let offset = Offset(self.offset.get_val(doc));
        if self.after.is_none_or(|after| after.passed_by(rank, offset)) {
            self.top.offer((rank, offset));
        }
    }

    fn harvest(self) -> SplitHits {
        SplitHits { matches: self.matches, first: self.top.into_sorted() }
    }
}
