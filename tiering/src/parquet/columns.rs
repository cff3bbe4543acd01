//! Column encoding and compression, on a thread beside the one that decodes the log.
//!
//! The two take about equal time, so one file is made on two cores. What is under way between them is bounded:
//! [`SLICES_QUEUED_MAX`] slices, and at the end of each row group the sender waits until the encoder has caught up.
//! That wait costs a slice's time per row group, and makes the memory that is reported independent of timing.
//!
//! The thread ends when its sender is dropped, at the first error, or when it is finished; an error is told at the next
//! row group or slice.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_writer::ArrowWriter;
use parquet::errors::ParquetError as LibraryError;

use super::ParquetError;
use crate::background;

/// Slices that wait for the encoder.
const SLICES_QUEUED_MAX: usize = 16;
const THREAD_NAME: &str = "parquet";

type Writer = ArrowWriter<Vec<u8>>;
type Thread = JoinHandle<Result<Writer, LibraryError>>;

pub(super) struct ColumnEncoder {
    steps: SyncSender<Step>,
    /// Memory of the file so far, after each row group.
    ended: Receiver<usize>,
    /// `None` once its failure was told.
    thread: Option<Thread>,
}

enum Step {
    Write(RecordBatch),
    EndRowGroup,
}

impl ColumnEncoder {
    pub fn start(mut writer: Writer) -> Result<Self, ParquetError> {
        let (steps, to_do) = sync_channel(SLICES_QUEUED_MAX);
        let (has_ended, ended) = sync_channel(1);
        let encode = move || {
            for step in to_do {
                match step {
                    Step::Write(slice) => {
                        writer.write(&slice)?;
                        background::pause();
                    }
                    Step::EndRowGroup => {
                        writer.flush()?;
                        if has_ended.send(writer.inner().capacity()).is_err() {
                            break;
                        }
                    }
                }
            }
            Ok(writer)
        };
        let thread = background::spawn_low_priority(THREAD_NAME, encode).map_err(ParquetError::Thread)?;
        Ok(Self { steps, ended, thread: Some(thread) })
    }

    /// Hands over a slice; waits while the encoder is far behind.
    pub fn write(&mut self, slice: RecordBatch) -> Result<(), ParquetError> {
        self.send(Step::Write(slice))
    }

    /// Ends the row group and waits for it. Returns the memory that the file takes so far.
    pub fn end_row_group(&mut self) -> Result<usize, ParquetError> {
        self.send(Step::EndRowGroup)?;
        self.ended.recv().map_err(|_| self.failure())
    }

    /// Waits for all slices; the writer is to be closed.
    pub fn finish(self) -> Result<Writer, ParquetError> {
        drop(self.steps);
        join(self.thread)
    }

    fn send(&mut self, step: Step) -> Result<(), ParquetError> {
        self.steps.send(step).map_err(|_| self.failure())
    }

    /// Why the thread has ended.
    fn failure(&mut self) -> ParquetError {
        match join(self.thread.take()) {
            Err(error) => error,
            Ok(_) => ParquetError::Stopped,
        }
    }
}

fn join(thread: Option<Thread>) -> Result<Writer, ParquetError> {
    let ended = thread.ok_or(ParquetError::Stopped)?.join();
    Ok(ended.map_err(|_| ParquetError::Stopped)??)
}
