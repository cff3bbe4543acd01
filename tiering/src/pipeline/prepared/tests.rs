use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use proptest::prelude::*;
use tantivy::schema::{FieldType, IndexRecordOption};
use tantivy::{DocSet, TERMINATED};
use thermocline_ingest::log::AbortedTransaction;
use thermocline_ingest::model::{PartitionId, Timestamp, TopicId};
use thermocline_ingest::read::is_committed;
use thermocline_ingest::record::{
    BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, Record, TransactionOutcome, encode_marker,
    into_transactional,
};

use super::*;
use crate::pipeline::{BatchSource, Batches, StageOptions, StagedArchive, Stager};
use crate::split::SplitWriter;
use crate::testing::{TestRecord, batch, some_records, stage_options, undecodable};

const OPTIONS: SplitOptions = SplitOptions::DEFAULT;
/// Where the segments of these tests begin.
const BASE: i64 = 100;

/// Part of a segment.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Records(usize),
    /// Records of an aborted transaction and its marker.
    Aborted(usize),
    Undecodable(usize),
    /// The last record has a timestamp that fits into a split and not into Parquet.
    Unfit(usize),
}

struct Segment {
    batches: Vec<Bytes>,
    aborted: Vec<AbortedTransaction>,
    end: Offset,
}

fn placed(base: i64, batch: Bytes) -> Bytes {
    let mut batch = batch.to_vec();
    batch[..8].copy_from_slice(&base.to_be_bytes());
    batch.into()
}

/// Records of a kind, no two alike.
fn records(from: i64, count: usize) -> Vec<TestRecord> {
    let from = usize::try_from(from).unwrap();
    let json = |n: usize| format!(r#"{{"n":{n},"user":{{"id":"u{}"}},"level":"{}"}}"#, n % 5, n % 3).into_bytes();
    let mut records = some_records(from + count).split_off(from);
    for (n, record) in records.iter_mut().enumerate().filter(|(n, _)| n % 2 == 0) {
        record.2 = Some(json(from + n));
    }
    records
}

impl Segment {
    fn of(pieces: &[Piece]) -> Self {
        let (mut batches, mut aborted, mut next) = (Vec::new(), Vec::new(), BASE);
        for piece in pieces {
            match *piece {
                Piece::Records(count) => batches.push(batch(next, &records(next, count))),
                Piece::Undecodable(count) => batches.push(undecodable(next, count)),
                Piece::Unfit(count) => {
                    let mut records = records(next, count);
                    records[count - 1].0 = i64::MAX / 10;
                    batches.push(batch(next, &records));
                }
                Piece::Aborted(count) => {
                    let producer = 1000 + next;
                    batches.push(into_transactional(batch(next, &records(next, count)), producer, 0));
                    let end = next + count as i64;
                    let marker = encode_marker(producer, 0, TransactionOutcome::Abort, Timestamp(9));
                    batches.push(placed(end, marker));
                    aborted.push(AbortedTransaction {
                        first_offset: Offset(next),
                        last_offset: Offset(end),
                        producer_id: producer,
                        last_stable_offset: Offset(end + 1),
                    });
                }
            }
            next = header(batches.last().unwrap()).next_offset().0;
        }
        Self { batches, aborted, end: Offset(next) }
    }

    fn source(&self) -> BatchSource {
        let batches = self.batches.clone();
        Box::new(move || Ok(Box::new(batches.clone().into_iter().map(Ok)) as Batches))
    }

    /// Splits as the live index would make them, a new one wherever `cuts` says so, over the batches of `offsets`.
    fn live(&self, offsets: Range<Offset>, cuts: &[bool], options: SplitOptions) -> Vec<PreparedSplit> {
        let mut decoder = BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX);
        let (mut splits, mut cuts) = (Vec::new(), cuts.iter().cycle());
        let mut chunk = Chunk::new(offsets.start, options);
        for bytes in &self.batches {
            let header = header(bytes);
            if header.base_offset < offsets.start || header.next_offset() > offsets.end {
                continue;
            }
            if is_committed(&header, &self.aborted) {
                chunk.add(&mut decoder, bytes);
            }
            if cuts.next().is_some_and(|cut| *cut) {
                let next = Chunk::new(header.next_offset(), options);
                splits.extend(std::mem::replace(&mut chunk, next).finish(header.next_offset()));
            }
        }
        splits.extend(chunk.finish(offsets.end));
        splits
    }

    /// All of its files.
    fn stage(&self, bytes_max: usize, live: Option<Live>) -> Vec<StagedArchive> {
        let options = StageOptions { split: Some(OPTIONS), ..stage_options(bytes_max) };
        let (end, memory_bytes) = (self.end, 64 << 20);
        let prepared = live.map(|live| PreparedSource { splits: Arc::new(live), end, memory_bytes });
        let mut stager = Stager::new(self.source(), self.aborted.clone(), Offset(BASE), options, prepared);
        std::iter::from_fn(|| stager.next_file().unwrap()).collect()
    }

    /// A file of the batches in `offsets`, each record of which is indexed.
    fn anew(&self, offsets: &Range<Offset>) -> StagedArchive {
        let is_within =
            |bytes: &&Bytes| header(bytes).base_offset >= offsets.start && header(bytes).last_offset() < offsets.end;
        let batches = self.batches.iter().filter(is_within).cloned().collect();
        let part = Self { batches, aborted: self.aborted.clone(), end: offsets.end };
        let options = StageOptions { split: Some(OPTIONS), ..stage_options(usize::MAX) };
        let mut stager = Stager::new(part.source(), part.aborted, offsets.start, options, None);
        stager.next_file().unwrap().unwrap()
    }

    /// Every file says, holds and finds what it would had its records been indexed.
    fn check(&self, staged: &[StagedArchive]) {
        let mut next = Offset(BASE);
        for staged in staged {
            let file = staged.file();
            assert_eq!(file.base_offset, next);
            next = file.last_offset.next();
            let anew = self.anew(&(file.base_offset..next));
            let told = |staged: &StagedArchive| {
                let file = staged.file();
                let raw: Vec<_> = file.raw.iter().flat_map(|raw| &raw.batches).map(|raw| raw.base_offset).collect();
                (
                    file.rows,
                    file.dropped,
                    file.min_timestamp,
                    file.max_timestamp,
                    file.digest.clone(),
                    file.indexed,
                    raw,
                )
            };
            assert_eq!(told(staged), told(&anew));
            assert_eq!(contents(staged), contents(&anew));
        }
        assert_eq!(next, self.end);
    }
}

/// One split of the live index under construction.
struct Chunk {
    writer: SplitWriter,
    from: Offset,
    docs: u64,
}

impl Chunk {
    fn new(from: Offset, options: SplitOptions) -> Self {
        Self { writer: SplitWriter::new(options).unwrap(), from, docs: 0 }
    }

    fn add(&mut self, decoder: &mut BatchDecoder, batch: &[u8]) {
        let add = |record: Record<'_>| {
            self.docs += 1;
            self.writer.add(&record).unwrap();
            Ok(())
        };
        // What cannot be decoded is not searched.
        let _ = decoder.for_each::<BatchError>(batch, add);
    }

    fn finish(self, end: Offset) -> Option<PreparedSplit> {
        (self.docs > 0).then(|| {
            let bytes = Vec::from(self.writer.finish().unwrap());
            let (offsets, checksum) = (self.from..end, checksum(&bytes));
            PreparedSplit { offsets, docs: self.docs, file: Arc::new(OwnedBytes::new(bytes)), checksum }
        })
    }
}

/// A live index that was caught at some moments, one for each look, the last one from then on.
struct Live {
    looks: Vec<(Vec<PreparedSplit>, Offset)>,
    seen: AtomicUsize,
}

impl Live {
    fn of(looks: Vec<(Vec<PreparedSplit>, Offset)>) -> Self {
        Self { looks, seen: AtomicUsize::new(0) }
    }
}

impl PreparedSplits for Live {
    fn prepared(&self, _: TopicId, _: PartitionId, from: Offset, options: SplitOptions) -> Prepared {
        assert_eq!(options, OPTIONS);
        let look = self.seen.fetch_add(1, Ordering::Relaxed).min(self.looks.len() - 1);
        let (splits, through) = &self.looks[look];
        let splits = splits.iter().filter(|split| split.offsets.end > from).cloned().collect();
        Prepared::new(splits, from..(*through).max(from))
    }
}

fn header(batch: &Bytes) -> BatchHeader {
    BatchHeader::read(batch).unwrap()
}

fn split_of(staged: &StagedArchive) -> SplitReader {
    let (_, bytes) = staged.objects().iter().find(|(key, _)| key.as_ref().contains("/index/")).unwrap();
    SplitReader::open(Arc::new(OwnedBytes::new(bytes.to_vec()))).unwrap()
}

/// A term of a field, with the documents it is in and its positions there.
type Posting = (String, Vec<u8>, Vec<(u32, Vec<u32>)>);

/// Everything that can be found in a split: terms with documents and positions, columns, offsets and timestamps.
fn contents(staged: &StagedArchive) -> (Vec<Posting>, Vec<String>, Vec<(i64, Timestamp)>) {
    let split = split_of(staged);
    let segment = &split.searcher.segment_readers()[0];
    let mut postings = Vec::new();
    for (field, entry) in split.fields.schema.fields().filter(|(_, entry)| entry.is_indexed()) {
        let index = segment.inverted_index(field).unwrap();
        let mut terms = index.terms().stream().unwrap();
        while terms.advance() {
            // Numbers have no positions, in JSON neither: behind the path and a zero stands the type.
            let is_text = match entry.field_type() {
                FieldType::Str(_) => true,
                FieldType::JsonObject(_) => {
                    terms.key().split(|byte| *byte == 0).nth(1).is_some_and(|rest| rest[0] == b's')
                }
                _ => false,
            };
            let option = IndexRecordOption::WithFreqsAndPositions;
            let mut docs = index.read_postings_from_terminfo(terms.value(), option).unwrap();
            let mut found = Vec::new();
            while docs.doc() != TERMINATED {
                let mut positions = Vec::new();
                if is_text {
                    tantivy::postings::Postings::positions(&mut docs, &mut positions);
                }
                found.push((docs.doc(), positions));
                docs.advance();
            }
            postings.push((entry.name().to_owned(), terms.key().to_vec(), found));
        }
    }
    let fast = segment.fast_fields();
    let mut columns = Vec::new();
    for name in ["key", "json.level", "json.user.id", "headers.h0", "headers.h2"] {
        let Some(column) = fast.str(name).unwrap() else { continue };
        let text = |ord| {
            let mut text = String::new();
            column.ord_to_str(ord, &mut text).unwrap();
            text
        };
        let values = (0..segment.max_doc()).map(|doc| column.term_ords(doc).map(text).collect::<Vec<_>>());
        columns.push(format!("{name} {:?}", values.collect::<Vec<_>>()));
    }
    if let Some(column) = fast.column_opt::<i64>("json.n").unwrap() {
        let values = (0..segment.max_doc()).map(|doc| column.values_for_doc(doc).collect::<Vec<_>>());
        columns.push(format!("json.n {:?}", values.collect::<Vec<_>>()));
    }
    let rows = (0..segment.max_doc()).map(|doc| {
        let time = split.times.read(crate::split::Times::block_of(doc)).unwrap().get(doc);
        (split.offsets.get_val(doc), time)
    });
    (postings, columns, rows.collect())
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        6 => (1_usize..40).prop_map(Piece::Records),
        1 => (1_usize..5).prop_map(Piece::Aborted),
        1 => (1_usize..5).prop_map(Piece::Undecodable),
        1 => (1_usize..5).prop_map(Piece::Unfit),
    ];
    prop::collection::vec(piece, 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However a segment is cut into live splits and files, however much of it is indexed when it is archived, an
    /// archived file says and finds the same; and where all fits, its records are not indexed again.
    #[test]
    fn files_find_the_same_wherever_their_splits_come_from(
        pieces in pieces(),
        cuts in prop::collection::vec(any::<bool>(), 1..20),
        cuts_later in prop::collection::vec(any::<bool>(), 1..20),
        file_kib in prop_oneof![Just(usize::MAX >> 10), 2_usize..16],
        first_look in 0_usize..14,
    ) {
        let segment = Segment::of(&pieces);
        let all = Offset(BASE)..segment.end;
        let middle = segment.batches.get(first_look).map_or(segment.end, |batch| header(batch).base_offset);
        let before = segment.live(all.start..middle, &cuts, OPTIONS);
        // Some were merged, and the rest was indexed.
        let after = segment.live(all.clone(), &cuts_later, OPTIONS);
        let live = Live::of(vec![(before, middle), (after, segment.end)]);
        let staged = segment.stage(file_kib << 10, Some(live));
        segment.check(&staged);

        let is_unfit = pieces.iter().any(|piece| matches!(piece, Piece::Unfit(_)));
        let (indexed, len) = (Offset(BASE).distance_to(middle), Offset(BASE).distance_to(segment.end));
        let is_counted_on = indexed > 0 && indexed >= len * INDEXED_PERCENT_MIN / 100;
        if let [file] = staged.as_slice() && file_kib == usize::MAX >> 10 {
            prop_assert_eq!(file.took_splits(), !is_unfit && is_counted_on && file.file().rows > 0);
        }
    }
}

fn plain() -> Segment {
    Segment::of(&[Piece::Records(30), Piece::Aborted(3), Piece::Records(30), Piece::Records(30)])
}

/// What comes of a segment where the live index has `splits` up to `through`.
fn staged_beside(segment: &Segment, splits: Vec<PreparedSplit>, through: Offset) -> Vec<StagedArchive> {
    let staged = segment.stage(usize::MAX, Some(Live::of(vec![(splits, through)])));
    segment.check(&staged);
    staged
}

#[test]
fn what_is_not_exactly_the_file_is_not_taken() {
    let segment = plain();
    let all = Offset(BASE)..segment.end;
    let takes = |splits: Vec<PreparedSplit>, through| staged_beside(&segment, splits, through)[0].took_splits();
    let good = || segment.live(all.clone(), &[true, false], OPTIONS);
    assert!(takes(good(), segment.end));
    assert!(takes(good(), segment.end.plus(10)), "what comes after the segment is somebody else's");

    assert!(!takes(good(), segment.end.plus(-1)), "not all of it is said to be there");
    let mut lacks_one = good();
    lacks_one.remove(1);
    assert!(!takes(lacks_one, segment.end));
    let mut from_before = good();
    from_before[0].offsets.start = Offset(BASE - 1);
    assert!(!takes(from_before, segment.end));
    let mut goes_on = good();
    goes_on.last_mut().unwrap().offsets.end = segment.end.plus(1);
    assert!(!takes(goes_on, segment.end.plus(1)));
}

#[test]
fn splits_that_are_not_what_they_say_are_not_taken() {
    let segment = plain();
    let all = Offset(BASE)..segment.end;
    let good = || segment.live(all.clone(), &[true], OPTIONS);
    let takes = |splits: Vec<PreparedSplit>| staged_beside(&segment, splits, segment.end)[0].took_splits();
    assert!(takes(good()));

    // The same offsets and as many documents, another time.
    let mut late = Segment::of(&[Piece::Records(30), Piece::Aborted(3), Piece::Records(30), Piece::Records(30)]);
    let mut records = records(BASE, 30);
    records[7].0 += 1;
    late.batches[0] = batch(BASE, &records);
    let mut other_time = good();
    other_time[0] = late.live(all.clone(), &[true], OPTIONS).remove(0);
    assert!(!takes(other_time));

    let mut swapped = good();
    let [first, second, ..] = &mut swapped[..] else { panic!("one alone") };
    std::mem::swap(&mut first.file, &mut second.file);
    std::mem::swap(&mut first.checksum, &mut second.checksum);
    assert!(!takes(swapped));

    let mut damaged = good();
    damaged[1].file = Arc::new(OwnedBytes::new(vec![7; 4000]));
    damaged[1].checksum = checksum(&[7; 4000]);
    assert!(!takes(damaged));

    let mut other_fields = good();
    let options = SplitOptions { positions: false, ..OPTIONS };
    other_fields[0] = segment.live(all.clone(), &[true], options).remove(0);
    assert!(!takes(other_fields));
}

#[test]
fn what_is_one_split_is_taken_as_it_is() {
    let segment = plain();
    let splits = segment.live(Offset(BASE)..segment.end, &[false], OPTIONS);
    let [split] = &splits[..] else { panic!("more than one") };
    let bytes = split.file.read_bytes(0..split.file.len()).unwrap();
    let staged = staged_beside(&segment, splits.clone(), segment.end);
    assert!(staged[0].took_splits());
    let (_, taken) = staged[0].objects().iter().find(|(key, _)| key.as_ref().contains("/index/")).unwrap();
    assert!(taken[..] == bytes[..]);
}

#[test]
fn a_split_that_changed_on_disk_is_not_taken() {
    let segment = plain();
    for cuts in [[true], [false]] {
        let whole = || segment.live(Offset(BASE)..segment.end, &cuts, OPTIONS);
        let len = whole()[0].file.len();
        for at in (0..len).step_by(len / 12) {
            let mut rotten = whole();
            let mut bytes = rotten[0].file.read_bytes(0..len).unwrap().to_vec();
            bytes[at] ^= 1;
            rotten[0].file = Arc::new(OwnedBytes::new(bytes));
            assert!(!staged_beside(&segment, rotten, segment.end)[0].took_splits(), "byte {at} of {len}");
        }
    }
}

#[test]
fn files_end_where_splits_do() {
    let segment = Segment::of(&[Piece::Records(30); 60]);
    let splits = segment.live(Offset(BASE)..segment.end, &[false, true], OPTIONS);
    let staged = segment.stage(64 << 10, Some(Live::of(vec![(splits, segment.end)])));
    segment.check(&staged);
    assert!(staged.len() > 1, "{} files", staged.len());
    for file in &staged {
        assert!(file.took_splits());
        assert_eq!(file.file().last_offset.next().0.wrapping_sub(BASE) % 60, 0);
    }
}

#[test]
fn splits_that_do_not_fit_into_memory_are_not_taken() {
    let segment = plain();
    let splits = segment.live(Offset(BASE)..segment.end, &[true], OPTIONS);
    let options = StageOptions { split: Some(OPTIONS), ..stage_options(usize::MAX) };
    let live = Arc::new(Live::of(vec![(splits, segment.end)]));
    let prepared = PreparedSource { splits: live, end: segment.end, memory_bytes: 16 << 10 };
    let mut stager = Stager::new(segment.source(), segment.aborted.clone(), Offset(BASE), options, Some(prepared));
    let staged = stager.next_file().unwrap().unwrap();
    assert!(!staged.took_splits());
    segment.check(&[staged]);
}
