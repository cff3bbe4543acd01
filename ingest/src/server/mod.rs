//! The Kafka listener: accepts connections up to a limit, gives each its own task, and drains them on shutdown.
//!
//! Invariants:
//! - A connection fails alone: refused input, a panic in a handler and a broken socket end that connection and no
//!   other.
//! - Responses leave in request order; a request's effect is decided before the next one of its connection is looked
//!   at.
//! - Memory is bounded: request frames by `kafka.request_memory_max`, record bytes of Fetch responses by
//!   [`RESPONSE_MEMORY_MAX_BYTES`], everything else by `kafka.max_connections` times what one connection may hold.
//!   Records that are sent from their files take none, but a place among [`RESPONSE_FILES_MAX`] open files.

mod connection;
mod send;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thermocline_config::{BrokerConfig, KafkaConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::coordinator::GroupCoordinator;
use crate::coordinator::transactions::TransactionCoordinator;
use crate::handlers::fetch::{FetchSessions, SESSION_PARTITIONS_MAX};
use crate::metrics::IngestMetrics;
use crate::protocol::frame::FrameMemory;
use crate::read::LogReader;
use crate::topics::Topics;

/// Record bytes that Fetch responses of all connections may hold between reading them and writing them to the socket.
pub const RESPONSE_MEMORY_MAX_BYTES: usize = 256 << 20;
/// Log files that Fetch responses of all connections may hold open, so that clients that do not read leave descriptors
/// to partitions and connections. Beyond it records are copied.
pub const RESPONSE_FILES_MAX: usize = 1024;
/// Pause after a failed accept (out of file descriptors, mostly), so that the failure is not repeated in a tight loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the handlers work with.
pub struct Services {
    pub kafka: KafkaConfig,
    pub broker: BrokerConfig,
    pub topics: Arc<Topics>,
    pub reader: Arc<dyn LogReader>,
    pub groups: Arc<GroupCoordinator>,
    pub transactions: Arc<TransactionCoordinator>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<IngestMetrics>,
    pub cluster_id: String,
    /// host and port told to clients
    pub advertised: (String, u16),
}

/// What the connections of one listener share.
pub(crate) struct Shared {
    pub services: Arc<Services>,
    pub frame_memory: FrameMemory,
    pub response_memory: Arc<Semaphore>,
    pub response_files: Arc<Semaphore>,
    pub fetch_sessions: FetchSessions,
    pub shutdown: CancellationToken,
}

/// Accepts connections until `shutdown` is cancelled; then stops reading, lets requests under way finish within
/// broker.shutdown_timeout, closes.
///
/// Waits for other clients (JoinGroup, SyncGroup) and for data (Fetch) end at once: the first two with a closed
/// connection, Fetch with an answer of what there is.
pub async fn serve(listener: TcpListener, services: Arc<Services>, shutdown: CancellationToken) -> std::io::Result<()> {
    let shared = Arc::new(Shared {
        frame_memory: FrameMemory::new(services.kafka.request_memory_max.as_usize()),
        response_memory: Arc::new(Semaphore::new(RESPONSE_MEMORY_MAX_BYTES)),
        response_files: Arc::new(Semaphore::new(RESPONSE_FILES_MAX)),
        fetch_sessions: FetchSessions::new(
            services.kafka.fetch_sessions_max,
            SESSION_PARTITIONS_MAX,
            services.metrics.clone(),
        ),
        shutdown: shutdown.clone(),
        services,
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(&mut connections, &shared, stream, peer),
                Err(failure) => {
                    warn!(%failure, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    drain(connections, shared.services.broker.shutdown_timeout.as_duration()).await;
    Ok(())
}

fn admit(connections: &mut JoinSet<()>, shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let limit = shared.services.kafka.max_connections;
    if connections.len() >= limit {
        warn!(%peer, limit, "connection closed: kafka.max_connections are open");
        return;
    }
    if let Err(failure) = stream.set_nodelay(true) {
        warn!(%peer, %failure, "connection closed: TCP_NODELAY could not be set");
        return;
    }
    connections.spawn(connection::run(stream, peer, shared.clone()));
}

async fn drain(mut connections: JoinSet<()>, patience: Duration) {
    let finish = async {
        while let Some(ended) = connections.join_next().await {
            log_panic(ended);
        }
    };
    if tokio::time::timeout(patience, finish).await.is_err() {
        warn!(open = connections.len(), ?patience, "connections closed before their requests were answered");
        connections.shutdown().await;
    }
    info!("kafka listener closed");
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(failure) = ended
        && failure.is_panic()
    {
        error!(%failure, "a connection task panicked");
    }
}
