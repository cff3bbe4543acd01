//! What a store does when it is not well, as a client meets it on the wire. Switched on and off while it runs.

#![allow(dead_code, reason = "not every program that serves S3 has it fail")]

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use s3s::Body;
use s3s::service::S3Service;
use tokio::sync::{Mutex, watch};

/// Largest answer that a fault looks into.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Everything is refused: 503 SlowDown.
    Down,
    /// One request of so many is served, the others are refused with 429 and 503 in turns.
    Throttled(usize),
    /// Requests are served, but answered only when the fault is over.
    Held,
    /// Connections are taken and never answered, not even afterwards.
    Silent,
    /// Requests are served; the connection ends in the middle of the answer.
    CutAnswers,
    /// The connection ends while a request is read; nothing is served.
    CutRequests,
    /// Conditional writes are refused with this status, though the key is free.
    Conditional(StatusCode),
    /// Listings show what they showed when they were first asked for under the fault.
    LaggingLists,
}

/// The switch, and what went through it. Cheap to clone.
#[derive(Clone)]
pub struct Faults {
    fault: watch::Sender<Fault>,
    met: Arc<AtomicUsize>,
    listings: Arc<Mutex<HashMap<String, (StatusCode, Bytes)>>>,
}

type Outcome = io::Result<Response<Body>>;

impl Faults {
    pub fn new() -> Self {
        Self { fault: watch::Sender::new(Fault::None), met: Arc::default(), listings: Arc::default() }
    }

    pub async fn set(&self, fault: Fault) {
        self.listings.lock().await.clear();
        self.met.store(0, Ordering::SeqCst);
        self.fault.send_replace(fault);
    }

    /// Requests that met the fault since it was set.
    pub fn met(&self) -> usize {
        self.met.load(Ordering::SeqCst)
    }

    /// Serves a request, or does not.
    pub async fn serve(&self, service: S3Service, request: Request<Incoming>) -> Outcome {
        let fault = *self.fault.borrow();
        let asks_for_list = request.uri().query().is_some_and(|query| query.contains("list-type=2"));
        let is_conditional = request.headers().contains_key("if-none-match") && request.method() == Method::PUT;
        let met = match fault {
            Fault::None => false,
            Fault::Conditional(_) => is_conditional,
            Fault::LaggingLists => asks_for_list,
            _ => true,
        };
        if !met {
            return pass(service, request).await;
        }
        let count = self.met.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Down => Ok(refused(StatusCode::SERVICE_UNAVAILABLE)),
            Fault::Throttled(every) if count % every == every - 1 => pass(service, request).await,
            Fault::Throttled(_) if count.is_multiple_of(2) => Ok(refused(StatusCode::TOO_MANY_REQUESTS)),
            Fault::Throttled(_) => Ok(refused(StatusCode::SERVICE_UNAVAILABLE)),
            Fault::Held => {
                let answer = pass(service, request).await;
                let _ = self.fault.subscribe().wait_for(|now| *now != Fault::Held).await;
                answer
            }
            Fault::Silent => std::future::pending().await,
            Fault::CutAnswers => cut(pass(service, request).await?).await,
            Fault::CutRequests => {
                let mut body = request.into_body();
                std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context).map(drop)).await;
                Err(io::Error::from(io::ErrorKind::ConnectionReset))
            }
            Fault::Conditional(status) => Ok(refused(status)),
            Fault::LaggingLists => self.lag(service, request).await,
            Fault::None => pass(service, request).await,
        }
    }

    async fn lag(&self, service: S3Service, request: Request<Incoming>) -> Outcome {
        let mut listings = self.listings.lock().await;
        let asked = request.uri().to_string();
        let (status, bytes) = match listings.get(&asked) {
            Some(shown) => shown.clone(),
            None => {
                let mut answer = pass(service, request).await?;
                let shown = (
                    answer.status(),
                    answer.body_mut().store_all_limited(ANSWER_BYTES_MAX).await.map_err(io::Error::other)?,
                );
                listings.insert(asked, shown.clone());
                shown
            }
        };
        let mut answer = Response::new(Body::from(bytes));
        *answer.status_mut() = status;
        Ok(answer)
    }
}

async fn pass(service: S3Service, request: Request<Incoming>) -> Outcome {
    service.call(request.map(Body::from)).await.map_err(|error| io::Error::other(format!("{error:?}")))
}

fn refused(status: StatusCode) -> Response<Body> {
    let code = match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "SlowDown",
        StatusCode::PRECONDITION_FAILED => "PreconditionFailed",
        _ => "NotImplemented",
    };
    let mut answer = Response::new(Body::from(format!("<Error><Code>{code}</Code><Message>as told</Message></Error>")));
    *answer.status_mut() = status;
    answer
}

/// The head and half of the body, then the end of the connection; without a body not even the head.
async fn cut(answer: Response<Body>) -> Outcome {
    let (head, mut body) = answer.into_parts();
    let bytes = body.store_all_limited(ANSWER_BYTES_MAX).await.map_err(io::Error::other)?;
    if bytes.len() < 2 {
        return Err(io::Error::from(io::ErrorKind::ConnectionReset));
    }
    let half = bytes.slice(..bytes.len() / 2);
    Ok(Response::from_parts(head, Body::http_body_unsync(Half(Some(half)))))
}

/// A body that breaks off.
struct Half(Option<Bytes>);

impl hyper::body::Body for Half {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        Poll::Ready(Some(self.0.take().map(Frame::data).ok_or_else(broken)))
    }
}
