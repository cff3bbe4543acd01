//! Leaves of a query that Tantivy does not bring along: terms of JSON paths, ranges over the numbers of a JSON leaf,
//! and whether a text has words.
//!
//! Numbers of a JSON leaf are indexed as they come: whole numbers as i64, those too large for it as u64, all others as
//! f64; each kind in its own order. A range therefore has to look at all three. Where the split has columns of JSON
//! leaves, a path has one column of numbers of one kind. A column of f64 may hold whole numbers that were rounded;
//! where that could matter, the dictionary, which is exact, answers instead.

use std::ops::{Bound, RangeInclusive};

use tantivy::columnar::{ColumnType, NumericalValue};
use tantivy::query::{
    BitSetDocSet, BooleanQuery, BoundsRange, ConstScoreQuery, ConstScorer, EmptyScorer, EnableScoring, Explanation,
    FastFieldRangeWeight, Query, Scorer, Weight,
};
use tantivy::schema::{Field, Type};
use tantivy::{BitSet, DocId, Score, SegmentReader, TantivyError, Term};

use super::ast::LiteralValue;
use super::terms::TermsBetween;

/// From here on f64 does not tell every whole number from the next.
const EXACT_IN_F64_MAX: f64 = (1_u64 << 53) as f64;

/// A JSON path in one field.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub field: Field,
    /// Keys, separated by dots.
    keys: String,
    /// Field and path, nothing behind.
    term: Term,
}

/// A number of a query, exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

/// Numbers of a JSON leaf. At least one bound is given. As a query it asks the column, if the split has one.
#[derive(Clone, Debug)]
pub(super) struct NumberRange {
    pub path: Path,
    pub lower: Bound<Number>,
    pub upper: Bound<Number>,
}

/// Documents in which a text field has words, by their number, which the field must keep.
#[derive(Clone, Debug)]
pub(super) struct HasWords {
    pub field: Field,
}

impl Path {
    pub fn new(field: Field, keys: &str) -> Self {
        // Tantivy reads a backslash as an escape, and dots as separators in either case.
        let term = Term::from_field_json_path(field, &keys.replace('\\', "\\\\"), true);
        Self { field, keys: keys.to_owned(), term }
    }

    pub fn word(&self, word: &str) -> Term {
        let mut term = self.term.clone();
        term.append_type_and_str(word);
        term
    }

    pub fn truth(&self, value: bool) -> Term {
        let mut term = self.term.clone();
        term.append_type_and_fast_value(value);
        term
    }

    /// Whatever the number was written like.
    pub fn number(&self, number: Number) -> Term {
        let number = match number {
            Number::Float(number) => NumericalValue::F64(number).normalize(),
            Number::Int(number) => match (i64::try_from(number), u64::try_from(number)) {
                (Ok(number), _) => NumericalValue::I64(number),
                (_, Ok(number)) => NumericalValue::U64(number),
                _ => NumericalValue::F64(number as f64),
            },
        };
        match number {
            NumericalValue::I64(number) => self.i64(number),
            NumericalValue::U64(number) => self.u64(number),
            NumericalValue::F64(number) => self.f64(number),
        }
    }

    fn i64(&self, number: i64) -> Term {
        let mut term = self.term.clone();
        term.append_type_and_fast_value(number);
        term
    }

    fn u64(&self, number: u64) -> Term {
        let mut term = self.term.clone();
        term.append_type_and_fast_value(number);
        term
    }

    fn f64(&self, number: f64) -> Term {
        let mut term = self.term.clone();
        term.append_type_and_fast_value(number);
        term
    }

    /// Before every term of one kind.
    fn before(&self, kind: Type) -> Term {
        let mut term = self.term.clone();
        term.append_bytes(&[kind.to_code()]);
        term
    }

    /// After every term of one kind.
    pub fn after(&self, kind: Type) -> Term {
        let mut term = self.term.clone();
        term.append_bytes(&[kind.to_code() + 1]);
        term
    }

    /// The terms of the leaf and of all leaves below it lie from the first of these to before the second.
    pub fn span(&self) -> (Term, Term) {
        let mut end = self.term.clone();
        // The path ends with a zero, in longer ones a one comes in its place.
        if let Some((_, path)) = self.term.serialized_value_bytes().split_last() {
            end.set_bytes(&[path, &[2]].concat());
        }
        (self.term.clone(), end)
    }
}

impl Number {
    pub fn of(literal: &LiteralValue) -> Option<Self> {
        match literal {
            LiteralValue::I64(number) => Some(Self::Int(i128::from(*number))),
            LiteralValue::U64(number) => Some(Self::Int(i128::from(*number))),
            LiteralValue::F64(number) if number.is_finite() => Some(Self::Float(*number)),
            LiteralValue::F64(_) | LiteralValue::Text(_) | LiteralValue::Bool(_) => None,
        }
    }

    /// The first whole number at or above it, and the last at or below.
    fn around(self) -> (i128, i128) {
        match self {
            Self::Int(number) => (number, number),
            // Far beyond what is indexed the cast takes the nearest.
            Self::Float(number) => (number.ceil() as i128, number.floor() as i128),
        }
    }
}

impl NumberRange {
    /// The whole numbers in the range.
    fn integers(&self) -> RangeInclusive<i128> {
        let first = match self.lower {
            Bound::Included(number) => number.around().0,
            Bound::Excluded(number) => number.around().1.saturating_add(1),
            Bound::Unbounded => i128::MIN,
        };
        let last = match self.upper {
            Bound::Included(number) => number.around().1,
            Bound::Excluded(number) => number.around().0.saturating_sub(1),
            Bound::Unbounded => i128::MAX,
        };
        first..=last
    }

    /// The same range for numbers that are f64.
    fn floats(&self) -> (Bound<f64>, Bound<f64>) {
        // A whole number may lie between two of f64; then the nearer one decides on which side the others are.
        let bound = |bound: Bound<Number>, is_lower: bool| match bound {
            Bound::Included(Number::Float(number)) => Bound::Included(number),
            Bound::Excluded(Number::Float(number)) => Bound::Excluded(number),
            Bound::Included(Number::Int(number)) | Bound::Excluded(Number::Int(number)) => {
                let near = number as f64;
                let is_inside = match (near as i128).cmp(&number) {
                    std::cmp::Ordering::Equal => matches!(bound, Bound::Included(_)),
                    std::cmp::Ordering::Greater => is_lower,
                    std::cmp::Ordering::Less => !is_lower,
                };
                if is_inside { Bound::Included(near) } else { Bound::Excluded(near) }
            }
            Bound::Unbounded => Bound::Unbounded,
        };
        (bound(self.lower, true), bound(self.upper, false))
    }

    /// Over the terms of all three kinds. Scores 1.
    pub fn in_dictionary(&self) -> Box<dyn Query> {
        let ranges = [self.i64_terms(), self.u64_terms(), Some(self.f64_terms())];
        let query = |(lower, upper)| Box::new(TermsBetween::new(lower, upper)) as Box<dyn Query>;
        let queries = ranges.into_iter().flatten().map(query).collect();
        Box::new(ConstScoreQuery::new(Box::new(BooleanQuery::union(queries)), 1.0))
    }

    fn i64_terms(&self) -> Option<(Bound<Term>, Bound<Term>)> {
        let integers = self.integers();
        let first = i64::try_from(*integers.start().max(&i128::from(i64::MIN))).ok()?;
        let last = i64::try_from(*integers.end().min(&i128::from(i64::MAX))).ok()?;
        let term = |number| Bound::Included(self.path.i64(number));
        (first <= last).then(|| (term(first), term(last)))
    }

    fn u64_terms(&self) -> Option<(Bound<Term>, Bound<Term>)> {
        let integers = self.integers();
        let first = u64::try_from(*integers.start().max(&0)).ok()?;
        let last = u64::try_from(*integers.end().min(&i128::from(u64::MAX))).ok()?;
        let term = |number| Bound::Included(self.path.u64(number));
        (first <= last).then(|| (term(first), term(last)))
    }

    fn f64_terms(&self) -> (Bound<Term>, Bound<Term>) {
        let (lower, upper) = self.floats();
        let lower = match lower {
            Bound::Included(number) => Bound::Included(self.path.f64(number)),
            Bound::Excluded(number) => Bound::Excluded(self.path.f64(number)),
            Bound::Unbounded => Bound::Included(self.path.before(Type::F64)),
        };
        let upper = match upper {
            Bound::Included(number) => Bound::Included(self.path.f64(number)),
            Bound::Excluded(number) => Bound::Excluded(self.path.f64(number)),
            Bound::Unbounded => Bound::Excluded(self.path.after(Type::F64)),
        };
        (lower, upper)
    }

    /// The range in the terms of the path's column, if it has one and its numbers are as exact as the range. Blocking.
    fn in_column(&self, reader: &SegmentReader) -> tantivy::Result<Column> {
        // Tantivy would read it as an escape.
        if self.path.keys.contains('\\') {
            return Ok(Column::Inexact);
        }
        let name = format!("{}.{}", reader.schema().get_field_name(self.path.field), self.path.keys);
        let columns = reader.fast_fields().dynamic_column_handles(&name)?;
        let kind = columns.iter().map(|column| column.column_type()).find(|kind| kind.numerical_type().is_some());
        let is_exact = |bound: &Bound<Number>| match bound {
            Bound::Included(number) | Bound::Excluded(number) => match number {
                Number::Int(number) => number.abs() < EXACT_IN_F64_MAX as i128,
                Number::Float(number) => number.abs() < EXACT_IN_F64_MAX,
            },
            Bound::Unbounded => true,
        };
        let range = match kind {
            None => None,
            Some(ColumnType::I64) => self.i64_terms(),
            Some(ColumnType::U64) => self.u64_terms(),
            Some(_) if is_exact(&self.lower) && is_exact(&self.upper) => {
                let (lower, upper) = self.floats();
                let term = |bound: Bound<f64>| bound.map(|number| self.path.f64(number));
                Some((term(lower), term(upper)))
            }
            Some(_) => return Ok(Column::Inexact),
        };
        Ok(range.map_or(Column::NoNumbers, |(lower, upper)| Column::Range(lower, upper)))
    }
}

enum Column {
    Range(Bound<Term>, Bound<Term>),
    /// No number of the split lies in the range.
    NoNumbers,
    /// The dictionary has to answer.
    Inexact,
}

impl Query for NumberRange {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(NumberRangeWeight { range: self.clone(), dictionary: self.in_dictionary().weight(scoring)? }))
    }
}

struct NumberRangeWeight {
    range: NumberRange,
    dictionary: Box<dyn Weight>,
}

impl Weight for NumberRangeWeight {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        match self.range.in_column(reader)? {
            Column::Range(lower, upper) => {
                FastFieldRangeWeight::new(BoundsRange::new(lower, upper)).scorer(reader, boost)
            }
            Column::NoNumbers => Ok(Box::new(EmptyScorer)),
            Column::Inexact => self.dictionary.scorer(reader, boost),
        }
    }

    fn explain(&self, reader: &SegmentReader, doc: DocId) -> tantivy::Result<Explanation> {
        explain(self, reader, doc)
    }
}

impl Query for HasWords {
    fn weight(&self, _scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(self.clone()))
    }
}

impl Weight for HasWords {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let lengths = reader.get_fieldnorms_reader(self.field)?;
        let mut docs = BitSet::with_max_value(reader.max_doc());
        for doc in (0..reader.max_doc()).filter(|doc| lengths.fieldnorm_id(*doc) > 0) {
            docs.insert(doc);
        }
        Ok(Box::new(ConstScorer::new(BitSetDocSet::from(docs), boost)))
    }

    fn explain(&self, reader: &SegmentReader, doc: DocId) -> tantivy::Result<Explanation> {
        explain(self, reader, doc)
    }
}

/// Every match scores the same.
fn explain(weight: &dyn Weight, reader: &SegmentReader, doc: DocId) -> tantivy::Result<Explanation> {
    let mut scorer = weight.scorer(reader, 1.0)?;
    if scorer.seek(doc) == doc {
        return Ok(Explanation::new("constant", scorer.score()));
    }
    Err(TantivyError::InvalidArgument(format!("document {doc} does not match")))
}

#[cfg(test)]
mod tests;
