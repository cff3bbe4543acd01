//! Files of segments that went, until their deletion.

use super::compaction::compacted;
use super::*;

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
