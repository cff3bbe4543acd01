//! One connection: a task that reads requests and a task that writes responses, joined by a queue in request order.
//!
//! A request is handled where it is read, so that its effect (an append's offsets, above all) is decided before the
//! next request is looked at; what remains to be waited for, the fsync of a Produce, goes to the writer as a future. So
//! appends of pipelined requests share a group commit while their acks leave in order.
//! A Fetch starts only when all earlier responses are on the wire: a client that does not read its socket then holds
//! the records of one response, not of `max_in_flight_per_connection` many. A Fetch or JoinGroup that waits holds up
//! its own connection, as in Kafka.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_protocol::messages::ApiKey;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

use super::Shared;
use super::send::send;
use crate::handlers::{self, HandlerError, Outcome, RequestContext};
use crate::protocol::decode::{self, DecodeError, Head};
use crate::protocol::encode::{EncodeError, Response};
use crate::protocol::frame::{Frame, FrameError, FrameLimits, FrameReader};

/// Upper bound on `kafka.max_in_flight_per_connection`; the queue is allocated for so many.
const IN_FLIGHT_MAX: usize = 4096;

/// A response in its place in the queue.
struct Slot {
    reply: Reply,
    /// Given back when the response is on the wire.
    _in_flight: OwnedSemaphorePermit,
}

enum Reply {
    Ready(Response),
    Later(BoxFuture<'static, Result<Response, EncodeError>>),
}

/// Why a connection is closed by us.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Handler(#[from] HandlerError),
    #[error("the handler panicked: {0}")]
    Panic(String),
}

/// Serves a connection to its end.
pub(super) async fn run(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let _open = OpenConnection::count(&shared);
    let (read, write) = stream.into_split();
    let kafka = &shared.services.kafka;
    let in_flight_max = kafka.max_in_flight_per_connection.clamp(1, IN_FLIGHT_MAX);
    let limits = FrameLimits {
        produce_max: kafka.request_max_bytes.as_usize(),
        control_max: kafka.control_request_max_bytes.as_usize(),
    };
    let (replies, queue) = mpsc::channel(in_flight_max);
    let writer = AbortOnDropHandle::new(tokio::spawn(write_replies(write, queue)));
    let mut reading = Reading {
        frames: FrameReader::new(read, limits, shared.frame_memory.clone()),
        in_flight: Arc::new(Semaphore::new(in_flight_max)),
        in_flight_max,
        client_host: peer.ip().to_string(),
        client_id: String::new(),
        head: None,
        shared: shared.clone(),
        replies,
    };
    let refusal = reading.run().await.err();
    if let Some(refusal) = refusal {
        reading.log_refusal(peer, &refusal);
    }
    // Ends the queue: the writer sends what is due and closes the socket.
    drop(reading);
    match writer.await {
        Ok(Ok(())) => debug!(%peer, "connection closed"),
        Ok(Err(failure)) => debug!(%peer, %failure, "connection broken"),
        Err(failure) => error!(%peer, %failure, "writing responses ended early"),
    }
}

struct Reading {
    frames: FrameReader<OwnedReadHalf>,
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
    client_host: String,
    /// Of the request under way, as is `head`; for the log.
    client_id: String,
    head: Option<Head>,
    shared: Arc<Shared>,
    replies: mpsc::Sender<Slot>,
}

impl Reading {
    async fn run(&mut self) -> Result<(), Refusal> {
        while let Some((frame, permit)) = self.next_frame().await? {
            if let Some(reply) = self.handle(frame).await? {
                let slot = Slot { reply, _in_flight: permit };
                if self.replies.send(slot).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The next request and its place among those in flight; nothing where the connection ends in peace: the client
    /// left, it was idle too long, its socket cannot be written, or the broker shuts down.
    async fn next_frame(&mut self) -> Result<Option<(Frame, OwnedSemaphorePermit)>, FrameError> {
        let idle_max = self.shared.services.kafka.connections_max_idle.as_duration();
        let Ok(permit) = self.in_flight.clone().acquire_owned().await else { return Ok(None) };
        loop {
            let frame = tokio::select! {
                biased;
                () = self.shared.shutdown.cancelled() => return Ok(None),
                () = self.replies.closed() => return Ok(None),
                frame = tokio::time::timeout(idle_max, self.frames.next()) => frame,
            };
            match frame {
                Ok(frame) => return Ok(frame?.map(|frame| (frame, permit))),
                // Still waiting for an answer of ours is not idle.
                Err(_) if self.in_flight.available_permits() + 1 < self.in_flight_max => {}
                Err(_) => return Ok(None),
            }
        }
    }

    async fn handle(&mut self, frame: Frame) -> Result<Option<Reply>, Refusal> {
        let Frame { bytes, memory } = frame;
        let head = decode::head(&bytes)?;
        self.head = Some(head);
        if head.api_key == ApiKey::ApiVersions as i16
            && let Some(response) = handlers::api_versions::unknown_version(head).map_err(HandlerError::from)?
        {
            return Ok(Some(Reply::Ready(response)));
        }
        let request = decode::request(bytes)?;
        self.client_id.clone_from(&request.client_id);
        if request.api.key == ApiKey::Fetch {
            self.earlier_responses_sent().await;
        }
        let context = RequestContext {
            api_version: request.version,
            client_id: request.client_id.clone(),
            client_host: self.client_host.clone(),
        };
        let handling = AssertUnwindSafe(handlers::dispatch(&self.shared, &context, request)).catch_unwind();
        let outcome = handling.await.map_err(|panic| Refusal::Panic(panic_text(panic.as_ref())))??;
        // The request is decoded, handled and copied from: its frame makes room for others.
        drop(memory);
        Ok(match outcome {
            Outcome::Reply(response) => Some(Reply::Ready(response)),
            Outcome::Later(response) => Some(Reply::Later(response)),
            Outcome::Silent => None,
        })
    }

    /// Waits until this request is the only one in flight.
    async fn earlier_responses_sent(&self) {
        let others = u32::try_from(self.in_flight_max - 1).unwrap_or(u32::MAX);
        // Never closed; and a writer that ends drops its queue and with it the places in flight.
        let _all = self.in_flight.acquire_many(others).await;
    }

    /// Ends of the wire are everyday; everything else is what someone will want to find in the log.
    fn log_refusal(&self, peer: SocketAddr, refusal: &Refusal) {
        let everyday = matches!(
            refusal,
            Refusal::Frame(FrameError::Io(_) | FrameError::Cut { .. }) | Refusal::Handler(HandlerError::ShuttingDown)
        );
        if everyday {
            debug!(%peer, reason = %refusal, "connection ends");
            return;
        }
        self.shared.services.metrics.requests_refused.inc();
        let (api_key, version) = self.head.map_or((-1, -1), |head| (head.api_key, head.api_version));
        let client_id = &self.client_id;
        if matches!(refusal, Refusal::Panic(_)) {
            error!(%peer, client_id, api_key, version, reason = %refusal, "connection closed");
        } else {
            warn!(%peer, client_id, api_key, version, reason = %refusal, "connection closed");
        }
    }
}

/// Sends responses in the order of their requests until the queue ends.
async fn write_replies(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Slot>) -> std::io::Result<()> {
    while let Some(Slot { reply, _in_flight }) = queue.recv().await {
        let response = match reply {
            Reply::Ready(response) => response,
            Reply::Later(response) => response.await.map_err(std::io::Error::other)?,
        };
        socket = send(socket, response).await?;
    }
    socket.shutdown().await
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// Counts a connection while it lives.
struct OpenConnection(Arc<Shared>);

impl OpenConnection {
    fn count(shared: &Arc<Shared>) -> Self {
        shared.services.metrics.connections.inc();
        Self(shared.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.services.metrics.connections.dec();
    }
}
