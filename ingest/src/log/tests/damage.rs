//! Files that were torn, damaged, lost, or written by the first version.

use std::fs;
use std::path::Path;

use super::*;

/// What is done to an index file.
type Damage = (&'static str, fn(&Path));

/// A copy of a fixture's files, as they are now.
fn copy(fixture: &Fixture) -> Fixture {
    let copy = Fixture { log_start: fixture.log_start, ..Fixture::new(fixture.config.clone()) };
    copy_dir(fixture.dir.path(), copy.dir.path());
    copy
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Everything before the last batch is there, nothing of it or after, and appends go on.
fn check_cut(fixture: &Fixture, kept: i64, what: &str) {
    let run = fixture.open();
    assert_eq!(run.partition.high_watermark(), Offset(kept), "{what}");
    assert_eq!(run.values(0).len() as i64, kept, "{what}");
    assert_eq!(
        run.append(&with_producer(numbered(2, 9), 5, 0, i32::try_from(kept).unwrap())).base_offset,
        Offset(kept)
    );
    drop(run);
    assert_eq!(fixture.open().values(0).len() as i64, kept + 2, "{what}");
}

#[test]
fn a_tear_or_a_flip_at_every_byte_of_the_last_batch() {
    // One fixture is enough: the last batch is restored before each round.
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    for n in 0..4 {
        run.append(&with_producer(numbered(2, n), 5, 0, 2 * i32::try_from(n).unwrap()));
    }
    drop(run);
    let path = fixture.file(0, LOG);
    let whole = fs::read(&path).unwrap();
    let last = whole.len() - numbered(2, 3).len();
    for at in last..whole.len() {
        fs::write(&path, &whole[..at]).unwrap();
        check_cut(&fixture, 6, &format!("cut at byte {} of the last batch", at - last));
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        // The leader epoch lies outside the CRC.
        let kept = if (last + 12..last + 16).contains(&at) { 8 } else { 6 };
        check_cut(&fixture, kept, &format!("byte {} of the last batch flipped", at - last));
    }
    fs::write(&path, [&whole[..], &[0; 5000]].concat()).unwrap();
    check_cut(&fixture, 8, "zeros after the last batch");
}

#[test]
fn lost_and_odd_indexes_are_rebuilt_as_they_were() {
    let original = Fixture::new(small());
    let run = original.open();
    for n in 0..30 {
        run.append(&numbered(1 + n % 3, (n as i64 * 7) % 50));
    }
    run.log.close().unwrap();
    let end = run.partition.log_end_offset();
    drop(run);
    let bases = original.bases();
    assert!(bases.len() >= 3);
    let damages: [Damage; 4] = [
        ("deleted", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| fs::write(path, b"").unwrap()),
        ("cut within an entry", |path| fs::write(path, &fs::read(path).unwrap()[..3]).unwrap()),
        ("overwritten", |path| fs::write(path, vec![0x55; fs::metadata(path).unwrap().len() as usize]).unwrap()),
    ];
    for clean in [true, false] {
        for (what, damage) in damages {
            for extension in [INDEX, TIMEINDEX] {
                let fixture = copy(&original);
                if !clean {
                    fs::remove_file(fixture.dir.path().join(".clean_shutdown")).unwrap();
                }
                for base in &bases {
                    damage(&fixture.file(*base, extension));
                }
                let run = fixture.open();
                assert_eq!(run.partition.high_watermark(), end);
                assert_eq!(run.values(0).len() as i64, end.0);
                let found = run.partition.offset_for_timestamp(Timestamp(49)).unwrap();
                assert_eq!(found.map(|found| found.timestamp), Some(Timestamp(49)));
                for base in &bases[..bases.len() - 1] {
                    for extension in [INDEX, TIMEINDEX] {
                        let same = fs::read(original.file(*base, extension)).unwrap();
                        assert_eq!(
                            fs::read(fixture.file(*base, extension)).unwrap(),
                            same,
                            "{what} {base}.{extension}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_damaged_sealed_segment_is_told_not_cut() {
    let original = Fixture::new(small());
    let run = original.open();
    for n in 0..30 {
        run.append(&numbered(2, n));
    }
    drop(run);
    let bases = original.bases();

    let fixture = copy(&original);
    fs::remove_file(fixture.file(bases[1], LOG)).unwrap();
    assert!(matches!(fixture.try_open(), Err(LogError::Gap { .. })));
    assert!(!fixture.file(bases[1], INDEX).exists(), "indexes without a log go");

    let fixture = copy(&original);
    let path = fixture.file(bases[1], LOG);
    let mut bytes = fs::read(&path).unwrap();
    let in_the_second_batch = numbered(2, 10).len() + 80;
    bytes[in_the_second_batch] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let run = fixture.open();
    let sealed = run.partition.sealed_segments(Offset(bases[1]));
    let batches: Vec<_> = sealed[0].batches().unwrap().collect();
    assert!(matches!(batches.last(), Some(Err(LogError::Damaged { .. }))));
    assert_eq!(batches.len(), 2);
}

#[test]
fn a_crash_between_two_rolls_steps_is_recovered() {
    let original = Fixture::new(topic_config());
    let run = original.open();
    run.append(&numbered(2, 1));
    drop(run);
    // The new segment is in the folder, empty, its indexes are not.
    fs::write(original.file(2, LOG), b"").unwrap();
    let run = original.open();
    assert_eq!((run.partition.high_watermark(), run.values(0).len()), (Offset(2), 2));
    assert_eq!(run.partition.sealed_segments(Offset::ZERO).len(), 1);
    assert_eq!(run.append(&numbered(1, 1)).base_offset, Offset(2));
}

#[test]
fn a_new_partition_in_a_cleanly_started_log_is_durable_from_its_first_ack() {
    let fixture = Fixture::new(topic_config());
    fixture.open().log.close().unwrap();
    let (log, _) = fixture.open_log().unwrap();
    let other = TopicPartition::new(TopicName::new("later").unwrap(), PartitionId(0));
    let partition = log.open_partition(other, TopicId::random(), Arc::new(topic_config()), Offset(12)).unwrap();
    let appended = partition.append(&numbered(2, 1)).unwrap();
    assert_eq!(appended.base_offset, Offset(12), "an empty log starts at the log start");
    block_on(partition.committed(Offset(14))).unwrap();
}

#[test]
fn a_log_wholly_below_its_start_begins_anew() {
    let mut fixture = Fixture::new(small());
    let run = fixture.open();
    for n in 0..20 {
        run.append(&numbered(2, n));
    }
    drop(run);
    fixture.log_start = Offset(41);
    let run = fixture.open();
    assert_eq!((run.partition.log_end_offset(), fixture.bases()), (Offset(41), vec![41]));
    assert_eq!(run.append(&numbered(1, 1)).base_offset, Offset(41));
    drop(run);
    assert_eq!(fixture.open().values(41).len(), 1);
}

/// The files of a segment as they were first written: they are what is written today, and they can be read.
#[test]
fn golden_segment() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/orders-0");
    let config = TopicConfig { index_interval_bytes: 150, ..topic_config() };
    let fixture = Fixture::new(config.clone());
    let run = fixture.open();
    for (n, time) in (0..).zip([100, 300, 200, 300, 250, 400, 100, 90]) {
        run.append(&compressed(&numbered(2, time), [Compression::None, Compression::Gzip][n % 2]));
    }
    run.partition.seal().unwrap();
    drop(run);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(&golden).unwrap();
        for extension in [LOG, INDEX, TIMEINDEX] {
            fs::copy(fixture.file(0, extension), file_path(&golden, Offset(0), extension)).unwrap();
        }
    }
    for extension in [INDEX, TIMEINDEX] {
        let stored = fs::read(file_path(&golden, Offset(0), extension)).unwrap();
        assert_eq!(fs::read(fixture.file(0, extension)).unwrap(), stored, "{extension}");
    }
    let old = Fixture::new(config);
    let dir = old.dir.path().join("orders-0");
    fs::create_dir(&dir).unwrap();
    copy_dir(&golden, &dir);
    fs::write(old.file(16, LOG), b"").unwrap();
    let run = old.open();
    assert_eq!(run.values(0).len(), 16);
    let found = run.partition.offset_for_timestamp(Timestamp(301)).unwrap();
    assert_eq!(found, Some(TimestampedOffset { offset: Offset(10), timestamp: Timestamp(400) }));
    assert_eq!(run.partition.max_timestamp().unwrap(), found);
}
