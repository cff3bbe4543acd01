//! Compacted files in the place of those they were made from.
//!
//! ```text
//! <base>.log.cleaned, <base>.index.cleaned, <base>.timeindex.cleaned, <base>.aborted.cleaned
//!                        a compacted segment that is being written, or waits to be put in its place; the last of them
//!                        where any of the segments it stands for had aborted transactions, be it without entries
//! <base>.<end>.swap      empty; says that the above are whole, and stand for all segments from <base> up to <end>
//! ```
//! Both numbers have 20 digits. There is at most one of these at a time.
//!
//! | died here | then at the next start |
//! |---|---|
//! | writing the cleaned files | they are deleted; nothing happened |
//! | the swap file is there, durably: from here on the compacted segment counts | the cleaned log is renamed into place; |
//! | the cleaned log, its aborted transactions, or indexes, were renamed, or not | the first two are, if they were not; indexes under that name are deleted, whosever they are, and made anew; |
//! | some of the other old segments are deleted | the others are deleted; |
//! | all is done but the swap file deleted | nothing is left to be done; the swap file goes, after all else is durable |
//!
//! The order within the folder does not matter between the two syncs: the swap file outlives all of it, and each step
//! can be done again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::crash_point;
use crate::log::error::{IoContext, LogError};
use crate::log::segment::{INDEX, LOG, TIMEINDEX, delete_files, file_path, offset_of, remove_if_there, sync_dir};
use crate::log::transactions::ABORTED;
use crate::model::Offset;

const CLEANED: &str = "cleaned";
const SWAP: &str = "swap";

/// Where the compacted form of a file is written.
pub fn cleaned_path(dir: &Path, base: Offset, extension: &str) -> PathBuf {
    file_path(dir, base, &format!("{extension}.{CLEANED}"))
}

/// Deletes what was written and never counted.
pub fn remove_cleaned(dir: &Path, base: Offset) -> Result<(), LogError> {
    [LOG, INDEX, TIMEINDEX, ABORTED]
        .iter()
        .try_for_each(|extension| remove_if_there(&cleaned_path(dir, base, extension)))
}

fn swap_path(dir: &Path, base: Offset, end: Offset) -> PathBuf {
    dir.join(format!("{:020}.{:020}.{SWAP}", base.0, end.0))
}

/// From here on the cleaned files of `base`, which are synced, stand for all segments from `base` up to `end`.
pub fn commit(dir: &Path, base: Offset, end: Offset) -> Result<(), LogError> {
    // A swap file without them would have the old segments deleted for nothing.
    sync_dir(dir)?;
    crash_point();
    let path = swap_path(dir, base, end);
    File::create(&path).and_then(|file| file.sync_all()).on("write", &path)?;
    crash_point();
    sync_dir(dir)
}

/// Puts the cleaned files into their place.
pub fn rename(dir: &Path, base: Offset) -> Result<(), LogError> {
    for extension in [LOG, INDEX, TIMEINDEX] {
        let cleaned = cleaned_path(dir, base, extension);
        crash_point();
        fs::rename(&cleaned, file_path(dir, base, extension)).on("rename", &cleaned)?;
    }
    crash_point();
    rename_if_there(dir, base, ABORTED)
}

fn rename_if_there(dir: &Path, base: Offset, extension: &str) -> Result<(), LogError> {
    let cleaned = cleaned_path(dir, base, extension);
    match fs::rename(&cleaned, file_path(dir, base, extension)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.on("rename", &cleaned),
    }
}

/// Deletes the segments `replaced`, and then the swap file, durably.
pub fn finish(dir: &Path, base: Offset, end: Offset, replaced: &[Offset]) -> Result<(), LogError> {
    for base in replaced {
        crash_point();
        delete_files(dir, *base)?;
    }
    sync_dir(dir)?;
    crash_point();
    remove_if_there(&swap_path(dir, base, end))?;
    crash_point();
    sync_dir(dir)
}

/// Brings a folder in order in which a compaction may have died. Before anything of it is opened.
pub fn finish_swaps(dir: &Path) -> Result<(), LogError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).on("list", dir)? {
        paths.push(entry.on("list", dir)?.path());
    }
    for (base, end) in paths.iter().filter_map(|path| swap_of(path)) {
        tracing::info!(dir = %dir.display(), %base, %end, "finishing a compaction");
        for extension in [INDEX, TIMEINDEX] {
            crash_point();
            remove_if_there(&file_path(dir, base, extension))?;
        }
        for extension in [LOG, ABORTED] {
            crash_point();
            rename_if_there(dir, base, extension)?;
        }
        let between = |at: &Offset| *at > base && *at < end;
        let replaced: Vec<_> = paths.iter().filter_map(|path| offset_of(path, LOG)).filter(between).collect();
        finish(dir, base, end, &replaced)?;
    }
    let cleaned = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == CLEANED);
    paths.iter().filter(cleaned).try_for_each(|path| remove_if_there(path))
}

/// The segments that a swap file stands for, from its name.
fn swap_of(path: &Path) -> Option<(Offset, Offset)> {
    let name = path.file_name()?.to_str()?.strip_suffix(SWAP)?.strip_suffix('.')?;
    let (base, end) = name.split_once('.')?;
    let number = |text: &str| {
        let is_one = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_one.then(|| text.parse().ok().map(Offset)).flatten()
    };
    Some((number(base)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_files_are_known_by_their_names() {
        let dir = Path::new("/x");
        let path = swap_path(dir, Offset(7), Offset(4_000_000));
        assert_eq!(path, dir.join("00000000000000000007.00000000000004000000.swap"));
        assert_eq!(swap_of(&path), Some((Offset(7), Offset(4_000_000))));
        for other in ["00000000000000000007.swap", "7.8.swap", "00000000000000000007.log", "a.swap"] {
            assert_eq!(swap_of(&dir.join(other)), None, "{other}");
        }
    }
}
