//! Which splits can hold hits, and in which order they are worth opening. Pure: no I/O, no clock.
//!
//! Known of a split without opening it: its topic and partition, the offsets it may answer for, and the smallest and
//! largest timestamp in it. That bounds the sort keys of everything inside, which is all that pruning needs:
//! - a split outside the time range, or whose visible offsets are empty, is left out;
//! - a split whose last possible key is at or before the cursor belongs to earlier pages and is left out;
//! - the rest is taken by first possible key, so that a search may stop at the first split that cannot improve on what
//!   it has, knowing that none behind it can.
//!
//! The same is known of groups of neighbouring splits, of groups of those, and so on up to a handful for a partition of
//! a million files. A [`Plan`] takes a group apart only when it comes first: a search that stops early, or looks at an
//! hour of ten years, sees few files of all there are.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
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

/// A split, or several of which only what holds for all of them is known.
#[derive(Clone, Debug)]
pub(crate) enum Node<S, G> {
    Split(Extent, S),
    Group(Extent, G),
}

/// Splits that lie side by side.
pub(crate) trait Group<S>: Sized {
    /// What is in it.
    fn nodes(self) -> Vec<Node<S, Self>>;
}

/// What there is to search: the splits that can hold hits, first possible key first; by score, where no such key is
/// known, newest first.
pub(crate) struct Plan<'a, S, G> {
    scope: &'a Scope,
    waiting: BinaryHeap<Reverse<Waiting<S, G>>>,
    /// Whether splits were left out that may hold matches, but none after the cursor: they are missing from the total.
    pub leaves_out_earlier_pages: bool,
}

/// Ordered by its key.
struct Waiting<S, G> {
    key: SortKey,
    node: Node<S, G>,
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

impl<'a, S, G: Group<S>> Plan<'a, S, G> {
    pub fn new(nodes: impl IntoIterator<Item = Node<S, G>>, scope: &'a Scope) -> Self {
        let mut plan = Self { scope, waiting: BinaryHeap::new(), leaves_out_earlier_pages: false };
        nodes.into_iter().for_each(|node| plan.add(node));
        plan
    }

    fn add(&mut self, node: Node<S, G>) {
        let (Node::Split(extent, _) | Node::Group(extent, _)) = &node;
        if !extent.may_hold_matches(self.scope) {
            return;
        }
        if extent.is_on_earlier_pages(self.scope) {
            self.leaves_out_earlier_pages = true;
            return;
        }
        let newest = || extent.key(Rank::newest(extent.max_timestamp), extent.visible.start);
        let key = extent.best(self.scope.sort).unwrap_or_else(newest);
        self.waiting.push(Reverse(Waiting { key, node }));
    }
}

impl<S, G: Group<S>> Iterator for Plan<'_, S, G> {
    type Item = Planned<S>;

    fn next(&mut self) -> Option<Planned<S>> {
        loop {
            match self.waiting.pop()?.0.node {
                Node::Split(extent, source) => {
                    return Some(Planned { best: extent.best(self.scope.sort), extent, source });
                }
                Node::Group(_, group) => group.nodes().into_iter().for_each(|node| self.add(node)),
            }
        }
    }
}

impl<S, G> PartialEq for Waiting<S, G> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<S, G> Eq for Waiting<S, G> {}

impl<S, G> PartialOrd for Waiting<S, G> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<S, G> Ord for Waiting<S, G> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{Extent, Group, Node};

    /// Neighbouring splits, halved again and again.
    #[derive(Clone, Debug)]
    pub(crate) struct Halves<S>(pub Vec<(Extent, S)>);

    impl<S: Clone> Halves<S> {
        /// The splits of one partition as a node.
        pub fn node(self) -> Option<Node<S, Self>> {
            let (first, last) = (self.0.first()?.0.clone(), self.0.last()?.0.clone());
            if self.0.len() == 1 {
                return self.0.into_iter().next().map(|(extent, split)| Node::Split(extent, split));
            }
            let min = self.0.iter().map(|split| split.0.min_timestamp).min()?;
            let max = self.0.iter().map(|split| split.0.max_timestamp).max()?;
            let extent = Extent {
                visible: first.visible.start..last.visible.end,
                stored: first.stored.start..last.stored.end,
                min_timestamp: min,
                max_timestamp: max,
                ..first
            };
            Some(Node::Group(extent, self))
        }
    }

    impl<S: Clone> Group<S> for Halves<S> {
        fn nodes(mut self) -> Vec<Node<S, Self>> {
            let right = self.0.split_off(self.0.len() / 2);
            [self, Self(right)].into_iter().filter_map(Self::node).collect()
        }
    }

    /// One group for each partition; `splits` are in order.
    pub(crate) fn grouped<S: Clone>(splits: &[(Extent, S)]) -> Vec<Node<S, Halves<S>>> {
        let same = |a: &(Extent, S), b: &(Extent, S)| a.0.partition == b.0.partition;
        splits.chunk_by(same).filter_map(|splits| Halves(splits.to_vec()).node()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prune::testing::grouped;
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
                for split in Plan::new(grouped(&splits), &scope) {
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
        let planned =
            |extent: &Extent, scope: &Scope| Plan::new(grouped(&[(extent.clone(), docs.clone())]), scope).count();
        assert_eq!(planned(&extent, &Scope { from: Some(Timestamp(21)), ..Scope::default() }), 0);
        assert_eq!(planned(&extent, &Scope { to: Some(Timestamp(10)), ..Scope::default() }), 0);
        assert_eq!(planned(&extent, &Scope::default()), 1);
        extent.visible = Offset(2)..Offset(2);
        assert_eq!(planned(&extent, &Scope::default()), 0);
    }

    #[test]
    fn groups_are_taken_apart_only_where_it_matters() {
        let timestamps: Vec<i64> = (0..4096).collect();
        let splits = splits(&[timestamps], 1);
        let scope = Scope::default();
        let mut plan = Plan::new(grouped(&splits), &scope);
        assert_eq!(plan.next().map(|split| split.extent.stored.start), Some(Offset(4095)));
        assert!(plan.waiting.len() <= 12, "{}", plan.waiting.len());
        let scope = Scope { from: Some(Timestamp(1000)), to: Some(Timestamp(1010)), ..Scope::default() };
        assert_eq!(Plan::new(grouped(&splits), &scope).count(), 10);
    }
}
