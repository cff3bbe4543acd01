use std::ops::Range;

use super::*;
use crate::manifest::ObjectRef;
use crate::split::Analyser;
use crate::testing::path;
use thermocline_ingest::model::Timestamp;

const LOG: SplitOptions = SplitOptions { analyser: Analyser::Log, ..SplitOptions::DEFAULT };

fn file(range: Range<i64>, indexed: SplitOptions) -> Arc<DataFile> {
    let object = |kind: &str| ObjectRef { key: format!("{kind}-{}", range.start), size_bytes: 1, xxh3: String::new() };
    Arc::new(DataFile {
        base_offset: Offset(range.start),
        last_offset: Offset(range.end - 1),
        rows: (range.end - range.start) as u64,
        dropped: 0,
        min_timestamp: Timestamp(0),
        max_timestamp: Timestamp(0),
        log_bytes: 10,
        digest: String::new(),
        data: object("data"),
        split: Some(object("split")),
        indexed: Some(indexed),
        raw: None,
    })
}

fn manifest(version: u64, indexed: &[SplitOptions]) -> Manifest {
    let files = indexed.iter().zip(0..).map(|(indexed, n)| file(n * 10..n * 10 + 10, *indexed)).collect();
    Manifest { version, files, ..Manifest::empty(&path()) }
}

/// Works through a manifest as commits would change it. Returns the order of the files.
fn work_through(scan: &mut Scan, files: &mut [SplitOptions], version: &mut u64, wanted: SplitOptions) -> Vec<usize> {
    let mut order = Vec::new();
    scan.follow(Some(wanted));
    while let Some(next) = scan.next(&manifest(*version, files), Some(wanted), Offset::ZERO) {
        let at = (next.base_offset.0 / 10) as usize;
        order.push(at);
        files[at] = wanted;
        *version += 1;
    }
    order
}

#[test]
fn the_newest_files_come_first_and_each_comes_once() {
    let mut files = [SplitOptions::DEFAULT, LOG, SplitOptions::DEFAULT, SplitOptions::DEFAULT];
    let (mut scan, mut version) = (Scan::default(), 1);
    assert_eq!(scan.pending(&manifest(version, &files), Some(LOG)), 3);
    assert_eq!(work_through(&mut scan, &mut files, &mut version, LOG), [3, 2, 0]);
    assert_eq!(work_through(&mut scan, &mut files, &mut version, LOG), [0_usize; 0]);
    assert_eq!(scan.at_rest, Some(version));
    assert_eq!(scan.pending(&manifest(version, &files), Some(LOG)), 0);
    // The setting goes back.
    assert_eq!(work_through(&mut scan, &mut files, &mut version, SplitOptions::DEFAULT), [3, 2, 1, 0]);
}

#[test]
fn what_is_added_meanwhile_is_not_forgotten() {
    let (mut scan, mut files) = (Scan::default(), vec![SplitOptions::DEFAULT; 3]);
    scan.follow(Some(LOG));
    let next = |scan: &mut Scan, version, files: &[SplitOptions]| {
        scan.next(&manifest(version, files), Some(LOG), Offset::ZERO).map(|file| file.base_offset.0)
    };
    assert_eq!(next(&mut scan, 1, &files), Some(20));
    files[2] = LOG;
    // Made by a job that began before the setting changed.
    files.push(SplitOptions::DEFAULT);
    assert_eq!(next(&mut scan, 3, &files), Some(10));
    files[1] = LOG;
    assert_eq!(next(&mut scan, 4, &files), Some(0));
    files[0] = LOG;
    assert_eq!(next(&mut scan, 5, &files), Some(30));
    files[3] = LOG;
    assert_eq!(next(&mut scan, 6, &files), None);
}

#[test]
fn what_is_barred_or_has_expired_is_left_alone() {
    let files = [SplitOptions::DEFAULT; 3];
    let mut scan = Scan::default();
    scan.follow(Some(LOG));
    scan.barred.insert("data-20".to_owned());
    let found = scan.next(&manifest(1, &files), Some(LOG), Offset(10)).unwrap();
    assert_eq!(found.base_offset, Offset(10));
    scan.barred.insert("data-10".to_owned());
    assert!(scan.next(&manifest(1, &files), Some(LOG), Offset(10)).is_none());
    assert_eq!(scan.pending(&manifest(1, &files), Some(LOG)), 3, "they are still to be done");
    // Another setting may fit.
    scan.follow(None);
    assert_eq!(scan.next(&manifest(1, &files), None, Offset(10)).unwrap().base_offset, Offset(20));
}
