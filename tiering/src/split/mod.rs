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
mod in_place;
mod json;
mod merge;
mod options;
mod package;
mod prepared;
mod reader;
mod rows;
mod times;
mod tokenizer;
mod writer;

#[cfg(test)]
mod tests;

use std::io;

pub use in_place::Held;
pub use merge::{SplitJoin, SplitMerger};
pub use options::SplitOptions;
pub use prepared::{Prepared, PreparedSplit, PreparedSplits, checksum};
pub use reader::{SplitReader, local_file};
pub use rows::RowDigest;
use tantivy::schema::{
    Field, FieldType, INDEXED, IndexRecordOption, JsonObjectOptions, NumericOptions, Schema, TextFieldIndexing,
    TextOptions,
};
pub use times::{TIMES_BLOCK_DOCS, Times, TimesBlock};
use tokenizer::KEYWORD;
pub use tokenizer::{Analyser, KEYWORD_LEN_MAX, QueryWord, TOKEN_LEN_MAX, tokenizers};
pub use writer::SplitWriter;

use crate::store::StoreError;

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
    #[error("split has CRC {found:08x} and had {expected:08x} when it was written; its file is damaged")]
    Changed { found: u32, expected: u32 },
    #[error("split footer is damaged: {0}")]
    Footer(&'static str),
    #[error("split schema: field {field:?} is missing or has another type")]
    Schema { field: &'static str },
    #[error("split schema: analyser {name:?} is not known; a newer program made it")]
    Analyser { name: String },
    #[error("split schema: {first} and {second} are analysers of one split, or of splits to merge")]
    Analysers { first: &'static str, second: &'static str },
    #[error("split has {found} segments; it must have 1")]
    Segments { found: usize },
    #[error("merging splits: document {doc} has offset {offset}, which does not follow {before}")]
    Order { doc: u32, offset: i64, before: i64 },
    #[error("a split of {docs} documents is not that of the file's {rows} rows: offsets or timestamps differ")]
    Rows { docs: u64, rows: u64 },
    #[error("times of a split are damaged: {0}")]
    Times(&'static str),
    #[error("reading a split")]
    Io(#[from] io::Error),
    #[error("fetching a split")]
    Store(#[from] StoreError),
    #[error("opening a split was stopped")]
    Stopped(#[from] tokio::task::JoinError),
    #[error("full-text index of a split")]
    Index(#[from] tantivy::TantivyError),
    #[error("file {name} of a split")]
    File {
        name: String,
        #[source]
        source: tantivy::directory::error::OpenReadError,
    },
}

/// The fields of every split. doc id = row number in the data file.
///
/// A field that the topic leaves out is there, and neither indexed nor kept in columns.
#[derive(Clone, Debug)]
pub struct SplitSchema {
    pub schema: Schema,
    /// How all of its texts are cut into words.
    pub analyser: Analyser,
    /// Text of the value, lossily decoded where it is not UTF-8.
    pub value: Field,
    /// Every leaf of a value that is a JSON object.
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
        let indexing = TextFieldIndexing::default().set_tokenizer(options.analyser.name()).set_index_option(option);
        // Lengths matter for the ranking of values only.
        let unranked = indexing.clone().set_fieldnorms(false);
        let object = |is_indexed: bool| {
            let object = JsonObjectOptions::default().set_expand_dots_enabled();
            match (is_indexed, options.fast) {
                (false, _) => object,
                (true, false) => object.set_indexing_options(unranked.clone()),
                (true, true) => object.set_indexing_options(unranked.clone()).set_fast(KEYWORD),
            }
        };
        let text = |is_indexed: bool, indexing: &TextFieldIndexing| match is_indexed {
            true => TextOptions::default().set_indexing_options(indexing.clone()),
            false => TextOptions::default(),
        };
        let key = text(options.key, &unranked);
        let key = if options.key && options.fast { key.set_fast(KEYWORD) } else { key };
        let number = NumericOptions::from(INDEXED).set_fast();

        let mut builder = Schema::builder();
        let value = builder.add_text_field("value", text(options.value, &indexing));
        let json = builder.add_json_field("json", object(options.json));
        let key = builder.add_text_field("key", key);
        let headers = builder.add_json_field("headers", object(options.headers));
        let timestamp = builder.add_i64_field("timestamp", number.clone());
        let offset = builder.add_i64_field("offset", number);
        let (schema, analyser) = (builder.build(), options.analyser);
        Self { schema, analyser, value, json, key, headers, timestamp, offset }
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
        let is_text = |kind: &FieldType| matches!(kind, FieldType::Str(_));
        let is_json = |kind: &FieldType| matches!(kind, FieldType::JsonObject(_));
        let is_number = |kind: &FieldType| matches!(kind, FieldType::I64(_)) && kind.is_indexed() && kind.is_fast();
        Ok(Self {
            analyser: analyser_of(&schema)?,
            value: field("value", is_text)?,
            json: field("json", is_json)?,
            key: field("key", is_text)?,
            headers: field("headers", is_json)?,
            timestamp: field("timestamp", is_number)?,
            offset: field("offset", is_number)?,
            schema,
        })
    }

    /// The options with which it was made. Splits of [`Analyser::WordsV1`] have a field for JSON whether or not it was
    /// asked for.
    pub fn options(&self) -> SplitOptions {
        SplitOptions {
            analyser: self.analyser,
            value: self.is_indexed(self.value),
            json: self.is_indexed(self.json),
            key: self.is_indexed(self.key),
            headers: self.is_indexed(self.headers),
            positions: [self.value, self.json, self.key, self.headers]
                .into_iter()
                .any(|field| self.has_positions(field)),
            fast: [self.json, self.key, self.headers].into_iter().any(|field| self.is_fast(field)),
        }
    }

    /// Whether the field can be searched.
    pub fn is_indexed(&self, field: Field) -> bool {
        self.kind(field).is_indexed()
    }

    /// Whether the field is kept in columns: can be aggregated and sorted by.
    pub fn is_fast(&self, field: Field) -> bool {
        self.kind(field).is_fast()
    }

    /// Whether the field can be searched for phrases.
    pub fn has_positions(&self, field: Field) -> bool {
        self.kind(field).get_index_record_option().is_some_and(IndexRecordOption::has_positions)
    }

    fn kind(&self, field: Field) -> &FieldType {
        self.schema.get_field_entry(field).field_type()
    }
}

/// The one analyser of all fields that are indexed as text.
fn analyser_of(schema: &Schema) -> Result<Analyser, SplitError> {
    let mut found = None;
    for (_, entry) in schema.fields() {
        let indexing = match entry.field_type() {
            FieldType::Str(options) => options.get_indexing_options(),
            FieldType::JsonObject(options) => options.get_text_indexing_options(),
            _ => None,
        };
        let Some(indexing) = indexing else { continue };
        let name = indexing.tokenizer();
        let analyser = Analyser::named(name).ok_or_else(|| SplitError::Analyser { name: name.to_owned() })?;
        match found {
            Some(first) if first != analyser => {
                return Err(SplitError::Analysers { first: Analyser::name(first), second: analyser.name() });
            }
            _ => found = Some(analyser),
        }
    }
    Ok(found.unwrap_or(Analyser::Words))
}
