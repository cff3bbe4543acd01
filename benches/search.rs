//! Search over an archived topic beside one plain Tantivy index of the same messages: queries per second, warm.

mod support;

use std::sync::Arc;
use std::time::Instant;

use prometheus::Registry;
use support::{BenchResult, Corpus, Rig, Table, fill};
use tantivy::collector::{Count, TopDocs};
use tantivy::query::QueryParser;
use tantivy::schema::{FAST, INDEXED, SchemaBuilder, TEXT};
use tantivy::{Index, Order, TantivyDocument};
use thermocline_ingest::clock::SystemClock;
use thermocline_query::search::{Search, SearchRequest, Sort};

const TANTIVY_MEMORY_BYTES: usize = 500_000_000;
const ROUNDS: u32 = 20;
const LIMIT: usize = 20;
const QUERIES: [&str; 4] = ["declined", "checkout AND timeout", "\"reset by peer\"", "user AND 4242"];

#[tokio::main]
async fn main() -> BenchResult {
    let corpus = Corpus::generate(support::corpus_bytes());
    let rig = Rig::open().await?;
    let topic = rig.topic("bench", &[("search.index", "text"), ("segment.bytes", "134217728")])?;
    let partition = topic.partitions.first().ok_or("no partition")?;
    fill(partition, &corpus.batches()).await?;
    rig.tiering.archive_now(&topic, true).await?;
    let search = Search::new(
        rig.config.search.clone(),
        rig.tiering.clone(),
        rig.reader.clone(),
        rig.dir.path().join("live"),
        Arc::new(SystemClock),
        &Registry::new(),
    )?;

    let (index, parser) = plain_index(&corpus)?;
    let searcher = index.reader()?.searcher();
    let mut table = Table::default();
    for text in QUERIES {
        let request = SearchRequest {
            query: text.to_owned(),
            topics: vec![topic.name.clone()],
            from: None,
            to: None,
            limit: LIMIT,
            sort: Sort::NewestFirst,
            cursor: None,
        };
        search.search(request.clone()).await?;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            search.search(request.clone()).await?;
        }
        let rate = f64::from(ROUNDS) / start.elapsed().as_secs_f64();

        let query = parser.parse_query(text)?;
        let newest = || TopDocs::with_limit(LIMIT).order_by_fast_field::<i64>("timestamp", Order::Desc);
        searcher.search(&query, &(Count, newest()))?;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            searcher.search(&query, &(Count, newest()))?;
        }
        let plain = f64::from(ROUNDS) / start.elapsed().as_secs_f64();
        table.row(text, rate, "plain Tantivy, one index, no bodies", plain);
    }
    table.print("queries/s");
    Ok(())
}

fn plain_index(corpus: &Corpus) -> BenchResult<(Index, QueryParser)> {
    let mut schema = SchemaBuilder::new();
    let value = schema.add_text_field("value", TEXT);
    let timestamp = schema.add_i64_field("timestamp", FAST | INDEXED);
    let index = Index::create_in_ram(schema.build());
    let mut writer = index.writer_with_num_threads(1, TANTIVY_MEMORY_BYTES)?;
    for (number, message) in (0i64..).zip(&corpus.messages) {
        let mut document = TantivyDocument::new();
        document.add_text(value, String::from_utf8_lossy(message));
        document.add_i64(timestamp, number * 10);
        writer.add_document(document)?;
    }
    writer.commit()?;
    let mut parser = QueryParser::for_index(&index, vec![value]);
    parser.set_conjunction_by_default();
    Ok((index, parser))
}
