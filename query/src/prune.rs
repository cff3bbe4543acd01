//! Which splits can hold hits, and in which order they are worth opening. Pure: no I/O, no clock.
//!
//! Known of a split without opening it: its topic and partition, the offsets it may answer for, and the smallest and
//! largest timestamp in it. That bounds the sort keys of everything inside, which is all that pruning needs:
//! - a split outside the time range, or whose visible offsets are empty, is left out;
//! - a split whose last possible key is at or before the cursor belongs to earlier pages and is left out;
//! - the rest is ordered by first possible key, so that a search may stop at the first split that cannot improve on
//!   what it has, knowing that none behind it can.

use std::ops::Range;

use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};

use crate::search::Sort;
use crate::search::rank::{Rank, SortKey};

/// What is known of a split from the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub topic: TopicName,
    pub partition: PartitionId,
    /// Offsets this split answers for; documents outside belong to another tier or are gone.
    pub visible: Range<Offset>,
    /// Offsets of the documents in it.
    pub stored: Range<Offset>,
    pub min_timestamp: Timestamp,
    /// Inclusive.
    pub max_timestamp: Timestamp,
}

/// What the query asks of every split.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
    pub sort: Sort,
    /// Only hits strictly after this place are returned.
    pub after: Option<SortKey>,
}

/// A split that is worth opening.
#[derive(Clone, Debug)]
pub(crate) struct Planned<S> {
    pub extent: Extent,
    pub source: S,
    /// No hit inside comes before this key; None where the sort says nothing about it.
    pub best: Option<SortKey>,
}

/// What is left to search.
#[derive(Clone, Debug)]
pub(crate) struct Pruned<S> {
    pub planned: Vec<Planned<S>>,
    /// Splits that may hold matches, but none after the cursor: they are missing from the total.
    pub on_earlier_pages: usize,
}

impl Extent {
    fn key(&self, rank: Rank, offset: Offset) -> SortKey {
        SortKey { rank, topic: self.topic.clone(), partition: self.partition, offset }
    }

    /// The first place a hit inside can have.
    fn best(&self, sort: Sort) -> Option<SortKey> {
        match sort {
            Sort::NewestFirst => Some(self.key(Rank::newest(self.max_timestamp), self.visible.start)),
            Sort::OldestFirst => Some(self.key(Rank::oldest(self.min_timestamp), self.visible.start)),
            Sort::Score => None,
        }
    }

    /// The last place a hit inside can have.
    fn worst(&self, sort: Sort) -> Option<SortKey> {
        let last = self.visible.end.plus(-1);
        match sort {
            Sort::NewestFirst => Some(self.key(Rank::newest(self.min_timestamp), last)),
            Sort::OldestFirst => Some(self.key(Rank::oldest(self.max_timestamp), last)),
            Sort::Score => None,
        }
    }

    fn may_hold_matches(&self, scope: &Scope) -> bool {
        let in_time = scope.from.is_none_or(|from| self.max_timestamp >= from)
            && scope.to.is_none_or(|to| self.min_timestamp < to);
        let in_sight = self.visible.start < self.visible.end;
        in_time && in_sight
    }

    fn is_on_earlier_pages(&self, scope: &Scope) -> bool {
        let worst = self.worst(scope.sort);
        scope.after.as_ref().zip(worst).is_some_and(|(after, worst)| worst <= *after)
    }
}

/// The splits that can hold hits, first possible key first; by score, where no such key is known, newest first.
pub(crate) fn prune<S>(splits: impl IntoIterator<Item = (Extent, S)>, scope: &Scope) -> Pruned<S> {
    let mut pruned = Pruned { planned: Vec::new(), on_earlier_pages: 0 };
    for (extent, source) in splits {
        if !extent.may_hold_matches(scope) {
            continue;
        }
        if extent.is_on_earlier_pages(scope) {
            pruned.on_earlier_pages += 1;
            continue;
        }
        pruned.planned.push(Planned { best: extent.best(scope.sort), extent, source });
    }
    match scope.sort {
        Sort::NewestFirst | Sort::OldestFirst => pruned.planned.sort_by(|a, b| a.best.cmp(&b.best)),
        Sort::Score => pruned.planned.sort_by_key(|split| Rank::newest(split.extent.max_timestamp)),
    }
    pruned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::search::rank::TopK;

    const SORTS: [Sort; 2] = [Sort::NewestFirst, Sort::OldestFirst];

    fn topic() -> TopicName {
        TopicName::new("t").unwrap_or_else(|e| panic!("{e}"))
    }

    fn rank(sort: Sort, timestamp: i64) -> Rank {
        match sort {
            Sort::NewestFirst => Rank::newest(Timestamp(timestamp)),
            _ => Rank::oldest(Timestamp(timestamp)),
        }
    }

    fn key(sort: Sort, doc: Doc) -> SortKey {
        SortKey { rank: rank(sort, doc.2), topic: topic(), partition: PartitionId(doc.0), offset: Offset(doc.1) }
    }

    /// Partition, offset, timestamp.
    type Doc = (i32, i64, i64);

    /// Documents of each partition, cut into splits of `size`.
    fn splits(timestamps: &[Vec<i64>], size: usize) -> Vec<(Extent, Vec<Doc>)> {
        let mut splits = Vec::new();
        for (partition, timestamps) in (0..).zip(timestamps) {
            let docs: Vec<_> = (0..).zip(timestamps).map(|(offset, ts)| (partition, offset, *ts)).collect();
            for chunk in docs.chunks(size) {
                let range = Offset(chunk[0].1)..Offset(chunk[chunk.len() - 1].1 + 1);
                let times = || chunk.iter().map(|doc| doc.2);
                splits.push((
                    Extent {
                        topic: topic(),
                        partition: PartitionId(partition),
                        visible: range.clone(),
                        stored: range,
                        min_timestamp: Timestamp(times().min().unwrap_or(0)),
                        max_timestamp: Timestamp(times().max().unwrap_or(0)),
                    },
                    chunk.to_vec(),
                ));
            }
        }
        splits
    }

    proptest! {
        /// Pruning, ordering and stopping early over splits gives page for page what sorting everything gives.
        #[test]
        fn pages_equal_one_big_sort(
            timestamps in prop::collection::vec(prop::collection::vec(0_i64..40, 0..30), 1..4),
            size in 1_usize..8,
            limit in 1_usize..12,
            from in prop::option::of(0_i64..40),
            to in prop::option::of(0_i64..40),
            oldest in any::<bool>(),
        ) {
            let sort = SORTS[usize::from(oldest)];
            let splits = splits(&timestamps, size);
            let wanted = |doc: &Doc| from.is_none_or(|f| doc.2 >= f) && to.is_none_or(|t| doc.2 < t);
            let mut expected: Vec<SortKey> =
                splits.iter().flat_map(|split| &split.1).copied().filter(wanted).map(|doc| key(sort, doc)).collect();
            expected.sort();

            let mut scope = Scope { from: from.map(Timestamp), to: to.map(Timestamp), sort, after: None };
            let mut found = Vec::new();
            loop {
                let mut top = TopK::new(limit);
                for split in prune(splits.iter().cloned(), &scope).planned {
                    if split.best.as_ref().is_some_and(|best| top.is_certain_before(best)) {
                        break;
                    }
                    let keys = split.source.into_iter().filter(wanted).map(|doc| key(sort, doc));
                    keys.filter(|key| scope.after.as_ref().is_none_or(|after| key > after)).for_each(|key| top.offer(key));
                }
                let page = top.into_sorted();
                let Some(last) = page.last() else { break };
                scope.after = Some(last.clone());
                found.extend(page);
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn splits_out_of_sight_are_left_out() {
        let (mut extent, docs) = splits(&[vec![10, 20]], 2).remove(0);
        let scope = Scope { from: Some(Timestamp(21)), ..Scope::default() };
        assert!(prune([(extent.clone(), docs.clone())], &scope).planned.is_empty());
        let scope = Scope { to: Some(Timestamp(10)), ..Scope::default() };
        assert!(prune([(extent.clone(), docs.clone())], &scope).planned.is_empty());
        assert_eq!(prune([(extent.clone(), docs.clone())], &Scope::default()).planned.len(), 1);
        extent.visible = Offset(2)..Offset(2);
        assert!(prune([(extent, docs)], &Scope::default()).planned.is_empty());
    }
}
