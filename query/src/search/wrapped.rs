//! Queries around another one: with another score, or excluded. Tantivy's own keep what is in them to themselves, and
//! what a split that is read in place has to fetch is found out part by part ([`super::collect::ask_for_all`]).

use std::sync::Arc;

use tantivy::query::{
    AllScorer, BoostQuery, ConstScoreQuery, EmptyScorer, EnableScoring, Explanation, Query, Scorer, Weight,
};
use tantivy::{DocId, DocSet, Score, SeekDangerResult, SegmentReader, Term};

#[derive(Clone, Debug)]
pub(crate) struct Wrapped {
    inner: Arc<dyn Query>,
    whole: Arc<dyn Query>,
}

impl Wrapped {
    /// Scores so many times what `inner` does.
    pub fn boosted(inner: Box<dyn Query>, factor: Score) -> Self {
        Self { whole: Arc::new(BoostQuery::new(inner.box_clone(), factor)), inner: inner.into() }
    }

    /// Matches what `inner` does and adds nothing to the score.
    pub fn unscored(inner: Box<dyn Query>) -> Self {
        Self { whole: Arc::new(ConstScoreQuery::new(inner.box_clone(), 0.0)), inner: inner.into() }
    }

    /// For `MustNot`, see [`ExcludedScorer`].
    pub fn excluded(inner: Box<dyn Query>) -> Self {
        let inner: Arc<dyn Query> = inner.into();
        Self { whole: Arc::new(Excluded(inner.clone())), inner }
    }

    pub fn inner(&self) -> &dyn Query {
        self.inner.as_ref()
    }
}

impl Query for Wrapped {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        self.whole.weight(scoring)
    }

    fn query_terms<'a>(&'a self, visitor: &mut dyn FnMut(&'a Term, bool)) {
        self.inner.query_terms(visitor);
    }
}

#[derive(Clone, Debug)]
struct Excluded(Arc<dyn Query>);

struct ExcludedWeight(Box<dyn Weight>);

/// Answers for documents before the first that may match, instead of asking for them.
///
/// Tantivy (0.27) asks what is excluded about every document in turn, also about those before the one at which the
/// scorer stands. No scorer has to bear that: that of a phrase asserts that it does not happen, and a range in an
/// intersection subtracts below zero.
struct ExcludedScorer {
    scorer: Box<dyn Scorer>,
    /// No document before it matches, of those that are still asked for.
    first: DocId,
}

impl Query for Excluded {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(ExcludedWeight(self.0.weight(scoring)?)))
    }
}

impl Weight for ExcludedWeight {
    fn scorer(&self, segment: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let scorer = self.0.scorer(segment, boost)?;
        // Tantivy looks for these two.
        if scorer.is::<AllScorer>() || scorer.is::<EmptyScorer>() {
            return Ok(scorer);
        }
        Ok(Box::new(ExcludedScorer { first: scorer.doc(), scorer }))
    }

    fn explain(&self, segment: &SegmentReader, doc: DocId) -> tantivy::Result<Explanation> {
        self.0.explain(segment, doc)
    }
}

impl DocSet for ExcludedScorer {
    fn advance(&mut self) -> DocId {
        self.first = self.scorer.advance();
        self.first
    }

    fn seek(&mut self, target: DocId) -> DocId {
        self.first = self.scorer.seek(target);
        self.first
    }

    fn seek_danger(&mut self, target: DocId) -> SeekDangerResult {
        if target < self.first {
            return SeekDangerResult::SeekLowerBound(self.first);
        }
        let result = self.scorer.seek_danger(target);
        self.first = match result {
            SeekDangerResult::Found => target,
            SeekDangerResult::SeekLowerBound(first) => first,
        };
        result
    }

    fn doc(&self) -> DocId {
        self.scorer.doc()
    }

    fn size_hint(&self) -> u32 {
        self.scorer.size_hint()
    }

    fn cost(&self) -> u64 {
        self.scorer.cost()
    }
}

impl Scorer for ExcludedScorer {
    fn score(&mut self) -> Score {
        self.scorer.score()
    }
}

#[cfg(test)]
mod tests {
    use tantivy::collector::DocSetCollector;
    use thermocline_ingest::model::{Timestamp, TopicName};

    use crate::search::ast::SearchQuery;
    use crate::search::testing::{Doc, Leaves, split_with};

    #[test]
    fn what_is_excluded_may_start_late() {
        let doc = |offset: i64| Doc {
            offset,
            timestamp: 1000 + offset,
            value: if offset < 200 { "b a" } else { "a b" }.into(),
            json: serde_json::json!({ "n": offset, "odd": offset % 2 }),
            ..Doc::default()
        };
        let docs: Vec<Doc> = (0..300).map(doc).collect();
        let topic = TopicName::new("orders").unwrap();
        for leaves in [Leaves::Indexed, Leaves::InColumns] {
            let split = split_with(true, leaves, &docs).unwrap();
            for (excluded, matches) in [
                ("(json.n:>=250 AND json.odd:>=1)", (250..300).filter(|n| n % 2 == 1).collect::<Vec<u32>>()),
                ("(offset:>=250 AND timestamp:>=0)", (250..300).collect()),
                ("(offset:>=250 AND \"a b\")", (250..300).collect()),
                ("\"a b\"", (200..300).collect()),
                ("(\"a b\" OR offset:<10)", (0..10).chain(200..300).collect()),
                ("(a AND NOT \"b a\")", (200..300).collect()),
            ] {
                for query in [format!("a AND NOT {excluded}"), format!("offset:>=0 -{excluded} -{excluded}")] {
                    let built = SearchQuery::parse(&query, Timestamp(0)).unwrap().build(&split, Some(&topic)).unwrap();
                    let found = split.searcher.search(&built, &DocSetCollector).unwrap();
                    let mut found: Vec<u32> = found.into_iter().map(|doc| doc.doc_id).collect();
                    found.sort_unstable();
                    let expected: Vec<u32> = (0..300).filter(|doc| !matches.contains(doc)).collect();
                    assert_eq!(found, expected, "{query}, {leaves:?}");
                }
            }
        }
    }
}
