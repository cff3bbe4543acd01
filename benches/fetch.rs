//! Reading a partition from its start, hot and cold, as Fetch does it, beside reading the same bytes from plain files.
//! Rates are megabytes of record batches per second on one reader; "cold, cached" is the second pass.

mod support;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use support::{BenchResult, Corpus, Rig, Table, fill, megabytes_per_second, timed};
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::Offset;
use thermocline_ingest::read::{LogReader, ReadRange};
use thermocline_ingest::record::{BatchHeader, split_batches};
use thermocline_tiering::reader::TieredReader;

/// What a consumer asks for at once (`max.partition.fetch.bytes`).
const FETCH_BYTES: usize = 1 << 20;

#[tokio::main]
async fn main() -> BenchResult {
    let corpus = Corpus::generate(support::corpus_bytes());
    let batches = corpus.batches();
    let rig = Rig::open().await?;
    let topic = rig.topic("bench", &[("search.index", "off"), ("segment.bytes", "134217728")])?;
    let partition = topic.partitions.first().ok_or("no partition")?;
    fill(partition, &batches).await?;
    let mut table = Table::default();

    let plain = plain_reads(&rig, &batches)?;
    table.row("fetch, hot", drain(&rig.reader, partition).await?, "pread of the same bytes", plain);

    rig.tiering.archive_now(&topic, true).await?;
    let parquet = decode_parquet(&rig, partition, corpus.bytes).await?;
    table.row("fetch, cold", drain(&rig.reader, partition).await?, "plain Parquet decode to Arrow", parquet);
    table.row("fetch, cold, cached", drain(&rig.reader, partition).await?, "pread of the same bytes", plain);
    table.print("MB/s");
    Ok(())
}

/// Reads everything and returns the rate.
async fn drain(reader: &TieredReader, partition: &Arc<Partition>) -> BenchResult<f64> {
    let start = Instant::now();
    let until = partition.high_watermark();
    let mut from = Offset::ZERO;
    let mut bytes = 0;
    while from < until {
        let range = ReadRange { from, until, max_bytes: FETCH_BYTES, at_least_one: true };
        let run = reader.read(partition, range).await?;
        bytes += run.len_bytes();
        let last = run.chunks.last().ok_or("an empty run below the high watermark")?.clone();
        for batch in split_batches(last) {
            from = BatchHeader::read(&batch?)?.next_offset();
        }
    }
    Ok(megabytes_per_second(bytes, start.elapsed()))
}

fn plain_reads(rig: &Rig, batches: &[bytes::Bytes]) -> BenchResult<f64> {
    let path = rig.dir.path().join("plain");
    let bytes: Vec<u8> = batches.concat();
    std::fs::write(&path, &bytes)?;
    let file = std::fs::File::open(&path)?;
    let (done, took) = timed(|| -> std::io::Result<()> {
        for position in (0..bytes.len()).step_by(FETCH_BYTES) {
            let mut buffer = vec![0; FETCH_BYTES.min(bytes.len() - position)];
            file.read_exact_at(&mut buffer, position as u64)?;
        }
        Ok(())
    });
    done?;
    Ok(megabytes_per_second(bytes.len(), took))
}

/// The archive's own files, decoded to Arrow and dropped.
async fn decode_parquet(rig: &Rig, partition: &Partition, value_bytes: usize) -> BenchResult<f64> {
    let mut objects = Vec::new();
    for file in &rig.tiering.manifest(partition).files {
        objects.push(rig.tiering.store().get(&file.data.key.as_str().into()).await?);
    }
    let (done, took) = timed(|| -> BenchResult {
        for object in objects {
            for batch in parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(object)?.build()? {
                batch?;
            }
        }
        Ok(())
    });
    done?;
    Ok(megabytes_per_second(value_bytes, took))
}
