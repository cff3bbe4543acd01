//! Deletions and growth that die between any two of their steps.

use prometheus::Registry;
use tempfile::TempDir;

use super::*;
use crate::clock::SystemClock;
use crate::metrics::IngestMetrics;

/// One run of the broker on a folder.
struct Run {
    store: Arc<MetadataStore>,
    log: Arc<HotLog>,
    topics: Topics,
}

fn run(dir: &TempDir) -> Run {
    let metrics = Arc::new(IngestMetrics::new(&Registry::new()).unwrap());
    let store = Arc::new(MetadataStore::open(&dir.path().join("metadata.redb")).unwrap());
    let log = HotLog::open(dir.path().join("hot"), LogConfig::default(), Arc::new(SystemClock), metrics).unwrap();
    let topics = Topics::open(store.clone(), log.clone(), LogConfig::default()).unwrap();
    Run { store, log, topics }
}

fn orders() -> TopicName {
    TopicName::new("orders").unwrap()
}

fn folders(dir: &TempDir) -> usize {
    let entries = std::fs::read_dir(dir.path().join("hot")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
}

#[test]
fn a_deletion_is_noted_until_the_archive_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(&dir);
    let id = first.topics.create(&orders(), 2, BTreeMap::new()).unwrap().id;
    assert!(first.topics.removals().unwrap().is_empty());
    first.topics.delete("orders").unwrap();
    assert_eq!(folders(&dir), 0);
    drop(first);

    // A topic of the same name is another topic, and its deletion another note.
    let second = run(&dir);
    assert_eq!(second.topics.removals().unwrap(), [(orders(), id)]);
    let again = second.topics.create(&orders(), 1, BTreeMap::new()).unwrap().id;
    second.topics.delete("orders").unwrap();
    assert_eq!(second.topics.removals().unwrap().len(), 2);
    second.topics.removal_done(id).unwrap();
    drop(second);
    assert_eq!(run(&dir).topics.removals().unwrap(), [(orders(), again)]);
}

#[test]
fn a_deletion_that_died_is_finished_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(&dir);
    let topic = first.topics.create(&orders(), 2, BTreeMap::new()).unwrap();
    let record = first.store.topics().unwrap().remove(0);
    // Died after the mark; some of the files may be gone.
    first.store.begin_removal(&record).unwrap();
    first.log.remove_partition(&TopicPartition::new(orders(), PartitionId(0))).unwrap();
    let id = topic.id;
    drop((first, topic));
    assert_eq!(folders(&dir), 1);

    let second = run(&dir);
    assert!(second.topics.get("orders").is_none());
    assert_eq!((folders(&dir), second.store.topics().unwrap()), (0, Vec::new()));
    assert_eq!(second.topics.removals().unwrap(), [(orders(), id)]);
}

#[test]
fn a_growth_that_died_is_undone_or_finished() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(&dir);
    first.topics.create(&orders(), 1, BTreeMap::new()).unwrap();
    let record = first.store.topics().unwrap().remove(0);
    // Died before the record: a log that nobody knows of, and something in it.
    let stray = TopicPartition::new(orders(), PartitionId(1));
    let config = first.topics.get("orders").unwrap().config();
    first.log.open_partition(stray, record.id, config, Offset::ZERO).unwrap().start_over_at(Offset(7)).unwrap();
    drop(first);

    let second = run(&dir);
    assert_eq!((second.topics.get("orders").unwrap().partition_count(), folders(&dir)), (1, 2));
    let grown = second.topics.grow("orders", 2, false).unwrap();
    assert_eq!(grown.partition(PartitionId(1)).unwrap().log_end_offset(), Offset::ZERO, "made anew");
    drop((second, grown));

    // Died after the record.
    let third = run(&dir);
    third.store.put_topic(&TopicRecord { partitions: 3, ..record }).unwrap();
    drop(third);
    let fourth = run(&dir);
    assert_eq!((fourth.topics.get("orders").unwrap().partition_count(), folders(&dir)), (3, 3));
}

#[test]
fn a_topic_grows_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(&dir);
    let mut changes = first.topics.subscribe();
    let before = first.topics.create(&orders(), 1, BTreeMap::from([("retention.ms".into(), "1000".into())])).unwrap();
    let refused = |name: &str, count| first.topics.grow(name, count, false).map(|_| ()).unwrap_err();
    assert!(matches!(refused("orders", 1), TopicError::NotMore { has: 1, asked: 1, .. }));
    assert!(matches!(refused("orders", 0), TopicError::Partitions { .. }));
    assert!(matches!(refused("orders", PARTITIONS_MAX + 1), TopicError::Partitions { .. }));
    assert!(matches!(refused("clicks", 2), TopicError::Unknown(_)));
    first.topics.grow("orders", 3, true).unwrap();
    assert_eq!(first.topics.get("orders").unwrap().partition_count(), 1, "only validated");

    let after = first.topics.grow("orders", 3, false).unwrap();
    assert!(Arc::ptr_eq(&after, &first.topics.get("orders").unwrap()));
    assert!(Arc::ptr_eq(&after, &first.topics.by_id(before.id).unwrap()));
    assert!(Arc::ptr_eq(&before.partitions[0], &after.partitions[0]));
    assert!(matches!(changes.try_recv(), Ok(TopicChange::Created(_))));
    assert!(matches!(changes.try_recv(), Ok(TopicChange::Grown(topic)) if topic.partition_count() == 3));
    let set = |overrides: &mut BTreeMap<String, String>| drop(overrides.insert("retention.ms".into(), "5".into()));
    first.topics.alter("orders", false, set).unwrap();
    for topic in [&before, &after] {
        assert_eq!(topic.config().retention_ms, Some(5), "whoever holds the topic of before sees its settings");
    }
    drop((first, before, after, changes));

    let second = run(&dir);
    let topic = second.topics.get("orders").unwrap();
    assert_eq!((topic.partition_count(), topic.config().retention_ms), (3, Some(5)));
    second.topics.delete("orders").unwrap();
    assert_eq!(folders(&dir), 0);
}

#[test]
fn settings_change_in_force_and_for_good_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(&dir);
    first.topics.create(&orders(), 2, BTreeMap::from([("retention.ms".into(), "1000".into())])).unwrap();
    let set = |overrides: &mut BTreeMap<String, String>| {
        overrides.remove("retention.ms");
        overrides.insert("search.tokenizer".into(), "log".into());
    };
    let tokenizer = |topic: &Topic| topic.config().search_tokenizer;
    let unchanged = first.topics.alter("orders", true, set).unwrap();
    assert_eq!(tokenizer(&unchanged), thermocline_config::SearchTokenizer::Default);
    let changed = first.topics.alter("orders", false, set).unwrap();
    for partition in &changed.partitions {
        assert_eq!(partition.config().search_tokenizer, thermocline_config::SearchTokenizer::Log);
        assert_eq!(partition.config().retention_ms, None);
    }
    let refused = |key: &'static str, value: &'static str| {
        let set = move |overrides: &mut BTreeMap<String, String>| drop(overrides.insert(key.into(), value.into()));
        first.topics.alter("orders", false, set).map(|_| ()).unwrap_err()
    };
    assert!(matches!(refused("search.tokenizer", "best"), TopicError::Config { .. }));
    let batch = crate::record::testing::batch_of(&[(crate::clock::Clock::now(&SystemClock).0, b"x")]);
    changed.partitions[1].append(&batch).unwrap();
    assert!(matches!(refused("remote.storage.enable", "false"), TopicError::Archived(_)));
    assert!(matches!(refused("cleanup.policy", "compact"), TopicError::ArchivedAndCompacted(_)));
    assert!(matches!(first.topics.alter("clicks", false, set), Err(TopicError::Unknown(_))));
    let same = |overrides: &mut BTreeMap<String, String>| {
        drop(overrides.insert("remote.storage.enable".into(), "true".into()))
    };
    first.topics.alter("orders", true, same).unwrap();
    drop((first, changed, unchanged));

    let second = run(&dir);
    let topic = second.topics.get("orders").unwrap();
    assert_eq!(topic.config().overrides, BTreeMap::from([("search.tokenizer".into(), "log".into())]));
}

#[test]
fn what_was_not_marked_was_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(&dir);
    first.topics.create(&orders(), 2, BTreeMap::new()).unwrap();
    assert!(matches!(first.topics.delete("clicks"), Err(TopicError::Unknown(_))));
    drop(first);
    let second = run(&dir);
    assert!(second.topics.get("orders").is_some() && second.topics.removals().unwrap().is_empty());
}

fn record(name: &str, overrides: &[(&str, &str)]) -> TopicRecord {
    let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let name = TopicName::new(name).unwrap();
    TopicRecord { name, id: TopicId::random(), partitions: 2, overrides, deleting: false }
}

#[test]
fn only_an_empty_catalogue_adopts_and_leaves_out_what_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = MetadataStore::open(&dir.path().join("metadata.redb")).unwrap();
    let defaults = LogConfig::default();
    store.put_topic(&record("__consumer_offsets", &[])).unwrap();
    let found = [
        record("orders", &[("retention.ms", "1000"), ("segment.bytes", "few"), ("of.the.future", "1")]),
        record("plain", &[]),
        record("__transaction_state", &[]),
    ];
    assert_eq!(adopt(&store, &defaults, found.to_vec()).unwrap(), 2);
    let topics = store.topics().unwrap();
    let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["__consumer_offsets", "orders", "plain"]);
    assert_eq!(topics[1].id, found[0].id);
    assert_eq!(topics[1].overrides, record("x", &[("retention.ms", "1000")]).overrides);
    assert_eq!(adopt(&store, &defaults, vec![record("late", &[])]).unwrap(), 0);
    assert_eq!(store.topics().unwrap(), topics);
}
