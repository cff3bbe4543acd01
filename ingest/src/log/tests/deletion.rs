//! Files of segments that went, until their deletion.

use super::compaction::compacted;
use super::*;
use crate::log::segment::{INDEX, file_path};

const DELAY_MS: i64 = 5000;

impl Fixture {
    /// Files that wait for their deletion.
    fn waiting(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.path().join("orders-0")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "deleted")).count()
    }
}

#[test]
fn files_of_what_was_compacted_wait_for_their_deletion() {
    let fixture = Fixture::new(TopicConfig { file_delete_delay_ms: DELAY_MS, ..compacted() });
    let run = fixture.open();
    for n in 0..3 {
        run.put(&[(1, Some(n)), (n, Some(n))], 1);
        run.partition.seal().unwrap();
    }
    run.clean();
    assert_eq!((fixture.bases(), fixture.waiting()), (vec![0, 6], 9), "log and two indexes of three segments");
    fixture.clock.advance_ms(DELAY_MS - 1);
    run.log.maintain();
    assert_eq!(fixture.waiting(), 9);
    fixture.clock.advance_ms(1);
    run.log.maintain();
    assert_eq!((fixture.bases(), fixture.waiting()), (vec![0, 6], 0));
}

#[test]
fn nothing_waits_over_a_start_or_where_the_disk_is_tight() {
    let config =
        TopicConfig { file_delete_delay_ms: DELAY_MS, remote_storage_enable: false, retention_ms: Some(1), ..small() };
    let fixture = Fixture { disk_reserve: 1000, ..Fixture::new(config) };
    fixture.disk_free.store(5000, Ordering::Relaxed);
    let expire = |run: &Run| {
        run.append(&numbered(3, 5));
        run.partition.seal().unwrap();
        run.log.maintain();
        assert_eq!((fixture.bases().len(), fixture.waiting()), (1, 3));
    };
    let run = fixture.open();
    expire(&run);
    drop(run);
    let run = fixture.open();
    assert_eq!(fixture.waiting(), 0);
    expire(&run);
    fixture.disk_free.store(1500, Ordering::Relaxed);
    run.partition.env.disk.check();
    run.log.make_room();
    assert_eq!(fixture.waiting(), 0);
}

#[test]
fn who_trims_at_the_same_time_drops_nothing_that_is_not_archived() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    for round in 0..40 {
        for n in 0..4 {
            run.append(&numbered(2, n));
            run.partition.seal().unwrap();
        }
        let sealed = run.partition.sealed_segments(Offset::ZERO);
        let archived = sealed[1].end;
        run.partition.set_archived_through(archived);
        let both = std::sync::Barrier::new(2);
        let trim = || {
            both.wait();
            run.partition.trim_local(Offset(i64::MAX)).unwrap()
        };
        let freed = std::thread::scope(|scope| {
            let other = scope.spawn(trim);
            trim() + other.join().unwrap()
        });
        assert_eq!(freed, sealed[0].size_bytes + sealed[1].size_bytes, "round {round}");
        assert_eq!(run.partition.local_start_offset(), archived, "round {round}");
        run.partition.set_archived_through(sealed[3].end);
        run.partition.trim_local(Offset(i64::MAX)).unwrap();
    }
}

#[test]
fn what_was_compacted_meanwhile_is_not_dropped_in_the_place_of_what_expired() {
    let fixture = Fixture::new(compacted());
    let run = fixture.open();
    let mut ends = Vec::new();
    for n in 0..3 {
        run.put(&[(1, Some(n)), (n, Some(n))], 1);
        run.partition.seal().unwrap();
        ends.push(run.partition.log_end_offset());
    }
    // The end of the first, as retention saw it before the three became one.
    run.clean();
    assert_eq!(fixture.bases(), [0, 6]);
    assert_eq!(run.partition.drop_through(ends[0], None).unwrap(), 0);
    assert_eq!(fixture.bases(), [0, 6]);
}

#[test]
fn what_cannot_be_deleted_is_tried_again_before_anything_newer() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    for n in 0..4 {
        run.append(&numbered(2, n));
        run.partition.seal().unwrap();
    }
    // Nobody can unlink a folder.
    let dir = fixture.dir.path().join("orders-0");
    let blocked = file_path(&dir, Offset::ZERO, INDEX);
    std::fs::remove_file(&blocked).unwrap();
    std::fs::create_dir(&blocked).unwrap();
    run.partition.set_archived_through(Offset(6));
    for through in [Offset(4), Offset(6)] {
        run.partition.trim_local(through).unwrap_err();
        assert_eq!(run.partition.local_start_offset(), through);
        assert!(fixture.bases().contains(&2) && fixture.bases().contains(&4), "{:?}", fixture.bases());
    }
    std::fs::remove_dir(&blocked).unwrap();
    assert!(run.partition.trim_local(Offset(6)).unwrap() > 0);
    assert_eq!(fixture.bases(), [6, 8]);
    drop(run);
    assert_eq!(fixture.open().partition.local_start_offset(), Offset(6));
}
