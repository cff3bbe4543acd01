//! A split, opened as a search would open it. CPU-bound.

use std::sync::Arc;

use bytes::Bytes;
use tantivy::directory::OwnedBytes;

use super::{Fault, content, row_offsets};
use crate::manifest::DataFile;
use crate::split::SplitReader;

/// The fast field that says which message a document is.
const OFFSET_FIELD: &str = "offset";

/// Whether document `n` is row `n` of the data file, for every row; of files with dropped offsets as far as the
/// manifest knows them.
pub(super) fn check(file: &DataFile, bytes: Bytes) -> Result<(), Fault> {
    let split = SplitReader::open(Arc::new(OwnedBytes::new(Vec::from(bytes)))).map_err(|error| undecodable(&error))?;
    let documents = split.searcher.num_docs();
    if documents != file.rows {
        return Err(content("number of documents", &file.rows, &documents));
    }
    let mut expected = row_offsets(file);
    for segment in split.searcher.segment_readers() {
        let offsets = segment.fast_fields().i64(OFFSET_FIELD).map_err(|error| undecodable(&error))?;
        for document in 0..segment.max_doc() {
            match offsets.first(document) {
                Some(found) => expected.expect(found)?,
                None => return Err(content("offset", &"one for each document", &"none")),
            }
        }
    }
    expected.finish()
}

fn undecodable(error: &dyn std::error::Error) -> Fault {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    Fault::Undecodable { reason }
}
