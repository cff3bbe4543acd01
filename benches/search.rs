//! Search over an archived topic: warm beside one plain Tantivy index of the same messages and beside a scan of them,
//! and what each kind of query costs on splits of which nothing is in memory.
//!
//! Either side answers with the messages of the page. Tantivy has them in its own store, compressed, beside the index
//! and all of it in memory; what it needs without them is shown as well.
//!
//! Messages are made as they are needed, so that `THERMOCLINE_BENCH_MB=1800`, some 10 million, needs the memory of the
//! plain index and no more.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use support::{BenchResult, Lines, Rig, batches, fill, timestamp};
use tantivy::collector::{Collector, Count, TopDocs};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{BooleanQuery, EmptyQuery, FuzzyTermQuery, Occur, Query, QueryParser, RangeQuery};
use tantivy::schema::{FAST, Field, INDEXED, IndexRecordOption, SchemaBuilder, TextFieldIndexing, TextOptions};
use tantivy::{DocAddress, Index, Order, Searcher, TantivyDocument, Term};
use thermocline_ingest::clock::SystemClock;
use thermocline_ingest::model::{Timestamp, TopicName};
use thermocline_query::search::{Search, SearchRequest};
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::worker::Tiering;

const TANTIVY_MEMORY_BYTES: usize = 500_000_000;
/// Each query runs so often, or for so long.
const ROUNDS: usize = 200;
const TIME_PER_QUERY: Duration = Duration::from_secs(5);
const LIMIT: usize = 20;
/// Corpus of the JSON topic, as a divisor.
const JSON_SHARE: usize = 8;

/// What is asked, in our language and in Tantivy's.
struct Kind {
    name: &'static str,
    query: &'static str,
    /// The same in Tantivy's own language; a prefix or a range where that has none.
    plain: Plain,
    /// What a scan looks for in a line, where that is one text.
    scan: Option<&'static str>,
}

enum Plain {
    Parsed(&'static str),
    Prefix(&'static str),
    /// The word, in the middle third of the time.
    Ranged(&'static str),
    /// Nothing to compare with.
    None,
}

const KINDS: [Kind; 10] = [
    Kind { name: "no hits", query: "nowhere", plain: Plain::Parsed("nowhere"), scan: Some("nowhere") },
    Kind { name: "rare term", query: "4242", plain: Plain::Parsed("4242"), scan: Some("=4242 ") },
    Kind { name: "common term", query: "declined", plain: Plain::Parsed("declined"), scan: Some("declined") },
    Kind { name: "AND", query: "checkout AND timeout", plain: Plain::Parsed("checkout AND timeout"), scan: None },
    Kind { name: "AND, rare", query: "user AND 4242", plain: Plain::Parsed("user AND 4242"), scan: None },
    Kind { name: "OR", query: "declined OR timeout", plain: Plain::Parsed("declined OR timeout"), scan: None },
    Kind {
        name: "phrase",
        query: "\"reset by peer\"",
        plain: Plain::Parsed("\"reset by peer\""),
        scan: Some("reset by peer"),
    },
    Kind { name: "prefix", query: "declin*", plain: Plain::Prefix("declin"), scan: Some(" declin") },
    Kind { name: "prefix, many words", query: "42*", plain: Plain::Prefix("42"), scan: None },
    Kind { name: "term in a time range", query: "declined", plain: Plain::Ranged("declined"), scan: None },
];

/// Of the JSON topic.
const JSON_KINDS: [Kind; 3] = [
    Kind { name: "JSON number", query: "json.user:4242", plain: Plain::None, scan: None },
    Kind { name: "JSON word", query: "json.level:ERROR", plain: Plain::None, scan: None },
    Kind { name: "JSON AND", query: "json.level:ERROR AND json.service:checkout", plain: Plain::None, scan: None },
];

/// The messages in one index of Tantivy's, and in a file of lines.
struct PlainIndex {
    searcher: Searcher,
    value: Field,
    time: Field,
    messages: i64,
    lines: PathBuf,
}

#[tokio::main]
async fn main() -> BenchResult {
    let rig = Rig::open().await?;
    let bytes = support::corpus_bytes();
    let settings = [("search.index", "text"), ("search.positions", "true"), ("segment.bytes", "134217728")];
    let topic = rig.topic("bench", &settings)?;
    let partition = topic.partitions.first().ok_or("no partition")?;
    fill(partition, batches(Lines::of(bytes))).await?;
    rig.tiering.archive_now(&topic, true).await?;
    let json_topic = rig.topic("bench-json", &[("search.index", "json"), ("segment.bytes", "134217728")])?;
    let json_partition = json_topic.partitions.first().ok_or("no partition")?;
    fill(json_partition, batches(Lines::of(bytes / JSON_SHARE).map(|line| to_json(&line)))).await?;
    rig.tiering.archive_now(&json_topic, true).await?;
    for topic in [&topic, &json_topic] {
        let manifest = rig.tiering.manifest(topic.partitions.first().ok_or("no partition")?);
        let splits = manifest.files.iter().filter_map(|file| file.split.as_ref()).map(|split| split.size_bytes);
        let messages = manifest.archived_through().0;
        println!("{}: {messages} messages, splits of {:?} bytes", topic.name, splits.collect::<Vec<_>>());
    }
    cold(&rig, &topic.name, &json_topic.name).await?;
    warm(&rig, &topic.name, &json_topic.name).await
}

/// The time range of [`Plain::Ranged`].
fn middle(messages: i64) -> (Timestamp, Timestamp) {
    (timestamp(messages / 3), timestamp(messages / 3 * 2))
}

async fn warm(rig: &Rig, topic: &TopicName, json_topic: &TopicName) -> BenchResult {
    let plain = PlainIndex::build(support::corpus_bytes(), rig.dir.path().join("lines"))?;
    let search = open_search(rig, "warm", rig.tiering.clone(), rig.reader.clone())?;
    println!("\nwarm, newest {LIMIT} with their messages, and count alone, beside plain Tantivy; milliseconds");
    let titles = ["hits", "p50", "p99", "plain p50", "p99", "ratio", "no texts", "count", "plain", "scan"];
    println!("{:<22} {}", "", titles.map(|title| format!("{title:>9}")).join(" "));
    for kind in &KINDS {
        let mut asked = request(topic, kind, plain.messages);
        let hits = search.search(asked.clone()).await?.total;
        let page = latencies(async || search.search(asked.clone()).await.map(drop).map_err(Into::into)).await?;
        asked.limit = 0;
        let count = latencies(async || search.search(asked.clone()).await.map(drop).map_err(Into::into)).await?;
        let query = plain.query(&kind.plain)?;
        let plain_page = latencies(async || plain.page(&query)).await?;
        let without_texts =
            latencies(async || plain.searcher.search(&query, &(Count, newest())).map(drop).map_err(Into::into)).await?;
        let plain_count =
            latencies(async || plain.searcher.search(&query, &Count).map(|_| ()).map_err(Into::into)).await?;
        let scan = kind.scan.map(|text| plain.scan(text)).transpose()?;
        let scan = scan.map_or("-".to_owned(), |took| format!("{:.0}", milliseconds(took)));
        println!(
            "{:<22} {hits:>9} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.2} {:>9.3} {:>9.3} {:>9.3} {scan:>9}",
            kind.name,
            milliseconds(page.0),
            milliseconds(page.1),
            milliseconds(plain_page.0),
            milliseconds(plain_page.1),
            page.0.as_secs_f64() / plain_page.0.as_secs_f64(),
            milliseconds(without_texts.0),
            milliseconds(count.0),
            milliseconds(plain_count.0),
        );
    }
    for kind in &JSON_KINDS {
        let asked = request(json_topic, kind, plain.messages);
        let hits = search.search(asked.clone()).await?.total;
        let (p50, p99) = latencies(async || search.search(asked.clone()).await.map(drop).map_err(Into::into)).await?;
        println!("{:<22} {hits:>9} {:>9.3} {:>9.3}", kind.name, milliseconds(p50), milliseconds(p99));
    }
    Ok(())
}

async fn cold(rig: &Rig, topic: &TopicName, json_topic: &TopicName) -> BenchResult {
    let (tiering, reader) = rig.uncached().await?;
    let search = open_search(rig, "cold", tiering, reader)?;
    println!("\ncold, a local folder as the store; index alone, then with the messages of the page");
    let titles = ["splits", "requests", "bytes", "requests", "bytes", "ms"];
    println!("{:<22} {}", "", titles.map(|title| format!("{title:>10}")).join(" "));
    let messages = rig.topics.get(topic.as_str()).map_or(0, |topic| topic.partitions[0].high_watermark().0);
    let text = KINDS.iter().map(|kind| (kind, topic));
    for (kind, topic) in text.chain(JSON_KINDS.iter().map(|kind| (kind, json_topic))) {
        let mut asked = request(topic, kind, messages);
        let start = Instant::now();
        let page = search.search(asked.clone()).await?.stats;
        let took = milliseconds(start.elapsed());
        asked.limit = 0;
        let count = search.search(asked).await?.stats;
        println!(
            "{:<22} {:>10} {:>10} {:>10} {:>10} {:>10} {took:>10.1}",
            kind.name, count.splits_searched, count.requests, count.bytes_fetched, page.requests, page.bytes_fetched
        );
    }
    Ok(())
}

fn open_search(rig: &Rig, scratch: &str, tiering: Arc<Tiering>, reader: Arc<TieredReader>) -> BenchResult<Arc<Search>> {
    let (config, scratch) = (rig.config.search.clone(), rig.dir.path().join(scratch));
    Ok(Search::new(config, tiering, reader, scratch, Arc::new(SystemClock), &Registry::new())?)
}

fn request(topic: &TopicName, kind: &Kind, messages: i64) -> SearchRequest {
    let range = matches!(kind.plain, Plain::Ranged(_)).then(|| middle(messages));
    SearchRequest {
        query: kind.query.to_owned(),
        topics: vec![topic.clone()],
        from: range.map(|range| range.0),
        to: range.map(|range| range.1),
        limit: LIMIT,
        ..SearchRequest::default()
    }
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn newest() -> impl Collector<Fruit = Vec<(Option<i64>, DocAddress)>> {
    TopDocs::with_limit(LIMIT).order_by_fast_field::<i64>("timestamp", Order::Desc)
}

/// Median and 99th percentile of many runs.
async fn latencies(run: impl AsyncFn() -> BenchResult) -> BenchResult<(Duration, Duration)> {
    run().await?;
    let (start, mut took) = (Instant::now(), Vec::with_capacity(ROUNDS));
    while took.len() < ROUNDS && (start.elapsed() < TIME_PER_QUERY || took.is_empty()) {
        let begun = Instant::now();
        run().await?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 100).or(took.last()).copied().unwrap_or_default();
    Ok((at(50), at(99)))
}

impl PlainIndex {
    fn build(bytes: usize, lines: PathBuf) -> BenchResult<Self> {
        let mut schema = SchemaBuilder::new();
        let indexing = TextFieldIndexing::default().set_tokenizer("default");
        let indexing = indexing.set_index_option(IndexRecordOption::WithFreqsAndPositions);
        let value = schema.add_text_field("value", TextOptions::default().set_indexing_options(indexing).set_stored());
        let time = schema.add_i64_field("timestamp", FAST | INDEXED);
        let index = Index::create_in_ram(schema.build());
        let mut writer = index.writer_with_num_threads(1, TANTIVY_MEMORY_BYTES)?;
        // What is merged below must not be merged by others.
        writer.set_merge_policy(Box::new(NoMergePolicy));
        let mut file = BufWriter::new(File::create(&lines)?);
        let mut messages = 0;
        for line in Lines::of(bytes) {
            writeln!(file, "{line}")?;
            let mut document = TantivyDocument::new();
            document.add_text(value, line);
            document.add_i64(time, timestamp(messages).0);
            writer.add_document(document)?;
            messages += 1;
        }
        file.flush()?;
        writer.commit()?;
        let segments = index.searchable_segment_ids()?;
        if segments.len() > 1 {
            writer.merge(&segments).wait()?;
        }
        writer.wait_merging_threads()?;
        Ok(Self { searcher: index.reader()?.searcher(), value, time, messages, lines })
    }

    /// The newest hits with their messages, and how many there are.
    fn page(&self, query: &dyn Query) -> BenchResult {
        let (_, hits) = self.searcher.search(query, &(Count, newest()))?;
        for (_, address) in hits {
            std::hint::black_box(self.searcher.doc::<TantivyDocument>(address)?);
        }
        Ok(())
    }

    fn query(&self, plain: &Plain) -> BenchResult<Box<dyn Query>> {
        let mut parser = QueryParser::for_index(self.searcher.index(), vec![self.value]);
        parser.set_conjunction_by_default();
        Ok(match plain {
            Plain::None => Box::new(EmptyQuery),
            Plain::Parsed(text) => parser.parse_query(text)?,
            Plain::Prefix(word) => {
                Box::new(FuzzyTermQuery::new_prefix(Term::from_field_text(self.value, word), 0, false))
            }
            Plain::Ranged(text) => {
                let (from, to) = middle(self.messages);
                let bound = |at: Timestamp| Term::from_field_i64(self.time, at.0);
                let range = RangeQuery::new(Bound::Included(bound(from)), Bound::Excluded(bound(to)));
                let parts: Vec<(Occur, Box<dyn Query>)> =
                    vec![(Occur::Must, parser.parse_query(text)?), (Occur::Must, Box::new(range))];
                Box::new(BooleanQuery::new(parts))
            }
        })
    }

    /// Looks through all lines for a text.
    fn scan(&self, text: &str) -> BenchResult<Duration> {
        let start = Instant::now();
        let mut reader = BufReader::with_capacity(1 << 20, File::open(&self.lines)?);
        let (mut line, mut found) = (String::new(), 0_u64);
        while reader.read_line(&mut line)? > 0 {
            found += u64::from(line.contains(text));
            line.clear();
        }
        std::hint::black_box(found);
        Ok(start.elapsed())
    }
}

/// The same content as an object: `key=value` parts become members.
fn to_json(line: &str) -> String {
    let mut parts = line.split(' ');
    let (time, level, service) = (parts.next(), parts.next(), parts.next());
    let mut object = serde_json::Map::new();
    let mut text = Vec::new();
    for part in parts {
        match part.split_once('=') {
            Some((name, value)) => {
                let number = value.parse::<u64>().ok().map(serde_json::Value::from);
                object.insert(name.to_owned(), number.unwrap_or_else(|| value.into()));
            }
            None => text.push(part),
        }
    }
    let service = service.and_then(|service| service.split('-').next());
    for (name, value) in [("time", time), ("level", level), ("service", service)] {
        object.insert(name.to_owned(), value.into());
    }
    object.insert("message".to_owned(), text.join(" ").into());
    serde_json::Value::Object(object).to_string()
}
