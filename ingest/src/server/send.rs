//! A response to its socket: bytes by vectored writes, ranges of log files by `sendfile(2)`.
//!
//! `sendfile` waits for the disk where its bytes are not in the page cache, and nothing says beforehand whether they are:
//! a slow client gets to the end of its range long after it was looked up. So it runs on the blocking pool, always, and
//! a cold disk holds up nobody but the client it reads for. The socket itself does not block: where it takes no more, the
//! thread goes back to the pool, and the task waits here until the client has read.
//!
//! A client that goes away in the middle of a range costs nothing but its connection. A range that cannot be read does
//! the same: its length is on the wire already, and a closed connection is the only way left to say that it will not be
//! kept.

use std::io;
use std::time::Duration;

use bytes::Buf;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;

use crate::log::FileRange;
use crate::protocol::encode::{Piece, Response};

/// Longest a client may leave a response unread before its connection is closed.
const WRITE_STALL_MAX: Duration = Duration::from_secs(60);

/// Writes the whole response and gives the socket back.
pub(super) async fn send(mut socket: OwnedWriteHalf, response: Response) -> io::Result<OwnedWriteHalf> {
    let Response { pieces, room: _room } = response;
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => write(&mut socket, bytes).await?,
            Piece::File(range) => socket = send_file(socket, range).await?,
        }
    }
    Ok(socket)
}

async fn write(socket: &mut OwnedWriteHalf, mut bytes: impl Buf) -> io::Result<()> {
    while bytes.has_remaining() {
        if tokio::time::timeout(WRITE_STALL_MAX, socket.write_buf(&mut bytes)).await?? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
async fn send_file(mut socket: OwnedWriteHalf, mut range: FileRange) -> io::Result<OwnedWriteHalf> {
    while !range.is_empty() {
        tokio::time::timeout(WRITE_STALL_MAX, socket.writable()).await??;
        let sent;
        (socket, range, sent) = crate::handlers::blocking(move || {
            let sent = fill(&socket, &mut range);
            (socket, range, sent)
        })
        .await;
        match sent {
            Err(full) if full.kind() == io::ErrorKind::WouldBlock => {}
            sent => sent?,
        }
    }
    Ok(socket)
}

/// Sends until the range ends or the socket takes no more, which is `WouldBlock`.
#[cfg(target_os = "linux")]
fn fill(socket: &OwnedWriteHalf, range: &mut FileRange) -> io::Result<()> {
    let socket: &tokio::net::TcpStream = socket.as_ref();
    while !range.is_empty() {
        socket.try_io(tokio::io::Interest::WRITABLE, || range.send(socket))?;
    }
    Ok(())
}

/// Elsewhere ranges are read, one at a time.
#[cfg(not(target_os = "linux"))]
async fn send_file(mut socket: OwnedWriteHalf, range: FileRange) -> io::Result<OwnedWriteHalf> {
    let bytes = crate::handlers::blocking(move || range.read()).await?;
    write(&mut socket, bytes).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
