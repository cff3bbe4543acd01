//! One sync of a whole file system, in the place of one for each file of a large group commit.
//!
//! `syncfs` costs what is dirty, and threads that call `fdatasync` cost files: each of them is a flush of the disk's
//! cache. So the former is for many files with little in each, and only under conditions:
//!
//! - **Nobody else has much to write**, for `syncfs` waits for what anybody wrote: in all, no more is dirty than
//!   [`DIRTY_BYTES_PER_FILE_MAX`] for each file of the group, and [`INDEX_BYTES_PER_PARTITION`] for each partition of
//!   the broker, whose indexes are not synced with their logs.
//! - **It promises as much as `fdatasync`**: on file systems that are known for it ([`is_known`]), and on a Linux that
//!   reports every failure by it (5.17; from 5.8 on it reports those of data, not those of the journal). On other
//!   systems there is no such call.
//! - **It never failed.** A failure does not say whose bytes were lost, and is reported once. Files know of their own:
//!   so the group that met it is synced file by file, and so is every later one.
//!
//! | died here | then |
//! |---|---|
//! | before it returns | some files may be durable, nothing was acked |

use std::io;
#[cfg(target_os = "linux")]
use std::path::Path;

/// Files from which on it is worth asking. With 10 of them threads take 1.3 times as long, with 100 1.5 times.
pub const FILES_MIN: usize = 32;
/// A file that is synced beside fifteen others takes 0.1 ms; in that time a disk of 650 MB/s writes so much.
const DIRTY_BYTES_PER_FILE_MAX: u64 = 64 << 10;
/// A page of each index, and what a file system keeps of two files.
const INDEX_BYTES_PER_PARTITION: u64 = 16 << 10;
/// From here on `syncfs` reports whatever failed.
#[cfg(target_os = "linux")]
const KERNEL_MIN: (u32, u32) = (5, 17);

/// Makes all of it durable.
type Sync = Box<dyn FnMut() -> io::Result<()> + Send>;
/// Answers how many bytes of all files wait for a disk; None where nobody knows.
type DirtyBytes = Box<dyn FnMut() -> Option<u64> + Send>;

/// The file system of the log.
pub struct FileSystem {
    /// As files on it name it.
    pub device: u64,
    sync: Sync,
    dirty_bytes: DirtyBytes,
    has_failed: bool,
}

impl FileSystem {
    pub fn new(device: u64, sync: Sync, dirty_bytes: DirtyBytes) -> Self {
        Self { device, sync, dirty_bytes, has_failed: false }
    }

    /// The one that holds `dir`, if it is one whose sync is as good as that of each file. Blocking.
    #[cfg(target_os = "linux")]
    pub fn of(dir: &Path) -> Option<Self> {
        let read = || -> io::Result<Option<Self>> {
            let device = device_of(dir)?;
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
            if !is_known(rustix::fs::statfs(dir)?.f_type) || kernel(&release).is_none_or(|it| it < KERNEL_MIN) {
                return Ok(None);
            }
            // Open from now on: failures are reported to who was there.
            let folder = std::fs::File::open(dir)?;
            let dirty_bytes = || dirty_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?);
            Ok(Some(Self::new(device, Box::new(move || Ok(rustix::fs::syncfs(&folder)?)), Box::new(dirty_bytes))))
        };
        read().unwrap_or_else(|error| {
            tracing::debug!(dir = %dir.display(), %error, "files are synced one by one");
            None
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn of(_: &std::path::Path) -> Option<Self> {
        None
    }

    /// Whether `files` of it had better be synced at once, on a broker that has so many `partitions`.
    pub fn suits(&mut self, files: usize, partitions: usize) -> bool {
        let dirty_bytes_max = DIRTY_BYTES_PER_FILE_MAX * files as u64 + INDEX_BYTES_PER_PARTITION * partitions as u64;
        files >= FILES_MIN && !self.has_failed && (self.dirty_bytes)().is_some_and(|dirty| dirty <= dirty_bytes_max)
    }

    /// Says whether everything that was written to it before the call is durable; if not, each file has to be asked.
    pub fn sync(&mut self) -> bool {
        let synced = (self.sync)();
        if let Err(error) = &synced {
            tracing::error!(%error, "syncing the file system of the log failed; from now on its files are synced one by one, until a restart; the kernel's log says what is wrong with the disk");
            self.has_failed = true;
        }
        synced.is_ok()
    }
}

/// Which file system `path` lies on.
pub fn device_of(path: &std::path::Path) -> io::Result<u64> {
    #[cfg(unix)]
    return Ok(std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path)?));
    #[cfg(not(unix))]
    return std::fs::metadata(path).map(|_| 0);
}

/// File systems of local disks whose `syncfs` ends with a flush of the disk's cache: ext4 and XFS (`statfs(2)`).
#[cfg(target_os = "linux")]
fn is_known(kind: impl Into<i64>) -> bool {
    matches!(kind.into(), 0xEF53 | 0x5846_5342)
}

/// The first two numbers of a kernel's release.
#[cfg(target_os = "linux")]
fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What `/proc/meminfo` says is dirty or on its way.
#[cfg(target_os = "linux")]
fn dirty_bytes(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kib("Dirty")? + kib("Writeback")?) << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let meminfo = "MemTotal:       24600000 kB\nDirty:              8124 kB\nWriteback:            12 kB\nWritebackTmp:          7 kB\n";
        assert_eq!(dirty_bytes(meminfo), Some(8136 << 10));
        assert_eq!(dirty_bytes("Dirty: 8 kB\n"), None);
        assert!(dirty_bytes(&std::fs::read_to_string("/proc/meminfo").unwrap()).is_some());
        assert_eq!((kernel("6.1.155+\n"), kernel("5.10-rc1"), kernel("")), (Some((6, 1)), Some((5, 10)), None));
    }

    #[test]
    fn it_suits_many_files_with_little_in_them() {
        let with = |dirty| FileSystem::new(7, Box::new(|| Ok(())), Box::new(move || dirty));
        let dirty_max = FILES_MIN as u64 * DIRTY_BYTES_PER_FILE_MAX + 100 * INDEX_BYTES_PER_PARTITION;
        assert!(with(Some(dirty_max)).suits(FILES_MIN, 100));
        assert!(!with(Some(dirty_max + 1)).suits(FILES_MIN, 100));
        assert!(!with(Some(0)).suits(FILES_MIN - 1, 100));
        assert!(!with(None).suits(1000, 1000));
        let mut failing = FileSystem::new(7, Box::new(|| Err(io::ErrorKind::Other.into())), Box::new(|| Some(0)));
        assert!(failing.suits(1000, 1000) && !failing.sync() && !failing.suits(1000, 1000));
    }

    #[test]
    fn the_file_system_of_a_folder_can_be_synced() {
        let dir = tempfile::tempdir().unwrap();
        if let Some(mut known) = FileSystem::of(dir.path()) {
            assert_eq!(known.device, device_of(dir.path()).unwrap());
            assert!(known.sync());
        }
    }
}
