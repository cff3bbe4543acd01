//! Searching a compacted topic: what is gone is not shown, and in the end not counted; what is left is found.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{Failure, Parts, request};
use thermocline_config::CacheConfig;
use thermocline_ingest::clock::SystemClock;
use thermocline_query::replay::{Filter, Republish, RepublishRequest, Summary, Undecodable};
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::worker::TieringError;

/// Longest wait for the live index to follow.
const PATIENCE: Duration = Duration::from_secs(60);
const MESSAGES: i64 = 40;
const KEYS: i64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compacted_away_is_not_found() -> Result<(), Failure> {
    let settings = [("cleanup.policy", "compact"), ("segment.bytes", "1024"), ("min.cleanable.dirty.ratio", "0")];
    let parts = Parts::start(CacheConfig::default(), 1, &settings).await?;
    for number in 0..MESSAGES {
        let key = format!("k{}", number % KEYS);
        parts.produce_keyed(0, Some(&key), &[(number, format!("needle {number} {}", "hay ".repeat(20)))]).await?;
    }
    parts.indexed().await?;
    let before = parts.search.search(request("needle", 100)).await?;
    assert_eq!((before.total, before.hits.len()), (40, 40));

    parts.clean().await?;
    let (compactions, through) = parts.partition(0)?.compactions();
    assert!(compactions > 0 && through.0 > MESSAGES / 2, "compacted {compactions} times, through {through}");
    // At once: the hits of a page are read from the log, and what is gone is left out.
    let page = parts.search.search(request("needle", 100)).await?;
    let numbers: Vec<i64> = page.hits.iter().map(|hit| hit.record.timestamp.0).collect();
    let expected: Vec<i64> = (0..MESSAGES).rev().filter(|n| *n >= through.0 || *n >= through.0 - KEYS).collect();
    assert_eq!(numbers, expected);

    // Soon: what was compacted is indexed again, and counted rightly.
    let followed = async {
        loop {
            let counted = parts.search.search(request("needle", 0)).await?;
            if counted.total == expected.len() as u64 {
                return Ok::<_, Failure>(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, followed).await??;
    // What comes after it is found as ever.
    parts.produce_keyed(0, Some("k9"), &[(MESSAGES, "needle at the end".to_owned())]).await?;
    parts.indexed().await?;
    let page = parts.search.search(request("needle end", 10)).await?;
    assert_eq!(page.hits.len(), 1);

    // A replay goes over the holes, and takes none for a message that cannot be decoded.
    let reader = Arc::new(TieredReader::new(parts.tiering.clone(), &CacheConfig::default()));
    let stations = (reader, parts.tiering.clone(), Arc::new(SystemClock) as _);
    let all = Filter::Everything(Undecodable::Stop);
    let mut counted = Republish::new(stations, parts.topic.clone(), None, all, &RepublishRequest::default())?;
    while counted.next().await?.is_some() {}
    let Summary { matched, missing, .. } = counted.progress().summary;
    assert_eq!((matched, missing), (expected.len() as u64 + 1, 0));

    let refused = parts.tiering.archive_now(&parts.topic, true).await;
    assert!(matches!(refused, Err(TieringError::NotArchived(_))));
    parts.stop().await
}
