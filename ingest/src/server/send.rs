//! A response to its socket: bytes by vectored writes, ranges of log files by `sendfile(2)`.
//!
//! `sendfile` waits for the disk where its bytes are not in the page cache, and nothing says beforehand whether they
//! are: a slow client gets to the end of its range long after it was looked up. So from the first range on a response
//! is sent on the blocking pool, and a cold disk holds up nobody but the client it reads for. The socket itself does
//! not block: where it takes no more, the thread goes back to the pool, and the task waits here until the client has
//! read.
//!
//! A client that goes away in the middle of a range costs nothing but its connection. A range that cannot be read does
//! the same: its length is on the wire already, and a closed connection is the only way left to say that it will not be
//! kept.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Buf;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;

use crate::protocol::encode::{ByteChunks, Piece, Response};

/// Longest a client may leave a response unread before its connection is closed.
const WRITE_STALL_MAX: Duration = Duration::from_secs(60);

/// Writes the whole response and gives the socket back.
pub(super) async fn send(mut socket: OwnedWriteHalf, response: Response) -> io::Result<OwnedWriteHalf> {
    let Response { pieces, room: _room } = response;
    let mut pieces = VecDeque::from(pieces);
    while let Some(piece) = pieces.pop_front() {
        match piece {
            Piece::Bytes(bytes) => write(&mut socket, bytes).await?,
            Piece::File(_) => {
                pieces.push_front(piece);
                return send_with_files(socket, pieces).await;
            }
        }
    }
    Ok(socket)
}

async fn write(socket: &mut OwnedWriteHalf, mut bytes: ByteChunks) -> io::Result<()> {
    while bytes.has_remaining() {
        if tokio::time::timeout(WRITE_STALL_MAX, socket.write_buf(&mut bytes)).await?? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
async fn send_with_files(mut socket: OwnedWriteHalf, mut pieces: VecDeque<Piece>) -> io::Result<OwnedWriteHalf> {
    while !pieces.is_empty() {
        tokio::time::timeout(WRITE_STALL_MAX, socket.writable()).await??;
        let sent;
        (socket, pieces, sent) = crate::handlers::blocking(move || {
            let sent = fill(&socket, &mut pieces);
            (socket, pieces, sent)
        })
        .await;
        match sent {
            Err(full) if full.kind() == io::ErrorKind::WouldBlock => {}
            sent => sent?,
        }
    }
    Ok(socket)
}

/// Sends until nothing is left or the socket takes no more, which is `WouldBlock`.
#[cfg(target_os = "linux")]
fn fill(socket: &OwnedWriteHalf, pieces: &mut VecDeque<Piece>) -> io::Result<()> {
    const SLICES_MAX: usize = 64;
    let stream: &tokio::net::TcpStream = socket.as_ref();
    while let Some(piece) = pieces.front_mut() {
        match piece {
            Piece::File(range) if !range.is_empty() => {
                stream.try_io(tokio::io::Interest::WRITABLE, || range.send(stream))?;
            }
            Piece::Bytes(bytes) if bytes.has_remaining() => {
                let mut slices = [io::IoSlice::new(&[]); SLICES_MAX];
                let count = bytes.chunks_vectored(&mut slices);
                match stream.try_write_vectored(slices.get(..count).unwrap_or_default())? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    written => bytes.advance(written),
                }
            }
            _ => drop(pieces.pop_front()),
        }
    }
    Ok(())
}

/// Elsewhere ranges are read, one at a time.
#[cfg(not(target_os = "linux"))]
async fn send_with_files(mut socket: OwnedWriteHalf, pieces: VecDeque<Piece>) -> io::Result<OwnedWriteHalf> {
    for piece in pieces {
        let bytes = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::File(range) => crate::handlers::blocking(move || range.read()).await?.into(),
        };
        write(&mut socket, bytes).await?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests;
