//! Search over hot log and archive against a naive reference that tokenises every message: hot, archived, trimmed,
//! half and half, page by page, and while the archive moves on under the searches.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use support::{Content, Failure, PATIENCE, Parts, TOPIC, append, no_cache, request};
use thermocline_config::CacheConfig;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, Timestamp, TopicName};
use thermocline_ingest::topics::Topic;
use thermocline_query::replay::{Format, ReplayRequest, replay};
use thermocline_query::search::{Hit, SearchRequest, SearchResponse, Sort, TotalRelation};
use thermocline_tiering::worker::Tiering;

const PARTITIONS: i32 = 3;
const BATCH: usize = 10;
/// 2015-05-17
const DAY: i64 = 1_431_820_800_000;

const WORDS: [&str; 12] =
    ["parcel", "lost", "late", "paid", "refund", "Zürich", "order", "stock", "empty", "cancelled", "twice", "again"];

struct Message {
    partition: i32,
    offset: i64,
    timestamp: i64,
    key: String,
    value: Option<String>,
}

struct Broker {
    parts: Parts,
    messages: Vec<Message>,
}

impl Broker {
    async fn start(cache: CacheConfig) -> Result<Self, Failure> {
        let parts = Parts::start(cache, PARTITIONS, &[("search.positions", "true")]).await?;
        Ok(Self { parts, messages: Vec::new() })
    }

    /// Produces `count` messages, round robin over the partitions, and waits until they are acked.
    async fn produce(&mut self, count: usize) -> Result<(), Failure> {
        for partition in 0..PARTITIONS {
            let log = self.parts.partition(partition)?;
            let first = log.log_end_offset().0;
            let here = self.messages.len();
            let share = count / PARTITIONS as usize;
            self.messages.extend((0..share as i64).map(|i| message(partition, first + i)));
            for batch in self.messages[here..].chunks(BATCH) {
                append(log, &batch.iter().map(Message::content).collect::<Vec<_>>()).await?;
            }
        }
        Ok(())
    }

    async fn archive(&self, trim: bool) -> Result<(), Failure> {
        self.parts.tiering.archive_now(&self.parts.topic, trim).await?;
        for partition in &self.parts.topic.partitions {
            let end = partition.high_watermark();
            assert_eq!(self.parts.tiering.manifest(partition).archived_through(), end);
            if trim {
                assert_eq!(partition.local_start_offset(), end);
            }
        }
        Ok(())
    }

    /// Changes a setting of the topic.
    async fn alter(&self, key: &str, value: &str) -> Result<(), Failure> {
        let (topics, key, value) = (self.parts.tiering.topics().clone(), key.to_owned(), value.to_owned());
        let set = |overrides: &mut BTreeMap<String, String>| drop(overrides.insert(key, value));
        tokio::task::spawn_blocking(move || topics.alter(TOPIC, false, set).map(drop)).await??;
        Ok(())
    }

    /// Ends when every archived file is indexed as the topic asks for; what was replaced is gone then.
    fn reindexed(&self) -> tokio::task::JoinHandle<Result<(), Failure>> {
        let (tiering, topic) = (self.parts.tiering.clone(), self.parts.topic.clone());
        let is_done = move || topic.partitions.iter().all(|log| tiering.reindexing(log).files == 0);
        tokio::spawn(delete_what_is_dropped(self.parts.tiering.clone(), self.parts.topic.clone(), is_done))
    }

    /// Deletes what lies below `start` in every partition.
    fn delete_below(&mut self, start: i64) -> Result<(), Failure> {
        for partition in &self.parts.topic.partitions {
            self.parts.tiering.topics().raise_log_start(partition, Offset(start))?;
        }
        self.messages.retain(|message| message.offset >= start);
        Ok(())
    }

    /// What a replay of everything shows, in no order.
    async fn check_replay(&self, stage: &str) -> Result<(), Failure> {
        let manifest_of = |partition: &Partition| self.parts.tiering.manifest(partition);
        let request = ReplayRequest::default();
        let lines = replay(self.parts.reader.clone(), &self.parts.topic, &manifest_of, &request, Format::Ndjson)?;
        let lines = lines.try_fold(Vec::new(), async |lines, chunk| Ok([lines, chunk.to_vec()].concat())).await?;
        let mut shown = BTreeSet::new();
        for line in String::from_utf8(lines)?.lines() {
            let message: serde_json::Value = serde_json::from_str(line)?;
            let place = (message["partition"].as_i64(), message["offset"].as_i64());
            assert!(shown.insert(place), "{stage}: {place:?} is replayed twice");
        }
        let places = self.messages.iter().map(|message| (Some(i64::from(message.partition)), Some(message.offset)));
        assert_eq!(shown, places.collect(), "{stage}: replayed");
        Ok(())
    }

    async fn page(&self, request: SearchRequest) -> Result<SearchResponse, Failure> {
        Ok(self.parts.search.search(request).await?)
    }

    async fn all_pages(&self, mut request: SearchRequest) -> Result<Vec<Hit>, Failure> {
        let mut hits = Vec::new();
        loop {
            let page = self.page(request.clone()).await?;
            hits.extend(page.hits);
            request.cursor = page.cursor;
            if request.cursor.is_none() {
                return Ok(hits);
            }
        }
    }

    /// Every word, both orders, in one page and in many, with and without a time range.
    async fn check(&self, stage: &str) -> Result<(), Failure> {
        for word in WORDS.iter().chain(&["k3", "nowhere"]) {
            let expected = self.expected(word, None);
            let page = self.page(request(word, 10_000)).await?;
            assert_eq!(places(&page.hits), expected, "{stage}: {word}");
            assert_eq!((page.total, page.relation), (expected.len() as u64, TotalRelation::Exact), "{stage}: {word}");
            assert_eq!(page.cursor, None);
            self.check_bodies(&page.hits);
            assert_eq!(places(&self.all_pages(request(word, 7)).await?), expected, "{stage}: {word}, in pages");

            let mut oldest = request(word, 11);
            oldest.sort = Sort::OldestFirst;
            let mut ascending = expected.clone();
            ascending.sort_by_key(|(timestamp, partition, offset)| (*timestamp, *partition, *offset));
            assert_eq!(places(&self.all_pages(oldest).await?), ascending, "{stage}: {word}, oldest first");

            let range = (DAY + 20_000, DAY + 95_000);
            let mut ranged = request(word, 5);
            (ranged.from, ranged.to) = (Some(Timestamp(range.0)), Some(Timestamp(range.1)));
            let hits = self.all_pages(ranged).await?;
            assert_eq!(places(&hits), self.expected(word, Some(range)), "{stage}: {word}, in a range");
        }
        let everything = self.all_pages(request("", 100)).await?;
        assert_eq!(everything.len(), self.messages.len(), "{stage}: every message");
        Ok(())
    }

    fn expected(&self, word: &str, range: Option<(i64, i64)>) -> Vec<(i64, i32, i64)> {
        let word = word.to_lowercase();
        let in_range = |message: &&Message| range.is_none_or(|(from, to)| (from..to).contains(&message.timestamp));
        let mut places: Vec<_> = self
            .messages
            .iter()
            .filter(in_range)
            .filter(|message| message.value.iter().flat_map(|value| words(value)).any(|other| other == word))
            .map(|message| (message.timestamp, message.partition, message.offset))
            .collect();
        places.sort_by_key(|(timestamp, partition, offset)| (-timestamp, *partition, *offset));
        places
    }

    fn check_bodies(&self, hits: &[Hit]) {
        for hit in hits {
            let (partition, offset) = (hit.partition.0, hit.record.offset.0);
            let message = self.messages.iter().find(|m| (m.partition, m.offset) == (partition, offset));
            let message = message.unwrap_or_else(|| panic!("{partition} {offset} was never produced"));
            assert_eq!(hit.record.value.as_deref(), message.value.as_deref().map(str::as_bytes));
            assert_eq!(hit.record.key.as_deref(), Some(message.key.as_bytes()));
        }
    }
}

impl Message {
    fn content(&self) -> Content {
        let value = self.value.clone().map(String::into_bytes);
        Content { timestamp: self.timestamp, key: Some(self.key.clone().into_bytes()), value, headers: Vec::new() }
    }
}

/// What the analyser does: runs of letters and digits, in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// A message with a few words that depend on its place alone; some share a timestamp, some have no value.
fn message(partition: i32, offset: i64) -> Message {
    let mut state = (offset as u64).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(partition as u64 + 1);
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let count = next(5);
    let words: Vec<&str> = (0..count).map(|_| WORDS[next(WORDS.len())]).collect();
    let value =
        (next(10) > 0).then(|| format!("{}: k{}, {}.", words.join(" "), next(8), words.join("-").to_uppercase()));
    Message { partition, offset, timestamp: DAY + offset / 3 * 1000, key: format!("key-{offset}"), value }
}

fn places(hits: &[Hit]) -> Vec<(i64, i32, i64)> {
    hits.iter().map(|hit| (hit.record.timestamp.0, hit.partition.0, hit.record.offset.0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tiers_answer_as_one() -> Result<(), Failure> {
    let mut broker = Broker::start(CacheConfig::default()).await?;
    broker.check("nothing yet").await?;

    broker.produce(240).await?;
    broker.parts.indexed().await?;
    broker.check("hot").await?;
    let hot = broker.page(request("parcel", 10)).await?;
    assert!(hot.stats.hot_docs >= 240, "{:?}", hot.stats);

    broker.archive(false).await?;
    broker.check("archived, still in the log").await?;

    broker.produce(120).await?;
    broker.parts.indexed().await?;
    broker.check("half and half").await?;

    broker.archive(true).await?;
    broker.check("trimmed").await?;

    broker.produce(60).await?;
    broker.parts.indexed().await?;
    broker.check("trimmed, with new messages").await?;
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_messages_are_not_found_or_replayed() -> Result<(), Failure> {
    let mut broker = Broker::start(CacheConfig::default()).await?;
    broker.produce(240).await?;
    broker.parts.indexed().await?;
    broker.delete_below(13)?;
    broker.check("hot").await?;
    broker.check_replay("hot").await?;

    broker.archive(false).await?;
    broker.check("archived, with the start in a batch").await?;
    broker.check_replay("archived, with the start in a batch").await?;
    broker.delete_below(47)?;
    broker.check("archived, still in the log").await?;
    broker.check_replay("archived, still in the log").await?;

    broker.produce(120).await?;
    broker.archive(true).await?;
    broker.check("trimmed").await?;
    broker.check_replay("trimmed").await?;
    broker.delete_below(101)?;
    broker.check("trimmed, the first file gone").await?;
    broker.check_replay("trimmed, the first file gone").await?;

    broker.produce(60).await?;
    broker.parts.indexed().await?;
    broker.delete_below(125)?;
    broker.check("all of the archive gone").await?;
    broker.check_replay("all of the archive gone").await?;
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_found_once_while_the_archive_moves() -> Result<(), Failure> {
    let mut broker = Broker::start(CacheConfig::default()).await?;
    for (round, word) in WORDS.iter().enumerate().take(6) {
        broker.produce(150).await?;
        broker.parts.indexed().await?;
        let expected = broker.expected(word, None);
        let archive = broker.archive(round % 2 == 1);
        tokio::pin!(archive);
        let mut archived = false;
        while !archived {
            let whole = async {
                let page = broker.page(request(word, 10_000)).await?;
                let pages = broker.all_pages(request(word, 9)).await?;
                Ok::<_, Failure>((places(&page.hits), page.total, places(&pages)))
            };
            tokio::pin!(whole);
            // The search goes on to its end whatever the archive does in the meantime.
            let (page, total, pages) = loop {
                tokio::select! {
                    result = &mut archive, if !archived => { result?; archived = true; }
                    found = &mut whole => break found?,
                }
            };
            assert_eq!(page, expected, "round {round}: {word}");
            assert_eq!(total, expected.len() as u64, "round {round}: {word}");
            assert_eq!(pages, expected, "round {round}: {word}, in pages");
        }
    }
    broker.check("in the end").await?;
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_found_once_while_files_are_merged() -> Result<(), Failure> {
    // So small that searches go to the store, and meet what is gone from it.
    let mut broker = Broker::start(no_cache()).await?;
    for _ in 0..12 {
        broker.produce(60).await?;
        broker.archive(true).await?;
    }
    broker.parts.indexed().await?;
    let (tiering, topic) = (broker.parts.tiering.clone(), broker.parts.topic.clone());
    let is_merged = move || topic.partitions.iter().all(|log| tiering.manifest(log).files.len() < 8);
    let deleter =
        tokio::spawn(delete_what_is_dropped(broker.parts.tiering.clone(), broker.parts.topic.clone(), is_merged));
    tokio::spawn(broker.parts.tiering.clone().run(broker.parts.shutdown.clone()));
    let searches = async {
        let mut round = 0;
        while !deleter.is_finished() {
            let word = WORDS[round % WORDS.len()];
            round += 1;
            let expected = broker.expected(word, None);
            let page = broker.page(request(word, 10_000)).await?;
            assert_eq!((places(&page.hits), page.total), (expected.clone(), expected.len() as u64), "{word}");
            assert_eq!(places(&broker.all_pages(request(word, 9)).await?), expected, "{word}, in pages");
        }
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(PATIENCE, searches).await??;
    deleter.await??;
    broker.check("merged").await?;
    broker.parts.stop().await
}

/// Hot and cold, and with its splits deleted as soon as they are replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_found_once_while_files_are_indexed_again() -> Result<(), Failure> {
    let mut broker = Broker::start(no_cache()).await?;
    for _ in 0..3 {
        broker.produce(300).await?;
        broker.archive(true).await?;
    }
    broker.produce(60).await?;
    broker.parts.indexed().await?;
    tokio::spawn(broker.parts.tiering.clone().run(broker.parts.shutdown.clone()));
    for (key, value) in [("search.tokenizer", "log"), ("search.fields", "value"), ("search.tokenizer", "default")] {
        broker.alter(key, value).await?;
        let deleter = broker.reindexed();
        let searches = async {
            let mut round = 0;
            while !deleter.is_finished() {
                let word = WORDS[round % WORDS.len()];
                round += 1;
                let expected = broker.expected(word, None);
                let page = broker.page(request(word, 10_000)).await?;
                assert_eq!((places(&page.hits), page.total), (expected.clone(), expected.len() as u64), "{word}");
            }
            Ok::<_, Failure>(())
        };
        tokio::time::timeout(PATIENCE, searches).await??;
        deleter.await??;
        broker.check(&format!("{key}={value}")).await?;
    }

    // Nothing is found while nothing is indexed, and the answer says so.
    broker.alter("search.index", "off").await?;
    tokio::time::timeout(PATIENCE, broker.reindexed()).await???;
    let nothing = broker.page(request("lost", 10)).await?;
    assert_eq!((nothing.total, nothing.stats.files_unindexed), (0, 9));
    broker.alter("search.index", "json").await?;
    tokio::time::timeout(PATIENCE, broker.reindexed()).await???;
    broker.parts.indexed().await?;
    broker.check("indexed again").await?;
    broker.parts.stop().await
}

/// Deletes every object as soon as the manifests do not name it any more, until `is_done`.
async fn delete_what_is_dropped(
    tiering: Arc<Tiering>,
    topic: Arc<Topic>,
    is_done: impl Fn() -> bool,
) -> Result<(), Failure> {
    let objects = || -> BTreeSet<String> {
        let manifests: Vec<_> = topic.partitions.iter().map(|log| tiering.manifest(log)).collect();
        let files: Vec<_> = manifests.iter().flat_map(|manifest| &manifest.files).cloned().collect();
        files.iter().flat_map(|file| file.objects()).map(|object| object.key.clone()).collect()
    };
    let mut left = objects();
    while !is_done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let named = objects();
        for gone in left.difference(&named) {
            tiering.store().delete(&gone.as_str().into()).await?;
        }
        left = named;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phrases_scores_and_refusals() -> Result<(), Failure> {
    let mut broker = Broker::start(CacheConfig::default()).await?;
    broker.produce(300).await?;
    broker.archive(false).await?;
    broker.produce(90).await?;
    broker.parts.indexed().await?;

    let phrase = broker.all_pages(request("\"lost late\"", 6)).await?;
    let follows = |message: &&Message| {
        let words: Vec<String> = message.value.iter().flat_map(|value| words(value)).collect();
        words.windows(2).any(|pair| pair[0] == "lost" && pair[1] == "late")
    };
    assert_eq!(phrase.len(), broker.messages.iter().filter(follows).count());

    let mut by_score = request("parcel OR lost", 25);
    by_score.sort = Sort::Score;
    let hits = broker.all_pages(by_score).await?;
    let scores: Vec<f32> = hits.iter().filter_map(|hit| hit.score).collect();
    assert_eq!(scores.len(), hits.len());
    assert!(scores.is_sorted_by(|a, b| a >= b));
    let either = |message: &&Message| {
        message.value.iter().flat_map(|value| words(value)).any(|word| word == "parcel" || word == "lost")
    };
    assert_eq!(hits.len(), broker.messages.iter().filter(either).count());

    for bad in ["colour:red", "pa-*el", "(lost", "value:/x$/"] {
        assert!(broker.parts.search.search(request(bad, 1)).await.is_err(), "{bad}");
    }
    let mut unknown = request("lost", 1);
    unknown.topics = vec![TopicName::new("nowhere")?];
    assert!(broker.parts.search.search(unknown).await.is_err());
    assert!(broker.parts.search.search(request("lost", usize::MAX)).await.is_err());
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_indexed_yet_is_told() -> Result<(), Failure> {
    let mut broker = Broker::start(CacheConfig::default()).await?;
    broker.produce(30).await?;
    broker.parts.indexed().await?;
    let found = broker.page(request("*", 0)).await?;
    assert_eq!((found.total, found.stats.offsets_unindexed), (30, 0));

    broker.parts.stop_indexing().await?;
    broker.produce(12).await?;
    let unindexed = broker.parts.create("unindexed", 1, &[("search.index", "off")])?;
    append(&unindexed.partitions[0], &[message(0, 0).content()]).await?;
    let found = broker.page(request("*", 0)).await?;
    assert_eq!((found.total, found.stats.offsets_unindexed), (30, 12), "of all topics that are indexed");

    broker.archive(true).await?;
    let found = broker.page(request("*", 0)).await?;
    assert_eq!((found.total, found.stats.offsets_unindexed), (42, 0), "the archive has an index of its own");
    Ok(())
}
