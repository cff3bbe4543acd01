//! Committed offsets of one group, in memory. Holds exactly what is durable in `__consumer_offsets`: a commit enters
//! here after its record is on disk, in the order of the log.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Offset, PartitionId, Timestamp, TopicName, TopicPartition};
use crate::record::TransactionOutcome;

/// Where a consumer wants to go on in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    pub offset: Offset,
    /// -1 where the client did not say.
    pub leader_epoch: i32,
    /// The client's own note, kept byte for byte.
    pub metadata: String,
    pub commit_timestamp: Timestamp,
}

/// All committed offsets of a group, in topic and partition order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommittedOffsets {
    by_topic: BTreeMap<TopicName, BTreeMap<PartitionId, CommittedOffset>>,
}

impl CommittedOffsets {
    pub fn is_empty(&self) -> bool {
        self.by_topic.is_empty()
    }

    pub fn get(&self, topic: &str, partition: PartitionId) -> Option<&CommittedOffset> {
        self.by_topic.get(topic)?.get(&partition)
    }

    pub fn insert(&mut self, at: TopicPartition, committed: CommittedOffset) {
        self.by_topic.entry(at.topic).or_default().insert(at.partition, committed);
    }

    pub fn remove(&mut self, at: &TopicPartition) {
        if let Some(partitions) = self.by_topic.get_mut(&at.topic) {
            partitions.remove(&at.partition);
            if partitions.is_empty() {
                self.by_topic.remove(&at.topic);
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TopicName, PartitionId, &CommittedOffset)> {
        self.by_topic.iter().flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(partition, committed)| (topic, *partition, committed))
        })
    }

    /// Partitions of topics for which `gone` is true.
    pub fn of_topics(&self, gone: impl Fn(&TopicName) -> bool) -> Vec<TopicPartition> {
        self.iter()
            .filter(|(topic, ..)| gone(topic))
            .map(|(topic, partition, _)| TopicPartition::new(topic.clone(), partition))
            .collect()
    }

    /// Partitions whose offset has outlived `retention_ms`, counted from the later of its commit and the moment the
    /// group became empty ([`Timestamp::NONE`] where that is not known).
    pub fn expired(&self, now: Timestamp, empty_since: Timestamp, retention_ms: i64) -> Vec<TopicPartition> {
        self.iter()
            .filter(|(.., committed)| {
                committed.commit_timestamp.max(empty_since).0.saturating_add(retention_ms) <= now.0
            })
            .map(|(topic, partition, _)| TopicPartition::new(topic.clone(), partition))
            .collect()
    }
}

/// Offsets that transactions under way have committed: in force once the transaction commits, unless something newer is
/// in the log by then. What is newer is decided by places in the log alone, as in Kafka, and not by which transaction
/// ended first; so the log means the same after it was compacted, which keeps the newest record of a key. The rules are
/// the same when the log is read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingOffsets {
    /// Per partition by producer, in the order of the log.
    by_topic: BTreeMap<TopicName, BTreeMap<PartitionId, Vec<(i64, CommittedOffset)>>>,
}

impl PendingOffsets {
    pub fn is_empty(&self) -> bool {
        self.by_topic.is_empty()
    }

    /// Whether some transaction has committed for the partition.
    pub fn is_pending(&self, topic: &str, partition: PartitionId) -> bool {
        self.by_topic.get(topic).is_some_and(|partitions| partitions.contains_key(&partition))
    }

    /// Ids of the producers that something is pending of.
    pub fn producers(&self) -> BTreeSet<i64> {
        self.by_topic.values().flat_map(BTreeMap::values).flatten().map(|(producer_id, _)| *producer_id).collect()
    }

    pub fn insert(&mut self, producer_id: i64, at: TopicPartition, committed: CommittedOffset) {
        let waiting = self.by_topic.entry(at.topic).or_default().entry(at.partition).or_default();
        waiting.retain(|(other, _)| *other != producer_id);
        waiting.push((producer_id, committed));
    }

    /// A commit outside of transactions: newer than all that is pending.
    pub fn commit(&mut self, offsets: &mut CommittedOffsets, at: TopicPartition, committed: CommittedOffset) {
        self.remove(&at);
        offsets.insert(at, committed);
    }

    pub fn remove(&mut self, at: &TopicPartition) {
        if let Some(partitions) = self.by_topic.get_mut(&at.topic) {
            partitions.remove(&at.partition);
            if partitions.is_empty() {
                self.by_topic.remove(&at.topic);
            }
        }
    }

    /// The transaction of a producer ends.
    pub fn end(&mut self, producer_id: i64, outcome: TransactionOutcome, offsets: &mut CommittedOffsets) {
        self.by_topic.retain(|topic, partitions| {
            partitions.retain(|partition, waiting| {
                if let Some(place) = waiting.iter().position(|(other, _)| *other == producer_id) {
                    if outcome == TransactionOutcome::Commit {
                        // Those before it are older, however their transactions end.
                        if let Some((_, committed)) = waiting.drain(..=place).next_back() {
                            offsets.insert(TopicPartition::new(topic.clone(), *partition), committed);
                        }
                    } else {
                        waiting.remove(place);
                    }
                }
                !waiting.is_empty()
            });
            !partitions.is_empty()
        });
    }

    /// Partitions of topics for which `gone` is true.
    pub fn of_topics(&self, gone: impl Fn(&TopicName) -> bool) -> Vec<TopicPartition> {
        let of_topic = |(topic, partitions): (&TopicName, &BTreeMap<PartitionId, _>)| {
            partitions.keys().map(|partition| TopicPartition::new(topic.clone(), *partition)).collect::<Vec<_>>()
        };
        self.by_topic.iter().filter(|(topic, _)| gone(topic)).flat_map(of_topic).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition::new(TopicName::new(topic).unwrap(), PartitionId(partition))
    }

    fn committed(offset: i64, commit_timestamp: i64) -> CommittedOffset {
        let metadata = String::new();
        CommittedOffset {
            offset: Offset(offset),
            leader_epoch: -1,
            metadata,
            commit_timestamp: Timestamp(commit_timestamp),
        }
    }

    #[test]
    fn retention_counts_from_the_later_of_commit_and_emptiness() {
        let mut offsets = CommittedOffsets::default();
        offsets.insert(at("a", 0), committed(1, 100));
        offsets.insert(at("a", 1), committed(2, 300));
        assert_eq!(offsets.expired(Timestamp(1_150), Timestamp::NONE, 1_000), vec![at("a", 0)]);
        assert!(offsets.expired(Timestamp(1_150), Timestamp(200), 1_000).is_empty());
        assert_eq!(offsets.expired(Timestamp(1_300), Timestamp(200), 1_000).len(), 2);
    }

    #[test]
    fn what_is_pending_waits_for_its_end_and_gives_way_to_what_is_newer() {
        let (mut offsets, mut pending) = (CommittedOffsets::default(), PendingOffsets::default());
        let get = |offsets: &CommittedOffsets, partition| {
            offsets.get("a", PartitionId(partition)).map(|committed| committed.offset.0)
        };
        pending.commit(&mut offsets, at("a", 0), committed(1, 0));
        for partition in 0..3 {
            pending.insert(7, at("a", partition), committed(5, 0));
        }
        pending.insert(8, at("a", 0), committed(6, 0));
        assert!(pending.is_pending("a", PartitionId(2)) && !pending.is_pending("b", PartitionId(2)));
        pending.commit(&mut offsets, at("a", 1), committed(2, 0));
        pending.end(8, TransactionOutcome::Abort, &mut offsets);
        assert_eq!((get(&offsets, 0), get(&offsets, 1), get(&offsets, 2)), (Some(1), Some(2), None));
        pending.end(7, TransactionOutcome::Commit, &mut offsets);
        assert_eq!((get(&offsets, 0), get(&offsets, 1), get(&offsets, 2)), (Some(5), Some(2), Some(5)));
        assert!(pending.is_empty());
        pending.insert(7, at("a", 0), committed(9, 0));
        pending.remove(&at("a", 0));
        assert!(pending.is_empty(), "nothing is left of it");
    }

    #[test]
    fn of_two_transactions_the_later_offset_counts_whichever_ends_first() {
        use TransactionOutcome::{Abort, Commit};
        let place = at("a", 0);
        for (ends, expected) in [
            ([(7, Commit), (8, Commit)], Some(6)),
            ([(8, Commit), (7, Commit)], Some(6)),
            ([(7, Commit), (8, Abort)], Some(5)),
            ([(8, Abort), (7, Commit)], Some(5)),
            ([(8, Commit), (7, Abort)], Some(6)),
            ([(7, Abort), (8, Abort)], None),
        ] {
            let (mut offsets, mut pending) = (CommittedOffsets::default(), PendingOffsets::default());
            pending.insert(7, place.clone(), committed(4, 0));
            pending.insert(7, place.clone(), committed(5, 0));
            pending.insert(8, place.clone(), committed(6, 0));
            assert_eq!(pending.producers(), BTreeSet::from([7, 8]));
            for (producer_id, outcome) in ends {
                pending.end(producer_id, outcome, &mut offsets);
            }
            assert!(pending.is_empty());
            let found = offsets.get("a", PartitionId(0)).map(|committed| committed.offset.0);
            assert_eq!(found, expected, "{ends:?}");
        }
    }

    #[test]
    fn topics_leave_without_a_trace() {
        let mut offsets = CommittedOffsets::default();
        offsets.insert(at("a", 0), committed(1, 0));
        offsets.insert(at("b", 0), committed(2, 0));
        for gone in offsets.of_topics(|topic| topic.as_str() == "a") {
            offsets.remove(&gone);
        }
        assert_eq!(offsets.get("a", PartitionId(0)), None);
        assert_eq!(offsets.get("b", PartitionId(0)).map(|c| c.offset), Some(Offset(2)));
        offsets.remove(&at("b", 0));
        assert!(offsets.is_empty());
    }
}
