//! Deletions that die between any two of their steps.

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
        record("__state", &[]),
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
