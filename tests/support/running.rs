//! A broker in a folder of its own, and a client of its HTTP interface.

#[path = "config.rs"]
mod config;

use std::time::Duration;

use config::config;
use tempfile::TempDir;
use thermocline::Broker;
use thermocline_config::Config;

/// Longest any one step may take, live indexing included.
pub const STEP_MAX: Duration = Duration::from_secs(60);

pub struct Running {
    pub broker: Broker,
    pub http: reqwest::Client,
    /// Its data directory.
    #[allow(dead_code, reason = "not every test looks into it")]
    pub dir: TempDir,
}

impl Running {
    /// With settings changed by `change`.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let http = reqwest::Client::builder().timeout(STEP_MAX).no_proxy().build().unwrap();
        Self { broker: Broker::start(config).await.unwrap(), http, dir }
    }
}
