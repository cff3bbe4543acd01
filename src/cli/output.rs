//! Standard output that others may close early: `thermocline consume … | head` is no error.

use std::io::{self, BufWriter, StdoutLock, Write};

/// The reader of our output went away.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
struct OutputClosed;

/// Buffered standard output. Call [`Self::flush`] at the end, and wherever a person waits for a line.
pub struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
}

impl Output {
    pub fn new() -> Self {
        Self { stdout: BufWriter::new(io::stdout().lock()) }
    }

    pub fn line(&mut self, line: impl AsRef<[u8]>) -> anyhow::Result<()> {
        checked(self.stdout.write_all(line.as_ref()))?;
        checked(self.stdout.write_all(b"\n"))
    }

    pub fn flush(&mut self) -> anyhow::Result<()> {
        checked(self.stdout.flush())
    }
}

fn checked(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        other => Ok(other?),
    }
}

/// Whether a command ended because nobody reads its output any more.
pub fn is_closed(error: &anyhow::Error) -> bool {
    error.is::<OutputClosed>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_output_counts_as_closed() {
        let closed = checked(Err(io::ErrorKind::BrokenPipe.into())).unwrap_err();
        assert!(is_closed(&closed));
        let full = checked(Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert!(!is_closed(&full));
        let network = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(!is_closed(&network));
    }
}
