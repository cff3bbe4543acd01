//! Archiving beside plain Tantivy (with the index) and beside plain `ArrowWriter` with zstd (without it); with the
//! index also where the live index has the messages already, and that live index by itself.
//! Rates are megabytes of message values per second.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{BinaryBuilder, Int64Builder, RecordBatch, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use support::{BenchResult, Corpus, Rig, Table, cpu_seconds, fill, megabytes_per_second, timed};
use tantivy::schema::{FAST, INDEXED, SchemaBuilder, TEXT};
use tantivy::{Index, TantivyDocument};
use thermocline_ingest::clock::SystemClock;
use thermocline_ingest::log::Partition;
use thermocline_query::search::Search;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Memory of the plain Tantivy writer, as much as it takes to make one segment of the default corpus.
const TANTIVY_MEMORY_BYTES: usize = 500_000_000;
const TANTIVY: &str = "plain Tantivy, one thread";
/// Between two looks at the live index.
const POLL: Duration = Duration::from_millis(5);
/// Rows handed to the plain `ArrowWriter` at once.
const ROWS_PER_BATCH: usize = 8192;

#[tokio::main]
async fn main() -> BenchResult {
    let corpus = Corpus::generate(support::corpus_bytes());
    let batches = corpus.batches();
    let rig = Rig::open().await?;
    let mut table = Table::default();

    let tantivy_rate = megabytes_per_second(corpus.bytes, plain_tantivy(&corpus)?);
    let arrow_rate = megabytes_per_second(corpus.bytes, plain_arrow(&corpus, &rig)?);
    for (name, index, is_live, baseline, baseline_rate) in [
        ("archive, text index", "text", false, TANTIVY, tantivy_rate),
        ("archive, text index from live", "text", true, TANTIVY, tantivy_rate),
        ("archive, no index", "off", false, "plain ArrowWriter, zstd 3", arrow_rate),
    ] {
        let topic = rig
            .topic(&format!("bench-{index}-{is_live}"), &[("search.index", index), ("segment.bytes", "1073741824")])?;
        let partition = topic.partitions.first().ok_or("no partition")?;
        fill(partition, &batches).await?;
        let live = if is_live { Some(Live::start(&rig)?) } else { None };
        if let Some(live) = &live {
            let start = Instant::now();
            live.index(partition).await;
            table.row("live index", megabytes_per_second(corpus.bytes, start.elapsed()), TANTIVY, tantivy_rate);
        }
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let report = rig.tiering.archive_now(&topic, false).await?;
        let rate = megabytes_per_second(corpus.bytes, start.elapsed());
        table.row(name, rate, baseline, baseline_rate);
        println!(
            "{name}: {} records, {} MB values -> {:.1} MB Parquet, {:.1} MB index; {:.1} s of processor time",
            report.records,
            corpus.bytes / 1_000_000,
            report.data_bytes as f64 / 1e6,
            report.index_bytes as f64 / 1e6,
            cpu_seconds() - cpu,
        );
        if let Some(live) = live {
            live.stop().await?;
        }
    }
    let taken = rig.tiering_metrics.archived_splits_taken.get();
    println!("{taken} splits were taken from the live index");
    table.print("MB/s");
    Ok(())
}

/// A live index over all topics of the rig.
struct Live {
    search: Arc<Search>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Live {
    fn start(rig: &Rig) -> BenchResult<Self> {
        let (config, tiering, reader) = (rig.config.search.clone(), rig.tiering.clone(), rig.reader.clone());
        let (scratch, clock) = (rig.dir.path().join("live"), Arc::new(SystemClock));
        let search = Search::new(config, tiering, reader, scratch, clock, &prometheus::Registry::new())?;
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(search.clone().run(shutdown.clone()));
        Ok(Self { search, shutdown, running })
    }

    /// Waits until all of the partition is indexed.
    async fn index(&self, partition: &Partition) {
        while self.search.indexed_through(partition) < partition.high_watermark() {
            tokio::time::sleep(POLL).await;
        }
    }

    async fn stop(self) -> BenchResult {
        self.shutdown.cancel();
        Ok(self.running.await?)
    }
}

/// One segment with the same fields, made by one indexing thread into memory.
fn plain_tantivy(corpus: &Corpus) -> BenchResult<std::time::Duration> {
    let mut schema = SchemaBuilder::new();
    let value = schema.add_text_field("value", TEXT);
    let timestamp = schema.add_i64_field("timestamp", FAST | INDEXED);
    let offset = schema.add_i64_field("offset", FAST | INDEXED);
    let index = Index::create_in_ram(schema.build());
    let mut writer = index.writer_with_num_threads(1, TANTIVY_MEMORY_BYTES)?;
    let (done, took) = timed(|| -> tantivy::Result<()> {
        for (number, message) in (0i64..).zip(&corpus.messages) {
            let mut document = TantivyDocument::new();
            document.add_text(value, String::from_utf8_lossy(message));
            document.add_i64(timestamp, number * 10);
            document.add_i64(offset, number);
            writer.add_document(document)?;
        }
        writer.commit()?;
        Ok(())
    });
    done?;
    Ok(took)
}

/// The same columns that carry something, written to memory.
fn plain_arrow(corpus: &Corpus, rig: &Rig) -> BenchResult<std::time::Duration> {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Arc::new(Schema::new(vec![
        Field::new("offset", DataType::Int64, false),
        Field::new("timestamp", time.clone(), false),
        Field::new("value", DataType::Binary, true),
    ]));
    let level = ZstdLevel::try_new(rig.config.tiering.zstd_level)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    let (done, took) = timed(|| -> BenchResult {
        let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
        let mut number = 0;
        for messages in corpus.messages.chunks(ROWS_PER_BATCH) {
            let mut offsets = Int64Builder::new();
            let mut times = TimestampMicrosecondBuilder::new().with_data_type(time.clone());
            let mut values = BinaryBuilder::new();
            for message in messages {
                offsets.append_value(number);
                times.append_value(number * 10_000);
                values.append_value(message);
                number += 1;
            }
            let columns: Vec<arrow::array::ArrayRef> =
                vec![Arc::new(offsets.finish()), Arc::new(times.finish()), Arc::new(values.finish())];
            writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
        }
        writer.into_inner()?;
        Ok(())
    });
    done?;
    Ok(took)
}
