use object_store::memory::InMemory;
use thermocline_config::HumanDuration;

use super::*;
use crate::testing::{Fault, FaultyStore, store_config};

mod isolation;

fn key(name: &str) -> ObjectPath {
    ObjectPath::from(name)
}

/// What every kind of store must do.
async fn conforms(store: ColdStore) {
    store.put(&key("a/b/one"), "1".into()).await.unwrap();
    store.put(&key("a/two"), "22".into()).await.unwrap();
    assert_eq!(store.get(&key("a/two")).await.unwrap(), "22");
    assert_eq!(store.get_range(&key("a/two"), 1..2).await.unwrap(), "2");
    assert!(store.get_range(&key("a/two"), 1..4).await.is_err(), "a short answer is no answer");
    assert!(store.get(&key("a/none")).await.unwrap_err().is_not_found());
    assert_eq!(store.size_bytes(&key("a/two")).await.unwrap(), Some(2));
    assert_eq!(store.size_bytes(&key("a/none")).await.unwrap(), None);
    assert!(store.get_sized(&key("a/two"), 3).await.is_err());

    assert!(store.create(&key("a/three"), "first".into()).await.unwrap());
    assert!(!store.create(&key("a/three"), "second".into()).await.unwrap());
    assert!(!store.create(&key("a/three"), "first".into()).await.unwrap(), "a first answer is believed");
    assert_eq!(store.get(&key("a/three")).await.unwrap(), "first");

    let names = |metas: &[ObjectMeta]| metas.iter().map(|m| m.location.to_string()).collect::<Vec<_>>();
    let mut all: Vec<_> = store.list_stream(&key("a")).try_collect().await.unwrap();
    all.sort_unstable_by(|a, b| a.location.cmp(&b.location));
    assert_eq!(names(&all), ["a/b/one", "a/three", "a/two"]);
    let (objects, folders) = store.list_folder(&key("a")).await.unwrap();
    assert_eq!(names(&objects), ["a/three", "a/two"]);
    assert_eq!(folders, [key("a/b")]);
    assert!(store.list_stream(&key("nothing")).try_next().await.unwrap().is_none());

    store.delete(&key("a/two")).await.unwrap();
    store.delete(&key("a/two")).await.unwrap();
    assert!(store.get(&key("a/two")).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn stores_conform() {
    conforms(FaultyStore::healthy(Arc::new(InMemory::new())).cold(0)).await;
    let dir = tempfile::tempdir().unwrap();
    conforms(ColdStore::open(&store_config(0), dir.path()).unwrap()).await;
    let names = |path: &Path| std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(&dir.path().join("cold/a/b")), ["one"], "no staging file stays");
}

#[tokio::test]
async fn large_objects_travel_in_parts() {
    let inner = Arc::new(InMemory::new());
    let config = store_config(0);
    let located = url::Located { store: inner.clone(), parts: Some(inner), folder: None, url: String::new() };
    let store = ColdStore::build(located, &config);
    let bytes: Bytes = (0..MULTIPART_MIN_BYTES + 5).map(|n| (n / 1000) as u8).collect::<Vec<_>>().into();
    store.put(&key("large"), bytes.clone()).await.unwrap();
    assert_eq!(store.get_sized(&key("large"), bytes.len() as u64).await.unwrap(), bytes);
    assert!(store.get_sized(&key("large"), bytes.len() as u64 + 1).await.is_err());
}

#[tokio::test]
async fn transient_failures_are_retried_up_to_the_limit() {
    for fault in [Fault::Before, Fault::After] {
        let inner = Arc::new(InMemory::new());
        FaultyStore::stumbling(inner.clone(), 0, fault).cold(1).put(&key("x"), "x".into()).await.unwrap();
        assert_eq!(FaultyStore::stumbling(inner, 0, fault).cold(1).get(&key("x")).await.unwrap(), "x");
    }
    let dead = FaultyStore::dying(Arc::new(InMemory::new()), 0, Fault::Before).cold(1);
    let error = dead.put(&key("x"), "x".into()).await.unwrap_err();
    assert!(error.is_transient() && error.attempts == 2 && error.op == "put", "{error:?}");
    assert_eq!(error.to_string(), "put x failed after 2 attempts");
    let missing = FaultyStore::healthy(Arc::new(InMemory::new())).cold(5).get(&key("x")).await.unwrap_err();
    assert!(missing.is_not_found() && !missing.is_transient() && missing.attempts == 1);
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_knows_its_own_object() {
    let inner = Arc::new(InMemory::new());
    assert!(
        FaultyStore::stumbling(inner.clone(), 0, Fault::After).cold(1).create(&key("v"), "a".into()).await.unwrap()
    );
    // The same loss, but somebody else's object is there.
    assert!(!FaultyStore::stumbling(inner, 0, Fault::Before).cold(1).create(&key("v"), "b".into()).await.unwrap());
}

#[test]
fn waits_grow_to_a_limit() {
    assert!(retry_wait(1) <= RETRY_WAIT_MIN && retry_wait(1) >= RETRY_WAIT_MIN / 2);
    for attempts in [10, 40, usize::MAX] {
        assert!(retry_wait(attempts) <= RETRY_WAIT_MAX && retry_wait(attempts) >= RETRY_WAIT_MAX / 2);
    }
}

#[test]
fn urls_say_what_is_wrong_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let open = |url: &str| {
        let config = StoreConfig { url: url.to_owned(), ..store_config(0) };
        ColdStore::open(&config, dir.path())
    };
    for bad in ["bucket", "ftp://host/x", "s3:///prefix", "s3://user:pw@bucket", "s3://bucket?x=1", "file:relative#x"] {
        let error = open(bad).unwrap_err();
        assert!(matches!(error.source, StoreFailure::Url { .. }), "{bad}: {error:?}");
    }
    let folder = dir.path().join("far/away");
    let store = open(&format!("file://{}", folder.display())).unwrap();
    assert!(folder.is_dir());
    assert!(store.url().starts_with("file:///") && store.url().ends_with("far/away"));
    let timeout = HumanDuration::secs(1);
    let config = StoreConfig {
        url: "s3://bucket/some/prefix/".to_owned(),
        endpoint: "http://127.0.0.1:1".to_owned(),
        request_timeout: timeout,
        ..store_config(0)
    };
    assert_eq!(ColdStore::open(&config, dir.path()).unwrap().url(), "s3://bucket/some/prefix");
}

#[tokio::test]
async fn a_listing_that_fails_at_once_is_asked_for_again() {
    let inner = Arc::new(InMemory::new());
    for n in 0..3 {
        FaultyStore::healthy(inner.clone()).cold(0).put(&key(&format!("a/{n}")), "x".into()).await.unwrap();
    }
    let list = async |retries| {
        let store = FaultyStore::stumbling(inner.clone(), 0, Fault::Before).cold(retries);
        store.list_stream(&key("a")).try_collect::<Vec<_>>().await
    };
    assert_eq!(list(1).await.unwrap().len(), 3);
    let error = list(0).await.unwrap_err();
    assert!(error.is_transient() && (error.op, error.attempts) == ("list", 1), "{error}");
}
