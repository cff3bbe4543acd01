#![cfg(target_os = "linux")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 200;
/// `statfs(2)`: a file system that lives in memory and forgets nothing.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
/// Not a whole number of pages.
const SIZE_BYTES: u64 = PAGES * PAGE_BYTES - 1000;

/// How many pages are in memory, by `fincore` of util-linux. None where there is no such program. (To ask by reading
/// brings pages in, and a busy machine takes so long to answer that they count.)
fn resident_pages(path: &Path) -> Option<u64> {
    let asked = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "PAGES"]).arg(path).output();
    String::from_utf8(asked.ok()?.stdout).unwrap().trim().parse().ok()
}

fn synced_file(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let path = dir.join("file");
    let bytes: Vec<u8> = (0..SIZE_BYTES).map(|n| (n / 7) as u8).collect();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    forget(&file, SIZE_BYTES);
    (path, bytes)
}

/// Reads the pages of `wanted` as a consumer would, but without read-ahead.
fn bring_in(path: &Path, wanted: &[bool]) {
    let file = File::open(path).unwrap();
    advise(&file, 0, 0, rustix::fs::Advice::Random);
    for (page, _) in (0..).zip(wanted).filter(|(_, wanted)| **wanted) {
        file.read_exact_at(&mut [0], page * PAGE_BYTES).unwrap();
    }
}

/// Whether files of `dir` can leave memory at all; not so where the file system lives in it.
fn forgets(dir: &Path) -> bool {
    let (path, _) = synced_file(dir);
    resident_pages(&path).is_some_and(|pages| pages < PAGES)
}

#[test]
fn what_is_forgotten_is_not_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = synced_file(dir.path());
    let in_memory_file_system = rustix::fs::statfs(dir.path()).unwrap().f_type == TMPFS_MAGIC;
    let resident = resident_pages(&path).unwrap_or(0);
    assert!(in_memory_file_system || resident * PAGE_BYTES <= PIECE_BYTES, "{resident} pages");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    /// Reading a file through in any steps returns its bytes and leaves in memory what was there before. Without the
    /// kernel's help a page that a fast disk fetches before the question for it is over counts as one that was there,
    /// so a piece of difference is let pass.
    #[test]
    fn reading_leaves_the_page_cache_as_it_was(
        // a prefix of whole pieces that consumers hold, as they hold the end of a log
        pieces in 0..=(PAGES * PAGE_BYTES / PIECE_BYTES),
        steps in prop::collection::vec(1000_usize..300_000, 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let forgets = forgets(dir.path());
        let (path, bytes) = synced_file(dir.path());
        let held: Vec<bool> = (0..PAGES).map(|page| page * PAGE_BYTES < pieces * PIECE_BYTES).collect();
        bring_in(&path, &held);
        let mut reader = QuietReader::new(File::open(&path).unwrap());
        let mut read = Vec::new();
        for step in steps.iter().cycle() {
            let left = bytes.len() - read.len();
            if left == 0 {
                break;
            }
            let mut buf = vec![0; left.min(*step)];
            reader.read_exact_at(&mut buf, read.len() as u64).unwrap();
            read.extend_from_slice(&buf);
        }
        drop(reader);
        prop_assert!(read == bytes);
        if forgets {
            let held = held.iter().filter(|held| **held).count() as u64;
            let resident = resident_pages(&path).unwrap_or(held);
            prop_assert!(resident.abs_diff(held) * PAGE_BYTES <= PIECE_BYTES, "{held} pages before, {resident} after");
        }
    }
}

#[test]
fn reading_beyond_the_end_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = synced_file(dir.path());
    let mut reader = QuietReader::new(File::open(&path).unwrap());
    let error = reader.read_exact_at(&mut [0; 2000], SIZE_BYTES - 1000).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}
