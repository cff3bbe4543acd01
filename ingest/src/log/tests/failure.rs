//! A disk that fails. Must be survived: a failed write, a full disk, a sync that fails once and then pretends to work.

use std::sync::atomic::Ordering;

use super::*;
use crate::log::file_system::{FILES_MIN, FileSystem};
use crate::log::flusher::flush_at_once;

#[test]
fn a_failed_write_leaves_no_trace() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append(&numbered(2, 1));
    let log = run.partition.writer.lock().files.log.clone();
    log.faults.write.store(true, Ordering::Relaxed);
    let batch = with_producer(numbered(2, 2), 9, 0, 0);
    assert!(matches!(run.partition.append(&batch), Err(AppendError::Storage { .. })));
    assert_eq!(log.len().unwrap(), run.partition.hot_bytes());
    log.faults.write.store(false, Ordering::Relaxed);
    assert_eq!(
        run.append(&batch),
        Appended { base_offset: Offset(2), last_offset: Offset(3), log_append_time: Timestamp::NONE, duplicate: false }
    );
    assert_eq!(run.metrics.log_failures.get(), 0);
    drop(run);
    assert_eq!(fixture.open().values(0).len(), 4);
}

#[test]
fn a_write_that_cannot_be_taken_back_ends_the_partition() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append(&numbered(2, 1));
    let log = run.partition.writer.lock().files.log.clone();
    log.faults.write.store(true, Ordering::Relaxed);
    log.faults.truncate.store(true, Ordering::Relaxed);
    assert!(matches!(run.partition.append(&numbered(2, 2)), Err(AppendError::Offline { .. })));
    log.faults.write.store(false, Ordering::Relaxed);
    assert!(matches!(run.partition.append(&numbered(2, 2)), Err(AppendError::Offline { .. })));
    drop(run);
    assert_eq!(fixture.open().values(0).len(), 2);
}

#[test]
fn a_failed_sync_acks_nothing_and_is_not_tried_again() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append(&numbered(2, 1));
    let log = run.partition.writer.lock().files.log.clone();
    log.faults.sync.store(true, Ordering::Relaxed);
    // Two at once: both are told.
    let ends = [(); 2].map(|()| run.partition.append(&numbered(2, 2)));
    for appended in ends.into_iter().flatten() {
        assert!(matches!(run.committed(appended.last_offset.next()), Err(AppendError::Offline { .. })));
    }
    log.faults.sync.store(false, Ordering::Relaxed);
    assert!(matches!(run.partition.append(&numbered(2, 2)), Err(AppendError::Offline { .. })));
    assert!(matches!(run.partition.seal(), Err(LogError::Offline { .. })));
    run.log.maintain();
    assert_eq!(run.partition.high_watermark(), Offset(2));
    assert!(run.committed(Offset(2)).is_ok(), "what was committed before stays committed");
    assert_eq!(run.values(0).len(), 2, "and readable");
    assert_eq!(run.metrics.log_failures.get(), 1);
    assert!(matches!(run.log.close(), Err(LogError::Offline { .. })));
    assert!(!fixture.dir.path().join(".clean_shutdown").exists());
    drop(run);
    assert!(fixture.open().partition.high_watermark() >= Offset(2));
}

#[test]
fn many_files_are_committed_by_one_sync_unless_it_fails() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    let mut group = vec![run.partition.clone()];
    for number in 1..FILES_MIN {
        let tp = TopicPartition { partition: PartitionId(number as i32), ..tp() };
        let partition = run.log.open_partition(tp, run.partition.topic_id(), run.partition.config(), Offset::ZERO);
        group.push(partition.unwrap());
    }
    let committed =
        || group.iter().filter(|partition| partition.high_watermark() == partition.log_end_offset()).count();
    run.log.flusher.stop();
    let append = || {
        for partition in &group {
            partition.append(&numbered(2, 1)).unwrap();
        }
    };
    append();
    assert_eq!(committed(), 0);
    let device = run.partition.device().unwrap();
    // It works, fails once, and would work again.
    let mut syncs = 0;
    let sync = move || {
        syncs += 1;
        if syncs == 2 { Err(std::io::Error::other("injected")) } else { Ok(()) }
    };
    let mut file_system = FileSystem::new(device, Box::new(sync), Box::new(|| Some(0)));
    assert!(!flush_at_once(&mut file_system, &group[1..], 0), "too few");
    assert!(flush_at_once(&mut file_system, &group, 0));
    assert_eq!(committed(), group.len());
    append();
    assert!(!flush_at_once(&mut file_system, &group, 0), "it fails, and nothing is acked by it");
    assert_eq!(committed(), 0);
    assert!(!flush_at_once(&mut file_system, &group, 0), "and is not tried again");
    group.iter().for_each(|partition| partition.flush());
    assert_eq!(committed(), group.len());
    let mut other = FileSystem::new(device + 1, Box::new(|| Ok(())), Box::new(|| Some(0)));
    append();
    assert!(!flush_at_once(&mut other, &group, 0), "not theirs");
    assert_eq!(committed(), 0);
}

#[test]
fn a_sync_that_fails_while_sealing_ends_the_partition() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append(&numbered(2, 1));
    run.partition.writer.lock().files.log.faults.sync.store(true, Ordering::Relaxed);
    assert!(run.partition.seal().is_err());
    assert!(matches!(run.partition.append(&numbered(2, 2)), Err(AppendError::Offline { .. })));
    assert_eq!(fixture.bases(), [0]);
}

#[test]
fn below_the_disk_reserve_appends_are_refused_until_there_is_space() {
    let mut fixture = Fixture::new(topic_config());
    (fixture.disk_reserve, fixture.disk_free) = (1000, Arc::new(AtomicU64::new(5000)));
    let run = fixture.open();
    run.append(&numbered(1, 1));
    let internal = TopicPartition::new(TopicName::new("__consumer_offsets").unwrap(), PartitionId(0));
    let id = TopicId(uuid::Uuid::from_u128(8));
    let internal = run.log.open_partition(internal, id, Arc::new(topic_config()), Offset::ZERO).unwrap();
    fixture.disk_free.store(999, Ordering::Relaxed);
    run.partition.env.disk.check();
    let error = run.partition.append(&numbered(1, 1)).unwrap_err();
    assert!(matches!(error, AppendError::DiskReserve { reserve_bytes: 1000, .. }), "{error}");
    assert_eq!(run.values(0).len(), 1, "what is there can be read");
    internal.append(&numbered(1, 1)).unwrap();
    assert_eq!(run.metrics.disk_reserve_reached.get(), 1);
    fixture.disk_free.store(1000, Ordering::Relaxed);
    run.partition.env.disk.check();
    assert_eq!(run.append(&numbered(1, 1)).base_offset, Offset(1));
    assert_eq!(run.metrics.disk_reserve_reached.get(), 0);
}

#[test]
fn a_tight_disk_takes_local_copies_of_what_is_archived_and_no_more() {
    let mut fixture = Fixture::new(topic_config());
    (fixture.disk_reserve, fixture.disk_free) = (1000, Arc::new(AtomicU64::new(2000)));
    let run = fixture.open();
    let mut size = 0;
    for n in 0..4 {
        run.append(&numbered(2, n));
        run.partition.seal().unwrap();
        size = run.partition.hot_bytes() / (n as u64 + 1);
    }
    run.log.make_room();
    assert_eq!(fixture.bases(), [0, 2, 4, 6, 8], "space is not tight");
    fixture.disk_free.store(1999, Ordering::Relaxed);
    run.partition.env.disk.check();
    run.log.make_room();
    assert_eq!(fixture.bases(), [0, 2, 4, 6, 8], "nothing is archived");
    run.partition.set_archived_through(Offset(6));
    run.log.make_room();
    assert_eq!(fixture.bases(), [2, 4, 6, 8], "one segment is enough");
    fixture.disk_free.store(0, Ordering::Relaxed);
    run.partition.env.disk.check();
    run.log.maintain();
    assert_eq!(fixture.bases(), [6, 8], "all that is archived");
    assert_eq!(run.metrics.trimmed_early_bytes.get(), 3 * size);
    assert_eq!((run.partition.local_start_offset(), run.partition.log_start_offset()), (Offset(6), Offset::ZERO));
    assert_eq!(run.values(6).len(), 2);
}
