use std::sync::Arc;

use object_store::memory::InMemory;
use uuid::Uuid;

use super::*;
use crate::manifest::{Change, CommitOutcome};
use crate::testing::{FaultyStore, manifest_store, write_golden_if_asked};

fn store() -> ColdStore {
    FaultyStore::healthy(Arc::new(InMemory::new())).cold(0)
}

fn topic(name: &str, id: u128, partitions: i32) -> TopicFile {
    let configs = BTreeMap::from([("retention.ms".to_owned(), "86400000".to_owned())]);
    let file = TopicFile::new(TopicName::new(name).unwrap(), TopicId(Uuid::from_u128(id)));
    TopicFile { partitions, configs, ..file }
}

async fn put(store: &ColdStore, file: &TopicFile) {
    store.put(&paths::topic_file(&file.name, file.id), file.encode().unwrap()).await.unwrap();
}

async fn put_manifest(store: &ColdStore, file: &TopicFile, partition: i32) {
    let path = PartitionPath::new(file.name.clone(), file.id, PartitionId(partition));
    let manifests = manifest_store(store.clone(), 1);
    let head = manifests.load(&path).await.unwrap();
    assert!(matches!(manifests.commit(&head, Change::Claim).await.unwrap(), CommitOutcome::Committed(_)));
}

#[tokio::test]
async fn topics_are_found_with_what_is_known_of_them() {
    let store = store();
    assert_eq!(find_topics(&store).await.unwrap(), []);
    // Described; described wrongly; not described; without anything that a manifest names; deleted; no topic at all.
    let described = topic("described", 1, 3);
    put(&store, &described).await;
    put_manifest(&store, &described, 0).await;
    let damaged = topic("damaged", 2, 9);
    put_manifest(&store, &damaged, 0).await;
    put_manifest(&store, &damaged, 4).await;
    store.put(&paths::topic_file(&damaged.name, damaged.id), "{\"name\": \"dam".into()).await.unwrap();
    let undescribed = topic("undescribed", 3, 1);
    put_manifest(&store, &undescribed, 1).await;
    let orphaned = topic("orphaned", 4, 1);
    let orphan = paths::topic_root(&orphaned.name, orphaned.id).join("0").join("data").join("x.parquet");
    store.put(&orphan, "?".into()).await.unwrap();
    let deleted = topic("deleted", 5, 1);
    put(&store, &deleted).await;
    put_manifest(&store, &deleted, 0).await;
    store.put(&paths::tombstone(&deleted.name, deleted.id), "{}".into()).await.unwrap();
    store.put(&paths::topics_root().join("stranger").join("topic.json"), "{}".into()).await.unwrap();

    let found = find_topics(&store).await.unwrap();
    let facts: Vec<_> = found.iter().map(|t| (t.name.as_str(), t.id.0.as_u128(), t.partitions)).collect();
    assert_eq!(facts, [("damaged", 2, 5), ("described", 1, 3), ("undescribed", 3, 2)]);
    assert_eq!(found[1].overrides, described.configs);
    assert!(found[0].overrides.is_empty());
    assert_eq!(partition_paths(&store).await.unwrap().len(), 5, "orphaned and deleted topics: one and none");
}

#[tokio::test]
async fn of_two_topics_with_one_name_the_newer_is_found() {
    let store = store();
    for (id, created) in [(1, 10), (2, 30), (3, 20)] {
        put(&store, &TopicFile { created_at_ms: Timestamp(created), ..topic("again", id, 1) }).await;
    }
    let found = find_topics(&store).await.unwrap();
    assert_eq!(found.iter().map(|topic| topic.id.0.as_u128()).collect::<Vec<_>>(), [2]);
}

#[test]
fn descriptions_are_written_as_they_always_were_and_checked() {
    let file = TopicFile { created_at_ms: Timestamp(1_700_000_000_000), epoch: 7, ..topic("orders", 7, 3) };
    let golden = include_str!("../../tests/golden/topic-v1.json");
    let written = file.encode().unwrap();
    write_golden_if_asked("topic-v1.json", &written);
    assert_eq!(written, golden.as_bytes());
    let decode = |json: &str| TopicFile::decode(&file.name, file.id, json.as_bytes());
    assert_eq!(decode(golden).unwrap(), file);
    for (from, to, says) in [
        ("\"format_version\": 1", "\"format_version\": 2", "format version 2"),
        ("\"orders\"", "\"others\"", "topic others"),
        ("\"partitions\": 3", "\"partitions\": 0", "0 partitions"),
        ("\"partitions\": 3", "\"partitions\": 2000000000", "2000000000 partitions"),
        ("\"configs\"", "\"config\"", "configs"),
    ] {
        assert!(golden.contains(from), "{from}");
        let error = decode(&golden.replace(from, to)).unwrap_err();
        assert!(error.contains(says), "{from} -> {to}: {error}");
    }
}
