use std::future::ready;

use proptest::prelude::*;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};

use super::*;
use crate::prune::Plan;
use crate::prune::testing::grouped;
use crate::search::rank::{Rank, Sort};
use crate::search::testing::{Doc, split};

const WORDS: [&str; 4] = ["late", "lost", "parcel", "paid"];

/// One partition: (timestamp, words) per message.
type Messages = Vec<(i64, Vec<usize>)>;

fn topic() -> TopicName {
    TopicName::new("orders").unwrap_or_else(|e| panic!("{e}"))
}

fn messages() -> impl Strategy<Value = Messages> {
    prop::collection::vec((0_i64..30, prop::collection::vec(0_usize..WORDS.len(), 0..4)), 0..24)
}

fn text(words: &[usize]) -> String {
    words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" ")
}

/// Splits of `size` messages each; the first of a partition shows only what lies at or above `log_start`.
fn splits(partitions: &[Messages], size: usize, log_start: i64) -> Vec<(Extent, SplitReader)> {
    let mut splits = Vec::new();
    for (partition, messages) in (0..).zip(partitions) {
        let docs: Vec<Doc> = (0..)
            .zip(messages)
            .map(|(offset, (timestamp, words))| Doc {
                offset,
                timestamp: *timestamp,
                value: text(words),
                ..Doc::default()
            })
            .collect();
        for docs in docs.chunks(size) {
            let times = || docs.iter().map(|doc| Timestamp(doc.timestamp));
            let stored = Offset(docs[0].offset)..Offset(docs[docs.len() - 1].offset + 1);
            let extent = Extent {
                topic: topic(),
                partition: PartitionId(partition),
                visible: stored.start.max(Offset(log_start))..stored.end,
                stored,
                min_timestamp: times().min().unwrap_or_default(),
                max_timestamp: times().max().unwrap_or_default(),
            };
            splits.push((extent, split(true, docs).unwrap_or_else(|e| panic!("{e}"))));
        }
    }
    splits
}

async fn page(splits: &[(Extent, SplitReader)], word: &str, scope: &Scope, k: usize) -> Result<Outcome, SearchError> {
    let mut plan = Plan::new(grouped(splits), scope);
    let query = SearchQuery::parse(word, Timestamp(0))?;
    let job = Arc::new(Job { query, scope: scope.clone(), k, count_at_least: 0, beside: None });
    let open = |split: &Planned<SplitReader>| match split.extent.stored.start.0 % 2 {
        0 => Opening::Open(Box::new(split.source.clone())),
        _ => Opening::Later(ready(Ok(split.source.clone()))),
    };
    run(&mut plan, job, &Resources::new(2, 1 << 20), open).await
}

fn expected(partitions: &[Messages], word: usize, scope: &Scope, log_start: i64) -> Vec<SortKey> {
    let mut keys = Vec::new();
    for (partition, messages) in (0..).zip(partitions) {
        for (offset, (timestamp, words)) in (0..).zip(messages) {
            let timestamp = Timestamp(*timestamp);
            let in_time = scope.from.is_none_or(|from| timestamp >= from) && scope.to.is_none_or(|to| timestamp < to);
            if words.contains(&word) && in_time && offset >= log_start {
                let rank = match scope.sort {
                    Sort::NewestFirst => Rank::newest(timestamp),
                    _ => Rank::oldest(timestamp),
                };
                keys.push(SortKey { rank, topic: topic(), partition: PartitionId(partition), offset: Offset(offset) });
            }
        }
    }
    keys.sort();
    keys
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Paging through real splits, several at once, gives what sorting all matching messages gives.
    #[test]
    fn pages_equal_a_naive_search(
        partitions in prop::collection::vec(messages(), 1..3),
        size in 3_usize..12,
        k in 1_usize..9,
        word in 0_usize..WORDS.len(),
        from in prop::option::of(0_i64..30),
        to in prop::option::of(0_i64..30),
        log_start in 0_i64..10,
        oldest in any::<bool>(),
    ) {
        let sort = if oldest { Sort::OldestFirst } else { Sort::NewestFirst };
        let mut scope = Scope { from: from.map(Timestamp), to: to.map(Timestamp), sort, after: None };
        let splits = splits(&partitions, size, log_start);
        let expected = expected(&partitions, word, &scope, log_start);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(async {
            let mut found = Vec::new();
            loop {
                let outcome = page(&splits, WORDS[word], &scope, k).await.unwrap();
                if scope.after.is_none() && outcome.is_complete {
                    assert_eq!(outcome.matches, expected.len() as u64);
                }
                assert!(outcome.keys.len() <= k);
                let Some(last) = outcome.keys.last() else { return found };
                scope.after = Some(last.clone());
                found.extend(outcome.keys);
            }
        });
        prop_assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn newest_first_stops_early_and_counting_does_not() {
    let messages: Messages = (0..40).map(|timestamp| (timestamp, vec![0])).collect();
    let splits = splits(&[messages], 4, 0);
    let outcome = page(&splits, "late", &Scope::default(), 3).await.unwrap();
    assert_eq!(outcome.keys.iter().map(|key| key.offset.0).collect::<Vec<_>>(), [39, 38, 37]);
    assert!(outcome.splits_searched <= 4 && !outcome.is_complete, "{outcome:?}");

    let outcome = page(&splits, "late", &Scope::default(), 0).await.unwrap();
    assert_eq!((outcome.matches, outcome.splits_searched), (40, 10));
    assert!(outcome.keys.is_empty());
}

#[tokio::test]
async fn by_score_every_split_is_searched_and_bounds_do_not_count() {
    let messages: Messages = vec![(1, vec![0, 1, 2]), (2, vec![0, 0, 0]), (3, vec![1]), (4, vec![0, 1, 2, 3])];
    let splits = splits(&[messages], 4, 0);
    let scope = Scope { sort: Sort::Score, ..Scope::default() };
    let all = page(&splits, "late", &scope, 10).await.unwrap();
    assert_eq!(all.keys.iter().map(|key| key.offset.0).collect::<Vec<_>>(), [1, 0, 3]);
    assert!(all.keys[0].rank.to_score() > all.keys[1].rank.to_score());

    let bounded = Scope { to: Some(Timestamp(3)), ..scope.clone() };
    let bounded = page(&splits, "late", &bounded, 10).await.unwrap();
    assert_eq!(bounded.keys, all.keys[..2]);

    let next = Scope { after: Some(all.keys[0].clone()), ..scope };
    assert_eq!(page(&splits, "late", &next, 10).await.unwrap().keys, all.keys[1..]);
}

#[tokio::test]
async fn a_failure_in_one_split_fails_the_search() {
    let splits = splits(&[vec![(1, vec![0]), (2, vec![0])]], 1, 0);
    let scope = Scope::default();
    let mut plan = Plan::new(grouped(&splits), &scope);
    let query = SearchQuery::parse("late", Timestamp(0)).unwrap();
    let job = Arc::new(Job { query, scope: Scope::default(), k: 5, count_at_least: 0, beside: None });
    let resources = Resources::new(1, 1 << 20);
    let open = |_: &Planned<SplitReader>| Opening::Later(ready(Err(SearchError::Stopped)));
    let result = run(&mut plan, job, &resources, open).await;
    assert!(matches!(result, Err(SearchError::Stopped)));
    assert_eq!(resources.lanes.available_permits(), 1);
}

#[test]
fn a_pattern_that_costs_too_much_is_the_callers_to_change() {
    let (extent, _) = splits(&[vec![(1, vec![0])]], 1, 0).remove(0);
    let error = failed(&extent, std::io::Error::other(TooManyTerms { max: 7 }).into());
    assert_eq!(error.kind(), crate::search::SearchErrorKind::Invalid);
    assert!(error.to_string().contains("limit of 7 words of the split of orders-0 at offset 0"), "{error}");
    let error = failed(&extent, std::io::Error::other("broken").into());
    assert_eq!(error.kind(), crate::search::SearchErrorKind::Internal);
}
