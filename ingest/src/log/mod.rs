//! The hot log: partitions as Kafka segment files, one group-commit thread, retention, recovery.
//!
//! | file | station |
//! |---|---|
//! | `hot_log` | the directory: lock, clean-shutdown marker, partitions coming and going, maintenance |
//! | `partition` | what a partition is to others: offsets, high watermark, append, seal, trim |
//! | `append` | the writer behind the partition's lock: sequence check, offset, one write, roll |
//! | `flusher`, `crew`, `file_system` | group commit: one `fdatasync` per dirty file, side by side, or one sync of the file system for many, then the high watermark |
//! | `reading` | batches, offsets by time, out of local segments |
//! | `file_range` | batches that are sent from the file as they are |
//! | `cleaner` | compaction: of each key the newest record stays |
//! | `sealed` | a sealed segment, as the archive reads it |
//! | `segment`, `index`, `scan` | the files |
//! | `deletion` | files that are gone for everybody, until it is time to delete them |
//! | `eraser` | deletes log files piece by piece |
//! | `recovery`, `replay` | from files to a partition, and to what it remembers |
//! | `producer_state`, `snapshot` | producers: sequences, open transactions; and their file |
//! | `transactions` | how far readers of committed data may go, and what was aborted |
//! | `retention` | which local segments may go: pure |
//! | `disk` | free space and the reserve |
//!
//! ```text
//! <dir>/.lock                               held while a broker runs
//! <dir>/.clean_shutdown                     there only after a clean close
//! <dir>/<topic>-<partition>/<base>.log      record batches v2, byte for byte; <base> is 20 digits
//! <dir>/<topic>-<partition>/<base>.index    offset -> position, sparse
//! <dir>/<topic>-<partition>/<base>.timeindex
//! <dir>/<topic>-<partition>/<base>.aborted   aborted transactions, where there are any
//! <dir>/<topic>-<partition>/<next>.snapshot producers as of offset <next>
//! <dir>/<topic>-<partition>/cleaner.checkpoint, *.cleaned, *.swap: see `cleaner/checkpoint.rs`, `cleaner/swap.rs`
//! <dir>/<topic>-<partition>.<random>-delete a removed partition whose files are on their way out
//! ```
//!
//! # Invariants
//! 1. Offsets are dense as they are appended: a batch starts where the one before it ended, within and across segments,
//!    and holds a record for each of its offsets. Compaction takes records out of sealed segments and leaves holes:
//!    within a batch, between batches, and at the end of a segment other than the last compacted one. What a segment
//!    spans stays: each ends where the next one starts.
//! 2. A sealed segment, its indexes and its directory entry are on disk before the next segment takes its first byte.
//!    So only the last segment can be torn, and recovery looks at no other.
//! 3. Under the default policy the high watermark never passes what `fdatasync`, or `syncfs` for many files, has
//!    confirmed, and acks and readers never pass the high watermark. (`flush.messages` above 1 gives that up for its
//!    topic.)
//! 4. A published length never covers bytes that are not written. Readers use positions below it only.
//! 5. After a failed `fdatasync` the kernel may have dropped the pages: it is never tried again. The partition goes
//!    offline, and what the disk really holds is found at the next start. A failed `syncfs` is followed by an
//!    `fdatasync` of each file, which says whose bytes are lost.
//! 6. A producer's sequence state changes only after its batch was written.
//! 7. A transactional batch is taken only while its coordinator has the transaction open, and before the marker that
//!    ends it. The last stable offset never passes an open transaction, nor one whose marker is not durable.
//! 8. A local segment goes, other than into its compacted form, only when the archive has it (or the topic has no
//!    archive), or when nobody may read it any more.
//!
//! # Crash table
//! | died here | then at the next start |
//! |---|---|
//! | during an append, or before its commit | the last segment is scanned, its indexes are made anew; from the first bad batch on it is cut; nobody was told of what is lost |
//! | after the commit, before the ack | the batch is there; the producer's retry is recognised by its sequence |
//! | after a marker, before the commit | the marker may be gone; its transaction is open again, and its coordinator, which forgets nothing before the commit, ends it again |
//! | after a marker, before its entry among the aborted | the entry is made anew from the marker |
//! | rolling: old segment synced, new one not yet in the directory | the old one is the last, is scanned and goes on |
//! | rolling: new files exist, empty | the new one is the last, and empty |
//! | writing a snapshot | its CRC fails; an older one, or the batch headers alone, give the same state |
//! | closing: before the marker | as if it had been killed |
//! | opening: marker removed, nothing written yet | a full scan of the last segments, which finds them whole |
//! | starting over behind the archive's end | what is left still ends below it, and it is done again |
//! | trimming, between two files | the remaining segments are contiguous (oldest go first); index files without a log are removed |
//! | removing: before the rename | the partition is still there |
//! | removing: after the rename | the leftover folder is removed when the log opens |

mod append;
mod cleaner;
mod crew;
mod deletion;
mod disk;
mod eraser;
mod error;
mod file_range;
mod file_system;
mod flusher;
mod hot_log;
mod index;
mod partition;
mod producer_state;
mod reading;
mod recovery;
mod replay;
mod retention;
mod scan;
mod sealed;
mod segment;
mod snapshot;
#[cfg(test)]
mod tests;
mod transactions;

pub use append::{Admission, Appended};
pub use disk::{DiskSpace, FreeSpace, disk_space, free_space_of};
pub use error::{AppendError, LogError, TransactionRefusal};
pub use file_range::{FileRange, SENDFILE_BYTES_MIN};
pub use hot_log::HotLog;
pub use partition::Partition;
pub use producer_state::Producer;
pub use sealed::SealedSegment;
pub use transactions::AbortedTransaction;
