//! Hundreds of generated queries over keys, headers, JSON objects and repeated timestamps, in every state that messages
//! can be in, with both tokenisers, against a scan of `reference`: over generated messages, and over the lines of real
//! files where there are any.

mod real_files;
mod reference;
#[path = "../../tests/support/s3.rs"]
mod s3;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use reference::generated::{Vocabulary, contents};
use reference::words::Tokenizer;
use reference::{Content, Message, NOW, Query, TOPICS};
use support::{Failure, PATIENCE, Parts, STORE, TOPIC, append, no_cache, request};
use thermocline_config::{CacheConfig, StoreConfig};
use thermocline_ingest::model::{Timestamp, TopicName};
use thermocline_ingest::topics::Topic;
use thermocline_query::search::{Hit, SearchRequest, Sort, TotalRelation};
use thermocline_tiering::store::ColdStore;
use tokio_util::sync::CancellationToken;

/// Steps that are archived one by one, so that there are small files to merge.
const SMALL_FILES: usize = 9;
/// Messages of a batch.
const BATCH: usize = 5;
/// Steps of messages in each partition, until the last state.
const STEPS: usize = 4 + SMALL_FILES;
/// One query of so many is asked over S3, where nothing is cached and each costs dozens of requests to a slow server.
const ASKED_OVER_S3: usize = 6;

/// Timestamp, topic, partition and offset.
type Place = (i64, String, i32, i64);

/// Where messages come from.
enum Source {
    Generated(BoxedStrategy<Content>),
    /// Each once.
    Lines(std::vec::IntoIter<Content>),
}

/// What is asked in each state.
struct Plan {
    queries: usize,
    /// Messages of each partition in each step.
    step: usize,
    source: Source,
    /// For topics of any tokeniser.
    common: BoxedStrategy<Query>,
    /// For those of logs alone.
    logs: BoxedStrategy<Query>,
}

struct Language {
    parts: Parts,
    messages: Vec<Message>,
    plan: Plan,
    /// The same ones in every run.
    runner: TestRunner,
    asked: usize,
}

impl Language {
    async fn start(plan: Plan) -> Result<Self, Failure> {
        let mut parts = None;
        for kind in &TOPICS {
            let index = if kind.has_json { "json" } else { "text" };
            let settings =
                [("search.positions", "true"), ("search.index", index), ("search.tokenizer", kind.tokenizer.name())];
            match &parts {
                None => {
                    assert_eq!(kind.name, TOPIC);
                    parts = Some(Parts::start(CacheConfig::default(), kind.partitions, &settings).await?);
                }
                Some(parts) => drop(parts.create(kind.name, kind.partitions, &settings)?),
            }
        }
        let parts = parts.ok_or("no topics")?;
        Ok(Self { parts, messages: Vec::new(), plan, runner: TestRunner::deterministic(), asked: 0 })
    }

    /// A new process that keeps nothing in memory, with the archive in `store`, else where it was.
    async fn restart(self, store: Option<ColdStore>) -> Result<Self, Failure> {
        let parts = self.parts.restart(store, no_cache()).await?;
        Ok(Self { parts, ..self })
    }

    fn topics(&self) -> Result<Vec<Arc<Topic>>, Failure> {
        TOPICS.iter().map(|kind| Ok(self.parts.topics.get(kind.name).ok_or("a topic is gone")?)).collect()
    }

    async fn produce(&mut self) -> Result<(), Failure> {
        for (kind, topic) in TOPICS.iter().zip(self.topics()?) {
            for log in &topic.partitions {
                let contents = self.plan.contents(&mut self.runner)?;
                for batch in contents.chunks(BATCH) {
                    let (partition, first) = (log.topic_partition().partition.0, log.log_end_offset().0);
                    let places = first..;
                    self.messages.extend(
                        places.zip(batch).map(|(offset, content)| Message::new(kind, partition, offset, content)),
                    );
                    append(log, &batch.iter().map(produced).collect::<Vec<_>>()).await?;
                }
            }
        }
        Ok(())
    }

    async fn archive(&self, trim: bool) -> Result<(), Failure> {
        for topic in self.topics()? {
            self.parts.tiering.archive_now(&topic, trim).await?;
        }
        Ok(())
    }

    /// Small files, archived and not merged.
    async fn archive_step_by_step(&mut self) -> Result<(), Failure> {
        for _ in 0..SMALL_FILES {
            self.produce().await?;
            self.archive(true).await?;
        }
        Ok(())
    }

    /// Lets the archive merge its small files.
    async fn merge(&self) -> Result<(), Failure> {
        let (tiering, topics) = (&self.parts.tiering, self.topics()?);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(tiering.clone().run(shutdown.clone()));
        let is_merged = || {
            let mut partitions = topics.iter().flat_map(|topic| &topic.partitions);
            partitions.all(|log| tiering.manifest(log).files.len() < SMALL_FILES)
        };
        let wait = async {
            while !is_merged() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await?;
        shutdown.cancel();
        running.await?;
        Ok(())
    }

    /// As many queries as are asked in each state, other ones each time: in one page with the total, and some in small
    /// pages in the other order. Every third is asked of the logs alone.
    async fn check(&mut self, state: &str) -> Result<(), Failure> {
        let started = Instant::now();
        let (mut hits, mut telling) = (0, 0);
        for number in 0..self.plan.queries {
            let of_logs = number % 3 == 2;
            let strategy = if of_logs { &self.plan.logs } else { &self.plan.common };
            let query = sample(strategy, &mut self.runner)?;
            let text = query.text();
            let kinds = TOPICS.iter().filter(|kind| !of_logs || kind.tokenizer == Tokenizer::Log);
            let topics = kinds.map(|kind| TopicName::new(kind.name)).collect::<Result<Vec<_>, _>>()?;
            let searched = self.messages.iter().filter(|m| !of_logs || m.topic.tokenizer == Tokenizer::Log);
            let (searched, mut expected) = (searched.clone().count(), found(searched, &query));
            hits += expected.len();
            telling += usize::from(!expected.is_empty() && expected.len() < searched);

            let asked = SearchRequest { now: Timestamp(NOW), topics, ..request(&text, 10_000) };
            let page = self.parts.search.search(asked.clone()).await;
            let page = page.map_err(|error| format!("{state}: {text}: {error}"))?;
            assert_eq!(places(&page.hits), expected, "{state}: {text}");
            let total = (page.total, page.relation);
            assert_eq!(total, (expected.len() as u64, TotalRelation::Exact), "{state}: {text}");
            if number % 4 == 0 {
                expected.sort();
                // A fifth of it, so that there are several pages.
                let limit = expected.len() / 5 + 2;
                let found = self.all_pages(SearchRequest { limit, sort: Sort::OldestFirst, ..asked }).await?;
                assert_eq!(found, expected, "{state}: {text}, oldest first, in pages");
            }
        }
        let (queries, messages) = (self.plan.queries, self.messages.len());
        self.asked += queries;
        println!(
            "{state}: {queries} queries, {telling} telling, {hits} hits of {messages} messages, {:?}",
            started.elapsed()
        );
        // Else the queries prove little.
        assert!(
            telling * 10 > queries,
            "{state}: only {telling} of {queries} queries found some messages and not others"
        );
        Ok(())
    }

    async fn all_pages(&self, mut request: SearchRequest) -> Result<Vec<Place>, Failure> {
        let mut found = Vec::new();
        loop {
            let page = self.parts.search.search(request.clone()).await?;
            found.extend(places(&page.hits));
            request.cursor = page.cursor;
            if request.cursor.is_none() {
                return Ok(found);
            }
        }
    }
}

impl Plan {
    fn contents(&mut self, runner: &mut TestRunner) -> Result<Vec<Content>, Failure> {
        match &mut self.source {
            Source::Generated(strategy) => (0..self.step).map(|_| sample(strategy, runner)).collect(),
            Source::Lines(lines) => Ok(lines.take(self.step).collect()),
        }
    }
}

fn sample<T: std::fmt::Debug>(strategy: &BoxedStrategy<T>, runner: &mut TestRunner) -> Result<T, Failure> {
    Ok(strategy.new_tree(runner).map_err(|reason| reason.to_string())?.current())
}

fn produced(content: &Content) -> support::Content {
    let bytes = |text: &String| text.clone().into_bytes();
    let headers = content.headers.iter().map(|(name, text)| (bytes(name), text.as_ref().map(bytes)));
    support::Content {
        timestamp: content.timestamp(),
        key: content.key.as_ref().map(bytes),
        value: content.value.as_ref().map(bytes),
        headers: headers.collect(),
    }
}

/// What a scan finds, newest first.
fn found<'m>(messages: impl Iterator<Item = &'m Message>, query: &Query) -> Vec<Place> {
    let found = messages.filter(|message| query.matches(message));
    let place = |m: &Message| (m.timestamp, m.topic.name.to_owned(), m.partition, m.offset);
    let mut places: Vec<Place> = found.map(place).collect();
    places.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (&a.1, a.2, a.3).cmp(&(&b.1, b.2, b.3))));
    places
}

fn places(hits: &[Hit]) -> Vec<Place> {
    let place =
        |hit: &Hit| (hit.record.timestamp.0, hit.topic.as_str().to_owned(), hit.partition.0, hit.record.offset.0);
    hits.iter().map(place).collect()
}

/// The folder of an archive, as a bucket behind a server.
fn bucket(server: &s3::S3Server) -> Result<ColdStore, Failure> {
    let s3 = AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", server.addr()))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(STORE)
        .with_access_key_id(s3::ACCESS_KEY)
        .with_secret_access_key(s3::SECRET_KEY)
        // Those of the cold store are the only ones.
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
    Ok(ColdStore::new(Arc::new(s3.build()?), &StoreConfig::default()))
}

async fn in_every_state(plan: Plan) -> Result<(), Failure> {
    let mut language = Language::start(plan).await?;
    language.produce().await?;
    language.parts.indexed().await?;
    language.check("hot").await?;

    language.archive(false).await?;
    language.check("archived, still in the log").await?;

    language.produce().await?;
    language.parts.indexed().await?;
    language.check("half and half").await?;

    language.archive_step_by_step().await?;
    language.check("cold").await?;

    language.merge().await?;
    language.check("merged").await?;

    let mut language = language.restart(None).await?;
    language.check("restarted, with cold caches").await?;

    language.produce().await?;
    language.parts.indexed().await?;
    language.check("restarted, half and half").await?;

    let server = s3::S3Server::start(language.parts.folder(), SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let mut language = language.restart(Some(bucket(&server)?)).await?;
    language.plan.queries /= ASKED_OVER_S3;
    language.parts.indexed().await?;
    language.check("over S3, half and half").await?;

    language.produce().await?;
    language.archive(true).await?;
    language.check("over S3, cold").await?;
    println!("{} queries", language.asked);
    language.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_find_what_a_scan_finds_in_every_state() -> Result<(), Failure> {
    let queries = |tokenizer| Vocabulary::generated(tokenizer).queries();
    in_every_state(Plan {
        queries: 90,
        step: 7,
        source: Source::Generated(contents().boxed()),
        common: queries(Tokenizer::Default),
        logs: queries(Tokenizer::Log),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_over_real_files_find_what_a_scan_finds_in_every_state() -> Result<(), Failure> {
    let Some(folder) = real_files::folder() else {
        println!("SKIPPED: there are no real files; THERMOCLINE_DATA may name their folder");
        return Ok(());
    };
    let step = 12;
    let partitions: i32 = TOPICS.iter().map(|kind| kind.partitions).sum();
    let lines = real_files::lines(&folder, step * STEPS * partitions as usize)?;
    let queries = |tokenizer| real_files::vocabulary(&lines, tokenizer).queries();
    let (common, logs) = (queries(Tokenizer::Default), queries(Tokenizer::Log));
    in_every_state(Plan { queries: 42, step, source: Source::Lines(lines.into_iter()), common, logs }).await
}

/// What is several words to other topics is refused there, not here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_of_joined_words_are_asked_of_logs() -> Result<(), Failure> {
    let parts = Parts::start(CacheConfig::default(), 1, &[]).await?;
    parts.create("log", 1, &[("search.tokenizer", "log")])?;
    let log = TopicName::new("log")?;
    for query in ["10.*.7", "user-4*", "value:[10.0.0.1 TO 10.0.0.9]"] {
        let asked = request(query, 1);
        assert!(
            parts.search.search(SearchRequest { topics: vec![log.clone()], ..asked.clone() }).await.is_ok(),
            "{query}"
        );
        assert!(parts.search.search(request(&format!("topic:log AND {query}"), 1)).await.is_ok(), "{query}");
        assert!(parts.search.search(asked).await.is_err(), "{query}");
    }
    parts.stop().await
}
