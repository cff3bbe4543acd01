use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::PageIndexPolicy;
use thermocline_ingest::model::TimestampType;
use thermocline_ingest::record::Headers;

use super::*;
use crate::testing::{batches, for_each_record, some_records};

fn encode(count: usize, options: ParquetOptions) -> Bytes {
    let mut encoder = ParquetEncoder::new(PartitionId(3), options).unwrap();
    for_each_record(&batches(100, &some_records(count), 64), |record| encoder.push(record).unwrap());
    encoder.finish(&TopicName::new("orders").unwrap(), Offset(100), Offset(99 + count as i64)).unwrap()
}

fn options(row_group_bytes: usize, page_bytes: usize) -> ParquetOptions {
    ParquetOptions { zstd_level: 3, row_group_bytes, page_bytes }
}

#[test]
fn the_file_is_laid_out_as_designed() {
    let file = encode(20_000, options(512 << 10, 8 << 10));
    let reading = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let metadata = ArrowReaderMetadata::load(&file, reading).unwrap();
    assert_eq!(metadata.schema().fields(), schema().fields(), "the schema reads back as it is, field ids included");
    let file_metadata = metadata.metadata().file_metadata();
    assert!(file_metadata.created_by().unwrap().starts_with("thermocline version "));
    let entry = |key: &str| {
        let entries = file_metadata.key_value_metadata().unwrap();
        entries.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.clone()).unwrap()
    };
    assert_eq!(entry(TOPIC_KEY), "orders");
    assert_eq!(entry(PARTITION_KEY), "3");
    assert_eq!((entry(BASE_OFFSET_KEY), entry(LAST_OFFSET_KEY)), ("100".to_owned(), "20099".to_owned()));

    let descr = file_metadata.schema_descr();
    let ids: Vec<_> = descr.root_schema().get_fields().iter().map(|field| field.get_basic_info().id()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7]);
    let leaves: Vec<_> = descr.columns().iter().map(|column| column.path().string()).collect();
    let headers = ["headers.list.element.key", "headers.list.element.value"];
    assert_eq!(leaves[..6], ["partition", "offset", "timestamp", "timestamp_type", "key", "value"]);
    assert_eq!(leaves[6..], headers);
    let ids: Vec<_> = descr.columns()[6..].iter().map(|column| column.self_type().get_basic_info().id()).collect();
    assert_eq!(ids, [9, 10]);

    assert!(metadata.metadata().num_row_groups() >= 2, "{} row groups", metadata.metadata().num_row_groups());
    for (index, group) in metadata.metadata().row_groups().iter().enumerate() {
        let pages = &metadata.metadata().offset_index().unwrap()[index];
        for (column, chunk) in group.columns().iter().enumerate() {
            assert!(matches!(chunk.compression(), Compression::ZSTD(_)));
            let compressed: i64 =
                pages[column].page_locations().iter().map(|page| i64::from(page.compressed_page_size)).sum();
            assert!(compressed > 0);
        }
        let offset = group.column(1);
        assert!(offset.encodings().any(|encoding| encoding == Encoding::DELTA_BINARY_PACKED));
        assert!(offset.statistics().is_some() && offset.column_index_offset().is_some());
        assert!(group.column(5).statistics().is_none(), "no bounds for values");
        assert_eq!(group.column(5).dictionary_page_offset(), None);
        // A page of values is about page_bytes: two thirds of a row of these records are its value.
        let value_pages = pages[5].page_locations().len() as i64;
        let page_bytes = group.column(5).uncompressed_size() / value_pages;
        assert!((4 << 10..16 << 10).contains(&page_bytes), "{page_bytes} bytes per page");
        let rows_per_page = group.num_rows() / pages[1].page_locations().len() as i64;
        assert!(rows_per_page <= PAGE_ROWS_MAX as i64 + 1024);
    }
}

#[test]
fn rows_are_the_records() {
    let file = encode(1000, options(16 << 10, 2 << 10));
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let mut offsets: Vec<i64> = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        offsets.extend(batch.column(1).as_primitive::<Int64Type>().values());
        assert_eq!(batch.column(6).null_count(), 0, "no headers are an empty list");
    }
    assert_eq!(offsets, (100..1100).collect::<Vec<_>>());
}

#[test]
fn a_file_without_rows_is_a_file() {
    let file = ParquetEncoder::new(PartitionId(0), options(1, 1)).unwrap();
    let file = file.finish(&TopicName::new("orders").unwrap(), Offset(5), Offset(6)).unwrap();
    let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).unwrap();
    assert_eq!(metadata.schema().fields(), schema().fields());
    assert_eq!(metadata.metadata().num_row_groups(), 0);
}

#[test]
fn a_timestamp_that_does_not_fit_is_refused_and_nothing_added() {
    let mut encoder = ParquetEncoder::new(PartitionId(0), options(1 << 20, 1 << 10)).unwrap();
    let record = |timestamp| Record {
        offset: Offset(1),
        timestamp: Timestamp(timestamp),
        timestamp_type: TimestampType::CreateTime,
        key: None,
        value: None,
        headers: Headers::default(),
    };
    for unfit in [i64::MAX, i64::MIN, i64::MAX / 1000 + 1] {
        assert!(matches!(encoder.push(&record(unfit)), Err(ParquetError::Timestamp { .. })));
    }
    assert_eq!((encoder.row_count(), encoder.decoded_bytes()), (0, 0));
    for fit in [i64::MAX / 1000, i64::MIN / 1000, -1, 0] {
        encoder.push(&record(fit)).unwrap();
    }
}
