//! Splits in memory for unit tests: the archive's schema over Tantivy's own RAM directory.

use tantivy::schema::{FAST, INDEXED, IndexRecordOption, JsonObjectOptions, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{LowerCaser, SimpleTokenizer, TextAnalyzer};
use tantivy::{Index, IndexWriter, TantivyDocument};
use thermocline_tiering::split::{SplitReader, SplitSchema, TOKENIZER};

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

fn fields(positions: bool) -> SplitSchema {
    let option = if positions { IndexRecordOption::WithFreqsAndPositions } else { IndexRecordOption::Basic };
    let indexing = TextFieldIndexing::default().set_tokenizer(TOKENIZER).set_index_option(option);
    let unranked = indexing.clone().set_fieldnorms(false);
    let text = |indexing| TextOptions::default().set_indexing_options(indexing);
    let json = JsonObjectOptions::default().set_indexing_options(unranked.clone()).set_expand_dots_enabled();
    let mut builder = Schema::builder();
    let value = builder.add_text_field("value", text(indexing));
    let json_field = builder.add_json_field("json", json.clone());
    let key = builder.add_text_field("key", text(unranked));
    let headers = builder.add_json_field("headers", json);
    let timestamp = builder.add_i64_field("timestamp", INDEXED | FAST);
    let offset = builder.add_i64_field("offset", INDEXED | FAST);
    SplitSchema { schema: builder.build(), value, json: json_field, key, headers, timestamp, offset }
}

pub(crate) fn split(positions: bool, docs: &[Doc]) -> tantivy::Result<SplitReader> {
    let fields = fields(positions);
    let index = Index::create_in_ram(fields.schema.clone());
    let analyser = TextAnalyzer::builder(SimpleTokenizer::default()).filter(LowerCaser).build();
    index.tokenizers().register(TOKENIZER, analyser);
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
    let searcher = index.reader()?.searcher();
    Ok(SplitReader { index, searcher, fields })
}
