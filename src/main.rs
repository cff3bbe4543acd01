//! The `thermocline` program: arguments, logging, runtime, exit code. What the commands do is in `cli/`.

mod cli;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use cli::tier::Verdict;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    start_logging(cli.default_log_filter());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(e) if cli::output::is_closed(&e) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e:#}");
            e.downcast_ref::<Verdict>().map_or(ExitCode::FAILURE, Verdict::exit_code)
        }
    }
}

fn run(cli: cli::Cli) -> anyhow::Result<()> {
    raise_open_files_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(cli.run());
    // A read from standard input may still be under way; it must not hold up the exit.
    runtime.shutdown_background();
    result
}

/// Each partition's active segment holds three files open, each connection one: what the system allows is needed, not
/// the small default that suits a shell.
fn raise_open_files_limit() {
    let allowed = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: allowed.maximum, maximum: allowed.maximum };
    if let Err(failure) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%failure, limit = allowed.current, "the limit on open files could not be raised");
    }
}

/// Logs go to standard error, as `RUST_LOG` says.
fn start_logging(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
