//! Files of segments that are gone for everybody, until it is time to delete them (`file.delete.delay.ms`).
//!
//! ```text
//! <file of a segment>.<random>.deleted    opened by nobody; all of them go at the next start
//! ```
//! A log file goes first, so that what a crash leaves behind of its segment is recognised. Where the disk is tight
//! nothing waits.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use uuid::Uuid;

use super::eraser::Eraser;
use super::error::{IoContext, LogError};
use super::segment::{INDEX, LOG, TIMEINDEX, file_path};
use super::transactions::ABORTED;
use crate::model::{Offset, Timestamp};

const DELETED: &str = "deleted";
/// Files of a segment.
const EXTENSIONS: [&str; 4] = [LOG, INDEX, TIMEINDEX, ABORTED];

/// Files of one partition that wait for their deletion. Each is one of a segment that was there: their number has no
/// other limit than the disk.
#[derive(Default)]
pub struct Deletions {
    waiting: Mutex<VecDeque<(Timestamp, PathBuf)>>,
}

impl Deletions {
    /// Takes away the files of the segment at `base`; missing ones are fine. They are deleted at `due`.
    pub fn put_off(&self, dir: &Path, base: Offset, due: Timestamp) -> Result<(), LogError> {
        self.each(dir, base, due, |path, kept| fs::rename(path, kept))
    }

    /// Keeps the files of the segment at `base` until `due` beside others that will come into their place.
    pub fn keep(&self, dir: &Path, base: Offset, due: Timestamp) -> Result<(), LogError> {
        self.each(dir, base, due, |path, kept| fs::hard_link(path, kept))
    }

    fn each(
        &self,
        dir: &Path,
        base: Offset,
        due: Timestamp,
        take: impl Fn(&Path, &Path) -> io::Result<()>,
    ) -> Result<(), LogError> {
        let id = Uuid::new_v4().simple();
        for extension in EXTENSIONS {
            let path = file_path(dir, base, extension);
            let kept = file_path(dir, base, &format!("{extension}.{id}.{DELETED}"));
            match take(&path, &kept) {
                Ok(()) => self.waiting.lock().push_back((due, kept)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).on("put off the deletion of", &path),
            }
        }
        Ok(())
    }

    /// Deletes what is due at `now`. Returns its bytes.
    pub fn carry_out(&self, now: Timestamp, eraser: &Eraser) -> Result<u64, LogError> {
        let mut freed = 0;
        let mut due: VecDeque<_> = {
            let mut waiting = self.waiting.lock();
            let (due, later) = waiting.drain(..).partition(|(due, _)| *due <= now);
            *waiting = later;
            due
        };
        while let Some((at, path)) = due.pop_front() {
            match eraser.delete(&path) {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    due.push_front((at, path));
                    self.waiting.lock().extend(due);
                    return Err(error);
                }
            }
        }
        Ok(freed)
    }
}

/// Whether a file is one whose deletion was put off.
pub fn is_put_off(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == DELETED)
}
