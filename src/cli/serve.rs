//! `thermocline serve`: a broker until it is told to stop.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use thermocline::Broker;
use thermocline_config::{Config, Flag};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Where the configuration comes from. Flags win over `THERMOCLINE_SECTION__KEY` in the environment, and that over the
/// file.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Address for Kafka clients; port 0 picks one [default: 127.0.0.1:9092]
    #[arg(long, value_name = "ADDR")]
    kafka_listen: Option<String>,
    /// Address of the HTTP interface; port 0 picks one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<String>,
}

/// The part of it that says where the data lies.
#[derive(Args)]
pub struct StoreArgs {
    /// TOML file with what differs from the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of everything local [default: data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Cold tier, like s3://bucket/prefix [default: the folder cold in the data directory]
    #[arg(long, value_name = "URL")]
    store_url: Option<String>,
}

impl ConfigArgs {
    pub fn load(&self) -> anyhow::Result<Config> {
        self.store.load_with(&[
            ("--kafka-listen", "kafka.listen", &self.kafka_listen),
            ("--http-listen", "http.listen", &self.http_listen),
        ])
    }
}

impl StoreArgs {
    pub fn load(&self) -> anyhow::Result<Config> {
        self.load_with(&[])
    }

    /// `more`: flags beside our own, as name, key and value.
    fn load_with(&self, more: &[(&'static str, &'static str, &Option<String>)]) -> anyhow::Result<Config> {
        let own = [("--data-dir", "broker.data_dir", &self.data_dir), ("--store-url", "store.url", &self.store_url)];
        let flags: Vec<Flag> = own
            .iter()
            .chain(more)
            .filter_map(|(name, key, value)| (*value).clone().map(|value| Flag { name, key, value }))
            .collect();
        Ok(thermocline_config::load(self.config.as_deref(), std::env::vars_os(), &flags)?)
    }
}

pub async fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let mut stop = StopSignals::new()?;
    let broker = Broker::start(args.config.load()?).await?;
    tokio::select! {
        name = stop.next() => tracing::info!(signal = name, "draining; once more stops at once"),
        () = broker.failed() => {}
    }
    shut_down(broker, &mut stop).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Drains the broker; a signal during that stops it at once.
pub async fn shut_down(broker: Broker, stop: &mut StopSignals) -> anyhow::Result<()> {
    tokio::select! {
        closed = broker.shutdown() => closed.context("shutdown was not clean"),
        name = stop.next() => bail!("stopped by a second signal ({name}) before the shutdown was done"),
    }
}

/// SIGTERM and Ctrl-C.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on these signals no longer end the process.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
