//! A split: one packaged Tantivy index in one object, readable with ranged GETs. Archived files and the live index
//! use the same package.
//!
//! Invariants:
//! - A split has exactly one segment and no deletes; doc id = row number of the record in its data file.
//! - No body is stored: a hit is an offset, the message comes from log or Parquet.
//! - Everything Tantivy reads while a split is opened lies in the footer and under its CRC, so that damaged bytes are
//!   found before Tantivy sees them. The bodies of the files are covered by the object's hash in the manifest.

mod document;
mod format;
mod json;
mod merge;
mod package;
mod reader;
mod tokenizer;
mod writer;

#[cfg(test)]
mod tests;

use std::io;

pub use merge::{SplitJoin, SplitMerger};
pub use reader::{SplitReader, local_file};
use tantivy::schema::{
    Field, FieldType, INDEXED, IndexRecordOption, JsonObjectOptions, NumericOptions, Schema, TextFieldIndexing,
    TextOptions,
};
pub use tokenizer::{TOKEN_LEN_MAX, TOKENIZER, ThermoclineTokenizer, tokenizers};
pub use writer::SplitWriter;

/// Why a split could not be written or opened.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    #[error("split of {len} bytes is shorter than its {min} bytes of header and trailer")]
    TooShort { len: u64, min: u64 },
    #[error("bytes {found:02x?} at {place} are not a split's magic")]
    Magic { place: &'static str, found: Vec<u8> },
    #[error("split has format version {found}; this program reads version {supported}")]
    Version { found: u16, supported: u16 },
    #[error("split footer of {len} bytes exceeds what the object holds or the limit of {max}")]
    FooterLength { len: u64, max: u64 },
    #[error("split footer has CRC {found:08x}, its trailer says {expected:08x}; the object is damaged")]
    Checksum { found: u32, expected: u32 },
    #[error("split footer is damaged: {0}")]
    Footer(&'static str),
    #[error("split schema: field {field:?} is missing or has another type")]
    Schema { field: &'static str },
    #[error("split has {found} segments; it must have 1")]
    Segments { found: usize },
    #[error("merging splits: document {doc} has offset {offset}, which does not follow {before}")]
    Order { doc: u32, offset: i64, before: i64 },
    #[error("reading a split")]
    Io(#[from] io::Error),
    #[error("full-text index of a split")]
    Index(#[from] tantivy::TantivyError),
    #[error("file {name} of a split")]
    File {
        name: String,
        #[source]
        source: tantivy::directory::error::OpenReadError,
    },
}

/// How a topic is indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitOptions {
    /// Index JSON leaves too (`search.index = json`).
    pub json: bool,
    /// Keep token positions, so that phrases can be searched (`search.positions`).
    pub positions: bool,
}

/// The fields of every split. doc id = row number in the data file.
#[derive(Clone, Debug)]
pub struct SplitSchema {
    pub schema: Schema,
    /// Text of the value, lossily decoded where it is not UTF-8.
    pub value: Field,
    /// Every leaf of a value that is a JSON object; empty unless [`SplitOptions::json`].
    pub json: Field,
    /// Text of the key, lossily decoded where it is not UTF-8.
    pub key: Field,
    /// Header name -> text of its value, every value of a repeated name.
    pub headers: Field,
    /// Milliseconds since the Unix epoch; i64, fast and indexed.
    pub timestamp: Field,
    /// i64, fast and indexed.
    pub offset: Field,
}

impl SplitSchema {
    /// The schema of a new split.
    pub fn new(options: SplitOptions) -> Self {
        let option =
            if options.positions { IndexRecordOption::WithFreqsAndPositions } else { IndexRecordOption::Basic };
        let indexing = TextFieldIndexing::default().set_tokenizer(TOKENIZER).set_index_option(option);
        // Lengths matter for the ranking of values only.
        let unranked = indexing.clone().set_fieldnorms(false);
        let object = JsonObjectOptions::default().set_indexing_options(unranked.clone()).set_expand_dots_enabled();
        let number = NumericOptions::from(INDEXED).set_fast();

        let mut builder = Schema::builder();
        let value = builder.add_text_field("value", TextOptions::default().set_indexing_options(indexing));
        let json = builder.add_json_field("json", object.clone());
        let key = builder.add_text_field("key", TextOptions::default().set_indexing_options(unranked));
        let headers = builder.add_json_field("headers", object);
        let timestamp = builder.add_i64_field("timestamp", number.clone());
        let offset = builder.add_i64_field("offset", number);
        Self { schema: builder.build(), value, json, key, headers, timestamp, offset }
    }

    /// Whether values of text fields can be searched for phrases.
    fn has_positions(&self) -> bool {
        let option = self.schema.get_field_entry(self.value).field_type().get_index_record_option();
        option.is_some_and(IndexRecordOption::has_positions)
    }

    /// The fields of a split that was read; checks that they are what [`Self::new`] makes.
    pub fn of(schema: Schema) -> Result<Self, SplitError> {
        let field = |name: &'static str, fits: fn(&FieldType) -> bool| {
            schema
                .get_field(name)
                .ok()
                .filter(|field| fits(schema.get_field_entry(*field).field_type()))
                .ok_or(SplitError::Schema { field: name })
        };
        let is_text = |kind: &FieldType| matches!(kind, FieldType::Str(_)) && kind.is_indexed();
        let is_json = |kind: &FieldType| matches!(kind, FieldType::JsonObject(_)) && kind.is_indexed();
        let is_number = |kind: &FieldType| matches!(kind, FieldType::I64(_)) && kind.is_indexed() && kind.is_fast();
        Ok(Self {
            value: field("value", is_text)?,
            json: field("json", is_json)?,
            key: field("key", is_text)?,
            headers: field("headers", is_json)?,
            timestamp: field("timestamp", is_number)?,
            offset: field("offset", is_number)?,
            schema,
        })
    }
}
