//! Builds a split in memory, record by record.

use bytes::Bytes;
use tantivy::directory::RamDirectory;
use tantivy::store::Compressor;
use tantivy::{IndexBuilder, IndexSettings, SingleSegmentIndexWriter};
use thermocline_ingest::record::Record;

use super::document::RecordDocument;
use super::package::package;
use super::{SplitError, SplitOptions, SplitSchema, tokenizers};

/// Sizes the term table at the start, to a third of this at most; it grows from there. Small, since most splits are: a
/// large table is filled and walked however few words are in it, and does not fit into the processor's cache. The
/// caller bounds memory through [`SplitWriter::mem_usage_bytes`].
const TERM_TABLE_BUDGET_BYTES: usize = 1 << 20;

/// Indexes records; doc ids are handed out in the order of [`Self::add`].
pub struct SplitWriter {
    options: SplitOptions,
    schema: SplitSchema,
    directory: RamDirectory,
    index: SingleSegmentIndexWriter<RecordDocument>,
}

impl SplitWriter {
    pub fn new(options: SplitOptions) -> Result<Self, SplitError> {
        let schema = SplitSchema::new(options);
        let directory = RamDirectory::create();
        // No field is stored: the document store holds an empty entry per record, which lz4 folds to nothing.
        let settings = IndexSettings {
            docstore_compression: Compressor::Lz4,
            docstore_compress_dedicated_thread: false,
            ..IndexSettings::default()
        };
        let index = IndexBuilder::new()
            .schema(schema.schema.clone())
            .settings(settings)
            .tokenizers(tokenizers())
            .fast_field_tokenizers(tokenizers())
            .single_segment_index_writer(directory.clone(), TERM_TABLE_BUDGET_BYTES)?;
        Ok(Self { options, schema, directory, index })
    }

    /// Indexes the next record; its doc id is the number of records added before.
    pub fn add(&mut self, record: &Record<'_>) -> Result<(), SplitError> {
        self.index.add_document(RecordDocument::new(record, self.options, &self.schema))?;
        Ok(())
    }

    pub fn options(&self) -> SplitOptions {
        self.options
    }

    /// Memory held by what has been indexed so far.
    pub fn mem_usage_bytes(&self) -> usize {
        self.index.mem_usage()
    }

    /// The packaged split: files, then footer (layout in `format.rs`).
    pub fn finish(self) -> Result<Bytes, SplitError> {
        package(self.index.finalize()?, self.directory)
    }
}
