use proptest::prelude::*;

use super::*;
use crate::cache::ReadCounts;
use crate::cold::testing::{MemorySource, data_file, parquet, record, records, schema};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn opened(
    source: &Arc<MemorySource>,
    bytes: Bytes,
    file: impl FnOnce(ObjectRef) -> DataFile,
) -> (ParquetReader, Result<Arc<ColdFile>, Arc<ParquetReadError>>) {
    let reader = ParquetReader::new(source.blocks(64 << 20), 1 << 20);
    let file = file(source.put("f.parquet", bytes));
    let opened = reader.file(&file).await;
    (reader, opened)
}

fn decoded(file: &ColdFile, group: usize, bytes: RowGroupBytes) -> Vec<OwnedRecord> {
    let mut found = Vec::new();
    for batch in file.decode(group, bytes).unwrap() {
        let columns = RecordColumns::new(&batch.unwrap()).unwrap();
        found.extend((0..columns.len()).map(|at| columns.row(at).unwrap().to_owned()));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_and_row_groups_agree_with_a_vector(
        records in records(50, 1..120, true),
        page_rows in 1..40_usize, group_rows in 1..70_usize,
        picks in proptest::collection::vec(any::<proptest::sample::Index>(), 1..30),
        tail in 0..3_i64,
    ) {
        block_on(async move {
            let source = MemorySource::new();
            let last = records.last().unwrap().offset.0 + tail;
            let bytes = parquet(&records, page_rows, group_rows);
            let (reader, file) = opened(&source, bytes, |object| data_file(object, &records, 48, last)).await;
            let file = file.unwrap();

            let mut rows: Vec<u64> = picks.iter().map(|pick| pick.index(records.len()) as u64).collect();
            rows.sort_unstable();
            rows.dedup();
            let expected: Vec<_> = rows.iter().map(|row| records[*row as usize].clone()).collect();
            prop_assert_eq!(reader.rows(&file, &rows).await.unwrap(), expected);

            let mut scanned = Vec::new();
            let mut at = Offset(48);
            for group in 0..file.row_groups() {
                let before = source.requests();
                let bytes = reader.fetch_row_group(&file, group).await.unwrap().unwrap();
                prop_assert_eq!(source.requests(), before + 1);
                let span = file.span(group);
                prop_assert_eq!(span.start, at);
                at = span.end;
                for record in decoded(&file, group, bytes) {
                    prop_assert!(span.contains(&record.offset));
                    prop_assert_eq!(file.row_group_of(record.offset), group);
                    scanned.push(record);
                }
            }
            prop_assert_eq!(at, Offset(last + 1));
            prop_assert_eq!(&scanned, &records);
            for offset in 45..last + 3 {
                let row = records.iter().position(|record| record.offset.0 == offset).map(|row| row as u64);
                prop_assert_eq!(file.row_of(Offset(offset)), row, "{}", offset);
                if (48..=last).contains(&offset) {
                    prop_assert!(file.span(file.row_group_of(Offset(offset))).contains(&Offset(offset)));
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn timestamps_are_visited_where_they_can_matter(
        records in records(0, 1..120, false),
        page_rows in 1..40_usize, group_rows in 1..70_usize, at_least in 990..1_050_i64,
    ) {
        block_on(async move {
            let source = MemorySource::new();
            let last = records.last().unwrap().offset.0;
            let bytes = parquet(&records, page_rows, group_rows);
            let (reader, file) = opened(&source, bytes, |object| data_file(object, &records, 0, last)).await;
            let file = file.unwrap();
            let mut visited = Vec::new();
            for group in 0..file.row_groups() {
                let visit = |offset, timestamp: Timestamp| {
                    if timestamp.0 >= at_least {
                        visited.push((offset, timestamp));
                    }
                    ControlFlow::<()>::Continue(())
                };
                reader.visit_timestamps(&file, group, Timestamp(at_least), visit).await.unwrap();
            }
            let reaching = records.iter().filter(|record| record.timestamp.0 >= at_least);
            let expected: Vec<_> = reaching.map(|record| (record.offset, record.timestamp)).collect();
            prop_assert_eq!(visited, expected);
            Ok(())
        })?;
    }

    /// Damage anywhere in a file is an error or harmless, never a panic.
    #[test]
    fn damage_never_panics(at in any::<proptest::sample::Index>(), mask in 1..=255_u8, cut in any::<bool>()) {
        let records: Vec<_> = (0..50).map(|n| record(n, 1_000 + n, format!("value {n}"))).collect();
        let mut bytes = parquet(&records, 10, 25).to_vec();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= mask;
        }
        block_on(async move {
            let source = MemorySource::new();
            let (reader, file) = opened(&source, bytes.into(), |object| data_file(object, &records, 0, 49)).await;
            let Ok(file) = file else { return };
            let _ = reader.rows(&file, &[0, 7, 49]).await;
            for group in 0..file.row_groups() {
                let visit = |_, _| ControlFlow::<()>::Continue(());
                let _ = reader.visit_timestamps(&file, group, Timestamp(0), visit).await;
                if let Ok(Some(bytes)) = reader.fetch_row_group(&file, group).await
                    && let Ok(batches) = file.decode(group, bytes)
                {
                    batches.flatten().for_each(|batch| drop(RecordColumns::new(&batch)));
                }
            }
        });
    }
}

#[tokio::test]
async fn one_message_costs_kilobytes() {
    let source = MemorySource::new();
    // Text that does not compress away: 100 bytes each, pages of 200 rows.
    let value = |n: i64| {
        (0..8)
            .map(|part| {
                format!("{:012x}", ((n * 8 + part).wrapping_mul(0x1e37_79b9_7f4a_7c15) >> 16) & 0xffff_ffff_ffff)
            })
            .collect::<String>()
    };
    let records: Vec<_> = (0..40_000).map(|n| record(n, n, value(n))).collect();
    let bytes = parquet(&records, 200, 1 << 20);
    let size = bytes.len() as u64;
    let (reader, file) = opened(&source, bytes, |object| data_file(object, &records, 0, 39_999)).await;
    let (file, counts) = (file.unwrap(), Arc::new(ReadCounts::default()));
    let found = counts.count(reader.rows(&file, &[20_123])).await.unwrap();
    assert_eq!(found, [records[20_123].clone()]);
    let cost = counts.bytes();
    assert!(cost <= 8 * crate::cache::BLOCK_BYTES && cost * 8 < size, "{cost} of {size} bytes");
}

#[tokio::test]
async fn a_file_that_is_not_the_manifests_is_refused() {
    let source = MemorySource::new();
    let records: Vec<_> = (0..10).map(|n| record(n, n, "x")).collect();
    let other = |object| DataFile { rows: 9, last_offset: Offset(8), ..data_file(object, &records, 0, 9) };
    let (_, file) = opened(&source, parquet(&records, 5, 5), other).await;
    assert!(matches!(file.err().as_deref(), Some(ParquetReadError::Mismatch { found: 10, expected: 9, .. })));

    let source = MemorySource::new();
    let shifted = |object| DataFile { rows: 10, ..data_file(object, &records, 5, 30) };
    let (_, file) = opened(&source, parquet(&records, 5, 5), shifted).await;
    assert!(matches!(file.err().as_deref(), Some(ParquetReadError::Layout { .. })));

    let foreign = arrow::array::RecordBatch::try_from_iter([(
        "name",
        Arc::new(arrow::array::StringArray::from(vec!["a"])) as arrow::array::ArrayRef,
    )]);
    let mut bytes = Vec::new();
    let foreign = foreign.unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, foreign.schema(), None).unwrap();
    writer.write(&foreign).unwrap();
    writer.close().unwrap();
    let source = MemorySource::new();
    let (_, file) = opened(&source, bytes.into(), |object| data_file(object, &records[..1], 0, 0)).await;
    assert!(matches!(file.err().as_deref(), Some(ParquetReadError::Columns { .. })));
    assert_eq!(schema().fields().len(), 7);
}
