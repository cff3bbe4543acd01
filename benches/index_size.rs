//! What each way of indexing costs: bytes of index per byte of message, and the rate of one indexing thread beside
//! plain Tantivy's with the same schema.
//!
//! Both take turns, and the faster of [`ROUNDS`] counts: what a busy machine adds is not theirs.
//!
//! `THERMOCLINE_BENCH_FILE` names a file whose lines are the messages; without it they are generated, as text and as
//! JSON. At most `THERMOCLINE_BENCH_MB` of them are taken.

mod support;

use std::time::Duration;

use support::{BenchResult, Corpus, corpus_bytes, megabytes_per_second, timed};
use tantivy::{Index, IndexWriter, TantivyDocument};
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{Headers, Record};
use thermocline_tiering::split::{Analyser, SplitOptions, SplitSchema, SplitWriter, tokenizers};

const ROUNDS: usize = 3;
/// Memory of the plain Tantivy writer, as much as it takes to make one segment of the default corpus.
const TANTIVY_MEMORY_BYTES: usize = 500_000_000;

fn main() -> BenchResult {
    for (name, messages) in corpora()? {
        let bytes: usize = messages.iter().map(Vec::len).sum();
        println!("{name}: {} messages, {bytes} bytes", messages.len());
        println!("{:<62} {:>10} {:>10} {:>14} {:>7}", "search.*", "bytes/byte", "MB/s", "plain Tantivy", "ratio");
        for (setting, options) in settings() {
            let (mut fastest, mut split_len) = ([Duration::MAX; 2], 0);
            for _ in 0..ROUNDS {
                let (split, took) = timed(|| split(&messages, options));
                let (plain, plain_took) = timed(|| plain_tantivy(&messages, options));
                plain?;
                split_len = split?;
                fastest = [fastest[0].min(took), fastest[1].min(plain_took)];
            }
            let [rate, plain_rate] = fastest.map(|took| megabytes_per_second(bytes, took));
            let share = split_len as f64 / bytes as f64;
            println!("{setting:<62} {share:>10.3} {rate:>10.1} {plain_rate:>14.1} {:>7.2}", rate / plain_rate);
        }
    }
    Ok(())
}

fn settings() -> Vec<(&'static str, SplitOptions)> {
    let default = SplitOptions::DEFAULT;
    let text = SplitOptions { json: false, ..default };
    let log = SplitOptions { analyser: Analyser::Log, ..default };
    let value = SplitOptions { json: false, key: false, headers: false, fast: false, ..default };
    vec![
        ("(default)", default),
        ("fast=false", SplitOptions { fast: false, ..default }),
        ("positions=false", SplitOptions { positions: false, ..default }),
        ("positions=false fast=false", SplitOptions { positions: false, fast: false, ..default }),
        ("tokenizer=log", log),
        ("tokenizer=log fast=false", SplitOptions { fast: false, ..log }),
        ("tokenizer=log positions=false fast=false", SplitOptions { fast: false, positions: false, ..log }),
        ("index=text", text),
        ("index=text positions=false", SplitOptions { positions: false, ..text }),
        ("index=text tokenizer=log", SplitOptions { json: false, ..log }),
        ("fields=json", SplitOptions { value: false, key: false, headers: false, ..default }),
        ("fields=value", value),
        ("fields=value positions=false", SplitOptions { positions: false, ..value }),
    ]
}

fn corpora() -> BenchResult<Vec<(String, Vec<Vec<u8>>)>> {
    let max = corpus_bytes();
    if let Ok(path) = std::env::var("THERMOCLINE_BENCH_FILE") {
        let content = std::fs::read(&path)?;
        let mut taken = 0;
        let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.take_while(|line| {
            taken += line.len();
            taken <= max
        });
        return Ok(vec![(path, lines.map(<[u8]>::to_vec).collect())]);
    }
    let text = Corpus::generate(max).messages;
    let json = text.iter().map(|line| json_of(line)).collect::<Result<_, _>>()?;
    Ok(vec![("generated text".to_owned(), text), ("generated JSON".to_owned(), json)])
}

/// The `name=value` pairs of a line as members, and the rest of it as a message.
fn json_of(line: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut object = serde_json::Map::new();
    let mut rest = Vec::new();
    let line = String::from_utf8_lossy(line);
    for word in line.split(' ') {
        match word.split_once('=') {
            Some((name, value)) => {
                let value = value.parse::<u64>().map_or_else(|_| value.into(), serde_json::Value::from);
                object.insert(name.to_owned(), value);
            }
            None => rest.push(word),
        }
    }
    object.insert("message".to_owned(), rest.join(" ").into());
    serde_json::to_vec(&object)
}

/// Bytes of the split.
fn split(messages: &[Vec<u8>], options: SplitOptions) -> BenchResult<usize> {
    let mut writer = SplitWriter::new(options)?;
    for (number, message) in (0..).zip(messages) {
        writer.add(&Record {
            offset: Offset(number),
            timestamp: Timestamp(1_760_000_000_000 + number * 10),
            timestamp_type: TimestampType::CreateTime,
            key: None,
            value: Some(message),
            headers: Headers::default(),
        })?;
    }
    Ok(writer.finish()?.len())
}

/// One segment of the same fields, made by one indexing thread into memory.
fn plain_tantivy(messages: &[Vec<u8>], options: SplitOptions) -> BenchResult<Duration> {
    let fields = SplitSchema::new(options);
    let mut index = Index::create_in_ram(fields.schema.clone());
    index.set_tokenizers(tokenizers());
    index.set_fast_field_tokenizers(tokenizers());
    let mut writer: IndexWriter = index.writer_with_num_threads(1, TANTIVY_MEMORY_BYTES)?;
    let (done, took) = timed(|| -> BenchResult {
        for (number, message) in (0_i64..).zip(messages) {
            let mut document = TantivyDocument::new();
            if options.value {
                document.add_text(fields.value, String::from_utf8_lossy(message));
            }
            if options.json
                && let Ok(object @ serde_json::Value::Object(_)) = serde_json::from_slice(message)
            {
                document.add_field_value(fields.json, &object);
            }
            document.add_i64(fields.timestamp, 1_760_000_000_000 + number * 10);
            document.add_i64(fields.offset, number);
            writer.add_document(document)?;
        }
        writer.commit()?;
        Ok(())
    });
    done?;
    Ok(took)
}
