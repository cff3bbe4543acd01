//! Topics: list, describe, create, change, delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, TopicId, TopicName};
use thermocline_ingest::topics::Topic;

use super::error::ApiError;
use super::extract::{JsonBody, NoParams, Params, TopicPath};
use super::{App, HttpServices};

#[derive(Debug, Serialize)]
pub(super) struct TopicInfo {
    pub(super) name: TopicName,
    pub(super) id: TopicId,
    /// What differs from the broker's defaults.
    configs: BTreeMap<String, String>,
    pub(super) partitions: Vec<PartitionInfo>,
}

#[derive(Debug, Serialize)]
pub(super) struct TopicList {
    topics: Vec<TopicInfo>,
}

/// Where a partition's messages are; ends are exclusive, sizes in bytes.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct PartitionInfo {
    partition: PartitionId,
    pub(super) log_start_offset: Offset,
    local_start_offset: Offset,
    pub(super) high_watermark: Offset,
    last_stable_offset: Offset,
    archived_through: Offset,
    indexed_through: Offset,
    pub(super) hot_bytes: u64,
    /// Parquet files, and batches kept raw.
    pub(super) cold_bytes: u64,
    cold_files: usize,
    pub(super) index_bytes: u64,
    /// Archived undecoded; which, and why: `GET /v1/topics/{t}/tier`.
    raw_batches: usize,
    /// Data files, with split and raw batches, and the manifest, as the scrub found them.
    damaged_files: usize,
    /// Data files that are indexed otherwise than the topic asks for.
    outdated_files: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    #[serde(default)]
    internal: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTopic {
    name: TopicName,
    partitions: Option<i32>,
    #[serde(default)]
    configs: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedTopic {
    /// `null` goes back to the default.
    #[serde(default)]
    configs: BTreeMap<String, Option<String>>,
    /// How many there are to be in all; more than there are.
    partitions: Option<i32>,
}

/// `GET /v1/topics`: every topic in name order, internal ones only where asked for.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Params(ListParams { internal }): Params<ListParams>,
) -> Json<TopicList> {
    let topics = app.services.topics.list();
    let shown = topics.iter().filter(|topic| internal || !topic.is_internal());
    Json(TopicList { topics: shown.map(|topic| describe_topic(&app.services, topic)).collect() })
}

/// `GET /v1/topics/{t}`.
pub(super) async fn describe(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(NoParams {}): Params<NoParams>,
) -> Json<TopicInfo> {
    Json(describe_topic(&app.services, &topic))
}

/// `POST /v1/topics`: 201 with the topic.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(NewTopic { name, partitions, configs }): JsonBody<NewTopic>,
) -> Result<(StatusCode, Json<TopicInfo>), ApiError> {
    if name.is_internal() {
        return Err(ApiError::internal_topic(name.as_str()));
    }
    let partitions = partitions.unwrap_or(app.services.num_partitions);
    let topics = app.services.topics.clone();
    let topic = tokio::task::spawn_blocking(move || topics.create(&name, partitions, configs)).await??;
    Ok((StatusCode::CREATED, Json(describe_topic(&app.services, &topic))))
}

/// `PATCH /v1/topics/{t}`: the topic with its new settings and partitions, once they are durable and in force.
pub(super) async fn alter(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(ChangedTopic { configs, partitions }): JsonBody<ChangedTopic>,
) -> Result<Json<TopicInfo>, ApiError> {
    let topics = app.services.topics.clone();
    let change = move |overrides: &mut BTreeMap<String, String>| {
        for (key, value) in configs {
            match value {
                Some(value) => drop(overrides.insert(key, value)),
                None => drop(overrides.remove(&key)),
            }
        }
    };
    let alter = move || {
        let name = topic.name.as_str();
        // Neither is done where the other cannot be.
        partitions.map(|count| topics.grow(name, count, true)).transpose()?;
        let topic = topics.alter(name, false, change)?;
        partitions.map_or(Ok(topic), |count| topics.grow(name, count, false))
    };
    let topic = tokio::task::spawn_blocking(alter).await??;
    Ok(Json(describe_topic(&app.services, &topic)))
}

/// `DELETE /v1/topics/{t}`: 204.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(NoParams {}): Params<NoParams>,
) -> Result<StatusCode, ApiError> {
    let topics = app.services.topics.clone();
    let deleted = tokio::task::spawn_blocking(move || topics.delete(topic.name.as_str())).await??;
    app.services.groups.forget_topic(&deleted.name).await;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn describe_topic(services: &HttpServices, topic: &Topic) -> TopicInfo {
    TopicInfo {
        name: topic.name.clone(),
        id: topic.id,
        configs: topic.config().overrides.clone(),
        partitions: topic.partitions.iter().map(|partition| describe_partition(services, partition)).collect(),
    }
}

fn describe_partition(services: &HttpServices, partition: &Partition) -> PartitionInfo {
    let manifest = services.tiering.manifest(partition);
    let mut info = PartitionInfo {
        partition: partition.topic_partition().partition,
        // Read before the high watermark, which only grows, so that each number stays within the next.
        log_start_offset: partition.log_start_offset(),
        local_start_offset: partition.local_start_offset(),
        archived_through: partition.archived_through(),
        indexed_through: services.search.indexed_through(partition),
        last_stable_offset: partition.last_stable_offset(),
        high_watermark: partition.high_watermark(),
        hot_bytes: partition.hot_bytes(),
        cold_files: manifest.files.len(),
        damaged_files: services.tiering.damaged_files(partition).len(),
        outdated_files: services.tiering.reindexing(partition).files,
        ..PartitionInfo::default()
    };
    for file in &manifest.files {
        info.cold_bytes += file.data.size_bytes + file.raw.as_ref().map_or(0, |raw| raw.object.size_bytes);
        info.raw_batches += file.raw.as_ref().map_or(0, |raw| raw.batches.len());
        info.index_bytes += file.split.as_ref().map_or(0, |split| split.size_bytes);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_the_pinned_shape() {
        let info = TopicInfo {
            name: TopicName::new("orders").unwrap(),
            id: TopicId::random(),
            configs: BTreeMap::from([("segment.bytes".to_owned(), "1048576".to_owned())]),
            partitions: vec![PartitionInfo { partition: PartitionId(2), hot_bytes: 7, ..PartitionInfo::default() }],
        };
        let text = serde_json::to_string(&info).unwrap();
        let expected = format!(
            concat!(
                r#"{{"name":"orders","id":"{}","configs":{{"segment.bytes":"1048576"}},"partitions":[{{"partition":2,"#,
                r#""log_start_offset":0,"local_start_offset":0,"high_watermark":0,"last_stable_offset":0,"#,
                r#""archived_through":0,"indexed_through":0,"hot_bytes":7,"cold_bytes":0,"cold_files":0,"#,
                r#""index_bytes":0,"raw_batches":0,"damaged_files":0,"outdated_files":0}}]}}"#
            ),
            info.id
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn new_topics_are_checked() {
        let topic: NewTopic = serde_json::from_str(r#"{"name":"a","partitions":3,"configs":{"x":"1"}}"#).unwrap();
        assert_eq!((topic.partitions, topic.configs.len()), (Some(3), 1));
        for bad in [
            r#"{"name":"a/b"}"#,
            r#"{"partitions":1}"#,
            r#"{"name":"a","replicas":1}"#,
            r#"{"name":"a","configs":{"x":1}}"#,
        ] {
            assert!(serde_json::from_str::<NewTopic>(bad).is_err(), "{bad}");
        }
    }
}
