//! One broker, from start to shutdown.
//!
//! Start order; each step may rely on those above it, and nobody can connect before the last:
//!
//! 1. configuration is checked, the data directory made, `listeners.json` of an earlier run removed
//! 2. hot log: takes the lock of the data directory, so that a second broker stops here
//! 3. metadata: who we are, and what an earlier start with this disk knew
//! 4. cold store: the epoch of this start is claimed, which fences manifest commits of earlier ones; an empty
//!    catalogue adopts the topics that the store knows
//! 5. topics: every partition recovered
//! 6. tiering: manifests loaded, every partition knows how far it is archived and goes on no lower; after a take-over
//!    every partition is claimed, and that is noted
//! 7. reader, coordinators of groups and transactions (read back), search
//! 8. ports bound, `listeners.json` written
//! 9. tasks started: listeners, coordinators, tiering, live index, maintenance
//!
//! | died here | then at the next start |
//! |---|---|
//! | while starting | nothing was acknowledged; the same steps again, under a higher epoch (`tiering::epoch`, `tiering::restore`) |
//! | while running | the log recovers its tails, everything acknowledged is there |
//! | while shutting down, before the clean marker | as while running |
//! | after the clean marker | the log opens without recovery |
//!
//! The layout of the data directory:
//!
//! ```text
//! hot/              the hot log, one folder per partition
//! cold/             the cold tier, unless store.url names another place
//! live-index/       splits of what is not archived yet; made anew at each start
//! metadata.redb     topics and broker facts
//! listeners.json    addresses in use
//! ```

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use thermocline_config::{Config, ConfigError};
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::coordinator::transactions::TransactionCoordinator;
use thermocline_ingest::coordinator::{CoordinatorError, GroupCoordinator};
use thermocline_ingest::log::{FreeSpace, HotLog, LogError, free_space_of};
use thermocline_ingest::metadata::{MetadataError, MetadataStore};
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::server::{self, Services};
use thermocline_ingest::topics::{self, TopicError, Topics};
use thermocline_query::http::{self, HttpServices};
use thermocline_query::search::{Search, SearchError};
use thermocline_tiering::epoch::{self, Claimant, EpochError, Standing};
use thermocline_tiering::metrics::TieringMetrics;
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::restore;
use thermocline_tiering::store::{ColdStore, StoreError};
use thermocline_tiering::worker::{Tiering, TieringError, TieringOptions};
use tokio::net::TcpListener;
use tokio::task::{JoinError, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::listeners;
use crate::supervisor::{Supervisor, TaskFailed};

const HOT_DIR: &str = "hot";
const LIVE_INDEX_DIR: &str = "live-index";
const METADATA_FILE: &str = "metadata.redb";

const KAFKA_LISTENER: &str = "kafka listener";
const HTTP_LISTENER: &str = "http listener";
const COORDINATOR: &str = "group coordinator";
const TRANSACTIONS: &str = "transaction coordinator";
const TIERING: &str = "archive";
const LIVE_INDEX: &str = "live index";
const MAINTENANCE: &str = "log maintenance";
const CLEANER: &str = "log cleaner";

/// Producer ids that one epoch may hand out before they could be those of the next.
const PRODUCER_IDS_PER_EPOCH: u64 = 1 << 32;
/// Time a listener gets beyond `broker.shutdown_timeout` to close what it still has open.
const LISTENER_GRACE: Duration = Duration::from_secs(2);
/// Time each background task gets to end; what it leaves unfinished is taken up at the next start.
const BACKGROUND_STOP_MAX: Duration = Duration::from_secs(10);

/// A running broker. Dropping it stops its tasks without waiting and leaves no clean marker; see [`Self::shutdown`].
pub struct Broker {
    kafka_addr: SocketAddr,
    http_addr: SocketAddr,
    data_dir: PathBuf,
    shutdown_timeout: Duration,
    log: Arc<HotLog>,
    supervisor: Supervisor,
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("data directory {path}; make it writable or choose another with broker.data_dir")]
    DataDir { path: PathBuf, source: io::Error },
    #[error("opening the hot log")]
    Log(#[from] LogError),
    #[error("opening the metadata")]
    Metadata(#[from] MetadataError),
    #[error("opening the topics")]
    Topics(#[from] TopicError),
    #[error("opening the cold store; check the section [store]")]
    Store(#[from] StoreError),
    #[error("claiming the store; a broker starts only where it knows its archive, see the section [store]")]
    Epoch(#[from] EpochError),
    #[error(
        "loading the archive's manifests; a broker starts only where it knows its archive, see the section [store]"
    )]
    Tiering(#[from] TieringError),
    #[error("loading the consumer groups and transactions")]
    Coordinator(#[from] CoordinatorError),
    #[error("opening the live index")]
    Search(#[from] SearchError),
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
    #[error("listening on {address}; free the port or choose another with {key}")]
    Listen { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("writing {path}")]
    ListenersFile { path: PathBuf, source: io::Error },
    #[error("a start step was cut off")]
    Aborted(#[from] JoinError),
}

/// Why a shutdown was not clean.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    #[error(transparent)]
    Task(TaskFailed),
    #[error("closing the hot log; the next start recovers it")]
    Log(#[from] LogError),
    #[error("closing the hot log was cut off; the next start recovers it")]
    Aborted(#[from] JoinError),
}

/// The services of a broker, ready to run.
struct Stations {
    kafka: Arc<Services>,
    http: Arc<HttpServices>,
    groups: Arc<GroupCoordinator>,
    transactions: Arc<TransactionCoordinator>,
    tiering: Arc<Tiering>,
    search: Arc<Search>,
    kafka_listener: TcpListener,
    http_listener: TcpListener,
    kafka_addr: SocketAddr,
    http_addr: SocketAddr,
}

impl Broker {
    /// Starts a broker; on return both ports answer.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let free_space = free_space_of(config.broker.data_dir.clone());
        Self::start_on(config, free_space).await
    }

    /// Like [`Self::start`], with another word on how much disk is free.
    pub async fn start_on(config: Config, free_space: FreeSpace) -> Result<Self, StartError> {
        config.validate()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let registry = Registry::new();
        let metrics = Arc::new(IngestMetrics::new(&registry)?);
        let log = spawn_blocking({
            let (config, clock, metrics) = (config.clone(), clock.clone(), metrics.clone());
            move || open_log(&config, clock, metrics, free_space)
        })
        .await??;
        match open_stations(&config, &log, clock, registry, metrics).await {
            Ok(stations) => Ok(Self::run(config, log, stations)),
            Err(e) => {
                // Nothing was acknowledged yet; closing returns the lock and stops the flusher.
                if let Ok(Err(close)) = spawn_blocking(move || log.close()).await {
                    tracing::warn!(error = %close, "closing the hot log after a failed start");
                }
                Err(e)
            }
        }
    }

    /// The address Kafka clients connect to.
    pub fn kafka_addr(&self) -> SocketAddr {
        self.kafka_addr
    }

    /// The address of the HTTP interface.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Resolves when a part of the broker has failed; it then no longer serves and should be shut down, which tells
    /// why.
    pub async fn failed(&self) {
        self.supervisor.failed().await;
    }

    /// Drains and closes: requests under way finish within `broker.shutdown_timeout`, then the background tasks end,
    /// then the log is flushed and marked clean.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.supervisor.stop(&[KAFKA_LISTENER, HTTP_LISTENER], self.shutdown_timeout + LISTENER_GRACE).await;
        for task in [TRANSACTIONS, COORDINATOR, TIERING, LIVE_INDEX, MAINTENANCE, CLEANER] {
            self.supervisor.stop(&[task], BACKGROUND_STOP_MAX).await;
        }
        let (log, data_dir) = (self.log.clone(), self.data_dir.clone());
        let closed = spawn_blocking(move || {
            if let Err(e) = listeners::remove(&data_dir) {
                tracing::warn!(path = %listeners::path(&data_dir).display(), error = %e, "cannot be removed");
            }
            log.close()
        })
        .await?;
        match (self.supervisor.failure(), closed) {
            (Some(failure), closed) => {
                if let Err(e) = closed {
                    tracing::error!(error = %e, "closing the hot log");
                }
                Err(ShutdownError::Task(failure))
            }
            (None, closed) => Ok(closed?),
        }
    }

    /// Starts the tasks.
    fn run(config: Config, log: Arc<HotLog>, stations: Stations) -> Self {
        let Stations { kafka, http, groups, transactions, tiering, search, .. } = stations;
        let Stations { kafka_listener, http_listener, kafka_addr, http_addr, .. } = stations;
        let mut supervisor = Supervisor::new();
        supervisor.spawn(COORDINATOR, |stop| unfailing(groups.run(stop)));
        supervisor.spawn(TRANSACTIONS, |stop| unfailing(transactions.run(stop)));
        supervisor.spawn(TIERING, |stop| unfailing(tiering.run(stop)));
        supervisor.spawn(LIVE_INDEX, |stop| unfailing(search.run(stop)));
        let every = config.log.maintenance_interval.as_duration();
        supervisor.spawn(MAINTENANCE, |stop| maintain(log.clone(), every, stop));
        let every = config.log.cleaner_backoff.as_duration();
        supervisor.spawn(CLEANER, |stop| clean(log.clone(), every, stop));
        supervisor.spawn(KAFKA_LISTENER, |stop| server::serve(kafka_listener, kafka, stop));
        supervisor.spawn(HTTP_LISTENER, |stop| http::serve(http_listener, http, stop));
        Self {
            kafka_addr,
            http_addr,
            data_dir: config.broker.data_dir,
            shutdown_timeout: config.broker.shutdown_timeout.as_duration(),
            log,
            supervisor,
        }
    }
}

/// Steps 1 and 2. Blocking.
fn open_log(
    config: &Config,
    clock: Arc<dyn Clock>,
    metrics: Arc<IngestMetrics>,
    free_space: FreeSpace,
) -> Result<Arc<HotLog>, StartError> {
    let data_dir = &config.broker.data_dir;
    let failed = |source| StartError::DataDir { path: data_dir.clone(), source };
    std::fs::create_dir_all(data_dir).map_err(failed)?;
    let log = HotLog::open_on(data_dir.join(HOT_DIR), config.log.clone(), clock, metrics, free_space)?;
    // Only now: before the lock was ours, the file belonged to a broker that may be running.
    listeners::remove(data_dir).map_err(failed)?;
    Ok(log)
}

/// Step 3. Blocking.
fn open_metadata(config: &Config) -> Result<(Arc<MetadataStore>, Claimant), MetadataError> {
    let metadata = MetadataStore::open(&config.broker.data_dir.join(METADATA_FILE))?;
    let claimant = Claimant {
        instance: metadata.instance_id()?,
        cluster_id: metadata.cluster_id()?,
        node_id: config.broker.node_id,
        last_epoch: metadata.broker_epoch()?,
        is_settled: metadata.is_store_settled()?,
    };
    Ok((Arc::new(metadata), claimant))
}

/// Steps 4 and 5.
async fn open_topics(
    config: &Config,
    log: &Arc<HotLog>,
    store: &ColdStore,
    metadata: &Arc<MetadataStore>,
    standing: &Standing,
) -> Result<Arc<Topics>, StartError> {
    let is_take_over = matches!(standing, Standing::TakeOver { .. });
    let restored = if is_take_over { restore::find_topics(store).await? } else { Vec::new() };
    let (metadata, log, config, epoch) = (metadata.clone(), log.clone(), config.log.clone(), standing.epoch());
    let opened = spawn_blocking(move || -> Result<Topics, StartError> {
        metadata.set_broker_epoch(epoch)?;
        if is_take_over {
            // Producers of the broker before us go on with the ids that they have.
            metadata.skip_producer_ids(epoch.saturating_mul(PRODUCER_IDS_PER_EPOCH))?;
        }
        let adopted = topics::adopt(&metadata, &config, restored)?;
        if adopted > 0 {
            tracing::info!(topics = adopted, "the catalogue was empty; took up the topics that the store knows");
        }
        Ok(Topics::open(metadata, log, config)?)
    });
    Ok(Arc::new(opened.await??))
}

/// Step 6.
async fn open_tiering(
    options: TieringOptions,
    metadata: &Arc<MetadataStore>,
    standing: &Standing,
) -> Result<Arc<Tiering>, StartError> {
    let tiering = Tiering::open(options).await?;
    tiering.assume(standing).await?;
    if let Standing::TakeOver { .. } = standing {
        let metadata = metadata.clone();
        spawn_blocking(move || metadata.set_store_settled()).await??;
    }
    Ok(tiering)
}

/// Steps 3 to 8.
async fn open_stations(
    config: &Config,
    log: &Arc<HotLog>,
    clock: Arc<dyn Clock>,
    registry: Registry,
    metrics: Arc<IngestMetrics>,
) -> Result<Stations, StartError> {
    let data_dir = &config.broker.data_dir;
    let opening = config.clone();
    let (metadata, claimant) = spawn_blocking(move || open_metadata(&opening)).await??;
    let store = ColdStore::open(&config.store, data_dir)?;
    let standing = epoch::claim(&store, &claimant, clock.clone()).await?;
    let (cluster_id, broker_epoch) = (claimant.cluster_id, standing.epoch());
    let topics = open_topics(config, log, &store, &metadata, &standing).await?;
    let options = TieringOptions {
        config: config.tiering.clone(),
        cache: config.cache.clone(),
        store,
        topics: topics.clone(),
        clock: clock.clone(),
        metrics: Arc::new(TieringMetrics::new(&registry)?),
        produce_latency: metrics.produce_latency.clone(),
        broker_epoch,
    };
    let tiering = open_tiering(options, &metadata, &standing).await?;
    let reader = Arc::new(TieredReader::new(tiering.clone(), &config.cache));
    let groups = GroupCoordinator::open(config.groups.clone(), topics.clone(), clock.clone()).await?;
    groups.register_lag(&registry)?;
    let transactions = TransactionCoordinator::open(
        config.transactions.clone(),
        topics.clone(),
        groups.clone(),
        metadata,
        clock.clone(),
    )
    .await?;
    transactions.register(&registry)?;
    let scratch = data_dir.join(LIVE_INDEX_DIR);
    let search =
        Search::new(config.search.clone(), tiering.clone(), reader.clone(), scratch, clock.clone(), &registry)?;

    let (kafka_listener, kafka_addr) = listen("kafka.listen", config.kafka.listen).await?;
    let (http_listener, http_addr) = listen("http.listen", config.http.listen).await?;
    write_listeners(data_dir, kafka_addr, http_addr).await?;
    let advertised =
        config.kafka.advertised_address().unwrap_or_else(|| (kafka_addr.ip().to_string(), kafka_addr.port()));
    tracing::info!(
        kafka = %kafka_addr, http = %http_addr, data_dir = %data_dir.display(), store = tiering.store().url(),
        cluster_id, broker_epoch, "listening"
    );

    let kafka = Services {
        kafka: config.kafka.clone(),
        broker: config.broker.clone(),
        topics: topics.clone(),
        reader: reader.clone(),
        groups: groups.clone(),
        transactions: transactions.clone(),
        clock: clock.clone(),
        metrics,
        cluster_id,
        advertised,
    };
    let http = HttpServices {
        config: config.http.clone(),
        topics,
        tiering: tiering.clone(),
        reader,
        search: search.clone(),
        groups: groups.clone(),
        clock,
        registry,
        num_partitions: config.broker.num_partitions,
    };
    let (kafka, http) = (Arc::new(kafka), Arc::new(http));
    Ok(Stations {
        kafka,
        http,
        groups,
        transactions,
        tiering,
        search,
        kafka_listener,
        http_listener,
        kafka_addr,
        http_addr,
    })
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn write_listeners(data_dir: &Path, kafka: SocketAddr, http: SocketAddr) -> Result<(), StartError> {
    let dir = data_dir.to_owned();
    let written = spawn_blocking(move || listeners::write(&dir, kafka, http)).await?;
    written.map_err(|source| StartError::ListenersFile { path: listeners::path(data_dir), source })
}

/// Seals ageing segments and expires local copies, again and again; makes room when the disk gets full.
async fn maintain(log: Arc<HotLog>, every: Duration, stop: CancellationToken) -> io::Result<()> {
    let mut ticks = ticks(every);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {
                let log = log.clone();
                spawn_blocking(move || log.maintain()).await.map_err(io::Error::other)?;
            }
            () = log.disk_is_tight() => {
                let log = log.clone();
                spawn_blocking(move || log.make_room()).await.map_err(io::Error::other)?;
            }
        }
    }
}

/// Compacts what is due, again and again. Ends soon after it was told to, in the middle of a partition if need be.
async fn clean(log: Arc<HotLog>, every: Duration, stop: CancellationToken) -> io::Result<()> {
    let mut ticks = ticks(every);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {
                let (log, stop) = (log.clone(), stop.clone());
                spawn_blocking(move || log.clean(&|| stop.is_cancelled())).await.map_err(io::Error::other)?;
            }
        }
    }
}

/// The first at once; one that is late puts off those after it.
fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// A task that has no error of its own.
async fn unfailing(body: impl Future<Output = ()>) -> io::Result<()> {
    body.await;
    Ok(())
}
