use proptest::prelude::*;

use super::*;
use crate::cold::testing::MemorySource;

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

const BLOCK: usize = BLOCK_BYTES as usize;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn reads_like_a_byte_vector(
        len in 0..BLOCK * 9,
        ranges in proptest::collection::vec((0..BLOCK * 9, 0..BLOCK * 4), 1..12),
        capacity in prop_oneof![Just(0_u64), Just(BLOCK_BYTES * 3), Just(64 << 20)],
    ) {
        runtime().block_on(async move {
            let source = MemorySource::new();
            let model = content(len);
            let object = source.put("a/b.parquet", model.clone());
            let cache = source.blocks(capacity);
            let counts = Arc::new(ReadCounts::default());
            let ranges: Vec<Range<u64>> =
                ranges.iter().map(|(start, len)| *start as u64..(*start + *len) as u64).collect();
            let expected = |range: &Range<u64>| {
                let clamp = |at: u64| (at as usize).min(model.len());
                model[clamp(range.start)..clamp(range.end)].to_vec()
            };
            for range in &ranges {
                let read = counts.count(cache.read(&object, range.clone())).await.unwrap();
                prop_assert_eq!(&read, &expected(range));
                if let Some(cached) = cache.cached(&object, range.start..range.end.min(object.size_bytes).max(range.start)) {
                    prop_assert_eq!(cached, read);
                }
            }
            prop_assert_eq!(counts.requests(), source.requests() as u64);
            let parts = cache.read_ranges(&object, ranges.clone()).await.unwrap();
            for (part, range) in parts.iter().zip(&ranges) {
                prop_assert_eq!(part, &expected(range));
            }
            if capacity > 1 << 20 {
                prop_assert!(counts.bytes() <= model.len() as u64);
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn many_readers_cost_one_download() {
    let source = MemorySource::new();
    let model = content(BLOCK * 6 + 17);
    let object = source.put("a", model.clone());
    let cache = source.blocks(64 << 20);
    source.gate.forget_permits(1 << 20);
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..20_usize {
        let (cache, object) = (cache.clone(), object.clone());
        readers.spawn(async move {
            let range = reader as u64..object.size_bytes;
            (reader, cache.read(&object, range).await.unwrap())
        });
    }
    while source.requests() == 0 {
        tokio::task::yield_now().await;
    }
    source.gate.add_permits(1 << 20);
    while let Some(read) = readers.join_next().await {
        let (start, bytes) = read.unwrap();
        assert_eq!(bytes, model[start..]);
    }
    assert_eq!(source.requests(), 1);
    assert!(cache.inner.in_flight.lock().is_empty());
}

#[tokio::test]
async fn a_download_survives_the_reader_that_began_it() {
    let source = MemorySource::new();
    let model = content(BLOCK * 2);
    let object = source.put("a", model.clone());
    let cache = source.blocks(64 << 20);
    source.gate.forget_permits(1 << 20);
    let first = tokio::spawn({
        let (cache, object) = (cache.clone(), object.clone());
        async move { cache.read(&object, 0..10).await.map(|bytes| bytes.len()) }
    });
    while source.requests() == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.is_err());
    source.gate.add_permits(1 << 20);
    assert_eq!(cache.read(&object, 0..10).await.unwrap(), model[..10]);
    assert_eq!(source.requests(), 1);
}

#[tokio::test]
async fn neighbouring_misses_share_a_request() {
    let source = MemorySource::new();
    let object = source.put("a", content(BLOCK * 8));
    let cache = source.blocks(64 << 20);
    cache.read(&object, BLOCK_BYTES * 3..BLOCK_BYTES * 3 + 1).await.unwrap();
    assert_eq!(source.requests(), 1);
    cache.read(&object, 0..object.size_bytes).await.unwrap();
    assert_eq!(source.requests(), 3, "one before the block that was there, one after");
    cache.read(&object, 5..object.size_bytes - 5).await.unwrap();
    assert_eq!(source.requests(), 3);
}

#[tokio::test]
async fn only_what_is_in_memory_is_found_without_waiting() {
    let source = MemorySource::new();
    let model = content(BLOCK * 4 + 5);
    let object = source.put("a", model.clone());
    let cache = source.blocks(64 << 20);
    assert_eq!(cache.cached(&object, 3..9), None);
    cache.read(&object, 0..BLOCK_BYTES + 1).await.unwrap();
    assert_eq!(cache.cached(&object, BLOCK_BYTES - 2..BLOCK_BYTES + 2).unwrap(), model[BLOCK - 2..BLOCK + 2]);
    assert_eq!(cache.cached(&object, BLOCK_BYTES..BLOCK_BYTES * 2 + 1), None);
    cache.read(&object, BLOCK_BYTES * 4..object.size_bytes).await.unwrap();
    assert_eq!(cache.cached(&object, object.size_bytes - 1..object.size_bytes + 1), None, "beyond the end");
    assert_eq!(source.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reader_is_told_what_it_downloaded() {
    let source = MemorySource::new();
    let object = source.put("a", content(BLOCK * 4));
    let cache = source.blocks(64 << 20);
    let (one, two) = (Arc::new(ReadCounts::default()), Arc::new(ReadCounts::default()));
    one.count(cache.read(&object, 0..10)).await.unwrap();
    let carried = ReadCounts::carry(Some(two.clone()), {
        let (cache, object) = (cache.clone(), object.clone());
        async move { cache.read(&object, 0..BLOCK_BYTES * 3).await }
    });
    tokio::spawn(carried).await.unwrap().unwrap();
    cache.read(&object, BLOCK_BYTES * 3..BLOCK_BYTES * 4).await.unwrap();
    assert_eq!((one.requests(), one.bytes()), (1, BLOCK_BYTES));
    assert_eq!((two.requests(), two.bytes()), (1, BLOCK_BYTES * 2));
}

#[tokio::test]
async fn a_row_group_is_loaded_once_and_stays_for_its_reader() {
    let cache = BatchCache::new(1 << 20);
    let key = |n: usize| (ObjectId(7), n);
    let loads = std::sync::atomic::AtomicUsize::new(0);
    let load = || async {
        loads.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        Ok::<_, StoreError>(Arc::new(EncodedRowGroup::default()))
    };
    let (a, b) = tokio::join!(cache.get(key(0), load()), cache.get(key(0), load()));
    assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
    cache.read_ahead(key(1), load()).await.unwrap();
    assert!(cache.contains(&key(1)) && !cache.contains(&key(2)));
    cache.get(key(1), load()).await.unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}
