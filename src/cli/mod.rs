//! The commands, one file each.

mod client;
mod config;
mod consume;
mod demo;
mod follow;
mod group;
mod message;
pub mod output;
mod produce;
mod replay;
mod search;
mod serve;
mod table;
pub mod tier;
mod time;
mod topic;

use clap::{Args, Parser, Subcommand};

/// A tiered event broker: Kafka protocol, hot local logs, an open Parquet archive, full-text search over both.
#[derive(Parser)]
#[command(name = "thermocline", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a broker until SIGTERM or Ctrl-C
    Serve(serve::ServeArgs),
    /// Try it out: thirty days of shop events, archived, replayed and searched in a temporary folder
    Demo(demo::DemoArgs),
    /// List, create, describe and delete topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// List, describe and delete consumer groups
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Send each line of standard input as a message
    Produce(produce::ProduceArgs),
    /// Replay messages of a topic, hot and cold, in order per partition
    Consume(consume::ConsumeArgs),
    /// Find messages by their text, hot and cold
    Search(search::SearchArgs),
    /// Publish messages of a topic into another one, print or count them, or let a consumer group begin at one
    Replay(Box<replay::ReplayArgs>),
    /// Look at the cold tier
    #[command(subcommand)]
    Tier(tier::TierCommand),
    /// Show or check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

/// Which broker to talk to.
#[derive(Args)]
pub struct BrokerArgs {
    /// HTTP address of the broker
    #[arg(long, env = "THERMOCLINE_URL", hide_env_values = true, default_value = "http://127.0.0.1:8080")]
    url: String,
}

impl Cli {
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve::run(&args).await,
            Command::Demo(args) => demo::run(&args).await,
            Command::Topic(command) => topic::run(command).await,
            Command::Group(command) => group::run(command).await,
            Command::Produce(args) => produce::run(&args).await,
            Command::Consume(args) => consume::run(&args).await,
            Command::Search(args) => search::run(&args).await,
            Command::Replay(args) => replay::run(&args).await,
            Command::Tier(command) => tier::run(command).await,
            Command::Config(command) => config::run(command),
        }
    }

    /// What is logged where `RUST_LOG` does not say: a broker tells what it does, a command only what is wrong.
    pub fn default_log_filter(&self) -> &'static str {
        match self.command {
            Command::Serve(_) => "info,tantivy=warn",
            _ => "warn",
        }
    }
}
