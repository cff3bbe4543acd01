//! The HTTP interface: one file per family of routes.
//!
//! Invariants:
//! - Every refusal is `{"error":{"code","message"}}` with the right status, unknown routes and methods included; an
//!   unknown query parameter or JSON field is refused, not ignored.
//! - What one request can cost is bounded: bytes of its body, time to send it, requests at once, connections at once.
//! - A panic in a handler costs that request and nothing else.

mod archive;
mod connections;
mod elastic;
mod error;
mod extract;
mod follow;
mod groups;
mod guard;
mod health;
mod produce;
mod replay;
mod republish;
mod search;
mod tier;
mod topics;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::routing::{get, post};
use thermocline_config::HttpConfig;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::coordinator::GroupCoordinator;
use thermocline_ingest::topics::Topics;
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::worker::Tiering;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::search::Search;
use connections::Connections;

/// What the handlers work with.
pub struct HttpServices {
    pub config: HttpConfig,
    pub topics: Arc<Topics>,
    pub tiering: Arc<Tiering>,
    pub reader: Arc<TieredReader>,
    pub search: Arc<Search>,
    pub groups: Arc<GroupCoordinator>,
    pub clock: Arc<dyn Clock>,
    pub registry: prometheus::Registry,
    /// Partitions for `POST /v1/topics` without a count.
    pub num_partitions: i32,
}

/// The state of the routes.
struct App {
    services: Arc<HttpServices>,
    /// Cancelled when the broker begins to drain.
    shutdown: CancellationToken,
    /// Where the next message without a key goes.
    keyless: AtomicUsize,
    /// Replays into topics under way.
    republishes: Arc<Semaphore>,
}

/// Serves until `shutdown` is cancelled, then lets requests under way finish. The caller bounds that wait: a replay
/// lasts as long as its receiver takes.
pub async fn serve(
    listener: TcpListener,
    services: Arc<HttpServices>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let config = services.config.clone();
    let app = Arc::new(App {
        services,
        shutdown: shutdown.clone(),
        keyless: AtomicUsize::new(0),
        republishes: Arc::new(Semaphore::new(republish::REPUBLISHES_MAX)),
    });
    let router = guard::guarded(routes(), &config).with_state(app);
    axum::serve(Connections::new(listener), router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/topics", get(topics::list).post(topics::create))
        .route("/v1/topics/{topic}", get(topics::describe).patch(topics::alter).delete(topics::delete))
        .route("/v1/topics/{topic}/messages", get(replay::replay).post(produce::produce))
        .route("/v1/topics/{topic}/replay", post(republish::republish))
        .route("/v1/topics/{topic}/archive", post(archive::archive))
        .route("/v1/topics/{topic}/tier", get(tier::tier))
        .route("/v1/search", get(search::search_by_query).post(search::search_by_body))
        .route("/v1/search/follow", get(follow::follow_by_query).post(follow::follow_by_body))
        .route("/v1/groups", get(groups::list))
        .route("/v1/groups/{group}", get(groups::describe).delete(groups::delete))
        .route("/v1/groups/{group}/offsets", post(groups::seek))
        .merge(elastic::routes())
        .route("/metrics", get(health::metrics))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
}
