//! `thermocline tier verify`: reads the store itself, beside a running broker or without one, and writes nothing.

use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use thermocline_config::ByteSize;
use thermocline_ingest::clock::SystemClock;
use thermocline_ingest::model::TopicName;
use thermocline_tiering::paths::PartitionPath;
use thermocline_tiering::store::ColdStore;
use thermocline_tiering::verify::survey::{PartitionReport, Sample, Survey, SurveyOptions};

use crate::cli::output::Output;
use crate::cli::serve::StoreArgs;
use crate::cli::table::{self, Align, Table};

#[derive(Args)]
pub struct VerifyArgs {
    /// Only this topic; may be given several times
    #[arg(long = "topic", value_name = "T", value_parser = topic)]
    topics: Vec<TopicName>,
    /// Check a random share of the files, like 5%; their manifests are checked all the same
    #[arg(long, value_name = "P%", default_value = "100%", value_parser = percentage)]
    sample: f64,
    /// Choose the same files as the sample that printed this seed
    #[arg(long, value_name = "N", default_value_t = rand::random())]
    seed: u64,
    /// Read no more than so many bytes per second, like 20MiB
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    rate: Option<NonZeroU64>,
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// What is not all good, as the exit status tells it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    #[error("damaged objects: {objects}")]
    Damaged { objects: usize },
    #[error("damaged objects: {objects}; not everything could be checked")]
    DamagedAtLeast { objects: usize },
    #[error("the cold tier could not be checked")]
    Unchecked,
}

impl Verdict {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Damaged { .. } | Self::DamagedAtLeast { .. } => ExitCode::from(1),
            Self::Unchecked => ExitCode::from(2),
        }
    }
}

pub async fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let config = args.store.load().context(Verdict::Unchecked)?;
    let store = ColdStore::open_existing(&config.store, &config.broker.data_dir).context(Verdict::Unchecked)?;
    let sample = Sample { share: args.sample, seed: args.seed };
    let clock = Arc::new(SystemClock);
    let survey = Survey::new(SurveyOptions { store: store.clone(), clock, sample, rate: args.rate });
    let mut reports = Vec::new();
    let outcome = check_all(&survey, &args.topics, &mut reports).await;
    let mut output = Output::new();
    match args.format {
        Format::Table => print_table(&mut output, args, &reports)?,
        Format::Json => {
            let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
            output.line(serde_json::to_string_pretty(&as_json(store.url(), args, &reports, error.as_deref()))?)?;
        }
    }
    output.flush()?;
    let objects = reports.iter().map(|report| report.damage.len()).sum();
    match outcome {
        Ok(()) if objects == 0 => Ok(()),
        Ok(()) => Err(Verdict::Damaged { objects }.into()),
        Err(error) if objects == 0 => Err(error.context(Verdict::Unchecked)),
        Err(error) => Err(error.context(Verdict::DamagedAtLeast { objects })),
    }
}

/// On an error `reports` has what was found before.
async fn check_all(survey: &Survey, topics: &[TopicName], reports: &mut Vec<PartitionReport>) -> anyhow::Result<()> {
    let mut partitions = survey.partitions().await?;
    if let Some(missing) = topics.iter().find(|topic| partitions.iter().all(|path| path.topic != **topic)) {
        bail!("nothing of topic {missing} is in the store");
    }
    partitions.retain(|path| topics.is_empty() || topics.contains(&path.topic));
    if partitions.is_empty() {
        // What looks into the wrong place must not say that all is well.
        bail!("there is no archive in the store; is it the right one?");
    }
    let progress = progress();
    let checked = check_each(survey, partitions, reports, &progress).await;
    progress.finish_and_clear();
    checked
}

async fn check_each(
    survey: &Survey,
    partitions: Vec<PartitionPath>,
    reports: &mut Vec<PartitionReport>,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    for path in partitions {
        progress.set_message(format!("{}-{}", path.topic, path.partition));
        let mut report = PartitionReport::new(path);
        let checked = survey.partition(&mut report, &|bytes| progress.inc(bytes)).await;
        reports.push(report);
        checked?;
    }
    Ok(())
}

fn print_table(output: &mut Output, args: &VerifyArgs, reports: &[PartitionReport]) -> anyhow::Result<()> {
    let mut rows = Table::new(&[
        ("TOPIC", Align::Left),
        ("PARTITION", Align::Right),
        ("FILES", Align::Right),
        ("CHECKED", Align::Right),
        ("MESSAGES", Align::Right),
        ("SIZE", Align::Right),
        ("RAW", Align::Right),
        ("UNREFERENCED", Align::Right),
        ("THEIR SIZE", Align::Right),
        ("DAMAGED", Align::Right),
    ]);
    for report in reports {
        rows.row([
            report.path.topic.to_string(),
            report.path.partition.to_string(),
            report.files.to_string(),
            report.checked_files.to_string(),
            table::count(report.records),
            table::bytes(report.bytes),
            report.raw_batches.len().to_string(),
            report.unreferenced_objects.to_string(),
            table::bytes(report.unreferenced_bytes),
            report.damage.len().to_string(),
        ]);
    }
    for line in rows.lines() {
        output.line(line)?;
    }
    for report in reports {
        let (topic, partition) = (&report.path.topic, report.path.partition);
        for batch in &report.raw_batches {
            let (base, last, reason) = (batch.base_offset, batch.last_offset, &batch.reason);
            output.line(format!("raw: {topic}-{partition} offsets {base} to {last}: {reason}"))?;
        }
    }
    for damage in reports.iter().flat_map(|report| &report.damage) {
        output.line(format!("damaged: {damage}"))?;
    }
    if args.sample < 1.0 {
        output.line(format!("sample of {}% with seed {}", args.sample * 100.0, args.seed))?;
    }
    Ok(())
}

fn as_json(store: &str, args: &VerifyArgs, reports: &[PartitionReport], error: Option<&str>) -> Value {
    let partition = |report: &PartitionReport| {
        let raw = report.raw_batches.iter().map(|batch| {
            let (base, last, size) = (batch.base_offset, batch.last_offset, batch.size_bytes);
            json!({"base_offset": base, "last_offset": last, "size_bytes": size, "reason": batch.reason})
        });
        let damage = report.damage.iter().map(|damage| json!({"key": damage.key, "reason": damage.fault.to_string()}));
        json!({
            "topic": report.path.topic,
            "topic_id": report.path.topic_id,
            "partition": report.path.partition,
            "manifest_version": report.version,
            "files": report.files,
            "checked_files": report.checked_files,
            "records": report.records,
            "size_bytes": report.bytes,
            "raw_batches": raw.collect::<Vec<_>>(),
            "unreferenced_objects": report.unreferenced_objects,
            "unreferenced_bytes": report.unreferenced_bytes,
            "damage": damage.collect::<Vec<_>>(),
        })
    };
    json!({
        "store": store,
        "sample": args.sample,
        "seed": args.seed,
        "partitions": reports.iter().map(partition).collect::<Vec<_>>(),
        // why not everything was checked
        "error": error,
    })
}

/// On a terminal only.
fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg}: {bytes} read, {bytes_per_sec}, {elapsed}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn topic(text: &str) -> Result<TopicName, String> {
    TopicName::new(text).map_err(|error| error.to_string())
}

/// A share of 1, from text like `5%`.
fn percentage(text: &str) -> Result<f64, String> {
    let number: f64 = text.strip_suffix('%').unwrap_or(text).parse().map_err(|_| "write it like 5%".to_owned())?;
    if number > 0.0 && number <= 100.0 {
        Ok(number / 100.0)
    } else {
        Err("it must be above 0% and up to 100%".to_owned())
    }
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    let size: ByteSize = text.strip_suffix("/s").unwrap_or(text).parse().map_err(|error| format!("{error}"))?;
    NonZeroU64::new(size.as_u64()).ok_or_else(|| "it must be above 0; leave it out for no limit".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_rates_are_read() {
        for (text, share) in [("100%", 1.0), ("5%", 0.05), ("0.5", 0.005)] {
            assert_eq!(percentage(text), Ok(share));
        }
        for bad in ["0%", "101%", "-1%", "half", "NaN", ""] {
            assert!(percentage(bad).is_err(), "{bad}");
        }
        for (text, bytes) in [("512", 512), ("20MiB", 20 << 20), ("1MB/s", 1_000_000)] {
            assert_eq!(rate(text).map(NonZeroU64::get), Ok(bytes));
        }
        for bad in ["0", "fast", "1MiB/h"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
