//! Collecting inside one split: how many documents match, and the keys of the first `k` of them after the cursor.
//!
//! No stored document is read: a hit is an offset, and its message is fetched when the page is known. A document's
//! number says its offset, as both ascend together; so offsets bound the documents that are looked at, and only the
//! keys of the page are turned into offsets. Timestamps come from the split's [`Times`]: the bounds of a block of
//! documents say of most whether they lie in the time range and whether they can be on the page, and only the blocks
//! of the others are read.
//!
//! Everything read is asked for before anything is decided by it, as far as that is possible: a split that is read in
//! place fails reads of what is not in memory, and is searched again when all that it asked for is there.

use std::cmp::Ordering;
use std::io;
use std::ops::Range;

use futures::FutureExt;
use tantivy::query::{BooleanQuery, EnableScoring, Query, Weight};
use tantivy::{DocId, Score, SegmentReader};
use thermocline_ingest::model::{Offset, Timestamp};
use thermocline_tiering::split::{SplitReader, Times, TimesBlock};

use super::execute::Job;
use super::rank::{Rank, Sort, SortKey, TopK};
use super::wrapped::Wrapped;
use crate::prune::{Extent, Scope};

/// What one split answered.
#[derive(Debug, Default)]
pub(crate) struct SplitHits {
    /// Every matching document, also those of earlier pages.
    pub matches: u64,
    /// In page order.
    pub first: Vec<(Rank, Offset)>,
}

/// Something computed beside the hits from the documents that match, cursor or not: an aggregation. One for the whole
/// search; each split gets a collector of its own.
pub(crate) trait Beside: Send + Sync + 'static {
    /// The collector of one split. It opens every column it will read, so that what is not in memory yet is known
    /// before documents are walked; a search of the split that lacked bytes is repeated from here.
    fn start(&self, split: &SplitReader, extent: &Extent) -> tantivy::Result<Box<dyn BesideSplit>>;

    /// What [`Self::start`] searches the split for.
    fn queries(&self, _split: &SplitReader, _extent: &Extent) -> tantivy::Result<Vec<Box<dyn Query>>> {
        Ok(Vec::new())
    }
}

/// What is computed of one split.
pub(crate) trait BesideSplit {
    /// Documents in ascending order, at most [`BESIDE_DOCS_MAX`] at once.
    fn collect(&mut self, docs: &[DocId]);
    /// Adds the split to the whole. Called once all documents were collected; nothing may be added where it fails.
    fn finish(self: Box<Self>) -> tantivy::Result<()>;
}

/// Documents handed to a [`BesideSplit`] at once: Tantivy's own block.
pub(crate) const BESIDE_DOCS_MAX: usize = 64;

/// Whether what Tantivy's readers of one query will read is in memory is found out by asking for it: the terms of every
/// part of the query, their postings, positions and lengths. What is lacking is noted by the split.
pub(crate) fn ask_for_all(split: &SplitReader, query: &dyn Query, sort: Sort) {
    if let Some(parts) = query.downcast_ref::<BooleanQuery>() {
        parts.clauses().iter().for_each(|(_, part)| ask_for_all(split, part.as_ref(), sort));
        return;
    }
    if let Some(wrapped) = query.downcast_ref::<Wrapped>() {
        return ask_for_all(split, wrapped.inner(), sort);
    }
    let Some(segment) = split.searcher.segment_readers().first() else { return };
    let mut has_terms = false;
    query.query_terms(&mut |term, needs_positions| {
        has_terms = true;
        let Ok(index) = segment.inverted_index(term.field()) else { return };
        // Polled once: it comes back when it has asked for postings and positions, wherever they are.
        let _ = index.warm_postings(term, needs_positions).now_or_never();
        if sort == Sort::Score {
            let _ = segment.fieldnorms_readers().get_field(term.field());
        }
    });
    if !has_terms {
        let scoring = EnableScoring::disabled_from_searcher(&split.searcher);
        let _ = query.weight(scoring).and_then(|weight| weight.scorer(segment, 1.0).map(drop));
    }
}

/// Runs `query` over one split. Of a split that is read in place: the error means nothing where bytes were lacking.
pub(crate) fn search_split(
    split: &SplitReader,
    query: &dyn Query,
    extent: &Extent,
    job: &Job,
) -> tantivy::Result<SplitHits> {
    let Some(segment) = split.searcher.segment_readers().first() else { return Ok(SplitHits::default()) };
    let scoring = match job.scope.sort {
        Sort::Score if job.k > 0 => EnableScoring::enabled_from_searcher(&split.searcher),
        _ => EnableScoring::disabled_from_searcher(&split.searcher),
    };
    let weight = query.weight(scoring)?;
    let mut filter = Filter::new(split, extent, &job.scope);
    let mut beside = job.beside.as_ref().map(|beside| beside.start(split, extent)).transpose()?;
    if job.k == 0 && beside.is_none() && !filter.is_needed() {
        return Ok(SplitHits { matches: u64::from(weight.count(segment)?), first: Vec::new() });
    }
    let after = job.scope.after.as_ref().map(|after| After::seen_from(extent, split, after));
    let mut top = TopK::new(job.k);
    let docs = if job.scope.sort == Sort::Score && job.k > 0 {
        walk_scored(weight.as_ref(), segment, &mut filter, &mut |doc, score| {
            let rank = Rank::score(score);
            if after.is_none_or(|after| after.passed_by(rank, doc)) {
                top.offer((rank, doc));
            }
        })?
    } else {
        let docs = walk(weight.as_ref(), segment, &mut filter)?;
        offer_by_time(&docs, &split.times, job, after, &mut top)?;
        docs
    };
    if let Some(mut beside) = beside.take() {
        docs.chunks(BESIDE_DOCS_MAX).for_each(|docs| beside.collect(docs));
        beside.finish()?;
    }
    let place = |(rank, doc)| (rank, Offset(split.offsets.get_val(doc)));
    Ok(SplitHits { matches: docs.len() as u64, first: top.into_sorted().into_iter().map(place).collect() })
}

/// The documents that match, ascending: 4 bytes for each, at most as many as the split has.
fn walk(weight: &dyn Weight, segment: &SegmentReader, filter: &mut Filter<'_>) -> tantivy::Result<Vec<DocId>> {
    let mut found: Vec<DocId> = Vec::new();
    if filter.is_needed() {
        weight.for_each_no_score(segment, &mut |docs| {
            found.extend(docs.iter().copied().filter(|doc| filter.admits(*doc)));
        })?;
    } else {
        weight.for_each_no_score(segment, &mut |docs| found.extend_from_slice(docs))?;
    }
    filter.lacked.take().map_or(Ok(found), |error| Err(error.into()))
}

fn walk_scored(
    weight: &dyn Weight,
    segment: &SegmentReader,
    filter: &mut Filter<'_>,
    visit: &mut dyn FnMut(DocId, Score),
) -> tantivy::Result<Vec<DocId>> {
    let mut found: Vec<DocId> = Vec::new();
    weight.for_each(segment, &mut |doc, score| {
        if filter.admits(doc) {
            found.push(doc);
            visit(doc, score);
        }
    })?;
    filter.lacked.take().map_or(Ok(found), |error| Err(error.into()))
}

/// Which documents a search may see of a split: by offset and by time.
struct Filter<'a> {
    times: &'a Times,
    /// None where every document is visible.
    rows: Option<Range<DocId>>,
    /// Inclusive; None where the whole split is inside.
    from: Option<Timestamp>,
    /// Exclusive; None where the whole split is inside.
    to: Option<Timestamp>,
    /// The block of the last document, and what is known of it.
    block: Option<(usize, InTime)>,
    /// Why blocks could not be read. Documents are looked at nevertheless, to know all that are needed.
    lacked: Option<io::Error>,
}

/// How a block lies to the time range.
enum InTime {
    All,
    None,
    Some(TimesBlock),
}

impl<'a> Filter<'a> {
    fn new(split: &'a SplitReader, extent: &Extent, scope: &Scope) -> Self {
        let Range { start, end } = extent.visible;
        let is_cut = start > extent.stored.start || end < extent.stored.end;
        Self {
            times: &split.times,
            rows: is_cut.then(|| first_at(split, start)..first_at(split, end)),
            from: scope.from.filter(|from| *from > extent.min_timestamp),
            to: scope.to.filter(|to| *to <= extent.max_timestamp),
            block: None,
            lacked: None,
        }
    }

    fn is_needed(&self) -> bool {
        self.rows.is_some() || self.from.is_some() || self.to.is_some()
    }

    fn admits(&mut self, doc: DocId) -> bool {
        if self.rows.as_ref().is_some_and(|rows| !rows.contains(&doc)) {
            return false;
        }
        if self.from.is_none() && self.to.is_none() {
            return true;
        }
        let block = Times::block_of(doc);
        if self.block.as_ref().is_none_or(|(of, _)| *of != block) {
            self.block = Some((block, self.in_time(block)));
        }
        match &self.block {
            Some((_, InTime::Some(times))) => self.holds(times.get(doc)),
            Some((_, InTime::All)) => true,
            Some((_, InTime::None)) | None => false,
        }
    }

    fn in_time(&mut self, block: usize) -> InTime {
        let (min, max) = self.times.bounds(block);
        if self.holds(min) && self.holds(max) {
            return InTime::All;
        }
        if self.from.is_some_and(|from| max < from) || self.to.is_some_and(|to| min >= to) {
            return InTime::None;
        }
        match self.times.read(block) {
            Ok(times) => InTime::Some(times),
            Err(error) => {
                self.lacked = Some(error);
                InTime::None
            }
        }
    }

    fn holds(&self, timestamp: Timestamp) -> bool {
        self.from.is_none_or(|from| timestamp >= from) && self.to.is_none_or(|to| timestamp < to)
    }
}

/// The first document at or above `offset`.
fn first_at(split: &SplitReader, offset: Offset) -> DocId {
    let (mut low, mut high) = (0, split.times.docs());
    while low < high {
        let middle = low + (high - low) / 2;
        if split.offsets.get_val(middle) < offset.0 { low = middle + 1 } else { high = middle }
    }
    low
}

/// The cursor as seen from one split, where topic and partition are the same for every document.
#[derive(Clone, Copy, Debug)]
struct After {
    rank: Rank,
    /// How this split's topic and partition compare to the cursor's.
    place: Ordering,
    /// The first document behind the cursor's offset.
    doc: DocId,
}

impl After {
    fn seen_from(extent: &Extent, split: &SplitReader, after: &SortKey) -> Self {
        let place = (&extent.topic, extent.partition).cmp(&(&after.topic, after.partition));
        Self { rank: after.rank, place, doc: first_at(split, after.offset.next()) }
    }

    /// Whether a document comes after the cursor.
    fn passed_by(self, rank: Rank, doc: DocId) -> bool {
        match rank.cmp(&self.rank).then(self.place) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => doc >= self.doc,
        }
    }
}

/// Matching documents of one block.
struct Run<'a> {
    block: usize,
    docs: &'a [DocId],
    first: Rank,
    last: Rank,
}

/// Offers the `k` documents that come first by time, and few others, to `top`.
fn offer_by_time(
    docs: &[DocId],
    times: &Times,
    job: &Job,
    after: Option<After>,
    top: &mut TopK<(Rank, DocId)>,
) -> io::Result<()> {
    if job.k == 0 {
        return Ok(());
    }
    let rank = |timestamp| match job.scope.sort {
        Sort::OldestFirst => Rank::oldest(timestamp),
        Sort::NewestFirst | Sort::Score => Rank::newest(timestamp),
    };
    let runs = docs.chunk_by(|a, b| Times::block_of(*a) == Times::block_of(*b)).filter_map(|docs| {
        let block = Times::block_of(*docs.first()?);
        let (min, max) = times.bounds(block);
        let (first, last) = (rank(min).min(rank(max)), rank(min).max(rank(max)));
        Some(Run { block, docs, first, last })
    });
    let needed = needed(runs.filter(|run| after.is_none_or(|after| run.last >= after.rank)).collect(), job.k, after);
    // Every one is asked for, so that all that are lacking are fetched together.
    let read: Vec<_> = needed.iter().map(|run| (run, times.read(run.block))).collect();
    for (run, times) in read {
        let times = times?;
        for doc in run.docs {
            let rank = rank(times.get(*doc));
            if after.is_none_or(|after| after.passed_by(rank, *doc)) {
                top.offer((rank, *doc));
            }
        }
    }
    Ok(())
}

/// The runs that can hold one of the first `k`: there are `k` documents behind the cursor in the runs that surely end
/// first, and nothing that begins behind those can come before them.
fn needed(mut runs: Vec<Run<'_>>, k: usize, after: Option<After>) -> Vec<Run<'_>> {
    runs.sort_by_key(|run| run.last);
    let mut certain = 0;
    let limit = runs.iter().find_map(|run| {
        certain += if after.is_none_or(|after| run.first > after.rank) { run.docs.len() } else { 0 };
        (certain >= k).then_some(run.last)
    });
    runs.retain(|run| limit.is_none_or(|limit| run.first <= limit));
    runs
}
