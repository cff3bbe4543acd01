//! Which offsets of one partition the live index covers, with which splits. Pure; generic over what a split is.
//!
//! Invariants:
//! 1. Splits are in offset order and disjoint.
//! 2. Every record that can be decoded in `[h, indexed_through)` lies in exactly one split, for every `h` at or above
//!    the horizon of the last [`Coverage::drop_below`]. Holes exist only below that horizon, where the archive answers.
//! 3. `indexed_through` never falls, as long as no new coverage takes the place of this one.

use std::ops::Range;
use std::sync::Arc;

use thermocline_ingest::model::Offset;

/// A split as far as coverage is concerned.
pub(crate) trait Spans {
    /// The offsets it covers; some may hold no record it could index.
    fn span(&self) -> Range<Offset>;
}

/// An immutable snapshot: readers keep the one they took, the writer publishes the next.
#[derive(Debug)]
pub(crate) struct Coverage<T> {
    splits: Vec<Arc<T>>,
    /// Exclusive.
    pub indexed_through: Offset,
}

impl<T> Clone for Coverage<T> {
    fn clone(&self) -> Self {
        Self { splits: self.splits.clone(), indexed_through: self.indexed_through }
    }
}

impl<T: Spans> Coverage<T> {
    pub fn starting_at(offset: Offset) -> Self {
        Self { splits: Vec::new(), indexed_through: offset }
    }

    pub fn splits(&self) -> &[Arc<T>] {
        &self.splits
    }

    /// Appends what was indexed up to `through`; no split where nothing in the range could be. Not if this has begun
    /// anew below `begun_at`, the [`Self::indexed_through`] from which that was indexed: there would be a hole before
    /// it.
    pub fn append(&mut self, begun_at: Offset, split: Option<T>, through: Offset) -> bool {
        if self.indexed_through < begun_at {
            return false;
        }
        self.splits.extend(split.map(Arc::new));
        self.indexed_through = self.indexed_through.max(through);
        true
    }

    /// Forgets splits that lie wholly below `horizon`, and never asks for what lies there again.
    pub fn drop_below(&mut self, horizon: Offset) {
        self.splits.retain(|split| split.span().end > horizon);
        self.indexed_through = self.indexed_through.max(horizon);
    }

    /// Puts `merged` in the place of `members`, unless one of them has been dropped meanwhile.
    pub fn replace(&mut self, members: &[Arc<T>], merged: Option<T>) -> bool {
        let Some(first) = members.first() else { return false };
        let Some(at) = self.splits.iter().position(|split| Arc::ptr_eq(split, first)) else { return false };
        let place = at..at + members.len();
        let unchanged = self
            .splits
            .get(place.clone())
            .is_some_and(|now| now.iter().zip(members).all(|(now, member)| Arc::ptr_eq(now, member)));
        if unchanged {
            self.splits.splice(place, merged.map(Arc::new));
        }
        unchanged
    }

    /// The splits that answer at or above `seam`, each with the offsets it answers for.
    pub fn from(&self, seam: Offset) -> impl Iterator<Item = (Range<Offset>, &Arc<T>)> {
        self.splits.iter().filter_map(move |split| {
            let span = split.span();
            (span.end > seam).then(|| (span.start.max(seam)..span.end, split))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Spans for Range<Offset> {
        fn span(&self) -> Range<Offset> {
            self.clone()
        }
    }

    /// What may happen to a partition between any two steps of a search.
    #[derive(Clone, Debug)]
    enum Event {
        Produce(i64),
        Index(i64),
        /// Commits the manifest up to here at most, in the order of the archiver.
        Archive(i64),
        /// Drops local segments that the archive covers.
        Trim,
        DropLive,
        Merge(usize, usize),
        /// The search reads the live snapshot now, and the manifest after the events that follow up to the next one.
        Look,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            (1_i64..20).prop_map(Event::Produce),
            (1_i64..15).prop_map(Event::Index),
            (1_i64..30).prop_map(Event::Archive),
            Just(Event::Trim),
            Just(Event::DropLive),
            (0_usize..6, 2_usize..5).prop_map(|(at, count)| Event::Merge(at, count)),
            Just(Event::Look),
        ];
        prop::collection::vec(event, 1..80)
    }

    proptest! {
        /// However production, indexing, archiving, trimming, merging and dropping interleave with the two reads of a
        /// search, every offset below the snapshot's end is answered for by exactly one tier.
        #[test]
        fn each_offset_is_found_once(events in events()) {
            let (mut end, mut archived, mut local_start) = (0, 0, 0);
            let mut live = Coverage::<Range<Offset>>::starting_at(Offset::ZERO);
            let mut looked: Option<Coverage<Range<Offset>>> = None;
            for event in events.into_iter().chain([Event::Look, Event::Look]) {
                match event {
                    Event::Produce(n) => end += n,
                    Event::Index(n) => {
                        // As the indexer does: what was archived before it was indexed is skipped.
                        let from = live.indexed_through.max(Offset(archived)).max(Offset(local_start));
                        let through = Offset(end.min(from.0 + n));
                        let begun_at = live.indexed_through;
                        prop_assert!(live.append(begun_at, (from < through).then_some(from..through), through));
                    }
                    Event::Archive(n) => archived = end.min(archived + n),
                    Event::Trim => local_start = archived,
                    Event::DropLive => live.drop_below(Offset(archived)),
                    Event::Merge(at, count) => {
                        let members: Vec<_> = live.splits().iter().skip(at).take(count).cloned().collect();
                        if let (Some(first), Some(last)) = (members.first(), members.last()) {
                            let start = first.start.max(Offset(archived));
                            let merged = (start < last.end).then_some(start..last.end);
                            prop_assert!(live.replace(&members, merged));
                        }
                    }
                    Event::Look => {
                        if let Some(snapshot) = looked.take() {
                            let seam = Offset(archived);
                            let mut answers = vec![0; usize::try_from(end).unwrap_or(0)];
                            let cold = 0..seam.0;
                            let hot = snapshot.from(seam).flat_map(|(range, _)| range.start.0..range.end.0);
                            for offset in cold.chain(hot) {
                                answers[usize::try_from(offset).unwrap_or(0)] += 1;
                            }
                            let through = snapshot.indexed_through.max(seam).0;
                            for (offset, times) in answers.iter().enumerate() {
                                let expected = i32::from((offset as i64) < through);
                                prop_assert_eq!(*times, expected, "offset {} with seam {}", offset, seam);
                            }
                        }
                        looked = Some(live.clone());
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_begun_before_a_new_start_is_thrown_away() {
        let mut live = Coverage::starting_at(Offset(0));
        assert!(live.append(Offset(0), Some(Offset(0)..Offset(10)), Offset(10)));
        let begun_at = live.indexed_through;
        live = Coverage::starting_at(Offset(0));
        assert!(!live.append(begun_at, Some(Offset(10)..Offset(20)), Offset(20)));
        assert_eq!((live.splits().len(), live.indexed_through), (0, Offset(0)));
        // Where the archive has got there by then, there is no hole.
        live.drop_below(Offset(10));
        assert!(live.append(begun_at, Some(Offset(10)..Offset(20)), Offset(20)));
        assert_eq!((live.splits().len(), live.indexed_through), (1, Offset(20)));
    }

    #[test]
    fn a_merge_of_dropped_splits_is_thrown_away() {
        let mut live = Coverage::starting_at(Offset(0));
        for base in [0, 10, 20] {
            assert!(live.append(Offset(base), Some(Offset(base)..Offset(base + 10)), Offset(base + 10)));
        }
        let members = live.splits().to_vec();
        live.drop_below(Offset(10));
        assert!(!live.replace(&members, Some(Offset(0)..Offset(30))));
        assert_eq!(live.splits().len(), 2);
        assert!(live.replace(&members[1..], Some(Offset(10)..Offset(30))));
        assert_eq!(live.splits().len(), 1);
        assert_eq!(live.indexed_through, Offset(30));
    }
}
