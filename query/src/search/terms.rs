//! Documents with at least one term of a range: words that start alike, words and numbers between two others; or with
//! one that fits a pattern besides.
//!
//! Tantivy's own queries for this stop at the first postings that cannot be read. Here all are asked for first, so that
//! a split that is read in place fetches them together.

use std::io;
use std::ops::Bound;

use regex::bytes::Regex;
use tantivy::postings::TermInfo;
use tantivy::query::{BitSetDocSet, ConstScorer, EmptyScorer, EnableScoring, Explanation, Query, Scorer, Weight};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{BitSet, DocId, InvertedIndexReader, Score, SegmentReader, TantivyError, Term};

/// Words of one split that a pattern is compared with: some seconds of a core, at less than half a microsecond each.
pub(crate) const COMPARED_TERMS_MAX: u64 = 1 << 24;

/// A pattern would be compared with more words of one split than [`COMPARED_TERMS_MAX`]. It comes as the source of an
/// [`io::Error`], as Tantivy has no error of its own for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is compared with more than {max} words of one split")]
pub(crate) struct TooManyTerms {
    pub max: u64,
}

/// Matches documents by terms of one field between two bounds, with a score of 1.
#[derive(Clone, Debug)]
pub(crate) struct TermsBetween {
    /// None where no term can be in between; then nothing matches.
    field: Option<Field>,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    pattern: Option<Fitting>,
}

/// What terms have to fit, behind so many bytes.
#[derive(Clone, Debug)]
struct Fitting {
    before: usize,
    regex: Regex,
    /// [`COMPARED_TERMS_MAX`].
    terms_max: u64,
}

/// The documents of the terms so far.
struct Found {
    docs: BitSet,
    /// Why postings could not be read. Terms are looked at nevertheless, to know all that are needed.
    lacked: Option<io::Error>,
}

impl TermsBetween {
    /// At least one bound is given. Two are of one field and, in a JSON field, of one path and type.
    pub fn new(lower: Bound<Term>, upper: Bound<Term>) -> Self {
        let field = |bound: &Bound<Term>| match bound {
            Bound::Included(term) | Bound::Excluded(term) => Some(term.field()),
            Bound::Unbounded => None,
        };
        let bytes = |term: Term| term.serialized_value_bytes().to_vec();
        let field = field(&lower).or(field(&upper));
        let (lower, upper) = (lower.map(bytes), upper.map(bytes));
        // Tantivy panics where the blocks of such a range come in the wrong order.
        let is_inverted = match (&lower, &upper) {
            (Bound::Included(lower) | Bound::Excluded(lower), Bound::Included(upper) | Bound::Excluded(upper)) => {
                lower > upper
            }
            _ => false,
        };
        Self { field: field.filter(|_| !is_inverted), lower, upper, pattern: None }
    }

    /// Terms that start like `term`.
    pub fn starting_with(term: &Term) -> Self {
        let lower = term.serialized_value_bytes().to_vec();
        // The next term that does not start so: the last byte that can be raised is, and what follows it goes.
        let mut upper = lower.clone();
        while upper.last() == Some(&u8::MAX) {
            upper.pop();
        }
        let upper = match upper.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(upper)
            }
            None => Bound::Unbounded,
        };
        Self { field: Some(term.field()), lower: Bound::Included(lower), upper, pattern: None }
    }

    /// Terms that start like `term` and of which what lies behind the first `before` bytes fits `regex`.
    pub fn fitting(term: &Term, before: usize, regex: Regex) -> Self {
        Self { pattern: Some(Fitting { before, regex, terms_max: COMPARED_TERMS_MAX }), ..Self::starting_with(term) }
    }

    fn docs(&self, segment: &SegmentReader) -> tantivy::Result<BitSet> {
        let mut found = Found { docs: BitSet::with_max_value(segment.max_doc()), lacked: None };
        let Some(field) = self.field else { return Ok(found.docs) };
        let index = segment.inverted_index(field)?;
        let mut terms = index.terms().range();
        terms = match &self.lower {
            Bound::Included(term) => terms.ge(term),
            Bound::Excluded(term) => terms.gt(term),
            Bound::Unbounded => terms,
        };
        terms = match &self.upper {
            Bound::Included(term) => terms.le(term),
            Bound::Excluded(term) => terms.lt(term),
            Bound::Unbounded => terms,
        };
        match &self.pattern {
            None => {
                let mut terms = terms.without_keys().into_stream()?;
                while terms.advance() {
                    found.add(&index, terms.value());
                }
            }
            Some(Fitting { before, regex, terms_max }) => {
                let mut terms = terms.into_stream()?;
                let mut left = *terms_max;
                while terms.advance() {
                    left = left.checked_sub(1).ok_or_else(|| io::Error::other(TooManyTerms { max: *terms_max }))?;
                    if terms.key().get(*before..).is_some_and(|word| regex.is_match(word)) {
                        found.add(&index, terms.value());
                    }
                }
            }
        }
        found.lacked.map_or(Ok(found.docs), |error| Err(error.into()))
    }
}

impl Found {
    fn add(&mut self, index: &InvertedIndexReader, term: &TermInfo) {
        let mut postings = match index.read_block_postings_from_terminfo(term, IndexRecordOption::Basic) {
            Ok(postings) => postings,
            Err(error) => {
                self.lacked = Some(error);
                return;
            }
        };
        while self.lacked.is_none() && !postings.docs().is_empty() {
            for doc in postings.docs() {
                self.docs.insert(*doc);
            }
            postings.advance();
        }
    }
}

impl Query for TermsBetween {
    fn weight(&self, _: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(self.clone()))
    }
}

impl Weight for TermsBetween {
    fn scorer(&self, segment: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let docs = self.docs(segment)?;
        if docs.len() == 0 {
            return Ok(Box::new(EmptyScorer));
        }
        Ok(Box::new(ConstScorer::new(BitSetDocSet::from(docs), boost)))
    }

    fn explain(&self, segment: &SegmentReader, doc: DocId) -> tantivy::Result<Explanation> {
        match self.docs(segment)?.contains(doc) {
            true => Ok(Explanation::new("a term in the range", 1.0)),
            false => Err(TantivyError::InvalidArgument(format!("document {doc} does not match"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tantivy::collector::Count;
    use tantivy::query::{FuzzyTermQuery, InvertedIndexRangeQuery};

    use super::*;
    use crate::search::testing::{Doc, split};

    const WORDS: [&str; 8] = ["pa", "paid", "parcel", "parcels", "parc", "q", "pb", "zürich"];

    #[test]
    fn patterns_are_compared_with_so_many_terms() {
        let docs = [Doc { value: WORDS.join(" "), ..Doc::default() }];
        let split = split(false, &docs).unwrap();
        let count = |start: &str, terms_max| {
            let mut terms = TermsBetween::fitting(
                &Term::from_field_text(split.fields.value, start),
                0,
                Regex::new("^.*$").unwrap(),
            );
            terms.pattern.as_mut().unwrap().terms_max = terms_max;
            split.searcher.search(&terms, &Count)
        };
        assert_eq!(count("", 8).unwrap(), 1);
        assert_eq!(count("pa", 5).unwrap(), 1);
        let TantivyError::IoError(error) = count("", 7).unwrap_err() else { panic!("another error") };
        let inner = error.get_ref().unwrap().downcast_ref();
        assert_eq!(inner, Some(&TooManyTerms { max: 7 }));
    }

    #[test]
    fn nothing_lies_in_a_range_that_ends_before_it_starts() {
        // As many words as need several blocks of a dictionary.
        let value = (0..3000).map(|n| format!("word{n:05}")).collect::<Vec<_>>().join(" ");
        let split = split(false, &[Doc { value, ..Doc::default() }]).unwrap();
        let count = |from, to| {
            let bound = |word| Bound::Included(Term::from_field_text(split.fields.value, word));
            split.searcher.search(&TermsBetween::new(bound(from), bound(to)), &Count).unwrap()
        };
        assert_eq!((count("word00001", "word02900"), count("word02900", "word00001")), (1, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn matches_what_tantivys_own_queries_match(
            docs in prop::collection::vec(prop::collection::vec(0..WORDS.len(), 0..3), 1..20),
            from in 0..WORDS.len(),
            to in 0..WORDS.len(),
            open in any::<bool>(),
        ) {
            let docs: Vec<Doc> = (0..)
                .zip(docs)
                .map(|(offset, words)| {
                    let value = words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" ");
                    Doc { offset, value, ..Doc::default() }
                })
                .collect();
            let split = split(false, &docs).unwrap();
            let (from, to) = (WORDS[from].min(WORDS[to]), WORDS[from].max(WORDS[to]));
            let term = |word| Term::from_field_text(split.fields.value, word);
            let (from, to) = (term(from), term(to));
            let count = |query: &dyn Query| split.searcher.search(query, &Count).unwrap();
            let prefix = FuzzyTermQuery::new_prefix(from.clone(), 0, false);
            prop_assert_eq!(count(&TermsBetween::starting_with(&from)), count(&prefix));
            let (lower, upper) = (Bound::Included(from), if open { Bound::Excluded(to) } else { Bound::Included(to) });
            let range = InvertedIndexRangeQuery::new(lower.clone(), upper.clone());
            prop_assert_eq!(count(&TermsBetween::new(lower, upper)), count(&range));
        }
    }
}
