//! What there is: indices, mappings, fields, health.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::super::App;
use super::super::topics::describe_topic;
use super::{Call, Refusal, json_response, topics};
use crate::elastic::ElasticError;
use crate::elastic::catalogue::{Cat, IndexLine, field_caps as capabilities, mappings};
use crate::elastic::request::{index_options, no_more};

/// `_field_caps`.
pub(super) async fn field_caps(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let options = index_options(&mut call.parameters)?;
    let mut patterns: Vec<String> = Vec::new();
    if let Some(names) = call.parameters.remove("fields") {
        patterns.extend(names.split(',').map(str::to_owned));
    }
    ["include_unmapped", "include_empty_fields", "filters", "types"]
        .iter()
        .for_each(|name| drop(call.parameters.remove(*name)));
    no_more(&call.parameters)?;
    match call.json()? {
        Value::Null => {}
        Value::Object(mut body) => {
            match body.remove("fields") {
                None => {}
                Some(Value::String(name)) => patterns.push(name),
                Some(Value::Array(names)) => {
                    patterns.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
                }
                Some(_) => return Err(ElasticError::parsing("[fields] must be a list of names").into()),
            }
            if let Some(name) = body.keys().next() {
                return Err(ElasticError::unsupported(&format!("[{name}] of _field_caps")).into());
            }
        }
        _ => return Err(ElasticError::parsing("the body must be an object").into()),
    }
    let names = topics(&app, &call.index, options)?;
    let found = app.services.search.fields(&names).await.map_err(ElasticError::from)?;
    Ok(json_response(&capabilities(&found, &patterns)))
}

/// `_mapping`.
pub(super) async fn mapping(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let options = index_options(&mut call.parameters)?;
    no_more(&call.parameters)?;
    let names = topics(&app, &call.index, options)?;
    let found = app.services.search.fields(&names).await.map_err(ElasticError::from)?;
    Ok(json_response(&mappings(&found)))
}

/// `GET` and `HEAD` of an index: whether it is there.
pub(super) async fn exists(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    if call.index.starts_with('_') {
        return Err(ElasticError::unsupported(&format!("/{}", call.index)).into());
    }
    let options = index_options(&mut call.parameters)?;
    no_more(&call.parameters)?;
    let names = topics(&app, &call.index, options)?;
    let found = app.services.search.fields(&names).await.map_err(ElasticError::from)?;
    Ok(json_response(&mappings(&found)))
}

/// `_cat/indices`: text, or JSON where `format` says so.
pub(super) async fn indices(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let options = index_options(&mut call.parameters)?;
    let accepts_json = call.parameters.remove("format").is_some_and(|format| format == "json");
    let with_head = call.parameters.remove("v").is_some_and(|flag| flag != "false");
    let columns = call.parameters.remove("h");
    ["bytes", "time", "s", "local", "master_timeout", "include_unloaded_segments"]
        .iter()
        .for_each(|name| drop(call.parameters.remove(*name)));
    no_more(&call.parameters)?;
    let names = topics(&app, &call.index, options)?;
    let mut lines = Vec::with_capacity(names.len());
    for topic in names.iter().filter_map(|name| app.services.topics.get(name.as_str())) {
        let info = describe_topic(&app.services, &topic);
        let count = |partition: &super::super::topics::PartitionInfo| {
            partition.log_start_offset.distance_to(partition.high_watermark)
        };
        let size = |partition: &super::super::topics::PartitionInfo| {
            partition.hot_bytes + partition.cold_bytes + partition.index_bytes
        };
        lines.push(IndexLine {
            name: info.name,
            id: info.id.to_string(),
            partitions: info.partitions.len(),
            messages: info.partitions.iter().map(count).sum(),
            size_bytes: info.partitions.iter().map(size).sum(),
        });
    }
    let cat = Cat::new(&lines, columns.as_deref())?;
    if accepts_json {
        return Ok(json_response(&cat.json()));
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=UTF-8")], cat.text(with_head)).into_response())
}

/// `_cluster/health`: the broker answers, so it is green.
pub(super) async fn health(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let options = index_options(&mut call.parameters)?;
    let names = topics(&app, &call.index, options)?;
    let found = names.iter().filter_map(|name| app.services.topics.get(name.as_str()));
    let partitions: usize = found.map(|topic| topic.partitions.len()).sum();
    Ok(json_response(&json!({
        "cluster_name": "thermocline", "status": "green", "timed_out": false,
        "number_of_nodes": 1, "number_of_data_nodes": 1,
        "active_primary_shards": partitions, "active_shards": partitions, "relocating_shards": 0,
        "initializing_shards": 0, "unassigned_shards": 0, "delayed_unassigned_shards": 0,
        "number_of_pending_tasks": 0, "number_of_in_flight_fetch": 0, "task_max_waiting_in_queue_millis": 0,
        "active_shards_percent_as_number": 100.0,
    })))
}
