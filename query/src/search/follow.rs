//! A live tail: the matches of a query as they become searchable, each once, in offset order per partition.
//!
//! Invariants:
//! - A follower's place is an offset in each partition; time decides at most where it begins. What lies below the place
//!   has been given out, what lies between it and `indexed_through` comes next ([`super::matches`]), so nothing is
//!   missing or doubled however segments move from hot to cold meanwhile.
//! - Nothing is prepared before it is asked for: a slow receiver falls behind in offsets, not in memory. What expires
//!   before it is reached is not seen.
//! - The cursor of a batch is the place after it. It holds no state of the broker and survives a restart.
//!
//! A cursor is text: `orders@0:17,1:5;clicks@0:3` is the next offset of each partition. Partitions that it does not
//! name have been made since, and are followed from their start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId, TopicName};
use thermocline_ingest::read::LogReader;
use thermocline_ingest::topics::Topic;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use super::matches::{CheckedQuery, MatchRange, Matched, Matches, Unindexed};
use super::{Highlights, Hit, Search, SearchError};
use crate::prune::Scope;

/// Followers at once.
pub const FOLLOWERS_MAX: usize = 64;
/// Partitions that one follower may follow.
pub const FOLLOWED_PARTITIONS_MAX: usize = 4096;
/// How long a receiver is left without a word, so that one that went away is noticed.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often topics that came or went, and archives that moved, are looked at where nothing is indexed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of messages read for one batch.
const BATCH_BYTES: usize = 1 << 20;

/// What to follow.
#[derive(Clone, Debug, Default)]
pub struct FollowRequest {
    pub query: String,
    /// What `now` means in it.
    pub now: Timestamp,
    /// Empty means every topic that is not internal, those to come included.
    pub topics: Vec<TopicName>,
    /// Only matches of this time and later; without a cursor those that are there already, too.
    pub from: Option<Timestamp>,
    /// Goes on where an earlier follower was.
    pub cursor: Option<String>,
}

/// What a follower is given next.
#[derive(Clone, Debug)]
pub struct FollowBatch {
    /// None where nothing came for a while.
    pub hits: Vec<Hit>,
    pub cursor: String,
}

/// A follower.
pub struct Follow {
    search: Arc<Search>,
    query: CheckedQuery,
    /// As asked for.
    names: Vec<TopicName>,
    scope: Scope,
    followed: BTreeMap<Key, Followed>,
    /// Where the next round goes on, so that a busy partition does not starve the others.
    turn: Option<Key>,
    progress: watch::Receiver<()>,
    _permit: OwnedSemaphorePermit,
}

type Key = (TopicName, PartitionId);

struct Followed {
    topic: TopicId,
    partition: Arc<Partition>,
    /// Everything below has been given out.
    next: Offset,
    /// Matches that are looked through, and those of them that are known and not yet read.
    matches: Option<Box<Matches>>,
    ahead: Matched,
}

impl Search {
    /// Begins to follow. Refused with [`SearchError::Followers`] past [`FOLLOWERS_MAX`].
    pub async fn follow(self: &Arc<Self>, request: FollowRequest) -> Result<Follow, SearchError> {
        let permit = self.followers.clone().try_acquire_owned();
        let permit = permit.map_err(|_| SearchError::Followers { max: FOLLOWERS_MAX })?;
        let FollowRequest { query, now, topics: names, from, cursor } = request;
        let (query, topics) = self.checked(&query, now, names.clone()).await?;
        let cursor = cursor.as_deref().map(read_cursor).transpose()?;
        let mut follow = Follow {
            search: self.clone(),
            query,
            names,
            scope: Scope { from, ..Scope::default() },
            followed: BTreeMap::new(),
            turn: None,
            progress: self.live.watch(),
            _permit: permit,
        };
        for topic in &topics {
            for partition in follow.indexed_partitions(topic)? {
                let key = key_of(partition);
                let next = match &cursor {
                    Some(cursor) => match cursor.get(&key) {
                        Some(next) if *next > partition.log_end_offset() => {
                            return Err(SearchError::FollowCursor(write_place(&key, *next)));
                        }
                        next => next.copied().unwrap_or_else(|| partition.log_start_offset()),
                    },
                    None => self.beginning(partition, from).await?,
                };
                follow.add(topic, partition, next)?;
            }
        }
        Ok(follow)
    }

    /// The first offset of that time or later; without a time the end.
    async fn beginning(&self, partition: &Arc<Partition>, from: Option<Timestamp>) -> Result<Offset, SearchError> {
        let end = partition.last_stable_offset();
        let Some(from) = from else { return Ok(end) };
        let found = self.reader.offset_for_timestamp(partition, from).await?;
        Ok(found.map_or(end, |found| found.offset))
    }
}

impl Follow {
    /// The next matches; an empty batch where none came for a while. Ends with an error where a topic that was named is
    /// gone.
    pub async fn next(&mut self) -> Result<FollowBatch, SearchError> {
        let deadline = Instant::now() + HEARTBEAT;
        loop {
            self.progress.mark_unchanged();
            self.look_for_topics()?;
            let hits = self.round().await?;
            if !hits.is_empty() || Instant::now() >= deadline {
                return Ok(FollowBatch { hits, cursor: self.cursor() });
            }
            // Nothing new may still mean a topic that came or went.
            let _ = timeout_at(deadline.min(Instant::now() + LOOK_EVERY), self.progress.changed()).await;
        }
    }

    /// Where a follower goes on that starts now.
    pub fn cursor(&self) -> String {
        let mut text = String::new();
        let mut last = None;
        for ((topic, partition), followed) in &self.followed {
            if last == Some(topic) {
                text.push(',');
            } else {
                text.push_str(if last.is_some() { ";" } else { "" });
                text.push_str(topic.as_str());
                text.push('@');
            }
            text.push_str(&format!("{partition}:{}", followed.place()));
            last = Some(topic);
        }
        text
    }

    /// One turn of each partition, until one has matches.
    async fn round(&mut self) -> Result<Vec<Hit>, SearchError> {
        let keys: Vec<Key> = match &self.turn {
            Some(turn) => {
                self.followed.range(turn..).chain(self.followed.range(..turn)).map(|(key, _)| key.clone()).collect()
            }
            None => self.followed.keys().cloned().collect(),
        };
        for (at, key) in keys.iter().enumerate() {
            let Some(followed) = self.followed.get_mut(key) else { continue };
            match followed.advance(&self.search, &self.query, &self.scope).await {
                Ok(hits) if hits.is_empty() => {}
                Ok(hits) => {
                    self.turn = keys.get(at + 1).or(keys.first()).cloned();
                    return Ok(hits);
                }
                // The topic was deleted under us; the next look says what that means.
                Err(_) if followed.partition.is_closed() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Vec::new())
    }

    fn look_for_topics(&mut self) -> Result<(), SearchError> {
        let names = (!self.names.is_empty()).then(|| self.names.clone());
        let mut topics = self.search.topics(names)?;
        topics.retain(|topic| self.query.may_match(&topic.name));
        let is_there = |key: &Key, followed: &Followed| {
            topics.iter().any(|topic| topic.name == key.0 && topic.id == followed.topic)
        };
        if let Some((key, _)) = self.followed.iter().find(|(key, followed)| !is_there(key, followed)) {
            if !self.names.is_empty() {
                return Err(SearchError::UnknownTopic(key.0.clone()));
            }
            self.followed.retain(|key, followed| is_there(key, followed));
        }
        for topic in &topics {
            for partition in self.indexed_partitions(topic)? {
                if !self.followed.contains_key(&key_of(partition)) {
                    self.add(topic, partition, partition.log_start_offset())?;
                }
            }
        }
        Ok(())
    }

    /// Those of a topic whose messages become searchable. Asking for a topic by name without any is a mistake.
    fn indexed_partitions<'t>(
        &self,
        topic: &'t Topic,
    ) -> Result<impl Iterator<Item = &'t Arc<Partition>> + use<'t>, SearchError> {
        let is_indexed = topic.partitions.first().is_some_and(|partition| Search::is_indexed(partition));
        if !is_indexed && !self.names.is_empty() {
            return Err(SearchError::NotIndexed(topic.name.clone()));
        }
        Ok(topic.partitions.iter().filter(move |_| is_indexed))
    }

    fn add(&mut self, topic: &Topic, partition: &Arc<Partition>, next: Offset) -> Result<(), SearchError> {
        if self.followed.len() >= FOLLOWED_PARTITIONS_MAX {
            return Err(SearchError::FollowedPartitions { max: FOLLOWED_PARTITIONS_MAX });
        }
        let (partition, ahead) = (partition.clone(), Matched::default());
        let key = key_of(&partition);
        self.followed.insert(key, Followed { topic: topic.id, partition, next, matches: None, ahead });
        Ok(())
    }
}

impl Followed {
    fn place(&self) -> Offset {
        self.ahead.offsets.first().map_or(self.next, |first| *first)
    }

    /// The next messages that match, if there are any by now.
    async fn advance(
        &mut self,
        search: &Arc<Search>,
        query: &CheckedQuery,
        scope: &Scope,
    ) -> Result<Vec<Hit>, SearchError> {
        loop {
            if !self.ahead.offsets.is_empty() {
                let found = search.reader.records(&self.partition, &self.ahead.offsets, BATCH_BYTES).await?;
                self.ahead.offsets.drain(..found.records.len().min(self.ahead.offsets.len()));
                let (topic, partition) = key_of(&self.partition);
                let hit = |record| Hit {
                    topic: topic.clone(),
                    partition,
                    record,
                    score: None,
                    highlights: Highlights::new(),
                };
                let hits: Vec<Hit> = found.records.into_iter().flatten().map(hit).collect();
                if !hits.is_empty() {
                    return Ok(hits);
                }
                continue;
            }
            let through = search.indexed_through(&self.partition);
            if self.matches.is_none() && self.next < through {
                let (scope, unindexed) = (scope.clone(), Unindexed::Skip);
                let range = MatchRange { from: self.next, until: through, scope, unindexed };
                self.matches = Some(Box::new(search.matches(query, &self.partition, range)));
            }
            let Some(matches) = &mut self.matches else { return Ok(Vec::new()) };
            match matches.next().await? {
                Some(matched) => {
                    self.next = matched.through;
                    self.ahead = matched;
                }
                None => self.matches = None,
            }
        }
    }
}

fn key_of(partition: &Partition) -> Key {
    let name = partition.topic_partition();
    (name.topic.clone(), name.partition)
}

fn write_place((topic, partition): &Key, offset: Offset) -> String {
    format!("{topic}@{partition}:{offset}")
}

fn read_cursor(text: &str) -> Result<BTreeMap<Key, Offset>, SearchError> {
    let malformed = |part: &str| SearchError::FollowCursor(part.chars().take(60).collect());
    let mut places = BTreeMap::new();
    for of_topic in text.split(';').filter(|part| !part.is_empty()) {
        let (name, offsets) = of_topic.split_once('@').ok_or_else(|| malformed(of_topic))?;
        let name = TopicName::new(name).map_err(|_| malformed(of_topic))?;
        for place in offsets.split(',') {
            let read = place.split_once(':').and_then(|(partition, offset)| {
                let partition = partition.parse().ok().filter(|id: &i32| *id >= 0)?;
                Some((PartitionId(partition), Offset(offset.parse().ok().filter(|offset: &i64| *offset >= 0)?)))
            });
            let (partition, offset) = read.ok_or_else(|| malformed(place))?;
            if places.len() >= FOLLOWED_PARTITIONS_MAX || places.insert((name.clone(), partition), offset).is_some() {
                return Err(malformed(place));
            }
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_and_strangers_refused() {
        let places = read_cursor("clicks@0:3;orders@0:17,2:5").unwrap();
        let written: Vec<_> = places.iter().map(|(key, offset)| write_place(key, *offset)).collect();
        assert_eq!(written, ["clicks@0:3", "orders@0:17", "orders@2:5"]);
        assert!(read_cursor("").unwrap().is_empty());
        for bad in ["orders", "orders@", "orders@0", "orders@0:", "orders@-1:2", "orders@0:-2", "a/b@0:1", "a@0:1,0:2"]
        {
            let error = read_cursor(bad).unwrap_err();
            assert!(matches!(error, SearchError::FollowCursor(_)), "{bad}");
        }
    }
}
