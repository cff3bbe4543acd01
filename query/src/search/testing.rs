//! Splits in memory for unit tests: the archive's schema over Tantivy's own RAM directory.

use tantivy::{Index, IndexWriter, TantivyDocument};
use thermocline_tiering::split::{SplitOptions, SplitReader, SplitSchema, tokenizers};

/// One document: offset, timestamp, value, key, JSON, headers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doc {
    pub offset: i64,
    pub timestamp: i64,
    pub value: String,
    pub key: String,
    pub json: serde_json::Value,
    pub headers: serde_json::Value,
}

/// What is kept of JSON leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    Indexed,
    /// In columns, too.
    InColumns,
}

pub(crate) fn split(positions: bool, docs: &[Doc]) -> tantivy::Result<SplitReader> {
    split_with(positions, Leaves::Indexed, docs)
}

pub(crate) fn split_with(positions: bool, leaves: Leaves, docs: &[Doc]) -> tantivy::Result<SplitReader> {
    split_of(SplitOptions { positions, fast: leaves == Leaves::InColumns, ..SplitOptions::default() }, docs)
}

pub(crate) fn split_of(options: SplitOptions, docs: &[Doc]) -> tantivy::Result<SplitReader> {
    let fields = SplitSchema::new(options);
    let mut index = Index::create_in_ram(fields.schema.clone());
    index.set_tokenizers(tokenizers());
    index.set_fast_field_tokenizers(tokenizers());
    let mut writer: IndexWriter = index.writer_with_num_threads(1, 15_000_000)?;
    for doc in docs {
        let mut document = TantivyDocument::new();
        document.add_i64(fields.offset, doc.offset);
        document.add_i64(fields.timestamp, doc.timestamp);
        document.add_text(fields.value, &doc.value);
        document.add_text(fields.key, &doc.key);
        for (field, object) in [(fields.json, &doc.json), (fields.headers, &doc.headers)] {
            if object.is_object() {
                document.add_field_value(field, object);
            }
        }
        writer.add_document(document)?;
    }
    writer.commit()?;
    SplitReader::of(index).map_err(|error| tantivy::TantivyError::InternalError(error.to_string()))
}
