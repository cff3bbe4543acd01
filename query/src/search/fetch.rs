//! From keys to messages: only the hits of the final page are read, each from the log or its Parquet page.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, TopicName, TopicPartition};
use thermocline_tiering::reader::{Found, OwnedRecord, TieredReader};

use super::SearchError;
use super::highlight::Highlights;
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
    /// The matches, where the request asked for them.
    pub highlights: Highlights,
}

/// The messages of a page, and what reading them took.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    pub hits: Vec<Hit>,
    /// Keys that were dealt with before the page was full.
    pub done: usize,
    pub rows_fetched: u64,
    pub row_groups_scanned: u64,
}

/// The messages at `keys`, in that order. A message that has expired since it was found is left out.
pub(crate) async fn fetch(
    reader: &TieredReader,
    partitions: &HashMap<TopicPartition, Arc<Partition>>,
    keys: &[SortKey],
    sort: Sort,
) -> Result<Fetched, SearchError> {
    let mut fetched = Fetched { hits: Vec::with_capacity(keys.len()), ..Fetched::default() };
    let mut size = 0;
    for batch in keys.chunks(FETCH_BATCH) {
        let mut records = records(reader, partitions, batch, &mut fetched).await?;
        for key in batch {
            let place = (TopicPartition::new(key.topic.clone(), key.partition), key.offset);
            let Some(record) = records.remove(&place) else { continue };
            size += record.size_bytes();
            let score = (sort == Sort::Score).then(|| key.rank.to_score());
            let (topic, partition) = (key.topic.clone(), key.partition);
            fetched.hits.push(Hit { topic, partition, record, score, highlights: Highlights::new() });
        }
        fetched.done += batch.len();
        if size >= PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(fetched)
}

async fn records(
    reader: &TieredReader,
    partitions: &HashMap<TopicPartition, Arc<Partition>>,
    keys: &[SortKey],
    fetched: &mut Fetched,
) -> Result<HashMap<(TopicPartition, Offset), OwnedRecord>, SearchError> {
    let mut by_partition = BTreeMap::<TopicPartition, Vec<Offset>>::new();
    for key in keys {
        by_partition.entry(TopicPartition::new(key.topic.clone(), key.partition)).or_default().push(key.offset);
    }
    let reads = by_partition.into_iter().map(|(name, mut offsets)| async move {
        offsets.sort_unstable();
        let Some(partition) = partitions.get(&name) else { return Ok((name, Found::default())) };
        match reader.records(partition, &offsets, usize::MAX).await {
            // The topic was deleted while we searched it.
            Err(_) if partition.is_closed() => Ok((name, Found::default())),
            found => Ok::<_, SearchError>((name, found?)),
        }
    });
    let reads: Vec<_> = futures::stream::iter(reads).buffer_unordered(PARTITIONS_AT_ONCE).try_collect().await?;
    let mut found = HashMap::with_capacity(keys.len());
    for (name, read) in reads {
        fetched.rows_fetched += read.rows_fetched;
        fetched.row_groups_scanned += read.row_groups_scanned;
        found.extend(read.records.into_iter().flatten().map(|record| ((name.clone(), record.offset), record)));
    }
    Ok(found)
}
