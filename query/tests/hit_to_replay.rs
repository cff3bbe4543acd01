//! What follows from a hit, against a model that tokenises every message: replays of matches, replays into topics, live
//! tails and contexts, over hot log and archive, half and half, and while the archive moves on under them.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use support::{Failure, PATIENCE, Parts, request};
use thermocline_config::CacheConfig;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp};
use thermocline_ingest::topics::Topic;
use thermocline_query::replay::{
    Filter, Format, Partitioning, ReplayError, ReplayRequest, Republish, RepublishError, RepublishRequest, Summary,
    replay_matching,
};
use thermocline_query::search::{Context, Follow, FollowRequest, SearchError, SearchRequest, Unindexed};
use thermocline_tiering::budget::Rates;
use thermocline_tiering::reader::OwnedRecord;

const PARTITIONS: i32 = 3;
const BATCH: usize = 7;
/// 2015-05-17
const DAY: i64 = 1_431_820_800_000;
const WORDS: [&str; 6] = ["parcel", "lost", "late", "paid", "refund", "stock"];

type Place = (i32, i64);

struct Broker {
    parts: Parts,
    /// Offsets that exist, for each partition.
    offsets: Vec<std::ops::Range<i64>>,
}

impl Broker {
    async fn start() -> Result<Self, Failure> {
        let parts = Parts::start(CacheConfig::default(), PARTITIONS, &[]).await?;
        Ok(Self { parts, offsets: vec![0..0; PARTITIONS as usize] })
    }

    /// Adds `count` messages to every partition.
    async fn produce(&mut self, count: i64) -> Result<(), Failure> {
        for (partition, offsets) in (0..).zip(&mut self.offsets) {
            append(self.parts.partition(partition)?, offsets.end..offsets.end + count).await?;
            offsets.end += count;
        }
        Ok(())
    }

    async fn archive(&self, trim: bool) -> Result<(), Failure> {
        self.parts.tiering.archive_now(&self.parts.topic, trim).await?;
        Ok(())
    }

    /// Deletes what lies below `start`.
    fn delete_below(&mut self, start: i64) -> Result<(), Failure> {
        for (partition, offsets) in self.parts.topic.partitions.iter().zip(&mut self.offsets) {
            self.parts.tiering.topics().raise_log_start(partition, Offset(start))?;
            offsets.start = offsets.start.max(start);
        }
        Ok(())
    }

    /// Every message, in order.
    fn places(&self) -> Vec<Place> {
        (0..)
            .zip(&self.offsets)
            .flat_map(|(partition, offsets)| offsets.clone().map(move |at| (partition, at)))
            .collect()
    }

    fn matching(&self, word: &str) -> Vec<Place> {
        self.places().into_iter().filter(|place| matches(*place, word)).collect()
    }

    async fn filter(&self, query: &str) -> Result<Filter, Failure> {
        let (query, _) = self.parts.search.checked(query, Timestamp(0), vec![self.parts.topic.name.clone()]).await?;
        Ok(Filter::Matching { search: self.parts.search.clone(), query, unindexed: Unindexed::Stop })
    }

    async fn replay(
        &self,
        query: &str,
        request: &ReplayRequest,
    ) -> Result<impl Stream<Item = Result<Bytes, ReplayError>> + Unpin + use<>, Failure> {
        let (reader, tiering, filter) =
            (self.parts.reader.clone(), self.parts.tiering.clone(), self.filter(query).await?);
        Ok(Box::pin(replay_matching(reader, tiering, &self.parts.topic, request, filter, Format::Ndjson)?))
    }

    /// Each word, whole and in ranges, and contexts.
    async fn check(&self, stage: &str) -> Result<(), Failure> {
        for word in WORDS.iter().chain(&["nowhere"]) {
            let all = self.matching(word);
            let found = collect(self.replay(word, &ReplayRequest::default()).await?).await?;
            assert_eq!(found, all, "{stage}: {word}");

            let limited = ReplayRequest { limit: Some(5), ..ReplayRequest::default() };
            let found = collect(self.replay(word, &limited).await?).await?;
            assert_eq!(found, all[..all.len().min(5)], "{stage}: five of {word}");

            let start = self.offsets[1].start + 3;
            let ranged = ReplayRequest {
                partition: Some(PartitionId(1)),
                from_offset: Some(Offset(start)),
                to_offset: Some(Offset(start + 60)),
                from: Some(Timestamp(DAY + 10_000)),
                to: Some(Timestamp(DAY + 60_000)),
                ..ReplayRequest::default()
            };
            let found = collect(self.replay(word, &ranged).await?).await?;
            let in_range = |(partition, at): &Place| {
                *partition == 1
                    && (start..start + 60).contains(at)
                    && (10_000..60_000).contains(&(timestamp(*at) - DAY))
            };
            assert_eq!(found, all.into_iter().filter(in_range).collect::<Vec<_>>(), "{stage}: {word} in a range");
        }
        let everything = collect(self.replay("", &ReplayRequest::default()).await?).await?;
        assert_eq!(everything, self.places(), "{stage}: everything");
        self.check_context(stage).await
    }

    async fn check_context(&self, stage: &str) -> Result<(), Failure> {
        for (before, after) in [(0, 2), (3, 0), (4, 4)] {
            let response = self
                .parts
                .search
                .search(SearchRequest { context: Context { before, after }, ..request("lost", 8) })
                .await?;
            let hits: BTreeSet<Place> =
                response.hits.iter().map(|hit| (hit.partition.0, hit.record.offset.0)).collect();
            let (before, after) = (before as i64, after as i64);
            let is_near = |(partition, at): &Place| {
                hits.iter().any(|(of, hit)| of == partition && (hit - before..=hit + after).contains(at))
            };
            let expected: BTreeSet<Place> = self.places().into_iter().filter(is_near).collect();
            let mut shown = BTreeSet::new();
            for passage in &response.context {
                let offsets: Vec<i64> = passage.messages.iter().map(|message| message.record.offset.0).collect();
                assert!(offsets.windows(2).all(|pair| pair[1] == pair[0] + 1), "{stage}: a passage has no holes");
                for message in &passage.messages {
                    let place = (passage.partition.0, message.record.offset.0);
                    assert!(shown.insert(place), "{stage}: {place:?} is shown twice");
                    assert_eq!(message.is_hit, hits.contains(&place), "{stage}: {place:?}");
                    assert_eq!(message.record.value.as_deref(), value(place).as_deref().map(str::as_bytes), "{stage}");
                }
            }
            assert_eq!(shown, expected, "{stage}: {before} before and {after} after");
        }
        Ok(())
    }

    async fn republish(
        &self,
        query: Option<&str>,
        into: Option<&Arc<Topic>>,
        request: &RepublishRequest,
    ) -> Result<Result<Republish, RepublishError>, Failure> {
        let filter = match query {
            Some(query) => self.filter(query).await?,
            None => Filter::Everything(request.replay.undecodable),
        };
        let stations = (self.parts.reader.clone(), self.parts.tiering.clone(), self.parts.clock.clone());
        Ok(Republish::new(stations, self.parts.topic.clone(), into.cloned(), filter, request))
    }

    /// What is in a topic, partition after partition.
    async fn contents(&self, topic: &Topic) -> Result<Vec<Vec<OwnedRecord>>, Failure> {
        let mut contents = Vec::new();
        for partition in &topic.partitions {
            let offsets: Vec<Offset> = (0..partition.high_watermark().0).map(Offset).collect();
            let found = self.parts.reader.records(partition, &offsets, usize::MAX).await?;
            contents.push(found.records.into_iter().flatten().collect());
        }
        Ok(contents)
    }
}

async fn append(log: &Arc<Partition>, offsets: std::ops::Range<i64>) -> Result<(), Failure> {
    let partition = log.topic_partition().partition.0;
    let contents: Vec<support::Content> = offsets.map(|at| content((partition, at))).collect();
    for batch in contents.chunks(BATCH) {
        support::append(log, batch).await?;
    }
    Ok(())
}

fn content(place: Place) -> support::Content {
    let (_, at) = place;
    let headers = [(&b"trace"[..], Some(noise(at).to_vec())), (&b"trace"[..], None), (&b""[..], Some(Vec::new()))];
    let headers = headers.into_iter().map(|(name, value)| (name.to_vec(), value)).take(at as usize % 4);
    let value = value(place).map(String::into_bytes);
    support::Content { timestamp: timestamp(at), key: key(place), value, headers: headers.collect() }
}

fn timestamp(at: i64) -> i64 {
    DAY + at / 2 * 1000
}

/// Not UTF-8.
fn noise(at: i64) -> [u8; 4] {
    [0xff, 0x00, at as u8, 0x80]
}

fn key((partition, at): Place) -> Option<Vec<u8>> {
    match at % 5 {
        0 => None,
        1 => Some(noise(at).to_vec()),
        _ => Some(format!("key-{partition}-{}", at % 11).into_bytes()),
    }
}

/// A few words that depend on the place alone; some messages have no value.
fn value((partition, at): Place) -> Option<String> {
    let mut state = (at as u64).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(partition as u64 + 1);
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let words: Vec<&str> = (0..next(4)).map(|_| WORDS[next(WORDS.len())]).collect();
    (next(10) > 0).then(|| format!("{partition} {at}: {}.", words.join(" ")))
}

fn matches(place: Place, word: &str) -> bool {
    value(place).is_some_and(|value| value.split(|c: char| !c.is_alphanumeric()).any(|other| other == word))
}

fn places_of(lines: &[u8]) -> Result<Vec<Place>, Failure> {
    let mut places = Vec::new();
    for line in std::str::from_utf8(lines)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let place =
            (message["partition"].as_i64().ok_or("partition")? as i32, message["offset"].as_i64().ok_or("offset")?);
        assert_eq!(message["value"].as_str(), value(place).as_deref());
        places.push(place);
    }
    Ok(places)
}

async fn collect(mut stream: impl Stream<Item = Result<Bytes, ReplayError>> + Unpin) -> Result<Vec<Place>, Failure> {
    let mut places = Vec::new();
    while let Some(chunk) = stream.next().await {
        places.extend(places_of(&chunk?)?);
    }
    Ok(places)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matches_are_replayed_over_both_tiers() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    broker.check("nothing yet").await?;
    broker.produce(80).await?;
    broker.check("hot, as soon as it is acknowledged").await?;
    broker.archive(false).await?;
    broker.check("archived, still in the log").await?;
    broker.produce(40).await?;
    broker.check("half and half").await?;
    broker.archive(true).await?;
    broker.check("trimmed").await?;
    broker.produce(30).await?;
    broker.delete_below(17)?;
    broker.check("the start deleted, with new messages").await?;
    broker.archive(true).await?;
    broker.delete_below(125)?;
    broker.check("the first files gone").await?;
    broker.parts.stop().await
}

/// Between any two chunks the archive takes over what was hot, drops local copies and gets new messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matches_come_once_while_the_archive_moves() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    for (round, word) in WORDS.into_iter().enumerate().take(4) {
        broker.produce(40).await?;
        broker.archive(round % 2 == 0).await?;
        broker.produce(30).await?;
        let expected = broker.matching(word);
        let mut stream = broker.replay(word, &ReplayRequest::default()).await?;
        let (mut found, mut chunks) = (Vec::new(), 0);
        while let Some(chunk) = stream.next().await {
            found.extend(places_of(&chunk?)?);
            match chunks % 3 {
                0 => broker.archive(false).await?,
                1 => broker.produce(10).await?,
                _ => broker.archive(true).await?,
            }
            chunks += 1;
        }
        assert!(chunks > 3, "{chunks} chunks");
        assert_eq!(found, expected, "round {round}: {word}");
    }
    broker.check("in the end").await?;
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_index_is_said_not_left_out() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    broker.produce(30).await?;
    broker.archive(true).await?;
    let topic = broker.parts.create("unindexed", 1, &[("search.index", "off")])?;
    append(&topic.partitions[0], 0..20).await?;
    for archived in [false, true] {
        if archived {
            broker.parts.tiering.archive_now(&topic, true).await?;
        }
        for unindexed in [Unindexed::Stop, Unindexed::Skip] {
            let (query, _) = broker.parts.search.checked("lost", Timestamp(0), vec![topic.name.clone()]).await?;
            let filter = Filter::Matching { search: broker.parts.search.clone(), query, unindexed };
            let (reader, tiering) = (broker.parts.reader.clone(), broker.parts.tiering.clone());
            let replay = replay_matching(reader, tiering, &topic, &ReplayRequest::default(), filter, Format::Ndjson)?;
            let found = collect(Box::pin(replay)).await;
            match unindexed {
                Unindexed::Stop => assert!(found.unwrap_err().to_string().contains("offsets 0 to 19"), "{archived}"),
                Unindexed::Skip => assert!(found?.is_empty()),
            }
        }
    }
    let followed =
        broker.parts.search.follow(FollowRequest { topics: vec![topic.name.clone()], ..FollowRequest::default() });
    assert!(matches!(followed.await.err(), Some(SearchError::NotIndexed(_))));
    broker.parts.stop().await
}

/// Messages of the source, as the copy must have them; without their offsets.
type Content = (Option<Bytes>, Option<Bytes>, Vec<(String, Option<Bytes>)>, Timestamp);

fn contents(records: &[OwnedRecord]) -> Vec<Content> {
    let content =
        |record: &OwnedRecord| (record.key.clone(), record.value.clone(), record.headers.clone(), record.timestamp);
    records.iter().map(content).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_has_the_matches_bit_for_bit_and_in_order() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    broker.produce(150).await?;
    broker.archive(true).await?;
    broker.produce(100).await?;
    let source = broker.contents(&broker.parts.topic).await?;
    for query in [None, Some("late"), Some("")] {
        let copy =
            broker.parts.create(&format!("copy-{}", query.map_or("all".to_owned(), |q| format!("q{q}"))), 3, &[])?;
        let request = RepublishRequest { keep_timestamps: true, ..RepublishRequest::default() };
        let mut republish = broker.republish(query, Some(&copy), &request).await??;
        while republish.next().await?.is_some() {}
        let progress = republish.progress().clone();
        let mut expected = 0;
        for (partition, (of_source, of_copy)) in source.iter().zip(broker.contents(&copy).await?).enumerate() {
            let word = query.filter(|query| !query.is_empty());
            let wanted: Vec<OwnedRecord> = of_source
                .iter()
                .filter(|record| word.is_none_or(|word| matches((partition as i32, record.offset.0), word)))
                .cloned()
                .collect();
            assert_eq!(contents(&of_copy), contents(&wanted), "{query:?}: partition {partition}");
            expected += wanted.len() as u64;
        }
        let Summary { matched, published, missing, .. } = progress.summary;
        assert_eq!((matched, published, missing), (expected, expected, 0));
        assert_eq!(progress.position.to_string(), "end");

        let mut counted = broker.republish(query, None, &request).await??;
        while counted.next().await?.is_some() {}
        assert_eq!((counted.progress().summary.matched, counted.progress().summary.published), (expected, 0));
    }
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_stopped_goes_on_and_ends_where_it_would_have() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    broker.produce(120).await?;
    broker.archive(true).await?;
    broker.produce(60).await?;
    let expected = broker.matching("lost");
    let copy = broker.parts.create("copy", 3, &[])?;
    // So slow that it tells of its progress in between.
    let rates = Rates { requests_per_second: 25, bytes_per_second: 0 };
    let mut request = RepublishRequest { keep_timestamps: true, rates, ..RepublishRequest::default() };
    let mut republish = broker.republish(Some("lost"), Some(&copy), &request).await??;
    let started = tokio::time::Instant::now();
    let told = loop {
        let told = republish.next().await?.ok_or("it ended before it was stopped")?;
        if told.summary.published > 30 {
            break told;
        }
    };
    // 25 at once, then 25 a second.
    let at_most = 25.0 + 25.0 * (started.elapsed().as_secs_f64() + 0.1);
    assert!((told.summary.published as f64) < at_most, "{} messages, at most {at_most}", told.summary.published);
    assert!(told.summary.published < expected.len() as u64);
    drop(republish);
    let so_far: usize = broker.contents(&copy).await?.iter().map(Vec::len).sum();
    assert_eq!(so_far as u64, told.summary.published, "what is told is there, and between two words nothing else");

    // What comes later is not in it, whenever it goes on.
    broker.produce(60).await?;
    broker.archive(true).await?;
    request.resume_from = Some(told.position.to_string().parse()?);
    request.rates = Rates::default();
    let mut republish = broker.republish(Some("lost"), Some(&copy), &request).await??;
    while republish.next().await?.is_some() {}
    let copied = broker.contents(&copy).await?;
    for (partition, copied) in (0..).zip(&copied) {
        let wanted: Vec<Option<String>> =
            expected.iter().filter(|place| place.0 == partition).map(|place| value(*place)).collect();
        let copied: Vec<Option<&[u8]>> = copied.iter().map(|record| record.value.as_deref()).collect();
        assert_eq!(copied, wanted.iter().map(|value| value.as_deref().map(str::as_bytes)).collect::<Vec<_>>());
    }
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_where_it_was_asked_to() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    broker.produce(50).await?;
    let (narrow, topic) = (broker.parts.create("narrow", 2, &[])?, broker.parts.topic.clone());
    let request = RepublishRequest::default();
    let itself = broker.republish(None, Some(&topic), &request).await?;
    assert!(matches!(itself.err(), Some(RepublishError::IntoItself(_))));
    let narrower = broker.republish(None, Some(&narrow), &request).await?;
    assert!(matches!(narrower.err(), Some(RepublishError::FewerPartitions { .. })));
    let only = ReplayRequest { partition: Some(PartitionId(1)), ..ReplayRequest::default() };
    let fits = RepublishRequest { replay: only, ..RepublishRequest::default() };
    assert!(broker.republish(None, Some(&narrow), &fits).await?.is_ok());
    let foreign = RepublishRequest { resume_from: Some("7@0..5".parse()?), ..RepublishRequest::default() };
    let foreign = broker.republish(None, Some(&narrow), &foreign).await?;
    assert!(matches!(foreign.err(), Some(RepublishError::ForeignPosition { .. })));

    let by_key = RepublishRequest { partitioning: Partitioning::Key, ..RepublishRequest::default() };
    let mut republish = broker.republish(None, Some(&narrow), &by_key).await??;
    while republish.next().await?.is_some() {}
    let copied = broker.contents(&narrow).await?;
    assert_eq!(copied.iter().map(Vec::len).sum::<usize>(), 150);
    let mut home = BTreeMap::new();
    for (partition, record) in
        (0..).zip(&copied).flat_map(|(partition, records)| records.iter().map(move |r| (partition, r)))
    {
        if let Some(key) = &record.key {
            assert_eq!(*home.entry(key.clone()).or_insert(partition), partition, "a key stays in one partition");
        }
        assert!(record.timestamp.0 > DAY + 1_000_000_000, "the time of now");
    }
    broker.parts.stop().await
}

/// Hits of a follower until there are `count` of them, and its last cursor.
async fn follow_until(follow: &mut Follow, count: usize) -> Result<(Vec<Place>, String), Failure> {
    let (mut seen, mut cursor) = (Vec::new(), follow.cursor());
    let hits = async {
        while seen.len() < count {
            let batch = follow.next().await?;
            seen.extend(batch.hits.iter().map(|hit| (hit.partition.0, hit.record.offset.0)));
            cursor = batch.cursor;
        }
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(PATIENCE, hits).await.map_err(|_| "the follower waits in vain")??;
    Ok((seen, cursor))
}

/// In the order of the offsets within each partition.
fn sorted(mut places: Vec<Place>) -> Vec<Place> {
    places.sort_by_key(|(partition, _)| *partition);
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_sees_each_match_once_while_the_archive_moves() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    broker.produce(40).await?;
    let before = broker.matching("lost").len();
    let request = FollowRequest { query: "lost".to_owned(), ..FollowRequest::default() };
    let mut follow = broker.parts.search.follow(request.clone()).await?;
    let mut seen = Vec::new();
    for round in 0..12 {
        broker.produce(25).await?;
        match round % 4 {
            0 => broker.archive(false).await?,
            2 => broker.archive(true).await?,
            _ => {}
        }
        let expected = broker.matching("lost").len() - before;
        if round % 3 == 2 {
            // It goes away and comes back, to a broker that has moved on.
            let (hits, cursor) = follow_until(&mut follow, expected - seen.len()).await?;
            seen.extend(hits);
            broker.produce(5).await?;
            broker.archive(round % 2 == 0).await?;
            follow = broker.parts.search.follow(FollowRequest { cursor: Some(cursor), ..request.clone() }).await?;
        }
    }
    let places: Vec<Place> = broker.matching("lost").into_iter().filter(|(_, at)| *at >= 40).collect();
    let (hits, _) = follow_until(&mut follow, places.len() - seen.len()).await?;
    seen.extend(hits);
    assert_eq!(sorted(seen), places);

    // From a time on, what is there already comes first.
    let from = Some(Timestamp(timestamp(60)));
    let mut late = broker.parts.search.follow(FollowRequest { from, ..request.clone() }).await?;
    let places: Vec<Place> = broker.matching("lost").into_iter().filter(|(_, at)| *at >= 60).collect();
    let (seen, _) = follow_until(&mut late, places.len()).await?;
    assert_eq!(sorted(seen), places);
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_see_topics_come_and_go() -> Result<(), Failure> {
    let mut broker = Broker::start().await?;
    broker.produce(5).await?;
    let mut all = broker.parts.search.follow(FollowRequest::default()).await?;
    let named = FollowRequest { topics: vec![broker.parts.topic.name.clone()], ..FollowRequest::default() };
    let mut one = broker.parts.search.follow(named.clone()).await?;
    let foreign = FollowRequest { cursor: Some("orders@0:1000".to_owned()), ..named };
    assert!(matches!(broker.parts.search.follow(foreign).await.err(), Some(SearchError::FollowCursor(_))));

    let other = broker.parts.create("other", 1, &[])?;
    append(&other.partitions[0], 0..9).await?;
    let (seen, cursor) = follow_until(&mut all, 9).await?;
    assert_eq!(seen, (0..9).map(|at| (0, at)).collect::<Vec<_>>());
    assert_eq!(cursor, "orders@0:5,1:5,2:5;other@0:9");

    let (topics, name) = (broker.parts.topics.clone(), broker.parts.topic.name.clone());
    tokio::task::spawn_blocking(move || topics.delete(name.as_str())).await??;
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(error) = one.next().await {
                return error;
            }
        }
    });
    assert!(matches!(ended.await?, SearchError::UnknownTopic(_)));
    append(&other.partitions[0], 9..12).await?;
    let (seen, cursor) = follow_until(&mut all, 3).await?;
    assert_eq!((seen, cursor.as_str()), (vec![(0, 9), (0, 10), (0, 11)], "other@0:12"));
    broker.parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_are_limited() -> Result<(), Failure> {
    let broker = Broker::start().await?;
    let mut followers = Vec::new();
    for _ in 0..thermocline_query::search::FOLLOWERS_MAX {
        followers.push(broker.parts.search.follow(FollowRequest::default()).await?);
    }
    assert!(matches!(
        broker.parts.search.follow(FollowRequest::default()).await.err(),
        Some(SearchError::Followers { .. })
    ));
    followers.pop();
    assert!(broker.parts.search.follow(FollowRequest::default()).await.is_ok());
    broker.parts.stop().await
}
