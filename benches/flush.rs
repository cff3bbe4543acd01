//! A commit over many dirty files: `fdatasync` of each, one after the other or by several threads at once, beside one
//! `syncfs`; and the hot log's own group commit, whatever it does. Each file is appended to before, and the time is
//! from the first write to the end of the last sync. All take turns.
//!
//! Parts of the time that one after the other takes (ext4 on a virtual disk, two cores, nothing else running):
//!
//! | files | one after the other | 4 threads | 16 threads | 32 threads | `syncfs` | hot log | `syncfs` beside others |
//! |---|---|---|---|---|---|---|---|
//! | 1 | 0.7 ms | 0.75 | 0.63 | 0.61 | 0.74 | 0.88 | 193 |
//! | 10 | 4.0 ms | 0.67 | 0.56 | 0.55 | 0.50 | 0.54 | 29 |
//! | 100 | 37 ms | 0.61 | 0.50 | 0.46 | 0.37 | 0.41 | 3.9 |
//! | 1,000 | 393 ms | 0.63 | 0.46 | 0.42 | 0.26 | 0.26 | 0.68 |
//!
//! `syncfs` waits for what others have written to the same file system as well, by its definition; the last row of each
//! size is there to show how long. The log syncs few files by threads, and many by `syncfs` where little else is dirty.
//!
//! The second table is what the file system allows where a commit has [`SPREAD_BYTES`], as producers of many topics
//! send them: the same bytes in few files and in many, one `syncfs` each. It bounds `benches/topics.rs`, strict, on
//! that disk: over 100 files 0.82 of the rate over 10 (304 of 372 MB/s), over 1,000 files 0.35 (129), with the
//! processors idle for three fifths of the time.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::{BenchResult, Rig, Table, batches, megabytes_per_second, milliseconds, quantile};
use thermocline_ingest::topics::Topic;

const FILES: [usize; 4] = [1, 10, 100, 1000];
const APPENDED_BYTES: usize = 10_000;
/// Bytes of a commit that is spread over some of the files.
const SPREAD_BYTES: usize = 16 << 20;
const SPREAD_ROUNDS: usize = 40;
/// Files that it is spread over, the first what the others are held against.
const SPREADS: [usize; 3] = [10, 100, 1000];
/// Bytes that somebody else wrote to the file system and did not sync.
const STRANGERS_BYTES: usize = 64 << 20;

#[derive(Clone, Copy)]
enum Way {
    Threads(usize),
    Syncfs,
    SyncfsBesideOthers,
    HotLog,
}

const WAYS: [Way; 7] = [
    Way::Threads(1),
    Way::Threads(4),
    Way::Threads(16),
    Way::Threads(32),
    Way::Syncfs,
    Way::HotLog,
    Way::SyncfsBesideOthers,
];

#[tokio::main]
async fn main() -> BenchResult {
    let rig = Rig::open().await?;
    let mut table = Table::default();
    for count in FILES {
        let dir = rig.dir.path().join(format!("plain-{count}"));
        std::fs::create_dir(&dir)?;
        let files = (0..count).map(|n| File::create(dir.join(format!("{n}")))).collect::<Result<Vec<_>, _>>()?;
        let settings = [("search.index", "off"), ("remote.storage.enable", "false")];
        let topic = rig.topic_of(&format!("topic-{count}"), i32::try_from(count)?, &settings)?;
        let rounds = (2000 / count).clamp(5, 25);
        let mut took = vec![Vec::new(); WAYS.len()];
        for round in 0..rounds {
            for (way, took) in WAYS.iter().zip(&mut took) {
                took.push(commit(*way, &dir, &files, &topic, round).await?);
            }
        }
        let medians: Vec<_> = took
            .iter_mut()
            .map(|took| {
                took.sort_unstable();
                milliseconds(quantile(took, 500))
            })
            .collect();
        for (way, median) in WAYS.iter().zip(&medians).skip(1) {
            let what = format!("{count} files, {}", way.name());
            table.row(&what, *median, "fdatasync, one after the other", medians[0]);
        }
    }
    table.print("ms");
    spread(rig.dir.path())
}

/// Megabytes per second that reach plain files, the same bytes over more and more of them.
fn spread(dir: &Path) -> BenchResult {
    let folder = File::open(dir)?;
    let mut rates = Vec::new();
    for count in SPREADS {
        let dir = dir.join(format!("spread-{count}"));
        std::fs::create_dir(&dir)?;
        let files = (0..count).map(|n| File::create(dir.join(format!("{n}")))).collect::<Result<Vec<_>, _>>()?;
        let appended = vec![b'x'; SPREAD_BYTES / count];
        rustix::fs::syncfs(&folder)?;
        let start = std::time::Instant::now();
        for round in 0..SPREAD_ROUNDS {
            for file in &files {
                file.write_all_at(&appended, (round * appended.len()) as u64)?;
            }
            rustix::fs::syncfs(&folder)?;
        }
        rates.push(megabytes_per_second(SPREAD_ROUNDS * SPREAD_BYTES, start.elapsed()));
        drop(files);
        std::fs::remove_dir_all(&dir)?;
    }
    let mut table = Table::default();
    for (count, rate) in SPREADS.iter().zip(&rates).skip(1) {
        table.row(&format!("syncfs, {count} files"), *rate, &format!("{} files", SPREADS[0]), rates[0]);
    }
    table.print("MB/s");
    Ok(())
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Threads(count) => format!("{count} threads"),
            Self::Syncfs => "syncfs".to_owned(),
            Self::SyncfsBesideOthers => "syncfs, others write".to_owned(),
            Self::HotLog => "hot log".to_owned(),
        }
    }
}

async fn commit(way: Way, dir: &Path, files: &[File], topic: &Topic, round: usize) -> BenchResult<Duration> {
    let appended = vec![b'x'; APPENDED_BYTES];
    let folder = File::open(dir)?;
    if matches!(way, Way::SyncfsBesideOthers) {
        std::fs::write(dir.join(format!("strangers-{round}")), vec![b'y'; STRANGERS_BYTES])?;
    }
    let write = || -> std::io::Result<()> {
        for file in files {
            file.write_all_at(&appended, file.metadata()?.len())?;
        }
        Ok(())
    };
    let start = std::time::Instant::now();
    match way {
        Way::Threads(threads) => {
            write()?;
            sync_by_threads(files, threads)?;
        }
        Way::Syncfs | Way::SyncfsBesideOthers => {
            write()?;
            rustix::fs::syncfs(&folder)?;
        }
        Way::HotLog => {
            let batch = batches(std::iter::once(&appended)).next().ok_or("no batch")?;
            for partition in &topic.partitions {
                partition.append(&batch)?;
            }
            for partition in &topic.partitions {
                partition.committed(partition.log_end_offset()).await?;
            }
        }
    }
    let took = start.elapsed();
    // The next way begins with a clean file system.
    rustix::fs::syncfs(&folder)?;
    Ok(took)
}

fn sync_by_threads(files: &[File], threads: usize) -> std::io::Result<()> {
    let next = AtomicUsize::new(0);
    let sync = || -> std::io::Result<()> {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            file.sync_data()?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(files.len())).map(|_| scope.spawn(sync)).collect();
        let own = sync();
        helpers.into_iter().try_fold(own, |done, helper| match helper.join() {
            Ok(helped) => Ok(done.and(helped)),
            Err(_) => Err(std::io::Error::other("a thread panicked")),
        })?
    })
}
