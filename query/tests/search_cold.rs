//! What a query on archived splits costs where nothing is cached, and that nothing is read while a split is searched.

mod support;

use std::time::Duration;

use support::{Failure, Parts, no_cache, request};
use thermocline_config::CacheConfig;
use thermocline_ingest::model::Timestamp;
use thermocline_query::search::{RequestedAggregations, SearchRequest, SearchResponse, Sort};
use thermocline_tiering::manifest::DataFile;
use thermocline_tiering::metrics;

const MESSAGES: i64 = 60_000;
const BATCH: i64 = 2_000;
/// 2015-05-17
const DAY: i64 = 1_431_820_800_000;

/// One query of a kind, how often it is found, and what it may cost: requests and bytes for the index, without the
/// messages.
struct Kind {
    query: &'static str,
    total: u64,
    requests_max: u64,
    bytes_max: u64,
}

/// The goals of a term query, for splits of any size.
const TERM_REQUESTS_MAX: u64 = 6;
const TERM_BYTES_MAX: u64 = 1_000_000;

const fn kind(query: &'static str, total: u64, requests_max: u64) -> Kind {
    Kind { query, total, requests_max, bytes_max: TERM_BYTES_MAX }
}

const KINDS: [Kind; 10] = [
    kind("order4711", 1, TERM_REQUESTS_MAX),
    kind("declined", 60_000 / 8, TERM_REQUESTS_MAX),
    kind("nowhere", 0, 3),
    kind("declined AND user42", 60_000 / 1000, 6),
    kind("order4711 OR order4712 OR order59999", 3, 9),
    kind("\"declined by issuer\"", 60_000 / 8, 9),
    kind("order471*", 111, 6),
    kind("json.status:503", 60_000 / 6, 6),
    kind("json.trace:t31", 60_000 / 100, 6),
    kind("", MESSAGES as u64, 3),
];

fn message(n: i64) -> (i64, String) {
    let (status, trace) = ([200, 201, 404, 500, 502, 503][n as usize % 6], n % 100);
    let text = if n % 8 == 0 { "payment declined by issuer" } else { "request completed" };
    // Apart by a second, out of order by up to three.
    let timestamp = DAY + n * 1000 + (n * 7919) % 3000;
    let noise = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = format!(
        r#"{{"message":"{text} order{n} user{}","status":{status},"trace":"t{trace}","span":"{noise:016x}","host":"{:012x}"}}"#,
        n % 1000 / 8 * 8 + 2,
        noise.rotate_left(17) >> 16,
    );
    (timestamp, value)
}

async fn archived(cache: CacheConfig) -> Result<Parts, Failure> {
    let parts = Parts::start(cache, 1, &[("search.positions", "true"), ("segment.bytes", "1073741824")]).await?;
    for start in (0..MESSAGES).step_by(BATCH as usize) {
        let messages: Vec<_> = (start..start + BATCH).map(message).collect();
        parts.produce(0, &messages).await?;
    }
    parts.tiering.archive_now(&parts.topic, true).await?;
    // Until the live index has let go of what the archive has.
    let wait = async {
        while search(&parts, request("", 0)).await?.stats.hot_docs > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await??;
    let files: Vec<DataFile> =
        parts.tiering.manifest(parts.partition(0)?).files.iter().map(|file| DataFile::clone(file)).collect();
    assert_eq!(files.len(), 1);
    let split = files[0].split.as_ref().ok_or("not indexed")?;
    println!("{MESSAGES} messages, a split of {} bytes", split.size_bytes);
    Ok(parts)
}

async fn search(parts: &Parts, request: SearchRequest) -> Result<SearchResponse, Failure> {
    Ok(parts.search.search(request).await?)
}

/// Requests that readers sent to the store so far, as the store counts them.
fn store_requests(parts: &Parts) -> u64 {
    let families = parts.registry.gather();
    let family = families.iter().find(|family| family.name() == metrics::STORE_REQUESTS);
    let is_read = |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == "read");
    let counted =
        family.map(|family| family.get_metric().iter().filter(is_read).map(|m| m.get_counter().get_value()).sum());
    counted.map_or(0, |counted: f64| counted as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_on_a_cold_split_costs_few_requests_and_bytes() -> Result<(), Failure> {
    let parts = archived(no_cache()).await?;
    for Kind { query, total, requests_max, bytes_max } in KINDS {
        let before = store_requests(&parts);
        let found = search(&parts, request(query, 0)).await?;
        let counted = found.stats;
        assert_eq!(found.total, total, "{query}");
        assert_eq!(store_requests(&parts) - before, counted.requests, "{query}: every request is told");
        println!("{query:>40}: count {:>2} requests {:>7} bytes", counted.requests, counted.bytes_fetched);
        assert!(counted.requests <= requests_max, "{query}: {counted:?}");
        assert!(counted.bytes_fetched <= bytes_max, "{query}: {counted:?}");

        // What the timestamps of the newest hits add; no message is read for none of them.
        let page = search(&parts, request(query, 20)).await?;
        assert_eq!(page.total, total, "{query}");
        assert!(page.hits.is_sorted_by(|a, b| a.record.timestamp >= b.record.timestamp), "{query}");
        assert_eq!(page.hits.len() as u64, total.min(20));
        println!("{query:>40}: page  {:>2} requests {:>7} bytes", page.stats.requests, page.stats.bytes_fetched);
    }

    // A time range costs the blocks at its ends, not the column.
    let mut ranged = request("declined", 0);
    (ranged.from, ranged.to) = (Some(Timestamp(DAY + 10_000_500)), Some(Timestamp(DAY + 20_000_500)));
    let expected = (0..MESSAGES).map(message).filter(|(timestamp, value)| {
        (DAY + 10_000_500..DAY + 20_000_500).contains(timestamp) && value.contains("declined")
    });
    let found = search(&parts, ranged).await?;
    assert_eq!(found.total, expected.count() as u64);
    assert!(
        found.stats.requests <= TERM_REQUESTS_MAX && found.stats.bytes_fetched <= TERM_BYTES_MAX,
        "{:?}",
        found.stats
    );

    // By score lengths are read too.
    let mut scored = request("declined", 0);
    scored.sort = Sort::Score;
    scored.limit = 5;
    assert_eq!(search(&parts, scored).await?.total, 60_000 / 8);
    parts.stop().await
}

/// Parts that lie inside others, and those of aggregations, are fetched together, however many and scattered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_query_is_made_of_is_fetched_together() -> Result<(), Failure> {
    const PARTS: i64 = 80;
    let parts = archived(no_cache()).await?;
    let order = |n: i64| n * MESSAGES / PARTS;
    // A term, and ranges, of which one has to look to know their terms.
    let any: Vec<String> = (1..PARTS).map(|n| format!("value:[order{0} TO order{0}]", order(n))).collect();
    let any = format!("order0 OR {}", any.join(" OR "));
    for (query, total) in
        [(format!("({any})^2"), PARTS), (format!("declined AND NOT ({any})"), MESSAGES / 8 - PARTS / 4)]
    {
        let found = search(&parts, request(&query, 0)).await?;
        assert_eq!(found.total, u64::try_from(total)?, "{query}");
        println!("{query:.40}: {:?}", found.stats);
        assert!(found.stats.requests <= 12, "{query}: {:?}", found.stats);
    }

    let filters: serde_json::Map<_, _> = (0..PARTS)
        .map(|n| (n.to_string(), serde_json::json!({"query_string": {"query": format!("order{}", order(n))}})))
        .collect();
    let aggs = serde_json::json!({"orders": {"filters": {"filters": filters}}});
    let mut wanted = request("declined", 0);
    wanted.aggregations = RequestedAggregations::parse(aggs, Timestamp(0), 1000)?;
    let found = search(&parts, wanted).await?;
    println!("{PARTS} filters: {:?}", found.stats);
    let buckets = found.aggregations.ok_or("no aggregations")?.values;
    for n in 0..PARTS {
        let count = &buckets["orders"]["buckets"][n.to_string()]["doc_count"];
        assert_eq!(count, &serde_json::json!(u64::from(order(n) % 8 == 0)), "{n}");
    }
    assert!(found.stats.requests <= 12, "{:?}", found.stats);
    parts.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_memory_is_searched_without_the_store() -> Result<(), Failure> {
    let parts = archived(CacheConfig::default()).await?;
    let mut found = Vec::new();
    for kind in KINDS {
        found.push(search(&parts, request(kind.query, 20)).await?);
    }
    // Nobody can read from the store any more.
    let (store, away) = (parts.store_folder(), parts.store_folder().with_extension("away"));
    std::fs::rename(&store, &away)?;
    for (kind, before) in KINDS.iter().zip(found) {
        let again = search(&parts, request(kind.query, 20)).await?;
        assert_eq!((again.stats.requests, again.stats.bytes_fetched), (0, 0), "{}", kind.query);
        let offsets = |page: &SearchResponse| page.hits.iter().map(|hit| hit.record.offset).collect::<Vec<_>>();
        assert_eq!((again.total, offsets(&again)), (before.total, offsets(&before)), "{}", kind.query);
    }
    // A query that needs more than is there fails; it does not hang.
    assert!(search(&parts, request("order31415", 20)).await.is_err());
    std::fs::rename(&away, &store)?;
    assert_eq!(search(&parts, request("order31415", 20)).await?.total, 1);
    parts.stop().await
}
