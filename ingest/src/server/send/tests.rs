use std::fs::File;
use std::io::Write;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::log::FileRange;
use crate::read::Chunk;

/// More than the socket buffers of both ends hold.
const LARGE: usize = 24 << 20;

async fn connection() -> (OwnedWriteHalf, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (accepted.unwrap().0.into_split().1, client.unwrap())
}

/// Bytes that tell their place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len / 4).flat_map(|n| (n as u32).to_be_bytes()).collect()
}

fn file_of(bytes: &[u8]) -> (File, Chunk) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let range = FileRange::of(file.try_clone().unwrap(), 0);
    (file, Chunk::File(range))
}

#[tokio::test]
async fn bytes_and_files_arrive_in_their_order_at_a_client_that_reads_slowly() {
    let (socket, mut client) = connection().await;
    let (large, small) = (pattern(LARGE), pattern(1 << 10));
    let chunks = [
        Chunk::Bytes(Bytes::from_static(b"head")),
        file_of(&large).1,
        Chunk::Bytes(Bytes::from_static(b"between")),
        file_of(&small).1,
        file_of(&small).1,
        Chunk::Bytes(Bytes::from_static(b"end")),
    ];
    let expected = [b"head", large.as_slice(), b"between", &small, &small, b"end"].concat();
    let sending = tokio::spawn(send(socket, Response::new(chunks, Vec::new())));
    let mut received = Vec::new();
    // In steps that leave the socket full most of the time.
    let mut step = vec![0; 300_000];
    while received.len() < expected.len() {
        let count = client.read(&mut step).await.unwrap();
        assert!(count > 0, "closed after {} bytes", received.len());
        received.extend_from_slice(&step[..count]);
        tokio::task::yield_now().await;
    }
    assert!(received == expected);
    drop(sending.await.unwrap().unwrap());
    assert_eq!(client.read(&mut step).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_connection() {
    let (socket, mut client) = connection().await;
    let response = Response::new([file_of(&pattern(LARGE)).1], Vec::new());
    let sending = tokio::spawn(send(socket, response));
    client.read_exact(&mut [0; 10]).await.unwrap();
    drop(client);
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
}

#[tokio::test]
async fn a_file_that_ends_early_ends_the_connection() {
    let (socket, mut client) = connection().await;
    let bytes = pattern(1 << 20);
    let (file, chunk) = file_of(&bytes);
    file.set_len(5000).unwrap();
    let sending = tokio::spawn(send(socket, Response::new([chunk], Vec::new())));
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, bytes[..5000]);
    assert_eq!(sending.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}
