//! Groups and committed offsets over restarts, on a real log in a temporary folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use prometheus::Registry;
use thermocline_config::{GroupsConfig, HumanDuration, LogConfig};
use thermocline_ingest::clock::{Clock, ManualClock};
use thermocline_ingest::coordinator::group::{Committer, JoinRequest, State, SyncRequest};
use thermocline_ingest::coordinator::offsets::CommittedOffset;
use thermocline_ingest::coordinator::{GroupCoordinator, OFFSETS_TOPIC};
use thermocline_ingest::log::HotLog;
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName, TopicPartition};
use thermocline_ingest::topics::Topics;
use tokio_util::sync::CancellationToken;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Short enough for a test to see a session end.
const SESSION_MIN_MS: i32 = 50;
const SIMPLE: Committer<'static> = Committer { member_id: "", instance_id: None, generation: -1 };

struct Broker {
    log: Arc<HotLog>,
    topics: Arc<Topics>,
    groups: Arc<GroupCoordinator>,
    clock: Arc<ManualClock>,
}

async fn start(dir: &Path, now: i64) -> Result<Broker, Box<dyn std::error::Error>> {
    let clock = Arc::new(ManualClock::at(Timestamp(now)));
    let metrics = Arc::new(IngestMetrics::new(&Registry::new())?);
    let log = HotLog::open(dir.join("log"), LogConfig::default(), clock.clone() as Arc<dyn Clock>, metrics)?;
    let store = Arc::new(MetadataStore::open(&dir.join("metadata.redb"))?);
    let topics = Arc::new(Topics::open(store, log.clone(), LogConfig::default())?);
    let config = GroupsConfig {
        initial_rebalance_delay: HumanDuration::millis(0),
        min_session_timeout: HumanDuration::millis(SESSION_MIN_MS as u64),
        ..GroupsConfig::default()
    };
    let groups = GroupCoordinator::open(config, topics.clone(), clock.clone()).await?;
    Ok(Broker { log, topics, groups, clock })
}

/// Who holds a partition that nobody writes to: the log, and its topic.
const PARTITION_HOLDERS: usize = 2;

/// Lets go of everything; with `clean` the log is closed, else it is left as a crash would.
async fn stop(broker: Broker, clean: bool) -> TestResult {
    let Broker { log, topics, groups, .. } = broker;
    drop(groups);
    // The coordinator's writers finish what is queued, and end when it is gone; they hold their partitions until then.
    let topic = topics.get(OFFSETS_TOPIC).ok_or("the topic is missing")?;
    while topic.partitions.iter().any(|partition| Arc::strong_count(partition) > PARTITION_HOLDERS) {
        tokio::task::yield_now().await;
    }
    drop(topic);
    drop(topics);
    if clean {
        log.close()?;
    }
    Ok(())
}

fn at(topic: &str, partition: i32) -> Result<TopicPartition, Box<dyn std::error::Error>> {
    Ok(TopicPartition::new(TopicName::new(topic)?, PartitionId(partition)))
}

fn committed(offset: i64, metadata: &str) -> CommittedOffset {
    let metadata = metadata.to_owned();
    CommittedOffset { offset: Offset(offset), leader_epoch: 0, metadata, commit_timestamp: Timestamp(1_000) }
}

fn offset_of(broker: &Broker, group: &str, partition: i32) -> Option<CommittedOffset> {
    broker.groups.with_committed(group, |offsets| offsets.get("orders", PartitionId(partition)).cloned())?
}

fn join(name: &str) -> JoinRequest {
    JoinRequest {
        member_id: String::new(),
        new_member_id: name.to_owned(),
        instance_id: None,
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
        require_member_id: false,
        can_skip_assignment: false,
    }
}

fn sync(name: &str, generation: i32, part: &'static [u8]) -> SyncRequest {
    SyncRequest {
        member_id: name.to_owned(),
        instance_id: None,
        generation,
        protocol_type: None,
        protocol: None,
        assignments: vec![(name.to_owned(), Bytes::from_static(part))],
    }
}

#[tokio::test]
async fn offsets_and_membership_survive() -> TestResult {
    let dir = tempfile::tempdir()?;
    for round in 0..4_i64 {
        let broker = start(dir.path(), 1_000 + round).await?;
        if round == 0 {
            broker.topics.create(&TopicName::new("orders")?, 2, BTreeMap::new())?;
            let joined = broker.groups.join("team", join("m1")).await.map_err(|refusal| refusal.error)?;
            assert_eq!(joined.generation, 1);
            let part = broker.groups.sync("team", sync("m1", 1, b"both")).await?;
            assert_eq!(part.assignment, Bytes::from_static(b"both"));
        } else {
            let last = round - 1;
            assert_eq!(offset_of(&broker, "alone", 0), Some(committed(last, "nöte")));
            assert_eq!(offset_of(&broker, "team", 1), Some(committed(10 + last, "")));
            assert_eq!(offset_of(&broker, "team", 0), None);
            assert_eq!(broker.groups.describe("team").map(|group| group.state), Some(State::Stable));
            broker.groups.heartbeat("team", "m1", None, 1)?;
            let part = broker.groups.sync("team", sync("m1", 1, b"")).await?;
            assert_eq!(part.assignment, Bytes::from_static(b"both"));
        }
        let unknown = ResponseError::IllegalGeneration;
        broker.groups.commit("alone", SIMPLE, unknown, vec![(at("orders", 0)?, committed(round, "nöte"))]).await?;
        let member = Committer { member_id: "m1", instance_id: None, generation: 1 };
        broker.groups.commit("team", member, unknown, vec![(at("orders", 1)?, committed(10 + round, ""))]).await?;
        let stale = Committer { generation: 0, ..member };
        let refused = broker.groups.commit("team", stale, unknown, vec![(at("orders", 1)?, committed(0, ""))]).await;
        assert_eq!(refused, Err(ResponseError::IllegalGeneration));
        stop(broker, round % 2 == 0).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_member_that_is_gone_holds_nobody_up() -> TestResult {
    let dir = tempfile::tempdir()?;
    let broker = start(dir.path(), 1_000).await?;
    let shutdown = CancellationToken::new();
    let timers = tokio::spawn(broker.groups.clone().run(shutdown.clone()));
    let gone = JoinRequest { session_timeout_ms: SESSION_MIN_MS, ..join("gone") };
    broker.groups.join("team", gone).await.map_err(|refusal| refusal.error)?;
    let stays = broker.groups.join("team", join("stays")).await.map_err(|refusal| refusal.error)?;
    assert_eq!((stays.leader.as_str(), stays.members.len()), ("stays", 1));

    // A third one waits for the second; a stopping broker answers it.
    let waiting = tokio::spawn({
        let groups = broker.groups.clone();
        async move { groups.join("team", join("waits")).await }
    });
    while broker.groups.describe("team").is_some_and(|group| group.members.len() < 2) {
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    timers.await?;
    assert_eq!(waiting.await?.map_err(|refusal| refusal.error), Err(ResponseError::CoordinatorNotAvailable));
    stop(broker, true).await
}

#[tokio::test]
async fn offsets_of_a_deleted_topic_go_with_it() -> TestResult {
    let dir = tempfile::tempdir()?;
    let broker = start(dir.path(), 1_000).await?;
    broker.topics.create(&TopicName::new("orders")?, 1, BTreeMap::new())?;
    broker.topics.create(&TopicName::new("kept")?, 1, BTreeMap::new())?;
    let unknown = ResponseError::IllegalGeneration;
    let offsets = vec![(at("orders", 0)?, committed(5, "")), (at("kept", 0)?, committed(6, ""))];
    broker.groups.commit("team", SIMPLE, unknown, offsets).await?;
    // Deleted while nobody listens: found when the timers start.
    broker.topics.delete("orders")?;
    let shutdown = CancellationToken::new();
    let timers = tokio::spawn(broker.groups.clone().run(shutdown.clone()));
    while offset_of(&broker, "team", 0).is_some() {
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    timers.await?;
    stop(broker, false).await?;
    let broker = start(dir.path(), 2_000).await?;
    assert_eq!(offset_of(&broker, "team", 0), None);
    let kept = broker.groups.with_committed("team", |offsets| offsets.get("kept", PartitionId(0)).cloned());
    assert_eq!(kept.flatten(), Some(committed(6, "")));
    stop(broker, true).await
}

#[tokio::test]
async fn compaction_keeps_the_state_and_drops_the_rest() -> TestResult {
    // Each commit is some 400 kB; together they fill several segments of 32 MiB.
    const COMMITS: i64 = 300;
    const PARTITIONS: i32 = 100;
    let dir = tempfile::tempdir()?;
    let broker = start(dir.path(), 1_000).await?;
    let note = "n".repeat(4_000);
    let unknown = ResponseError::IllegalGeneration;
    broker.groups.commit("quiet", SIMPLE, unknown, vec![(at("orders", 0)?, committed(77, "quiet"))]).await?;
    for round in 0..COMMITS {
        let offsets = (0..PARTITIONS).map(|partition| Ok((at("orders", partition)?, committed(round, &note))));
        let offsets: Result<Vec<_>, Box<dyn std::error::Error>> = offsets.collect();
        broker.groups.commit("busy", SIMPLE, unknown, offsets?).await?;
    }
    let topic = broker.topics.get(OFFSETS_TOPIC).ok_or("the topic is missing")?;
    broker.log.clean(&|| false);
    let compacted = topic.partitions.iter().filter(|partition| partition.compactions().0 > 0).count();
    assert_eq!(compacted, 1, "the busy partition was compacted, and no other");
    let hot_bytes: u64 = topic.partitions.iter().map(|partition| partition.hot_bytes()).sum();
    assert!(hot_bytes < 40 << 20, "{hot_bytes} bytes are left");
    drop(topic);
    stop(broker, false).await?;

    let broker = start(dir.path(), 2_000).await?;
    for partition in 0..PARTITIONS {
        assert_eq!(offset_of(&broker, "busy", partition), Some(committed(COMMITS - 1, &note)));
    }
    assert_eq!(offset_of(&broker, "quiet", 0), Some(committed(77, "quiet")));
    stop(broker, true).await
}

#[tokio::test]
async fn expired_offsets_and_their_group_stay_gone() -> TestResult {
    let dir = tempfile::tempdir()?;
    let broker = start(dir.path(), 1_000).await?;
    broker.topics.create(&TopicName::new("orders")?, 1, BTreeMap::new())?;
    let unknown = ResponseError::IllegalGeneration;
    broker.groups.commit("old", SIMPLE, unknown, vec![(at("orders", 0)?, committed(5, ""))]).await?;
    broker.clock.advance_ms(GroupsConfig::default().offsets_retention.as_millis());
    broker.groups.expire().await;
    assert!(broker.groups.describe("old").is_none());
    stop(broker, true).await?;

    let broker = start(dir.path(), 2_000).await?;
    assert_eq!(offset_of(&broker, "old", 0), None);
    assert!(broker.groups.list().is_empty());
    stop(broker, true).await
}

#[tokio::test]
async fn offsets_of_topics_that_nobody_reads_any_more_expire() -> TestResult {
    let dir = tempfile::tempdir()?;
    let broker = start(dir.path(), 1_000).await?;
    let unknown = ResponseError::IllegalGeneration;
    let both = vec![(at("orders", 0)?, committed(5, "")), (at("clicks", 0)?, committed(6, ""))];
    broker.groups.commit("team", SIMPLE, unknown, both).await?;
    // A subscription to "orders".
    let subscription = Bytes::from_static(b"\0\0\0\0\0\x01\0\x06orders\xff\xff\xff\xff");
    let request = JoinRequest { protocols: vec![("range".to_owned(), subscription)], ..join("m1") };
    let joined = broker.groups.join("team", request).await.map_err(|refusal| refusal.error)?;
    broker.groups.sync("team", sync("m1", joined.generation, b"all")).await?;
    broker.clock.advance_ms(GroupsConfig::default().offsets_retention.as_millis());
    broker.groups.expire().await;
    let left = || {
        broker.groups.with_committed("team", |offsets| {
            offsets.iter().map(|(topic, ..)| topic.as_str().to_owned()).collect::<Vec<_>>()
        })
    };
    while left().is_some_and(|topics| topics.len() > 1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(left(), Some(vec!["orders".to_owned()]));
    stop(broker, true).await
}
