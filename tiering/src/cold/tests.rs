use bytes::Bytes;
use proptest::prelude::*;
use thermocline_config::ByteSize;
use thermocline_ingest::record::{BatchDecoder, BatchEncoder, BatchError, Record, split_batches};

use super::testing::{MemorySource, data_file, manifest, parquet, record, records};
use super::*;
use crate::cache::ReadCounts;
use crate::manifest::{RawBatch, RawBatches};
use crate::reader::{Found, OwnedRecord};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn config(prefetch_row_groups: usize) -> CacheConfig {
    CacheConfig { batches_max_bytes: ByteSize::mib(64), prefetch_row_groups, ..CacheConfig::default() }
}

/// Cuts `records` (dense) into files of about `file_rows` and puts them into the source.
fn archive(source: &MemorySource, records: &[OwnedRecord], file_rows: usize, group_rows: usize) -> Arc<Manifest> {
    let files = records.chunks(file_rows).map(|part| {
        let (base, last) = (part[0].offset.0, part[part.len() - 1].offset.0);
        let object = source.put(&format!("{base}.parquet"), parquet(part, 7, group_rows));
        data_file(object, part, base, last)
    });
    manifest(files.collect())
}

fn decoded(run: &BatchRun) -> Vec<OwnedRecord> {
    let mut found = Vec::new();
    for batch in run.chunks.iter().cloned().flat_map(split_batches) {
        let pick = |record: Record<'_>| -> Result<(), BatchError> {
            found.push(OwnedRecord::from(&record));
            Ok(())
        };
        BatchDecoder::new(64 << 20).for_each(&batch.unwrap(), pick).unwrap();
    }
    found
}

fn range(from: i64, until: i64, max_bytes: usize) -> ReadRange {
    ReadRange { from: Offset(from), until: Offset(until), max_bytes, at_least_one: true }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn places_in_time_agree_with_a_scan(
        records in records(10, 1..150, false),
        file_rows in 1..60_usize, group_rows in 1..30_usize,
        target in 990..1_050_i64, start in 0..170_i64, len in 0..170_i64,
    ) {
        runtime().block_on(async move {
            let source = MemorySource::new();
            let manifest = archive(&source, &records, file_rows, group_rows);
            let cold = ColdReader::new(source.blocks(64 << 20), &config(0));
            let within = Offset(start)..Offset(start + len);
            let place = |record: &OwnedRecord| TimestampedOffset { offset: record.offset, timestamp: record.timestamp };
            let readable = || records.iter().filter(|record| within.contains(&record.offset));

            let first = readable().find(|record| record.timestamp.0 >= target).map(place);
            let found = cold.offset_for_timestamp(&manifest, Timestamp(target), within.clone()).await.unwrap();
            prop_assert_eq!(found, first);

            let latest = readable().max_by_key(|r| (r.timestamp, std::cmp::Reverse(r.offset))).map(place);
            prop_assert_eq!(cold.max_timestamp(&manifest, within.clone()).await.unwrap(), latest);
            Ok(())
        })?;
    }

    /// Whichever way they are read, in however many pieces.
    #[test]
    fn single_records_agree_with_a_vector(
        records in records(10, 1..150, false),
        file_rows in 1..60_usize, group_rows in 1..30_usize,
        wanted in proptest::collection::btree_set(0..170_i64, 0..60),
        scanned in any::<bool>(), max_bytes in prop_oneof![Just(1_usize), Just(60), Just(usize::MAX)],
    ) {
        runtime().block_on(async move {
            let source = MemorySource::new();
            let manifest = archive(&source, &records, file_rows, group_rows);
            let cold = ColdReader::new(source.blocks(64 << 20), &config(0));
            let offsets: Vec<Offset> = wanted.into_iter().map(Offset).collect();
            let expected: Vec<_> =
                offsets.iter().map(|offset| records.iter().find(|record| record.offset == *offset).cloned()).collect();
            if scanned {
                // Row groups that are in memory are used.
                let end = records.last().unwrap().offset.0 + 1;
                cold.read(&manifest, &range(10, end, usize::MAX)).await.unwrap();
            }
            let mut found = Found::default();
            while found.records.len() < offsets.len() {
                let rest = &offsets[found.records.len()..];
                let next = cold.records(&manifest, rest, max_bytes).await.unwrap();
                prop_assert!(!next.records.is_empty() && next.records.len() <= rest.len());
                prop_assert!(max_bytes < usize::MAX || next.records.len() == rest.len());
                found.append(next);
            }
            prop_assert_eq!(&found.records, &expected);
            let count = expected.iter().flatten().count() as u64;
            prop_assert!(found.rows_fetched <= count);
            prop_assert!(found.rows_fetched == count || found.row_groups_scanned > 0);
            Ok(())
        })?;
    }

    /// A consumer that goes on where the last answer ended sees every record once, whatever the limits.
    #[test]
    fn reading_on_and_on_gives_everything(
        records in records(10, 1..150, false),
        file_rows in 1..60_usize, group_rows in 1..30_usize,
        from in 0..170_i64, max_bytes in prop_oneof![Just(1_usize), Just(700), Just(1 << 20)], prefetch in 0..3_usize,
    ) {
        runtime().block_on(async move {
            let source = MemorySource::new();
            let manifest = archive(&source, &records, file_rows, group_rows);
            let cold = ColdReader::new(source.blocks(64 << 20), &config(prefetch));
            let end = records.last().unwrap().offset.0 + 1;
            let (mut at, mut seen) = (from, Vec::new());
            loop {
                let run = decoded(&cold.read(&manifest, &range(at, end, max_bytes)).await.unwrap().batches);
                let Some(last) = run.last() else { break };
                prop_assert!(last.offset.0 >= at, "each answer gets further");
                seen.extend(run.iter().filter(|record| record.offset.0 >= at).cloned());
                at = last.offset.0 + 1;
            }
            let expected: Vec<_> = records.iter().filter(|record| record.offset.0 >= from).cloned().collect();
            prop_assert_eq!(seen, expected);
            Ok(())
        })?;
    }
}

fn big(count: i64) -> Vec<OwnedRecord> {
    (0..count).map(|n| record(n, n, vec![n as u8; 1_000])).collect()
}

#[tokio::test]
async fn a_row_group_is_fetched_once_for_all_readers() {
    let source = MemorySource::new();
    let manifest = archive(&source, &big(3_000), 3_000, 1_000);
    let cold = ColdReader::new(source.blocks(64 << 20), &config(0));
    cold.inner.parquet.file(&manifest.files[0]).await.unwrap();
    let before = source.requests();
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..8 {
        let (cold, manifest) = (cold.clone(), manifest.clone());
        readers.spawn(async move { cold.read(&manifest, &range(reader, 1_000, 100_000)).await.unwrap().batches });
    }
    while let Some(run) = readers.join_next().await {
        assert_eq!(decoded(&run.unwrap())[0].offset, Offset(0), "the batch that holds the offset, from its start");
    }
    assert_eq!(source.requests() - before, 1);
}

#[tokio::test]
async fn a_sequential_reader_finds_the_next_row_groups_there() {
    let source = MemorySource::new();
    let manifest = archive(&source, &big(4_000), 2_000, 1_000);
    let cold = ColdReader::new(source.blocks(64 << 20), &config(2));
    let group = |file: usize, group| (ObjectId::of(&manifest.files[file].data), group);
    let read = async |from| decoded(&cold.read(&manifest, &range(from, 4_000, 1)).await.unwrap().batches);
    let next = read(0).await.last().unwrap().offset.0 + 1;
    assert!(!cold.inner.batches.contains(&group(0, 1)), "one read is not a sequence");
    read(next).await;
    while !cold.inner.batches.contains(&group(0, 1)) || !cold.inner.ahead.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let before = source.requests();
    assert_eq!(read(1_000).await[0].offset, Offset(1_000));
    assert_eq!(source.requests(), before);
}

#[tokio::test]
async fn a_busy_reader_does_not_read_ahead() {
    let source = MemorySource::new();
    let manifest = archive(&source, &big(2_000), 2_000, 1_000);
    let cold = ColdReader::new(source.blocks(64 << 20), &config(2));
    cold.inner.parquet.file(&manifest.files[0]).await.unwrap();
    let all = cold.inner.permits.available_permits() as u32;
    let _busy = cold.inner.permits.acquire_many(all).await.unwrap();
    let before = source.requests();
    assert!(matches!(cold.inner.read_one_ahead(&manifest.files[0], Offset(1_000)).await, Ok(None)));
    assert_eq!(source.requests(), before);
}

#[tokio::test]
async fn batches_kept_raw_are_served_as_produced() {
    let source = MemorySource::new();
    let mut encoder = BatchEncoder::new(thermocline_ingest::model::TimestampType::CreateTime);
    for offset in 3..6 {
        encoder.push(Offset(offset), Timestamp(50), None, Some(b"as produced"), std::iter::empty());
    }
    let batch = encoder.finish().unwrap();
    let mut stored = b"something before".to_vec();
    let position = stored.len() as u64;
    stored.extend_from_slice(&batch);
    let object = source.put("raw", stored);
    let kept = |base: i64| RawBatch {
        base_offset: Offset(base),
        last_offset: Offset(base + 2),
        position,
        size_bytes: batch.len() as u64,
        reason: String::new(),
    };
    let rows = [record(0, 1, "a"), record(1, 2, "b"), record(2, 3, "c"), record(6, 4, "d")];
    let mut file = data_file(source.put("f", parquet(&rows, 2, 2)), &rows, 0, 6);
    file.raw = Some(RawBatches { object: object.clone(), batches: vec![kept(3)] });
    let manifest = manifest(vec![file]);
    let cold = ColdReader::new(source.blocks(64 << 20), &config(0));
    let run = cold.read(&manifest, &range(0, 7, 1 << 20)).await.unwrap().batches;
    let offsets: Vec<_> = decoded(&run).iter().map(|record| record.offset.0).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5, 6]);
    let run = cold.read(&manifest, &range(4, 7, 1)).await.unwrap().batches;
    assert_eq!(run.chunks, std::slice::from_ref(&batch));
    let found = cold.records(&manifest, &[Offset(2), Offset(4), Offset(6)], usize::MAX).await.unwrap().records;
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);

    let rows: [OwnedRecord; 0] = [];
    let mut file = data_file(source.put("none", parquet(&rows, 2, 2)), &rows, 3, 5);
    file.raw = Some(RawBatches { object, batches: vec![kept(3)] });
    let alone = testing::manifest(vec![file]);
    assert_eq!(cold.read(&alone, &range(5, 6, 1)).await.unwrap().batches.chunks, [batch]);
}

#[tokio::test]
async fn a_damaged_file_is_an_error() {
    let source = MemorySource::new();
    let manifest = archive(&source, &big(100), 100, 100);
    source.put("0.parquet", Bytes::from(vec![7; manifest.files[0].data.size_bytes as usize]));
    let cold = ColdReader::new(source.blocks(64 << 20), &config(0));
    assert!(matches!(cold.read(&manifest, &range(0, 100, 1)).await, Err(ColdError::Footer(_))));
    assert!(cold.records(&manifest, &[Offset(5)], usize::MAX).await.is_err());
}

#[tokio::test]
async fn what_no_file_holds_is_an_error() {
    let source = MemorySource::new();
    let manifest = archive(&source, &big(10), 10, 10);
    let cold = ColdReader::new(source.blocks(64 << 20), &config(0));
    let beyond = cold.read(&manifest, &range(10, 20, 1)).await;
    assert!(matches!(beyond, Err(ColdError::NotArchived { archived_through: Offset(10), .. })));
    assert!(cold.read(&manifest, &range(10, 10, 1)).await.unwrap().batches.is_empty());
}

/// What a lookup of `offsets` costs on a cold cache: requests, bytes, and how the rows were read.
async fn cost_of(offsets: &[Offset], by_pages: bool) -> (usize, u64, Found) {
    let source = MemorySource::new();
    // 300 bytes each that do not compress away, in one row group with pages of 64 KiB.
    let noise = |n: i64| -> Vec<u8> {
        let hash = |at: i64| xxhash_rust::xxh3::xxh3_64(&(n * 100 + at).to_le_bytes()).to_le_bytes();
        (0..38).flat_map(hash).take(300).collect()
    };
    let all: Vec<_> = (0..16_000).map(|n| record(n, n, noise(n))).collect();
    let object = source.put("0.parquet", parquet(&all, 200, 1 << 20));
    let manifest = manifest(vec![data_file(object, &all, 0, 15_999)]);
    let cold = ColdReader::new(source.blocks(64 << 20), &config(0));
    let opened = cold.inner.parquet.file(&manifest.files[0]).await.unwrap();
    let (before, counts) = (source.requests(), Arc::new(ReadCounts::default()));
    let found = counts.count(async {
        if by_pages {
            let rows: Vec<u64> = offsets.iter().map(|offset| offset.0.cast_unsigned()).collect();
            let records = cold.inner.parquet.rows(&opened, &rows).await.unwrap().into_iter().map(Some).collect();
            Found { records, ..Found::default() }
        } else {
            cold.records(&manifest, offsets, usize::MAX).await.unwrap()
        }
    });
    let found = found.await;
    let expected: Vec<_> = offsets.iter().map(|offset| Some(all[offset.0 as usize].clone())).collect();
    assert!(found.records == expected);
    (source.requests() - before, counts.bytes(), found)
}

#[tokio::test]
async fn dense_hits_are_scanned_and_sparse_ones_looked_up() {
    let every = |step: usize| (0..16_000).step_by(step).map(Offset).collect::<Vec<_>>();
    // One page of each of the columns.
    let (requests, bytes, found) = cost_of(&[Offset(7_777)], false).await;
    assert_eq!((found.rows_fetched, found.row_groups_scanned), (1, 0));
    assert!(requests <= 4 && bytes <= 10 * crate::cache::BLOCK_BYTES, "{requests} requests, {bytes} bytes");

    // One in every fourth page: by pages it would be a request for each.
    let sparse = every(800);
    let (requests, bytes, found) = cost_of(&sparse, false).await;
    assert_eq!((found.rows_fetched, found.row_groups_scanned), (0, 1));
    assert_eq!(requests, 1);
    let (page_requests, page_bytes, _) = cost_of(&sparse, true).await;
    assert!(page_requests >= sparse.len(), "{page_requests} requests by pages");
    let price = |requests: usize, bytes: u64| bytes + requests as u64 * plan::REQUEST_BYTES;
    assert!(price(requests, bytes) < price(page_requests, page_bytes), "{bytes} and {page_bytes} bytes");

    let (requests, _, found) = cost_of(&every(2), false).await;
    assert_eq!((requests, found.rows_fetched, found.row_groups_scanned), (1, 0, 1));

    // Many, but side by side: a few pages have them all.
    let run: Vec<_> = (5_000..6_000).map(Offset).collect();
    let (requests, bytes, found) = cost_of(&run, false).await;
    assert_eq!((found.rows_fetched, found.row_groups_scanned), (1_000, 0));
    assert!(requests <= 4 && bytes < 700_000, "{requests} requests, {bytes} bytes");
}
