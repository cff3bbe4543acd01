//! Columns that no split keeps and that are computed while documents are aggregated.

use std::fmt;
use std::io;
use std::sync::Arc;

use chrono::{DateTime, Datelike, FixedOffset, NaiveDate, NaiveTime, Utc};
use serde_json::{Map, Value};
use tantivy::SegmentReader;
use tantivy::aggregation::{ValueSource, ValueSourceDictionary, ValueSourceProvider};
use tantivy::columnar::{Cardinality, Column, ColumnType, ColumnValues, MonotonicallyMappableToU64};
use tantivy::query::{EnableScoring, Query};
use tantivy::{DocId, TantivyError};

/// A length of time that is not always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calendar {
    Month,
    Quarter,
    Year,
}

impl Calendar {
    /// Which month, quarter or year since the year 0 a moment lies in. Moments that the calendar does not reach lie in
    /// its first or last one.
    pub fn number_of(self, millis: i64, zone: FixedOffset) -> i64 {
        let local = millis.saturating_add(i64::from(zone.local_minus_utc()) * 1000);
        let edge = if millis < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
        let time = DateTime::<Utc>::from_timestamp_millis(local).unwrap_or(edge);
        let months = i64::from(time.year()) * 12 + i64::from(time.month0());
        months.div_euclid(self.months())
    }

    /// The first moment of the n-th one, in milliseconds; None where the calendar does not reach it.
    pub fn start_of(self, number: i64, zone: FixedOffset) -> Option<i64> {
        let months = number.checked_mul(self.months())?;
        let year = i32::try_from(months.div_euclid(12)).ok()?;
        let month = u32::try_from(months.rem_euclid(12)).ok()? + 1;
        let first = NaiveDate::from_ymd_opt(year, month, 1)?.and_time(NaiveTime::MIN);
        first.and_utc().timestamp_millis().checked_sub(i64::from(zone.local_minus_utc()) * 1000)
    }

    fn months(self) -> i64 {
        match self {
            Self::Month => 1,
            Self::Quarter => 3,
            Self::Year => 12,
        }
    }
}

/// The number of the calendar interval that `timestamp` lies in.
#[derive(Clone)]
pub(super) struct CalendarColumn {
    calendar: Calendar,
    zone: FixedOffset,
}

impl CalendarColumn {
    pub fn new(calendar: Calendar, zone: FixedOffset) -> Self {
        Self { calendar, zone }
    }
}

impl ValueSourceProvider for CalendarColumn {
    fn for_segment(
        &self,
        segment: &SegmentReader,
        _allowed: Option<&[ColumnType]>,
    ) -> tantivy::Result<Option<Box<dyn ValueSource>>> {
        let timestamps = segment.fast_fields().i64("timestamp")?.first_or_default_col(0);
        Ok(Some(Box::new(CalendarValues { column: self.clone(), timestamps })))
    }
}

struct CalendarValues {
    column: CalendarColumn,
    timestamps: Arc<dyn ColumnValues<i64>>,
}

impl fmt::Debug for CalendarValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of timestamp", self.column.calendar)
    }
}

impl ValueSource for CalendarValues {
    fn column_type(&self) -> ColumnType {
        ColumnType::I64
    }

    fn load_block(
        &mut self,
        docs: &[DocId],
        values: &mut Vec<u64>,
        _docids: &mut Vec<DocId>,
        _row_ids: &mut Vec<u32>,
    ) -> Cardinality {
        let CalendarColumn { calendar, zone } = self.column;
        values.clear();
        values.extend(docs.iter().map(|doc| calendar.number_of(self.timestamps.get_val(*doc), zone).to_u64()));
        Cardinality::Full
    }

    /// Months are counted, not measured: nothing but a histogram ever reads this column.
    fn to_f64(self: Box<Self>) -> Box<dyn ValueSource> {
        self
    }
}

/// In place of a column that the split does not keep: no document has a value.
pub(super) struct EmptyColumn;

impl ValueSourceProvider for EmptyColumn {
    fn for_segment(
        &self,
        segment: &SegmentReader,
        _allowed: Option<&[ColumnType]>,
    ) -> tantivy::Result<Option<Box<dyn ValueSource>>> {
        let column: Column<u64> = Column::build_empty_column(segment.max_doc());
        Ok(Some(Box::new((column, ColumnType::U64))))
    }
}

/// What all documents of a split have in common: their topic or their partition.
#[derive(Clone, Debug)]
pub(super) enum ConstantColumn {
    Text(Arc<str>),
    Number(i64),
}

impl ConstantColumn {
    /// Whether it is one of the terms that an aggregation wants, by its `include` and `exclude`.
    pub fn is_listed(&self, settings: &Map<String, Value>) -> bool {
        let term = match self {
            Self::Text(text) => text.to_string(),
            Self::Number(number) => number.to_string(),
        };
        let names = |list: &str| Some(settings.get(list)?.as_array()?.iter().any(|name| *name == term));
        names("include") != Some(false) && names("exclude") != Some(true)
    }
}

impl ValueSourceProvider for ConstantColumn {
    fn for_segment(
        &self,
        _segment: &SegmentReader,
        _allowed: Option<&[ColumnType]>,
    ) -> tantivy::Result<Option<Box<dyn ValueSource>>> {
        Ok(Some(match self {
            Self::Text(text) => Box::new(ConstantText { text: text.clone() }),
            Self::Number(number) => Box::new(ConstantNumber { value: number.to_u64(), kind: ColumnType::I64 }),
        }))
    }
}

/// One word, which is the first of its dictionary.
#[derive(Debug)]
struct ConstantText {
    text: Arc<str>,
}

impl ValueSource for ConstantText {
    fn column_type(&self) -> ColumnType {
        ColumnType::Str
    }

    fn load_block(
        &mut self,
        docs: &[DocId],
        values: &mut Vec<u64>,
        _: &mut Vec<DocId>,
        _: &mut Vec<u32>,
    ) -> Cardinality {
        values.clear();
        values.resize(docs.len(), 0);
        Cardinality::Full
    }

    fn to_f64(self: Box<Self>) -> Box<dyn ValueSource> {
        self
    }

    fn term_dictionary(&self) -> Option<&dyn ValueSourceDictionary> {
        Some(self)
    }
}

impl ValueSourceDictionary for ConstantText {
    fn num_terms(&self) -> u64 {
        1
    }

    fn sorted_ords_to_term_cb(&self, ords: &[u64], callback: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        ords.iter().filter(|ord| **ord == 0).for_each(|_| callback(self.text.as_bytes()));
        Ok(ords.iter().all(|ord| *ord == 0))
    }
}

#[derive(Debug)]
struct ConstantNumber {
    /// As Tantivy keeps values of this kind.
    value: u64,
    kind: ColumnType,
}

impl ValueSource for ConstantNumber {
    fn column_type(&self) -> ColumnType {
        self.kind
    }

    fn load_block(
        &mut self,
        docs: &[DocId],
        values: &mut Vec<u64>,
        _: &mut Vec<DocId>,
        _: &mut Vec<u32>,
    ) -> Cardinality {
        values.clear();
        values.resize(docs.len(), self.value);
        Cardinality::Full
    }

    fn to_f64(self: Box<Self>) -> Box<dyn ValueSource> {
        match self.kind {
            ColumnType::I64 => {
                let number = i64::from_u64(self.value) as f64;
                Box::new(Self { value: number.to_u64(), kind: ColumnType::F64 })
            }
            _ => self,
        }
    }
}

/// The numbers of the filters that a document matches.
pub(super) struct FilterColumn {
    /// For each filter a bit per document.
    matching: Arc<[Vec<u64>]>,
}

impl FilterColumn {
    /// Searches each filter's documents in `segment`, the only one of its split.
    pub fn search(
        queries: &[Box<dyn Query>],
        searcher: &tantivy::Searcher,
        segment: &SegmentReader,
        memory_max: u64,
    ) -> tantivy::Result<Self> {
        let words = u64::from(segment.max_doc()).div_ceil(64);
        let size = words * 8 * queries.len() as u64;
        if size > memory_max {
            return Err(TantivyError::InvalidArgument(format!(
                "{} filters over {} messages take {size} bytes, more than the {memory_max} of \
                 search.aggregation_memory_max; ask for fewer filters",
                queries.len(),
                segment.max_doc()
            )));
        }
        let matching = queries.iter().map(|query| {
            let mut bits = vec![0_u64; usize::try_from(words).unwrap_or(usize::MAX)];
            let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
            weight.for_each_no_score(segment, &mut |docs| {
                for doc in docs {
                    if let Some(word) = bits.get_mut(*doc as usize / 64) {
                        *word |= 1 << (doc % 64);
                    }
                }
            })?;
            Ok(bits)
        });
        Ok(Self { matching: matching.collect::<tantivy::Result<_>>()? })
    }
}

impl ValueSourceProvider for FilterColumn {
    fn for_segment(
        &self,
        _segment: &SegmentReader,
        _allowed: Option<&[ColumnType]>,
    ) -> tantivy::Result<Option<Box<dyn ValueSource>>> {
        Ok(Some(Box::new(FilterValues { matching: self.matching.clone() })))
    }
}

struct FilterValues {
    matching: Arc<[Vec<u64>]>,
}

impl fmt::Debug for FilterValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} filters", self.matching.len())
    }
}

impl ValueSource for FilterValues {
    fn column_type(&self) -> ColumnType {
        ColumnType::U64
    }

    fn load_block(
        &mut self,
        docs: &[DocId],
        values: &mut Vec<u64>,
        docids: &mut Vec<DocId>,
        _row_ids: &mut Vec<u32>,
    ) -> Cardinality {
        values.clear();
        docids.clear();
        for doc in docs {
            let (word, bit) = (*doc as usize / 64, doc % 64);
            for (number, bits) in (0_u64..).zip(self.matching.iter()) {
                if bits.get(word).is_some_and(|bits| (bits >> bit) & 1 == 1) {
                    values.push(number);
                    docids.push(*doc);
                }
            }
        }
        Cardinality::Multivalued
    }

    /// Filters are numbered, not measured: nothing but a histogram ever reads this column.
    fn to_f64(self: Box<Self>) -> Box<dyn ValueSource> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elastic::{iso, zone};

    #[test]
    fn calendar_intervals_start_where_they_are_counted() {
        let utc = zone("Z").unwrap();
        for (calendar, millis, start) in [
            (Calendar::Month, 1_431_857_103_250, "2015-05-01T00:00:00.000Z"),
            (Calendar::Quarter, 1_431_857_103_250, "2015-04-01T00:00:00.000Z"),
            (Calendar::Year, 1_431_857_103_250, "2015-01-01T00:00:00.000Z"),
            (Calendar::Month, -1, "1969-12-01T00:00:00.000Z"),
            (Calendar::Quarter, 0, "1970-01-01T00:00:00.000Z"),
        ] {
            let number = calendar.number_of(millis, utc);
            assert_eq!(calendar.start_of(number, utc).map(iso).as_deref(), Some(start));
            assert!(calendar.start_of(number + 1, utc).unwrap() > millis);
        }
        let east = zone("+02:00").unwrap();
        let last_hour_of_may_in_utc = 1_433_113_200_000;
        let june = Calendar::Month.number_of(last_hour_of_may_in_utc, east);
        assert_eq!(Calendar::Month.start_of(june, east).map(iso).as_deref(), Some("2015-05-31T22:00:00.000Z"));
        for extreme in [i64::MIN, i64::MAX] {
            let number = Calendar::Year.number_of(extreme, east);
            assert!(number.abs() < 300_000, "{number}");
        }
        assert_eq!(Calendar::Year.start_of(i64::MAX, utc), None);
    }
}
