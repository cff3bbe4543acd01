//! From keys to messages: only the hits of the final page are read, each from the log or its Parquet page.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, TopicName, TopicPartition};
use thermocline_tiering::reader::{OwnedRecord, TieredReader};

use super::SearchError;
use super::rank::{Sort, SortKey};

/// Size at which a page ends early, in bytes of keys, values and headers; the cursor goes on from there.
pub const PAGE_BYTES_MAX: usize = 64 << 20;
/// Messages fetched at once: what a page may overshoot by.
const FETCH_BATCH: usize = 64;
/// Partitions read at once for one page.
const PARTITIONS_AT_ONCE: usize = 8;

/// A message that matches.
#[derive(Clone, Debug)]
pub struct Hit {
    pub topic: TopicName,
    pub partition: PartitionId,
    pub record: OwnedRecord,
    /// BM25, where the sort asked for it.
    pub score: Option<f32>,
}

/// The messages at `keys`, in that order, and how many keys were dealt with before the page was full. A message that
/// has expired since it was found is left out.
pub(crate) async fn fetch(
    reader: &TieredReader,
    partitions: &HashMap<TopicPartition, Arc<Partition>>,
    keys: &[SortKey],
    sort: Sort,
) -> Result<(Vec<Hit>, usize), SearchError> {
    let mut hits = Vec::with_capacity(keys.len());
    let (mut size, mut done) = (0, 0);
    for batch in keys.chunks(FETCH_BATCH) {
        let mut records = records(reader, partitions, batch).await?;
        for key in batch {
            let place = (TopicPartition::new(key.topic.clone(), key.partition), key.offset);
            let Some(record) = records.remove(&place) else { continue };
            size += size_bytes(&record);
            let score = (sort == Sort::Score).then(|| key.rank.to_score());
            hits.push(Hit { topic: key.topic.clone(), partition: key.partition, record, score });
        }
        done += batch.len();
        if size >= PAGE_BYTES_MAX {
            break;
        }
    }
    Ok((hits, done))
}

async fn records(
    reader: &TieredReader,
    partitions: &HashMap<TopicPartition, Arc<Partition>>,
    keys: &[SortKey],
) -> Result<HashMap<(TopicPartition, Offset), OwnedRecord>, SearchError> {
    let mut by_partition = BTreeMap::<TopicPartition, Vec<Offset>>::new();
    for key in keys {
        by_partition.entry(TopicPartition::new(key.topic.clone(), key.partition)).or_default().push(key.offset);
    }
    let reads = by_partition.into_iter().map(|(name, mut offsets)| async move {
        offsets.sort_unstable();
        let Some(partition) = partitions.get(&name) else { return Ok(Vec::new()) };
        let found = match reader.records(partition, &offsets).await {
            // The topic was deleted while we searched it.
            Err(_) if partition.is_closed() => return Ok(Vec::new()),
            found => found.map_err(SearchError::from)?,
        };
        let placed = found.into_iter().flatten().map(move |record| ((name.clone(), record.offset), record));
        Ok::<_, SearchError>(placed.collect())
    });
    let found: Vec<Vec<_>> = futures::stream::iter(reads).buffer_unordered(PARTITIONS_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

fn size_bytes(record: &OwnedRecord) -> usize {
    let len = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len());
    let headers: usize = record.headers.iter().map(|(key, value)| key.len() + len(value)).sum();
    len(&record.key) + len(&record.value) + headers
}
