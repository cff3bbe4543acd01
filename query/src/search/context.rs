//! The neighbours of hits in their partitions, as `grep -C` shows them: contexts that overlap are one passage.
//!
//! Neighbours are messages, not offsets: where offsets hold no message (what could not be decoded), the look goes
//! further, up to a limit.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, TopicName, TopicPartition};
use thermocline_tiering::reader::{OwnedRecord, TieredReader};

use super::fetch::{Hit, PAGE_BYTES_MAX};
use super::{SearchError, View};

/// Most messages that one answer may show around its hits.
pub const CONTEXT_MESSAGES_MAX: usize = 10_000;
/// How often the look goes further for one partition; it doubles each time.
const EXTENSIONS_MAX: u32 = 8;

/// How many neighbours of each hit are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pub before: usize,
    pub after: usize,
}

/// Messages that follow each other in a partition.
#[derive(Clone, Debug)]
pub struct Passage {
    pub topic: TopicName,
    pub partition: PartitionId,
    pub messages: Vec<Neighbour>,
}

/// A message of a passage.
#[derive(Clone, Debug)]
pub struct Neighbour {
    pub record: OwnedRecord,
    /// A hit of the page, not one of its neighbours.
    pub is_hit: bool,
}

impl Context {
    /// Refuses what could not be shown; `limit` is the number of hits asked for.
    pub(crate) fn check(self, limit: usize) -> Result<(), SearchError> {
        let messages = self.before.saturating_add(self.after).saturating_mul(limit);
        match messages {
            0..=CONTEXT_MESSAGES_MAX => Ok(()),
            _ => Err(SearchError::Context { messages, max: CONTEXT_MESSAGES_MAX }),
        }
    }

    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// The passages around `hits`, that of the first hit first.
pub(crate) async fn passages(
    reader: &TieredReader,
    view: &View,
    hits: &[Hit],
    context: Context,
) -> Result<Vec<Passage>, SearchError> {
    if context.is_none() {
        return Ok(Vec::new());
    }
    let mut places: BTreeMap<TopicPartition, BTreeMap<Offset, usize>> = BTreeMap::new();
    for (rank, hit) in hits.iter().enumerate() {
        let name = TopicPartition::new(hit.topic.clone(), hit.partition);
        places.entry(name).or_default().insert(hit.record.offset, rank);
    }
    let (mut ranked, mut left) = (Vec::new(), PAGE_BYTES_MAX);
    for (name, hits) in places {
        let Some(partition) = view.partitions.get(&name) else { continue };
        let known = match read_around(reader, partition, &hits, context, &mut left).await {
            // The topic was deleted while we searched it.
            Err(_) if partition.is_closed() => continue,
            known => known?,
        };
        for run in runs(&known, &hits, context) {
            let rank = run.iter().filter_map(|(offset, _)| hits.get(offset)).min().copied();
            let neighbour = |(offset, record): (Offset, &OwnedRecord)| Neighbour {
                record: record.clone(),
                is_hit: hits.contains_key(&offset),
            };
            let messages = run.into_iter().map(neighbour).collect();
            ranked.push((rank, Passage { topic: name.topic.clone(), partition: name.partition, messages }));
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    Ok(ranked.into_iter().map(|(_, passage)| passage).collect())
}

/// Offsets that were looked at, each range with the messages there.
type Known = Vec<(Range<Offset>, Vec<OwnedRecord>)>;

async fn read_around(
    reader: &TieredReader,
    partition: &Arc<Partition>,
    hits: &BTreeMap<Offset, usize>,
    context: Context,
    left: &mut usize,
) -> Result<Known, SearchError> {
    let bounds = partition.log_start_offset()..partition.last_stable_offset();
    let around = |offset: &Offset, before: usize, after: usize| {
        let (before, after) = (i64::try_from(before).unwrap_or(i64::MAX), i64::try_from(after).unwrap_or(i64::MAX));
        offset.plus(-before).max(bounds.start)..offset.plus(after).next().min(bounds.end)
    };
    let mut ranges = joined(hits.keys().map(|offset| around(offset, context.before, context.after)).collect());
    let mut extension = 0;
    loop {
        let mut known = Known::new();
        let mut bytes = 0;
        for range in &ranges {
            let offsets: Vec<Offset> = (range.start.0..range.end.0).map(Offset).collect();
            let mut records = Vec::new();
            let mut at = 0;
            while at < offsets.len() {
                let rest = offsets.get(at..).unwrap_or_default();
                let found = reader.records(partition, rest, left.saturating_sub(bytes)).await?;
                bytes += found.size_bytes();
                if bytes > *left {
                    return Err(SearchError::ContextBytes { max: PAGE_BYTES_MAX });
                }
                at += found.records.len();
                records.extend(found.records.into_iter().flatten());
            }
            known.push((range.clone(), records));
        }
        let further = further(&known, hits, context, &bounds, 1 << extension);
        if further == ranges || extension >= EXTENSIONS_MAX {
            *left -= bytes;
            return Ok(known);
        }
        ranges = further;
        extension += 1;
    }
}

/// The ranges to look at so that every hit has its neighbours: those of `known`, longer where one is short of them.
fn further(
    known: &Known,
    hits: &BTreeMap<Offset, usize>,
    context: Context,
    bounds: &Range<Offset>,
    step: i64,
) -> Vec<Range<Offset>> {
    let longer = known.iter().map(|(range, records)| {
        let at = |offset: &Offset| records.iter().position(|record| record.offset == *offset);
        let places: Vec<usize> = hits.range(range.clone()).filter_map(|(offset, _)| at(offset)).collect();
        let short = |wanted: usize, has: Option<usize>| {
            has.map_or(0, |has| i64::try_from(wanted.saturating_sub(has)).unwrap_or(0)).saturating_mul(step)
        };
        let before = short(context.before, places.first().copied());
        let after = short(context.after, places.last().map(|at| records.len() - 1 - at));
        range.start.plus(-before).max(bounds.start)..range.end.plus(after).min(bounds.end)
    });
    joined(longer.collect())
}

/// Sorted, and those that touch made one.
fn joined(mut ranges: Vec<Range<Offset>>) -> Vec<Range<Offset>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<Offset>> = Vec::new();
    for range in ranges.into_iter().filter(|range| range.start < range.end) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What is shown: of what is known, the messages that are near enough to a hit, in runs without a break.
fn runs<'k>(known: &'k Known, hits: &BTreeMap<Offset, usize>, context: Context) -> Vec<Vec<(Offset, &'k OwnedRecord)>> {
    let mut runs = Vec::new();
    for (_, records) in known {
        let mut shown = vec![false; records.len()];
        for (at, _) in records.iter().enumerate().filter(|(_, record)| hits.contains_key(&record.offset)) {
            let end = at.saturating_add(context.after).saturating_add(1).min(records.len());
            shown.get_mut(at.saturating_sub(context.before)..end).unwrap_or_default().fill(true);
        }
        let mut run = Vec::new();
        for (record, shown) in records.iter().zip(shown) {
            if shown {
                run.push((record.offset, record));
            } else if !run.is_empty() {
                runs.push(std::mem::take(&mut run));
            }
        }
        runs.extend(Some(run).filter(|run| !run.is_empty()));
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use thermocline_ingest::model::{Timestamp, TimestampType};

    use super::*;

    fn record(offset: i64) -> OwnedRecord {
        OwnedRecord {
            offset: Offset(offset),
            timestamp: Timestamp(0),
            timestamp_type: TimestampType::CreateTime,
            key: None,
            value: None,
            headers: Vec::new(),
        }
    }

    /// The look goes on until it ends; then what is shown.
    fn shown(messages: &[i64], hits: &BTreeMap<Offset, usize>, context: Context, end: i64) -> Vec<Vec<i64>> {
        let bounds = Offset(0)..Offset(end);
        let clip = |n: i64| Offset(n.clamp(0, end));
        let (before, after) = (context.before as i64, context.after as i64);
        let mut ranges = joined(hits.keys().map(|at| clip(at.0 - before)..clip(at.0 + after + 1)).collect());
        loop {
            let inside = |range: &Range<Offset>| {
                messages.iter().filter(|n| range.contains(&Offset(**n))).map(|n| record(*n)).collect()
            };
            let known: Known = ranges.iter().map(|range| (range.clone(), inside(range))).collect();
            let next = further(&known, hits, context, &bounds, 1);
            if next == ranges {
                let runs = runs(&known, hits, context);
                return runs.into_iter().map(|run| run.into_iter().map(|(offset, _)| offset.0).collect()).collect();
            }
            ranges = next;
        }
    }

    proptest! {
        /// Against `grep -C` over the messages, whatever the holes between their offsets.
        #[test]
        fn passages_are_what_grep_shows(
            messages in prop::collection::btree_set(0_i64..120, 1..60),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
            before in 0_usize..6, after in 0_usize..6,
        ) {
            let messages: Vec<i64> = messages.into_iter().collect();
            let context = Context { before, after };
            let places: Vec<usize> = picks.iter().map(|pick| pick.index(messages.len())).collect();
            let hits: BTreeMap<Offset, usize> =
                places.iter().enumerate().map(|(rank, at)| (Offset(messages[*at]), rank)).collect();
            let near = |at: usize| places.iter().any(|hit| at + before >= *hit && at <= *hit + after);
            let mut expected: Vec<i64> = Vec::new();
            for (at, offset) in messages.iter().enumerate() {
                if near(at) {
                    expected.push(*offset);
                }
            }
            let found = shown(&messages, &hits, context, 120);
            prop_assert_eq!(found.concat(), expected);
            prop_assert!(found.iter().all(|run| run.iter().any(|offset| hits.contains_key(&Offset(*offset)))));
        }
    }

    #[test]
    fn what_could_not_be_shown_is_refused() {
        assert!(Context { before: 20, after: 20 }.check(250).is_ok());
        assert!(Context { before: 20, after: 20 }.check(251).is_err());
        assert!(Context { before: usize::MAX, after: 1 }.check(2).is_err());
    }
}
