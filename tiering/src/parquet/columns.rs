//! Column encoding and compression, on threads beside the one that decodes the log.
//!
//! Encoding takes twice the time of decoding, so a file is made on up to three threads: each row group has a thread of
//! its own that encodes its slices as they come, and [`ROW_GROUPS_AT_ONCE`] of them may be under way, the last of which
//! still gets slices. What is under way is bounded by that: the slices of so many row groups, and what they become.
//! Row groups go into the file in order. Which of them are in it depends on their number alone, so the memory that is
//! reported does not depend on timing.
//!
//! A thread ends when its row group has ended, when the encoder is dropped, or at the first error, which is told when
//! the row group is to go into the file, or with the next slice.

use std::collections::VecDeque;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, ArrowWriter, compute_leaves,
};
use parquet::errors::ParquetError as LibraryError;
use parquet::file::writer::SerializedFileWriter;

use super::ParquetError;
use crate::background;

/// Row groups that are encoded side by side.
const ROW_GROUPS_AT_ONCE: usize = 2;
/// Row groups that are in memory while a file is made: those under way as slices, and what they become.
pub(crate) const ROW_GROUP_COPIES: u64 = 2 * ROW_GROUPS_AT_ONCE as u64;
const THREAD_NAME: &str = "parquet";

type Columns = JoinHandle<Result<Vec<ArrowColumnChunk>, LibraryError>>;

pub(super) struct ColumnEncoder {
    file: SerializedFileWriter<Vec<u8>>,
    factory: ArrowRowGroupWriterFactory,
    /// Row groups begun so far.
    begun: usize,
    current: Option<Current>,
    /// Ended and not yet in the file, oldest first, with their decoded bytes; fewer than [`ROW_GROUPS_AT_ONCE`].
    ended: VecDeque<(Columns, usize)>,
}

/// The row group that still gets slices. Their number is bounded by its size.
struct Current {
    slices: Sender<RecordBatch>,
    columns: Columns,
}

impl ColumnEncoder {
    pub fn new(writer: ArrowWriter<Vec<u8>>) -> Result<Self, ParquetError> {
        let (file, factory) = writer.into_serialized_writer()?;
        Ok(Self { file, factory, begun: 0, current: None, ended: VecDeque::new() })
    }

    /// Hands over a slice of the row group under way.
    pub fn write(&mut self, slice: RecordBatch) -> Result<(), ParquetError> {
        let current = match self.current.take() {
            Some(current) => current,
            None => self.begin_row_group()?,
        };
        match current.slices.send(slice) {
            Ok(()) => {
                self.current = Some(current);
                Ok(())
            }
            Err(_) => join(current.columns).and(Err(ParquetError::Stopped)),
        }
    }

    /// Ends the row group of so many decoded bytes; waits for an earlier one if too many are under way.
    pub fn end_row_group(&mut self, decoded_bytes: usize) -> Result<(), ParquetError> {
        let Some(Current { slices, columns }) = self.current.take() else { return Ok(()) };
        drop(slices);
        self.ended.push_back((columns, decoded_bytes));
        self.append_until(ROW_GROUPS_AT_ONCE - 1)
    }

    /// Memory of the row groups that have ended, about.
    pub fn memory_bytes(&self) -> usize {
        self.file.inner().capacity() + self.ended.iter().map(|(_, decoded_bytes)| decoded_bytes).sum::<usize>()
    }

    /// Waits for all row groups; the file is to be closed.
    pub fn finish(mut self) -> Result<SerializedFileWriter<Vec<u8>>, ParquetError> {
        self.end_row_group(0)?;
        self.append_until(0)?;
        Ok(self.file)
    }

    fn begin_row_group(&mut self) -> Result<Current, ParquetError> {
        let mut writers = self.factory.create_column_writers(self.begun)?;
        self.begun += 1;
        let (slices, to_encode) = channel();
        let encode = move || {
            while let Ok(slice) = background::waiting(|| to_encode.recv()) {
                write_slice(&mut writers, &slice)?;
                background::pause();
            }
            writers.into_iter().map(ArrowColumnWriter::close).collect()
        };
        let columns = background::spawn_low_priority(THREAD_NAME, encode).map_err(ParquetError::Thread)?;
        Ok(Current { slices, columns })
    }

    /// Puts ended row groups into the file, until so many are left.
    fn append_until(&mut self, left: usize) -> Result<(), ParquetError> {
        while self.ended.len() > left
            && let Some((columns, _)) = self.ended.pop_front()
        {
            let mut row_group = self.file.next_row_group()?;
            for column in join(columns)? {
                column.append_to_row_group(&mut row_group)?;
            }
            row_group.close()?;
        }
        Ok(())
    }
}

fn write_slice(writers: &mut [ArrowColumnWriter], slice: &RecordBatch) -> Result<(), LibraryError> {
    let mut writers = writers.iter_mut();
    for (field, column) in slice.schema_ref().fields().iter().zip(slice.columns()) {
        for (leaf, writer) in compute_leaves(field, column)?.iter().zip(&mut writers) {
            writer.write(leaf)?;
        }
    }
    Ok(())
}

fn join(columns: Columns) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
    Ok(background::waiting(|| columns.join()).map_err(|_| ParquetError::Stopped)??)
}
