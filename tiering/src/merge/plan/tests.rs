use std::collections::HashSet;

use proptest::prelude::*;
use thermocline_ingest::model::Offset;

use super::*;
use crate::manifest::{ObjectRef, RawBatch, RawBatches};

const LIMITS: MergeLimits = MergeLimits { log_bytes_max: 256 << 20, held_bytes_max: 80 << 20, span_ms_max: u64::MAX };
/// `log(1 + 1 / (FAN_IN - 1))`
const GROWTH_LN: f64 = 0.133_5;

/// A file, and how often its bytes were written.
#[derive(Clone, Debug)]
struct Written {
    file: Arc<DataFile>,
    times: u64,
}

fn object(size_bytes: u64) -> ObjectRef {
    ObjectRef { key: "key".to_owned(), size_bytes, xxh3: String::new() }
}

/// One file at offset `at` over `at..at + 1` ms, stored in a quarter of its log bytes.
fn file(at: i64, log_bytes: u64) -> DataFile {
    DataFile {
        base_offset: Offset(at),
        last_offset: Offset(at),
        rows: 1,
        dropped: 0,
        min_timestamp: Timestamp(at),
        max_timestamp: Timestamp(at + 1),
        log_bytes,
        digest: String::new(),
        data: object(log_bytes / 4),
        split: None,
        indexed: None,
        raw: None,
    }
}

fn files(log_bytes: &[u64]) -> Vec<Arc<DataFile>> {
    (0..).zip(log_bytes).map(|(at, log_bytes)| Arc::new(file(at, *log_bytes))).collect()
}

fn sizes(sizes_mib: &[u64]) -> Vec<Arc<DataFile>> {
    files(&sizes_mib.iter().map(|size| size << 20).collect::<Vec<_>>())
}

fn planned(files: &[Arc<DataFile>]) -> Option<Range<usize>> {
    plan(files, &LIMITS, |_| false)
}

/// What merging makes of neighbours; `overhead` bytes of each file's objects are saved but once.
fn merged(inputs: &[Written], overhead: u64) -> Written {
    let all = inputs.iter().map(|input| &input.file);
    let (first, last) = (all.clone().next().unwrap(), all.clone().next_back().unwrap());
    let stored: u64 = all.clone().map(|file| file.data.size_bytes - overhead).sum();
    let file = DataFile {
        base_offset: first.base_offset,
        last_offset: last.last_offset,
        rows: all.clone().map(|file| file.rows).sum(),
        dropped: 0,
        min_timestamp: all.clone().map(|file| file.min_timestamp).min().unwrap(),
        max_timestamp: all.clone().map(|file| file.max_timestamp).max().unwrap(),
        log_bytes: all.map(|file| file.log_bytes).sum(),
        data: object(stored + overhead),
        ..DataFile::clone(first)
    };
    Written { file: Arc::new(file), times: inputs.iter().map(|input| input.times).max().unwrap() + 1 }
}

/// Merges until the plan says that nothing is left to do; every step must be one that can be done.
fn settle(files: &mut Vec<Written>, limits: &MergeLimits, overhead: u64) -> u64 {
    let mut rewritten = 0;
    let mut steps_left = files.len();
    loop {
        let now: Vec<_> = files.iter().map(|written| written.file.clone()).collect();
        let Some(range) = plan(&now, limits, |_| false) else { return rewritten };
        steps_left = steps_left.checked_sub(1).expect("each merge leaves fewer files");
        assert!(range.len() >= FILES_MIN && range.end <= files.len());
        let one = merged(&files[range.clone()], overhead);
        assert!(one.file.log_bytes <= limits.log_bytes_max);
        assert!(now[range.clone()].iter().map(|file| held_bytes(file)).sum::<u64>() <= limits.held_bytes_max);
        assert!(one.file.max_timestamp.0.abs_diff(one.file.min_timestamp.0) <= limits.span_ms_max);
        assert!(now[range.clone()].iter().all(|file| file.split.is_some() == one.file.split.is_some()));
        rewritten += one.file.log_bytes;
        files.splice(range, [one]);
    }
}

/// What follows the last finished file.
fn open_tail(files: &[Written]) -> &[Written] {
    let is_finished = |written: &Written| Extent::of(&written.file).is_finished(&LIMITS);
    files.rsplit(is_finished).next().unwrap_or_default()
}

/// One more file; only what follows the last finished one can be merged by that.
fn append(files: &mut Vec<Written>, file: Arc<DataFile>, overhead: u64) -> u64 {
    let mut open = files.split_off(files.len() - open_tail(files).len());
    open.push(Written { file, times: 1 });
    let rewritten = settle(&mut open, &LIMITS, overhead);
    files.append(&mut open);
    rewritten
}

/// The most unfinished neighbours that would fit into one file.
fn longest_run(files: &[Written], limits: &MergeLimits) -> usize {
    let (mut longest, mut run) = (0, Vec::new());
    for extent in files.iter().map(|written| Extent::of(&written.file)) {
        if extent.is_finished(limits) {
            run.clear();
            continue;
        }
        run.push(extent);
        while !run.iter().copied().reduce(Extent::with).unwrap().fits(limits) {
            run.remove(0);
        }
        longest = longest.max(run.len());
    }
    longest
}

fn run_bound(volume: u64, smallest: u64) -> usize {
    ((volume as f64 / smallest as f64).ln() / GROWTH_LN).ceil() as usize + FILES_MIN
}

#[test]
fn equal_files_are_counted_like_digits() {
    assert_eq!(planned(&sizes(&[1; 7])), None);
    assert_eq!(planned(&sizes(&[1; 8])), Some(0..8));
    assert_eq!(planned(&sizes(&[8, 1, 1, 1, 1, 1, 1, 1])), None);
    assert_eq!(planned(&sizes(&[8, 1, 1, 1, 1, 1, 1, 1, 1])), Some(1..9));
    // Straight into the tier above where there is enough for it.
    assert_eq!(planned(&sizes(&[8, 8, 8, 8, 8, 8, 8, 1, 1, 1, 1, 1, 1, 1, 1])), Some(0..15));
    assert_eq!(planned(&sizes(&[8; 8])), Some(0..8));
}

#[test]
fn files_near_the_target_are_left_alone() {
    for size in [70, 100, 127, 128, 200] {
        assert_eq!(planned(&sizes(&[size; 40])), None, "{size} MiB");
    }
    assert_eq!(planned(&sizes(&[128, 127, 100, 64, 128])), None);
    // A run that a finished file closes is merged if it is worth it.
    assert_eq!(planned(&sizes(&[1, 1, 1, 128])), None);
    assert_eq!(planned(&sizes(&[128, 1, 2, 1, 1, 128])), Some(1..5));
    // As much as fits, and no more.
    assert_eq!(planned(&sizes(&[60, 60, 60, 60, 60, 60])), Some(0..4));
}

#[test]
fn what_takes_too_much_memory_is_left_alone() {
    let mut large = files(&[20 << 20; 8]);
    for file in &mut large {
        Arc::make_mut(file).data.size_bytes = 15 << 20;
    }
    assert_eq!(planned(&large), Some(0..5), "15 MiB each, 80 MiB in all");
    Arc::make_mut(&mut large[3]).rows = 4 << 20;
    assert_eq!(
        planned(&large),
        None,
        "one is finished by its rows; three files are before it and four, which are not yet full, behind"
    );
}

#[test]
fn an_index_is_neither_lost_nor_made() {
    let mut mixed = sizes(&[1; 16]);
    for file in &mut mixed[6..] {
        Arc::make_mut(file).split = Some(object(1000));
    }
    assert_eq!(planned(&mixed), Some(0..6));
    assert_eq!(planned(&mixed[3..]), Some(3..11));
}

#[test]
fn what_is_barred_is_left_alone() {
    let files = sizes(&[1; 16]);
    let barred = HashSet::from([Offset(3)]);
    let found = plan(&files, &LIMITS, |file| barred.contains(&file.base_offset));
    assert_eq!(found, Some(4..12));
}

#[test]
fn a_merged_file_expires_in_time() {
    let week = MergeLimits { span_ms_max: 4, ..LIMITS };
    assert_eq!(plan(&sizes(&[1; 8]), &week, |_| false), Some(0..4));
    let hour = MergeLimits { span_ms_max: 3, ..LIMITS };
    assert_eq!(plan(&sizes(&[1; 8]), &hour, |_| false), None);
}

#[test]
fn a_merged_file_keeps_no_more_raw_than_a_new_one() {
    let keeping = |count: usize| {
        let (base_offset, last_offset) = (Offset(0), Offset(0));
        let batch = RawBatch { base_offset, last_offset, position: 0, size_bytes: 1, reason: String::new() };
        let raw = RawBatches { object: object(1), batches: vec![batch; count] };
        let mut files = sizes(&[1; 8]);
        files.iter_mut().for_each(|file| Arc::make_mut(file).raw = Some(raw.clone()));
        planned(&files)
    };
    assert_eq!(keeping(RAW_BATCHES_MAX / 8), Some(0..8));
    assert_eq!(keeping(RAW_BATCHES_MAX / 8 + 1), Some(0..7));
    assert_eq!(keeping(RAW_BATCHES_MAX / 2), None, "they are finished");
}

/// One-minute segments of 1 MiB over a month, as they come.
#[test]
fn every_byte_of_a_month_of_minutes_is_rewritten_three_times() {
    let mut files = Vec::new();
    let (mut rewritten, mut longest) = (0, 0);
    for minute in 0..30 * 24 * 60 {
        rewritten += append(&mut files, Arc::new(file(minute, 1 << 20)), 1000);
        longest = longest.max(open_tail(&files).len());
    }
    let volume: u64 = files.iter().map(|written| written.file.log_bytes).sum();
    assert_eq!(volume, 43_200 << 20);
    assert!(files.len() <= 43_200 / 256 + 17, "{} files", files.len());
    assert!(longest <= 21, "{longest} files in a run");
    assert!(rewritten <= 3 * volume, "{} times", rewritten as f64 / volume as f64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the sizes, all at once or one by one: it ends, in order, with few files and little rewriting.
    #[test]
    fn files_and_rewriting_are_logarithmic(
        exponents in prop::collection::vec((8..27_u32, 0..256_u64), 1..300), one_by_one: bool, repeat in 1..4_usize,
    ) {
        let log_bytes: Vec<u64> = exponents.iter().map(|(exponent, extra)| (1 << exponent) + extra).collect();
        let log_bytes = log_bytes.repeat(repeat);
        let overhead = 50;
        let mut files: Vec<Written> = Vec::new();
        let mut at = 0;
        for file in self::files(&log_bytes) {
            if one_by_one {
                append(&mut files, file, overhead);
            } else {
                files.push(Written { file, times: 1 });
            }
        }
        settle(&mut files, &LIMITS, overhead);
        for written in &files {
            prop_assert_eq!(written.file.base_offset, Offset(at));
            at = written.file.last_offset.0 + 1;
        }
        prop_assert_eq!(at, log_bytes.len() as i64);
        let volume: u64 = files.iter().map(|written| written.file.log_bytes).sum();
        prop_assert_eq!(volume, log_bytes.iter().sum::<u64>());
        let bound = run_bound(LIMITS.log_bytes_max, 1 << 8);
        prop_assert!(longest_run(&files, &LIMITS) <= bound);
        let times = files.iter().map(|written| written.times).max().unwrap();
        prop_assert!(times <= 1 + 10, "written {times} times");
    }
}
