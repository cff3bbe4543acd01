//! `thermocline config`: what the broker would run with.

use std::path::PathBuf;

use clap::Subcommand;

use super::output::Output;
use super::serve::ConfigArgs;

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print the effective configuration, from the same sources as `serve`
    Show(ConfigArgs),
    /// Check a file by itself, without environment and flags
    Check {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub fn run(command: ConfigCommand) -> anyhow::Result<()> {
    let mut output = Output::new();
    match command {
        ConfigCommand::Show(args) => output.line(args.load()?.to_toml()?.trim_end())?,
        ConfigCommand::Check { file } => {
            thermocline_config::load(Some(&file), [], &[])?;
            output.line(format!("{} is fine", file.display()))?;
        }
    }
    output.flush()
}
