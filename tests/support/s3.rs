//! An S3 server over a folder, speaking HTTP on loopback: a bucket is a folder, an object is a file. It can be told to
//! fail, see [`faults`].

#[path = "s3/faults.rs"]
pub mod faults;

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use faults::Faults;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as ConnectionBuilder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// The one key pair the server knows.
pub const ACCESS_KEY: &str = "thermocline-test";
pub const SECRET_KEY: &str = "thermocline-test-secret";

/// A running server; dropping it ends it and its connections.
pub struct S3Server {
    addr: SocketAddr,
    faults: Faults,
    task: JoinHandle<()>,
}

impl S3Server {
    /// Serves `folder`, in which every bucket has been made as a folder.
    pub async fn start(folder: &Path, listen: SocketAddr) -> io::Result<Self> {
        let files = FileSystem::new(folder).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let faults = Faults::new();
        let task = tokio::spawn(accept(listener, builder.build(), faults.clone()));
        Ok(Self { addr, faults, task })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    #[allow(dead_code, reason = "not every program that serves S3 has it fail")]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service, faults: Faults) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (service, faults) = (service.clone(), faults.clone());
        // Else the end of an answer waits until its beginning is acknowledged.
        let _ = stream.set_nodelay(true);
        connections.spawn(async move {
            let http = ConnectionBuilder::new(TokioExecutor::new());
            // A client that hangs up is no concern of the server.
            let serve = service_fn(move |request| {
                let (service, faults) = (service.clone(), faults.clone());
                async move { faults.serve(service, request).await }
            });
            let _ = http.serve_connection(TokioIo::new(stream), serve).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
