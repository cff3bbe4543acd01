//! The writing end of a partition. What can be done without the lock (validation, CRC, the copy, another codec, the
//! time stamp) is done before it is taken; under it a batch gets its offset and goes to the file with one write.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use thermocline_config::{TopicCompression, TopicConfig};

use super::error::{AppendError, IoContext, LogError, TransactionRefusal};
use super::index::{OffsetEntry, TimeEntry};
use super::partition::{Partition, gauge};
use super::producer_state::{ProducerState, SequenceError};
use super::segment::{POSITION_MAX, Segment, SegmentFiles, delete_files, sync_dir};
use super::snapshot;
use super::transactions::{AbortedTransaction, Unstable};
use crate::model::{LEADER_EPOCH, Offset, Timestamp};
use crate::record::{
    BASE_OFFSET, BatchHeader, BatchRefusal, BatchRules, Compression, LEADER_EPOCH_FIELD, TransactionOutcome,
    check_size, encode_marker, recompress, stamp_log_append_time, validate_batch,
};

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: Offset,
    pub last_offset: Offset,
    /// -1 unless LogAppendTime
    pub log_append_time: Timestamp,
    /// The producer sent a batch again that is in the log already; the offsets are those it got then.
    pub duplicate: bool,
}

/// Whether a transactional batch is one of a transaction that its coordinator has open, and that includes the
/// partition. Asked while the partition takes nothing else, markers included: so a batch that is admitted lies before
/// the marker that ends its transaction, and none opens a transaction that no coordinator would end.
pub type Admission<'a> = &'a dyn Fn(&BatchHeader) -> Result<(), TransactionRefusal>;

/// Where a batch comes from, which decides what is asked of it.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Producer(Admission<'a>),
    /// A coordinator's own batches are in no sequence.
    Coordinator,
}

/// The end of the active segment; behind the partition's lock.
pub(super) struct Writer {
    pub segment: Arc<Segment>,
    pub files: SegmentFiles,
    /// Where the next batch goes.
    pub position: u64,
    /// The offset it gets.
    pub next: Offset,
    pub indexer: Indexer,
    /// When the active segment got its first batch; None while it is empty.
    pub first_append: Option<Timestamp>,
    pub producers: ProducerState,
    /// Since the flusher looked last.
    pub unflushed_records: i64,
}

/// Decides which batches of a segment get index entries, while appending as while rebuilding.
#[derive(Clone, Debug)]
pub(super) struct Indexer {
    base: Offset,
    /// Log bytes since the last indexed batch, that one included.
    pub bytes_since_entry: u64,
    pub max_timestamp: Timestamp,
    /// Last offset of the first batch that has it.
    pub max_timestamp_offset: Offset,
    /// Largest timestamp that is in the time index.
    pub indexed_timestamp: Timestamp,
}

impl Indexer {
    pub fn new(base: Offset) -> Self {
        Self {
            base,
            bytes_since_entry: 0,
            max_timestamp: Timestamp::NONE,
            max_timestamp_offset: base,
            indexed_timestamp: Timestamp::NONE,
        }
    }

    /// Takes note of the next batch and returns the entry to be written for it, if one is due.
    pub fn note(&mut self, header: &BatchHeader, position: u64, interval_bytes: u64) -> Option<OffsetEntry> {
        if header.max_timestamp > self.max_timestamp {
            self.max_timestamp = header.max_timestamp;
            self.max_timestamp_offset = header.last_offset();
        }
        let due = self.bytes_since_entry > interval_bytes;
        if due {
            self.bytes_since_entry = 0;
        }
        self.bytes_since_entry += header.size_bytes() as u64;
        due.then(|| OffsetEntry {
            offset: self.relative(header.last_offset()),
            position: u32::try_from(position).unwrap_or(u32::MAX),
        })
    }

    /// The time index entry that says what is known now, if it would say anything new.
    pub fn time_entry(&mut self) -> Option<TimeEntry> {
        if self.max_timestamp <= self.indexed_timestamp {
            return None;
        }
        self.indexed_timestamp = self.max_timestamp;
        Some(TimeEntry { timestamp: self.max_timestamp.0, offset: self.relative(self.max_timestamp_offset) })
    }

    fn relative(&self, offset: Offset) -> u32 {
        u32::try_from(self.base.distance_to(offset)).unwrap_or(u32::MAX)
    }
}

impl Writer {
    /// The first batch of the active segment is older than `segment_ms`.
    pub fn is_older_than(&self, now: Timestamp, segment_ms: i64) -> bool {
        self.first_append.is_some_and(|first| now.0.saturating_sub(first.0) >= segment_ms)
    }

    /// Brings the time index up to date.
    fn write_time_entry(&mut self) -> io::Result<()> {
        let indexed_before = self.indexer.indexed_timestamp;
        let Some(entry) = self.indexer.time_entry() else { return Ok(()) };
        self.files.times.append(&[entry]).inspect_err(|_| self.indexer.indexed_timestamp = indexed_before)
    }

    /// The batch belongs into a new segment.
    fn must_roll_for(&self, header: &BatchHeader, now: Timestamp, config: &TopicConfig) -> bool {
        let end = self.position + header.size_bytes() as u64;
        let last = self.next.plus(i64::from(header.last_offset_delta));
        self.position > 0
            && (end > config.segment_bytes
                || end > POSITION_MAX
                || self.segment.base.distance_to(last) > POSITION_MAX
                || self.is_older_than(now, config.segment_age_max_ms()))
    }
}

impl Partition {
    /// Validates one v2 batch (header, CRC, sequence), assigns offsets, appends to the active segment, rolls where due,
    /// schedules the group commit. Blocking (page-cache write). Not yet durable: wait with `committed`.
    ///
    /// Batches made by the broker itself go the same way; their base offset must be 0 like a producer's. Those of a
    /// transaction are refused: see [`Self::append_in_transaction`].
    pub fn append(&self, batch: &[u8]) -> Result<Appended, AppendError> {
        self.append_from(batch, Origin::Producer(&|_| Err(TransactionRefusal::NotIncluded)))
    }

    /// Like [`Self::append`], for a batch that may belong to a transaction; `admission` says whether it does.
    pub fn append_in_transaction(&self, batch: &[u8], admission: Admission<'_>) -> Result<Appended, AppendError> {
        self.append_from(batch, Origin::Producer(admission))
    }

    /// Like [`Self::append`], for a batch of a coordinator within a transaction that it knows to be open.
    pub fn append_as_coordinator(&self, batch: &[u8]) -> Result<Appended, AppendError> {
        self.append_from(batch, Origin::Coordinator)
    }

    fn append_from(&self, batch: &[u8], origin: Origin<'_>) -> Result<Appended, AppendError> {
        let config = self.config();
        let now = self.env.clock.now();
        let mut header = validate_batch(batch, &rules(&config), now)?;
        if config.remote_storage_enable
            && !self.topic_partition.topic.is_internal()
            && self.env.replaced.load(Ordering::Acquire)
        {
            return Err(AppendError::Replaced { partition: self.topic_partition.clone() });
        }
        if self.env.disk.is_low() && !self.topic_partition.topic.is_internal() {
            let reserve_bytes = self.env.disk.reserve_bytes();
            return Err(AppendError::DiskReserve { partition: self.topic_partition.clone(), reserve_bytes });
        }
        let mut bytes = match config.compression {
            Some(target) => recompressed(batch, &mut header, target, &config)?,
            None => batch.to_vec(),
        };
        let log_append_time = if config.log_append_time {
            stamp_log_append_time(&mut bytes, &header, now);
            header.max_timestamp = now;
            now
        } else {
            Timestamp::NONE
        };
        bytes[LEADER_EPOCH_FIELD].copy_from_slice(&LEADER_EPOCH.to_be_bytes());

        let mut writer = self.writer.lock();
        self.check_usable()?;
        if let Origin::Producer(admission) = origin {
            let earlier = writer.producers.check(&header).map_err(|error| self.refuse_sequence(error, &header))?;
            if let Some(earlier) = earlier {
                return Ok(Appended {
                    base_offset: earlier.base_offset,
                    last_offset: earlier.base_offset.plus(i64::from(header.last_offset_delta)),
                    log_append_time: earlier.log_append_time,
                    duplicate: true,
                });
            }
            if header.is_transactional() {
                admission(&header).map_err(|reason| self.refuse_transaction(reason, &header))?;
            }
        }
        self.place(&mut writer, &mut header, &mut bytes, now, &config)?;
        if let Some(first) = writer.producers.record(&header, log_append_time, now) {
            self.unstable.lock().begin(first);
        }
        self.publish(&writer);
        let (end, unflushed) = (writer.next, writer.unflushed_records);
        drop(writer);

        self.schedule_flush(end, unflushed, &config);
        Ok(Appended {
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            log_append_time,
            duplicate: false,
        })
    }

    /// Ends the transaction of a producer here, if one is open: appends its marker. Returns the offset through which
    /// the log must be committed before the end counts. Nothing is appended where it has ended already, so that this
    /// may be done again. Blocking.
    ///
    /// A disk that is short of space takes markers: what they end holds segments back that the archive could free.
    /// Where the topic is synced rarely, this syncs, for a coordinator forgets a transaction whose markers are written.
    pub fn end_transaction(
        &self,
        producer_id: i64,
        epoch: i16,
        outcome: TransactionOutcome,
    ) -> Result<Offset, AppendError> {
        let config = self.config();
        let now = self.env.clock.now();
        let marker = encode_marker(producer_id, epoch, outcome, now);
        let mut header = BatchHeader::read(&marker).map_err(BatchRefusal::Corrupt)?;
        let mut bytes = marker.to_vec();
        bytes[LEADER_EPOCH_FIELD].copy_from_slice(&LEADER_EPOCH.to_be_bytes());

        let mut writer = self.writer.lock();
        self.check_usable()?;
        if writer.producers.is_open(producer_id, epoch) {
            self.place(&mut writer, &mut header, &mut bytes, now, &config)?;
            if let Some((first, last_stable_offset)) = writer.producers.end(&header, now) {
                let last_offset = header.base_offset;
                if outcome == TransactionOutcome::Abort {
                    let first_offset = first;
                    let aborted = AbortedTransaction { first_offset, last_offset, producer_id, last_stable_offset };
                    self.note_aborted(&writer, aborted)?;
                }
                self.unstable.lock().end(first, last_offset);
            }
            self.publish(&writer);
        }
        let (end, unflushed, files) = (writer.next, writer.unflushed_records, writer.files.clone());
        drop(writer);

        self.schedule_flush(end, unflushed, &config);
        if config.flush_messages > 1 {
            self.sync(&files, end, false).map_err(|source| self.storage_error(source))?;
        }
        Ok(end)
    }

    /// Without its entry, readers would take what was aborted for committed: then better offline.
    fn note_aborted(&self, writer: &Writer, aborted: AbortedTransaction) -> Result<(), AppendError> {
        let (dir, base) = (writer.segment.dir(), writer.segment.base);
        let written = writer.files.make_aborted(dir, base).and_then(|index| index.append(&[aborted]));
        if let Err(error) = written {
            self.fail("noting an aborted transaction", &error);
            self.check_usable()?;
        }
        writer.segment.set_has_aborted();
        Ok(())
    }

    /// Rolls where due, gives the batch its offset and brings it to the file.
    fn place(
        &self,
        writer: &mut Writer,
        header: &mut BatchHeader,
        bytes: &mut [u8],
        now: Timestamp,
        config: &TopicConfig,
    ) -> Result<(), AppendError> {
        if writer.must_roll_for(header, now, config) {
            self.roll(writer).map_err(|source| self.storage_error(source))?;
        }
        header.base_offset = writer.next;
        bytes[BASE_OFFSET].copy_from_slice(&header.base_offset.0.to_be_bytes());
        self.write(writer, bytes)?;
        self.account(writer, header, now, config.index_interval_bytes);
        Ok(())
    }

    /// One write at the known position. A failed one is taken back; if that fails too, what the file holds is unknown.
    fn write(&self, writer: &Writer, bytes: &[u8]) -> Result<(), AppendError> {
        let Err(error) = writer.files.log.write_all_at(bytes, writer.position) else { return Ok(()) };
        if let Err(error) = writer.files.log.truncate(writer.position) {
            self.fail("taking back a failed write", &error);
        }
        Err(self.storage_error(LogError::Io { action: "append to", path: writer.segment.path(), source: error }))
    }

    /// What follows from a batch being in the file; `header` carries its real base offset. Not yet in sight of readers.
    fn account(&self, writer: &mut Writer, header: &BatchHeader, now: Timestamp, index_interval_bytes: u64) {
        if let Some(entry) = writer.indexer.note(header, writer.position, index_interval_bytes)
            && let Err(error) = writer.files.index.append(&[entry]).and_then(|()| writer.write_time_entry())
        {
            // A missing entry makes lookups slower, not wrong.
            tracing::warn!(partition = %self.topic_partition, %error, "could not write an index entry");
        }
        writer.position += header.size_bytes() as u64;
        writer.next = header.next_offset();
        writer.first_append.get_or_insert(now);
        writer.unflushed_records = writer.unflushed_records.saturating_add(i64::from(header.record_count));
        self.env.metrics.hot_bytes.add(gauge(header.size_bytes() as u64));
    }

    /// Lets readers see what is in the file, once everything is known of it.
    fn publish(&self, writer: &Writer) {
        writer.segment.publish(writer.position, writer.next, writer.indexer.max_timestamp);
        self.publish_log_end(writer.next);
    }

    /// Seals the active segment and starts the next one; nothing if it is empty. The order is the invariant: the old
    /// segment is durable, then the new one is in the directory, then it takes data.
    pub(super) fn roll(&self, writer: &mut Writer) -> Result<(), LogError> {
        if writer.position == 0 {
            return Ok(());
        }
        let path = writer.segment.path();
        writer.write_time_entry().on("write the time index of", &path)?;
        // Before the sync, whose failure is for good: a disk that is full for a while must not be.
        writer.files.write_indexes().on("write the indexes of", &path)?;
        self.sync(&writer.files, writer.next, true)?;
        snapshot::write(&self.dir, writer.next, &writer.producers)?;
        let base = writer.next;
        let files = SegmentFiles::open(&self.dir, base).inspect_err(|_| {
            // The old segment goes on and must not be followed by an empty one that starts before its end.
            if let Err(LogError::Io { source, .. }) = delete_files(&self.dir, base) {
                self.fail("taking back a new segment", &source);
            }
        })?;
        if let Err(error) = sync_dir(&self.dir) {
            self.fail("starting a segment", &io::Error::other(error.to_string()));
            return Err(error);
        }
        let segment = Arc::new(Segment::new(self.dir.clone(), base, Some(files.clone())));
        segment.publish(0, base, Timestamp::NONE);
        let sealed = std::mem::replace(&mut writer.segment, segment.clone());
        writer.files = files;
        writer.position = 0;
        writer.indexer = Indexer::new(base);
        writer.first_append = None;
        sealed.seal(self.env.clock.now());
        self.segments.write().push(segment);
        Ok(())
    }

    /// Starts the log over at `offset` if it ends below: the archive holds everything up to there, and an offset that
    /// it has used must not be given out again. At start only, before anybody reads or appends: what is local goes.
    /// Idempotent producers are forgotten, for what they sent last is not known here. Blocking.
    ///
    /// Died in between: the folder holds the oldest segments less some, or none, or the new one alone; the first two
    /// end below `offset` too.
    pub fn start_over_at(&self, offset: Offset) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        self.check_open()?;
        if writer.next >= offset {
            return Ok(());
        }
        let old = self.segments.read().clone();
        let freed: u64 = old.iter().map(|segment| segment.size_bytes()).sum();
        // The newest first, so that what is left has no gap.
        old.iter().rev().try_for_each(|segment| segment.delete())?;
        sync_dir(&self.dir)?;
        let files = SegmentFiles::open(&self.dir, offset)?;
        sync_dir(&self.dir)?;
        writer.producers = ProducerState::default();
        *self.unstable.lock() = Unstable::default();
        snapshot::write(&self.dir, offset, &writer.producers)?;
        let segment = Arc::new(Segment::new(self.dir.clone(), offset, Some(files.clone())));
        segment.publish(0, offset, Timestamp::NONE);
        writer.segment = segment.clone();
        writer.files = files;
        writer.position = 0;
        writer.next = offset;
        writer.indexer = Indexer::new(offset);
        writer.first_append = None;
        *self.segments.write() = vec![segment];
        self.env.metrics.hot_bytes.sub(gauge(freed));
        self.publish_start(offset);
        Ok(())
    }

    fn storage_error(&self, source: LogError) -> AppendError {
        match self.check_usable() {
            Err(offline) => offline,
            Ok(()) => AppendError::Storage { partition: self.topic_partition.clone(), source },
        }
    }

    fn refuse_transaction(&self, reason: TransactionRefusal, header: &BatchHeader) -> AppendError {
        let (partition, producer_id) = (self.topic_partition.clone(), header.producer_id);
        AppendError::Transaction { partition, producer_id, reason }
    }

    fn refuse_sequence(&self, error: SequenceError, header: &BatchHeader) -> AppendError {
        let (partition, producer_id) = (self.topic_partition.clone(), header.producer_id);
        match error {
            SequenceError::Epoch { current } => {
                AppendError::InvalidProducerEpoch { partition, producer_id, epoch: header.producer_epoch, current }
            }
            SequenceError::OutOfOrder { expected } => {
                AppendError::OutOfOrderSequence { partition, producer_id, found: header.base_sequence, expected }
            }
            SequenceError::OpenTransaction { since } => AppendError::OpenTransaction { partition, producer_id, since },
        }
    }
}

/// The batch in the codec of its topic, `header` with it. It must still be one that the topic takes.
fn recompressed(
    batch: &[u8],
    header: &mut BatchHeader,
    target: TopicCompression,
    config: &TopicConfig,
) -> Result<Vec<u8>, BatchRefusal> {
    let target = match target {
        TopicCompression::Uncompressed => Compression::None,
        TopicCompression::Gzip => Compression::Gzip,
        TopicCompression::Snappy => Compression::Snappy,
        TopicCompression::Lz4 => Compression::Lz4,
        TopicCompression::Zstd => Compression::Zstd,
    };
    let Some(again) = recompress(batch, header, target)? else { return Ok(batch.to_vec()) };
    check_size(again.len(), &rules(config))?;
    *header = BatchHeader::read(&again).map_err(BatchRefusal::BadRecords)?;
    Ok(again)
}

fn rules(config: &TopicConfig) -> BatchRules {
    BatchRules {
        message_bytes_max: config.max_message_bytes,
        segment_bytes: config.segment_bytes,
        keys_required: config.cleanup.compact,
        log_append_time: config.log_append_time,
        timestamp_before_max_ms: config.timestamp_before_max_ms,
        timestamp_after_max_ms: config.timestamp_after_max_ms,
    }
}
