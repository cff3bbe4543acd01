//! Hundreds of generated queries over generated log lines, JSON objects, keys, headers and repeated timestamps, in every
//! state that messages can be in, against a scan.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::reference::{Content, Message, NOW, Query, TEXT_TOPIC, contents, queries};
use super::*;

/// Asked in each state.
const QUERIES: usize = 140;
/// Messages of each partition in each step.
const STEP: usize = 14;
/// Steps that are archived one by one, so that there are small files to merge.
const SMALL_FILES: usize = 9;

/// Timestamp, topic, partition and offset.
type Place = (i64, String, i32, i64);

struct Language {
    broker: Broker,
    topics: Vec<Arc<Topic>>,
    messages: Vec<Message>,
    /// The same ones in every run.
    runner: TestRunner,
}

impl Language {
    async fn start() -> Result<Self, Failure> {
        let broker = Broker::start().await?;
        let mut topics = vec![broker.topic.clone()];
        for (name, index) in [("orders-archive", "json"), (TEXT_TOPIC, "text")] {
            let configs = [("search.positions", "true"), ("search.index", index)];
            let configs = configs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            topics.push(broker.tiering.topics().create(&TopicName::new(name)?, 1, configs)?);
        }
        Ok(Self { broker, topics, messages: Vec::new(), runner: TestRunner::deterministic() })
    }

    /// The same disk and store under a new process, with nothing in its caches.
    async fn restart(self, cache: CacheConfig) -> Result<Self, Failure> {
        let Self { broker, topics, messages, runner } = self;
        let names: Vec<TopicName> = topics.iter().map(|topic| topic.name.clone()).collect();
        drop(topics);
        let folder = broker.folder.clone();
        broker.stop().await?;
        let broker = Broker::open(folder, cache, 2).await?;
        let catalogue = broker.tiering.topics();
        let topics = names.iter().map(|name| catalogue.get(name.as_str()).ok_or("a topic is gone"));
        let topics = topics.collect::<Result<_, _>>()?;
        Ok(Self { broker, topics, messages, runner })
    }

    fn sample<T>(&mut self, strategy: &impl Strategy<Value = T>) -> Result<T, Failure> {
        Ok(strategy.new_tree(&mut self.runner).map_err(|reason| reason.to_string())?.current())
    }

    async fn produce(&mut self) -> Result<(), Failure> {
        let strategy = contents();
        for topic in self.topics.clone() {
            for log in &topic.partitions {
                let contents = (0..STEP).map(|_| self.sample(&strategy)).collect::<Result<Vec<_>, _>>()?;
                self.append(log, contents).await?;
            }
        }
        Ok(())
    }

    async fn append(&mut self, log: &Arc<Partition>, contents: Vec<Content>) -> Result<(), Failure> {
        let name = log.topic_partition().clone();
        for batch in contents.chunks(5) {
            let first = log.log_end_offset().0;
            let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
            for (delta, content) in (0..).zip(batch) {
                let key = content.key.as_deref().map(str::as_bytes);
                let value = content.value.as_deref().map(str::as_bytes);
                let headers = content.headers.iter();
                let headers = headers.map(|(name, text)| (name.as_bytes(), text.as_deref().map(str::as_bytes)));
                encoder.push(Offset(delta), Timestamp(content.timestamp()), key, value, headers);
                let (topic, partition) = (name.topic.as_str(), name.partition.0);
                self.messages.push(Message::new(topic, partition, first + delta, content.clone()));
            }
            let batch = encoder.finish().ok_or("an empty batch")?;
            let log = log.clone();
            tokio::task::spawn_blocking(move || log.append(&batch)).await??;
        }
        Ok(log.committed(log.log_end_offset()).await.map(|_| ())?)
    }

    async fn indexed(&self) -> Result<(), Failure> {
        let search = &self.broker.search;
        let behind = || {
            let mut partitions = self.topics.iter().flat_map(|topic| &topic.partitions);
            partitions.any(|partition| search.indexed_through(partition) < partition.high_watermark())
        };
        let wait = async {
            while behind() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, wait).await?)
    }

    async fn archive(&self, trim: bool) -> Result<(), Failure> {
        for topic in &self.topics {
            self.broker.tiering.archive_now(topic, trim).await?;
        }
        Ok(())
    }

    /// Lets the archive merge its small files.
    async fn merge(&self) -> Result<(), Failure> {
        let tiering = &self.broker.tiering;
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(tiering.clone().run(shutdown.clone()));
        let is_merged = || {
            let mut partitions = self.topics.iter().flat_map(|topic| &topic.partitions);
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

    /// As many queries as are asked in each state, other ones each time: in one page with the total, and in small pages
    /// in the other order.
    async fn check(&mut self, state: &str) -> Result<(), Failure> {
        let strategy = queries();
        let mut hits = 0;
        for number in 0..QUERIES {
            let query = self.sample(&strategy)?;
            let text = query.text();
            let mut expected = self.expected(&query);
            hits += expected.len();
            let asked = SearchRequest { now: Timestamp(NOW), ..request(&text, 10_000) };
            let page = self.broker.page(asked.clone()).await.map_err(|error| format!("{state}: {text}: {error}"))?;
            assert_eq!(self::places(&page.hits), expected, "{state}: {text}");
            let total = (page.total, page.relation);
            assert_eq!(total, (expected.len() as u64, TotalRelation::Exact), "{state}: {text}");
            if number % 4 == 0 {
                let asked = SearchRequest { limit: 7, sort: Sort::OldestFirst, ..asked };
                expected.sort();
                let found = self::places(&self.broker.all_pages(asked).await?);
                assert_eq!(found, expected, "{state}: {text}, oldest first, in pages");
            }
        }
        // Else the queries prove little.
        let all = QUERIES * self.messages.len();
        assert!(hits * 20 > all && hits * 10 < all * 9, "{state}: {hits} hits of {all}");
        Ok(())
    }

    /// What a scan finds, newest first.
    fn expected(&self, query: &Query) -> Vec<Place> {
        let found = self.messages.iter().filter(|message| query.matches(message));
        let mut places: Vec<Place> = found
            .map(|message| (message.timestamp, message.topic.clone(), message.partition, message.offset))
            .collect();
        places.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (&a.1, a.2, a.3).cmp(&(&b.1, b.2, b.3))));
        places
    }
}

fn places(hits: &[Hit]) -> Vec<Place> {
    let place =
        |hit: &Hit| (hit.record.timestamp.0, hit.topic.as_str().to_owned(), hit.partition.0, hit.record.offset.0);
    hits.iter().map(place).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_find_what_a_scan_finds_in_every_state() -> Result<(), Failure> {
    let mut language = Language::start().await?;
    language.produce().await?;
    language.indexed().await?;
    language.check("hot").await?;

    language.archive(false).await?;
    language.check("archived, still in the log").await?;

    language.produce().await?;
    language.indexed().await?;
    language.check("half and half").await?;

    for _ in 0..SMALL_FILES {
        language.produce().await?;
        language.archive(true).await?;
    }
    language.check("cold").await?;

    language.merge().await?;
    language.check("merged").await?;

    // So small that every search goes to the store.
    let tiny = ByteSize::bytes(1);
    let cache = CacheConfig { batches_max_bytes: tiny, blocks_max_bytes: tiny, ..CacheConfig::default() };
    let mut language = language.restart(cache).await?;
    language.check("restarted, with cold caches").await?;

    language.produce().await?;
    language.indexed().await?;
    language.check("restarted, half and half").await?;
    language.broker.stop().await
}
