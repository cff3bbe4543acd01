//! An S3 server for the interop checks: `s3-server FOLDER LISTEN`, for example `s3-server /tmp/buckets 127.0.0.1:0`.
//! Prints the address in use on the first line, then serves until it is killed.

#[path = "../support/s3.rs"]
mod s3;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let folder = PathBuf::from(args.next().context("usage: s3-server FOLDER LISTEN")?);
    let listen = args.next().context("usage: s3-server FOLDER LISTEN")?;
    let listen: SocketAddr = listen.to_string_lossy().parse().context("LISTEN is an address like 127.0.0.1:0")?;
    let server = s3::S3Server::start(&folder, listen).await.context("starting the server")?;
    println!("{}", server.addr());
    std::future::pending::<()>().await;
    Ok(())
}
