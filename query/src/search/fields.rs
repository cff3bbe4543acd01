//! Which fields the messages of topics have, as far as their splits keep them in columns.

use std::collections::{BTreeMap, BTreeSet};

use tantivy::columnar::{ColumnType, ColumnarReader};
use tantivy::index::SegmentComponent;
use thermocline_ingest::model::TopicName;
use thermocline_tiering::split::SplitReader;

use super::execute::{Opening, read_split};
use super::view::View;
use super::{Search, SearchError};
use crate::prune::{Plan, Scope};

/// Splits of one topic that are looked into, newest first; fields that only older messages have are not seen.
const SPLITS_MAX: usize = 8;
/// Fields of one topic that are told.
const FIELDS_MAX: usize = 5000;
/// What separates the keys of a path in the name of a column.
const PATH_SEPARATOR: char = '\u{1}';

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FieldKind {
    Boolean,
    Double,
    Keyword,
    Long,
}

/// `json.<path>`, `headers.<name>` and `key`, with every kind that they have.
pub(crate) type Fields = BTreeMap<String, BTreeSet<FieldKind>>;

impl Search {
    /// The fields of each topic.
    pub(crate) async fn fields(&self, topics: &[TopicName]) -> Result<BTreeMap<TopicName, Fields>, SearchError> {
        let mut found = BTreeMap::new();
        for name in topics {
            let topics = self.topics(Some(vec![name.clone()]))?;
            let view = View::take(&self.live, &self.tiering, &topics);
            let scope = Scope::default();
            let fields = found.entry(name.clone()).or_insert_with(Fields::new);
            for planned in Plan::new(view.nodes(), &scope).take(SPLITS_MAX) {
                let split = match self.open(&planned.extent, &planned.source) {
                    Opening::Open(split) => *split,
                    Opening::Later(opening) => opening.await?,
                };
                for (field, kind) in read_split(&planned.extent, split, &self.resources, columns).await? {
                    if fields.len() < FIELDS_MAX || fields.contains_key(&field) {
                        fields.entry(field).or_default().insert(kind);
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The columns of a split but those that every split has. Blocking.
fn columns(split: &SplitReader) -> tantivy::Result<Vec<(String, FieldKind)>> {
    let mut found = Vec::new();
    for segment in split.index.searchable_segments()? {
        let columns = ColumnarReader::open(segment.open_read(SegmentComponent::FastFields)?)?;
        for (name, column) in columns.list_columns()? {
            if matches!(name.as_str(), "timestamp" | "offset") {
                continue;
            }
            let kind = match column.column_type() {
                ColumnType::I64 | ColumnType::U64 => FieldKind::Long,
                ColumnType::F64 => FieldKind::Double,
                ColumnType::Bool => FieldKind::Boolean,
                ColumnType::Str => FieldKind::Keyword,
                // No field of a split is of these kinds.
                ColumnType::DateTime | ColumnType::Bytes | ColumnType::IpAddr => continue,
            };
            found.push((name.replace(PATH_SEPARATOR, "."), kind));
        }
    }
    Ok(found)
}
