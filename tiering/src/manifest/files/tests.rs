use super::*;
use crate::manifest::{RawBatch, RawBatches};

fn object(size_bytes: u64) -> ObjectRef {
    ObjectRef { key: "key".to_owned(), size_bytes, xxh3: String::new() }
}

/// A file of `raw` offsets, each a batch that is kept raw, and of ten rows before them.
fn file(base: i64, raw: usize) -> DataFile {
    let first = base + 10;
    let offsets = (first..).map(Offset).take(raw);
    let batches = offsets.zip(0..).map(|(offset, position)| RawBatch {
        base_offset: offset,
        last_offset: offset,
        position,
        size_bytes: 1,
        reason: String::new(),
    });
    DataFile {
        base_offset: Offset(base),
        last_offset: Offset(first + raw as i64 - 1),
        rows: 10,
        dropped: 0,
        min_timestamp: Timestamp(base),
        max_timestamp: Timestamp(base),
        log_bytes: 100,
        digest: String::new(),
        data: object(100),
        split: None,
        indexed: None,
        raw: Some(RawBatches { object: object(raw as u64), batches: batches.collect() }),
    }
}

/// Pushed one by one, as they are committed.
fn list_of(raw: &[usize], mut check: impl FnMut(&FileList)) -> FileList {
    let mut files = FileList::default();
    for &raw in raw {
        let base = files.last().map_or(0, |last| last.last_offset.0 + 1);
        files.push(Arc::new(file(base, raw)));
        files.seal();
        check(&files);
    }
    files
}

#[test]
fn batches_kept_raw_fill_the_tail() {
    let raw = [RAW_BATCHES_MAX; 3 * PART_FILES];
    let files = list_of(&raw, |files| {
        let in_tail: usize = files.tail.iter().map(|file| file.raw_batches()).sum();
        assert!(in_tail < 2 * PART_RAW_BATCHES && !files.tail.is_empty(), "{in_tail}");
    });
    assert!(files.parts.iter().all(|part| part.files == PART_RAW_BATCHES / RAW_BATCHES_MAX));
    let mut next = 0;
    for file in &files {
        assert_eq!(file.base_offset.0, next);
        next = file.last_offset.0 + 1;
    }
    assert_eq!(files.len(), raw.len());
}

#[test]
fn a_few_of_them_change_nothing() {
    let parts = |raw: usize| list_of(&[raw; 2 * PART_FILES], |_| {}).parts.len();
    assert_eq!((parts(0), parts(PART_RAW_BATCHES / PART_FILES)), (1, 1));
}

/// Of programs that set no limit.
#[test]
fn a_file_of_any_number_of_them_becomes_a_part() {
    let files = list_of(&[0, 5 * PART_RAW_BATCHES, 0], |_| {});
    assert_eq!((files.parts.len(), files.tail.len(), files.len()), (1, 1, 3));
}
