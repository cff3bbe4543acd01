//! `GET /v1/topics/{t}/tier`: what is out of order in a topic's archive. Batches that were archived undecoded, each
//! with its reason, what the scrub found damaged, and what is still indexed otherwise than the topic asks for.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, TopicName};
use thermocline_tiering::manifest::RawBatch;
use thermocline_tiering::scrub::DamagedFile;
use thermocline_tiering::verify::Damage;
use thermocline_tiering::worker::ReindexProgress;

use super::error::ApiError;
use super::extract::{Params, TopicPath};
use super::{App, HttpServices};
use crate::replay;

/// Entries of one list, per partition.
const LIMIT_DEFAULT: usize = 1000;
const LIMIT_MAX: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TierParams {
    partition: Option<PartitionId>,
    /// What ends below is left out: how to go on where a list was longer than `limit`.
    #[serde(default)]
    from_offset: Offset,
    #[serde(default = "default_limit")]
    limit: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct TierInfo {
    name: TopicName,
    partitions: Vec<PartitionTier>,
}

/// The counts are of the whole partition, the lists of what was asked for; in offset order, a damaged manifest first.
#[derive(Debug, Serialize)]
struct PartitionTier {
    partition: PartitionId,
    raw_batches: usize,
    damaged_files: usize,
    reindex: ReindexProgress,
    raw: Vec<RawInfo>,
    damaged: Vec<DamagedInfo>,
}

/// A batch that is kept as it was produced: served to consumers, not searchable.
#[derive(Debug, Serialize)]
struct RawInfo {
    base_offset: Offset,
    /// Inclusive.
    last_offset: Offset,
    size_bytes: u64,
    reason: String,
}

#[derive(Debug, Serialize)]
struct DamagedInfo {
    /// `null`, like `last_offset`, where it is the manifest.
    base_offset: Option<Offset>,
    /// Inclusive.
    last_offset: Option<Offset>,
    /// Milliseconds since the Unix epoch.
    found_at_ms: i64,
    objects: Vec<DamagedObject>,
}

#[derive(Debug, Serialize)]
struct DamagedObject {
    key: String,
    reason: String,
}

fn default_limit() -> usize {
    LIMIT_DEFAULT
}

pub(super) async fn tier(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(params): Params<TierParams>,
) -> Result<Json<TierInfo>, ApiError> {
    if params.limit > LIMIT_MAX {
        return Err(ApiError::bad_request(format!("limit {} exceeds {LIMIT_MAX}", params.limit)));
    }
    let partitions = replay::chosen(&topic, params.partition)?.iter();
    let partitions = partitions.map(|partition| of_partition(&app.services, partition, &params)).collect();
    Ok(Json(TierInfo { name: topic.name.clone(), partitions }))
}

fn of_partition(services: &HttpServices, partition: &Partition, params: &TierParams) -> PartitionTier {
    let manifest = services.tiering.manifest(partition);
    let raw = || manifest.files.iter().filter_map(|file| file.raw.as_ref()).flat_map(|raw| &raw.batches);
    let damaged = services.tiering.damaged_files(partition);
    PartitionTier {
        partition: partition.topic_partition().partition,
        raw_batches: raw().count(),
        damaged_files: damaged.len(),
        reindex: services.tiering.reindexing(partition),
        raw: raw()
            .filter(|batch| batch.last_offset >= params.from_offset)
            .take(params.limit)
            .map(RawInfo::from)
            .collect(),
        damaged: damaged
            .into_iter()
            .filter(|found| found.file.as_ref().is_none_or(|file| file.last_offset >= params.from_offset))
            .take(params.limit)
            .map(DamagedInfo::from)
            .collect(),
    }
}

impl From<&RawBatch> for RawInfo {
    fn from(batch: &RawBatch) -> Self {
        let RawBatch { base_offset, last_offset, size_bytes, reason, .. } = batch;
        Self { base_offset: *base_offset, last_offset: *last_offset, size_bytes: *size_bytes, reason: reason.clone() }
    }
}

impl From<DamagedFile> for DamagedInfo {
    fn from(found: DamagedFile) -> Self {
        let object = |Damage { key, fault }| DamagedObject { key, reason: fault.to_string() };
        Self {
            base_offset: found.file.as_ref().map(|file| file.base_offset),
            last_offset: found.file.as_ref().map(|file| file.last_offset),
            found_at_ms: found.found_at.0,
            objects: found.damage.into_iter().map(object).collect(),
        }
    }
}
