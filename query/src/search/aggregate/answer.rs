//! What Tantivy computed, in Elasticsearch's form.

use std::cmp::Ordering;

use chrono::FixedOffset;
use serde_json::{Map, Value, json};

use super::{Aggregation, AggregationKind, Filter, Grid, Interval, Metric, RateOf, Shape, TermsBy};
use crate::elastic::DateFormat;

/// `results` holds what Tantivy wrote for each aggregation of `tree`.
pub(super) fn written(tree: &[Aggregation], mut results: Value) -> Map<String, Value> {
    let mut all = Map::new();
    // Pipelines are computed over several buckets, when these are there.
    for aggregation in tree.iter().filter(|one| !matches!(one.kind, AggregationKind::Pipeline(_))) {
        let result = results.get_mut(&aggregation.name).map(Value::take).unwrap_or_default();
        let mut result = written_one(aggregation, result);
        if let (Some(meta), Value::Object(members)) = (&aggregation.meta, &mut result) {
            members.insert("meta".to_owned(), meta.clone());
        }
        all.insert(aggregation.name.clone(), result);
    }
    all
}

fn written_one(aggregation: &Aggregation, mut result: Value) -> Value {
    match &aggregation.kind {
        AggregationKind::Metric { metric, column, .. } => {
            metric_value(*metric, column.is_time(), &mut result);
            result
        }
        // Not divided yet, and not there where messages are counted.
        AggregationKind::Rate { .. } if !result.is_object() => json!({}),
        AggregationKind::Rate { .. } | AggregationKind::Pipeline(_) => result,
        AggregationKind::Terms { column, by, .. } => {
            let is_time = column.is_time();
            let mut buckets = buckets(aggregation, &mut result, |bucket| {
                if let Some(millis) = bucket.get("key").and_then(Value::as_i64).filter(|_| is_time) {
                    bucket.insert("key_as_string".to_owned(), json!(DateFormat::default().write(millis)));
                }
            });
            let number = |name: &str| result.get(name).cloned().unwrap_or(json!(0));
            let cut = by.as_ref().map_or(0, |by| order_and_cut(&mut buckets, by));
            json!({
                "doc_count_error_upper_bound": number("doc_count_error_upper_bound"),
                "sum_other_doc_count": number("sum_other_doc_count").as_u64().unwrap_or(0) + cut,
                "buckets": buckets,
            })
        }
        AggregationKind::Histogram { column, keyed, .. } => {
            let is_time = column.is_time();
            let buckets = buckets(aggregation, &mut result, |bucket| {
                if is_time {
                    time_key(bucket, Interval::Fixed, crate::elastic::utc(), DateFormat::default());
                }
            });
            listed(buckets, *keyed)
        }
        AggregationKind::DateHistogram { interval, grid, zone, format, keyed } => {
            let write = |bucket: &mut Map<String, Value>| time_key(bucket, *interval, *zone, *format);
            let buckets = buckets(aggregation, &mut result, |bucket| {
                write(bucket);
                let length = length_of(bucket, *interval, grid, *zone);
                aggregation.inner.iter().for_each(|inner| write_rate(inner, bucket, length));
            });
            listed(buckets, *keyed)
        }
        AggregationKind::Filters { filters, shape } => {
            filtered(filters, *shape, buckets(aggregation, &mut result, |_| ()))
        }
    }
}

/// The buckets of `result`, with their inner aggregations written, in order.
fn buckets(
    aggregation: &Aggregation,
    result: &mut Value,
    mut write: impl FnMut(&mut Map<String, Value>),
) -> Vec<Map<String, Value>> {
    let Some(Value::Array(found)) = result.get_mut("buckets").map(Value::take) else { return Vec::new() };
    let mut buckets = Vec::with_capacity(found.len());
    for bucket in found {
        let Value::Object(mut bucket) = bucket else { continue };
        let mut inner = Map::new();
        for aggregation in &aggregation.inner {
            inner.extend(bucket.remove_entry(&aggregation.name));
        }
        bucket.extend(written(&aggregation.inner, Value::Object(inner)));
        write(&mut bucket);
        buckets.push(bucket);
    }
    for inner in &aggregation.inner {
        if let AggregationKind::Pipeline(pipeline) = &inner.kind {
            pipeline.apply(&inner.name, &mut buckets);
            add_meta(inner, &mut buckets);
        }
    }
    buckets
}

fn add_meta(inner: &Aggregation, buckets: &mut [Map<String, Value>]) {
    let Some(meta) = &inner.meta else { return };
    for bucket in buckets {
        if let Some(Value::Object(members)) = bucket.get_mut(&inner.name) {
            members.insert("meta".to_owned(), meta.clone());
        }
    }
}

/// The messages of the buckets that were cut off. Buckets without the number come last; ties go by key, ascending.
fn order_and_cut(buckets: &mut Vec<Map<String, Value>>, by: &TermsBy) -> u64 {
    let mut ordered: Vec<_> = buckets.drain(..).map(|bucket| (by.path.value_in(&bucket), bucket)).collect();
    ordered.sort_by(|(a, a_bucket), (b, b_bucket)| {
        let by_value = match (a, b) {
            (Some(a), Some(b)) if by.is_descending => b.total_cmp(a),
            (Some(a), Some(b)) => a.total_cmp(b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        by_value.then_with(|| compare_keys(a_bucket.get("key"), b_bucket.get("key")))
    });
    let cut = ordered.split_off(by.size.min(ordered.len()));
    buckets.extend(ordered.into_iter().map(|(_, bucket)| bucket));
    cut.iter().filter_map(|(_, bucket)| bucket.get("doc_count")?.as_u64()).sum()
}

fn compare_keys(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (Some(a), Some(b)) => a.as_f64().unwrap_or(f64::NAN).total_cmp(&b.as_f64().unwrap_or(f64::NAN)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// How long a bucket of a date histogram is, in milliseconds.
fn length_of(bucket: &Map<String, Value>, interval: Interval, grid: &Grid, zone: FixedOffset) -> f64 {
    match (interval, bucket.get("key").and_then(Value::as_i64)) {
        (Interval::Calendar(calendar), Some(start)) => {
            let number = calendar.number_of(start, zone);
            calendar.start_of(number + 1, zone).map_or(f64::NAN, |end| (end - start) as f64)
        }
        _ => grid.interval,
    }
}

/// Divides a rate by the units in its bucket's length.
fn write_rate(inner: &Aggregation, bucket: &mut Map<String, Value>, length: f64) {
    let AggregationKind::Rate { of, unit_ms } = &inner.kind else { return };
    let count = match of {
        RateOf::Messages => bucket.get("doc_count").and_then(Value::as_f64),
        RateOf::Sum(_) | RateOf::Count(_) => bucket.get(&inner.name).and_then(|rate| rate.get("value")?.as_f64()),
    };
    let units = unit_ms.map_or(1.0, |unit| length / unit as f64);
    if let Some(Value::Object(members)) = bucket.get_mut(&inner.name) {
        members.insert("value".to_owned(), json!(count.unwrap_or(0.0) / units));
    }
}

/// Turns the key of a bucket into milliseconds and writes it out beside.
fn time_key(bucket: &mut Map<String, Value>, interval: Interval, zone: FixedOffset, format: DateFormat) {
    // Milliseconds since 1970 are whole and far below 2^53, where floats stay exact.
    let Some(number) = bucket.get("key").and_then(Value::as_f64).map(|key| key.round() as i64) else { return };
    let millis = match interval {
        Interval::Fixed => number,
        Interval::Calendar(calendar) => calendar.start_of(number, zone).unwrap_or(number),
    };
    bucket.insert("key".to_owned(), json!(millis));
    bucket.insert("key_as_string".to_owned(), json!(format.write_in(millis, zone)));
}

fn listed(buckets: Vec<Map<String, Value>>, keyed: bool) -> Value {
    if !keyed {
        return json!({"buckets": buckets});
    }
    let name = |bucket: &Map<String, Value>| match bucket.get("key_as_string").or_else(|| bucket.get("key")) {
        Some(Value::String(text)) => text.clone(),
        Some(key) => key.to_string(),
        None => String::new(),
    };
    let keyed: Map<String, Value> = buckets.into_iter().map(|bucket| (name(&bucket), Value::Object(bucket))).collect();
    json!({"buckets": keyed})
}

/// The bucket of each filter. Tantivy shows all of them, numbered by their keys.
fn filtered(filters: &[Filter], shape: Shape, buckets: Vec<Map<String, Value>>) -> Value {
    let mut named = Vec::with_capacity(filters.len());
    for bucket in buckets {
        let number = bucket.get("key").and_then(Value::as_f64).unwrap_or(-1.0);
        // Keys are small whole numbers; others do not occur.
        let Some(filter) = filters.get(number as usize).filter(|_| number >= 0.0) else { continue };
        let mut bucket = bucket;
        bucket.remove("key");
        bucket.extend(filter.shown.clone());
        named.push((filter.key.clone(), bucket));
    }
    match shape {
        Shape::Single => named.into_iter().next().map_or(json!({"doc_count": 0}), |(_, bucket)| Value::Object(bucket)),
        Shape::Keyed => {
            let keyed: Map<String, Value> = named.into_iter().map(|(key, bucket)| (key, bucket.into())).collect();
            json!({"buckets": keyed})
        }
        Shape::List { keys } => {
            let list = named.into_iter().map(|(key, mut bucket)| {
                if keys {
                    bucket.insert("key".to_owned(), json!(key));
                }
                Value::Object(bucket)
            });
            json!({"buckets": list.collect::<Vec<_>>()})
        }
    }
}

fn metric_value(metric: Metric, is_time: bool, result: &mut Value) {
    let Value::Object(members) = result else { return };
    if matches!(metric, Metric::Count | Metric::Cardinality)
        && let Some(count) = members.get("value").and_then(Value::as_f64)
    {
        // Counts are whole; a float would be shown with a fraction.
        members.insert("value".to_owned(), json!(count.round() as u64));
    }
    if !is_time {
        return;
    }
    let names: &[&str] = match metric {
        Metric::Average | Metric::Max | Metric::Min => &["value"],
        Metric::Stats | Metric::ExtendedStats => &["min", "max", "avg"],
        _ => &[],
    };
    for name in names {
        if let Some(moment) = members.get(*name).and_then(Value::as_f64) {
            let text = DateFormat::default().write(moment.round() as i64);
            members.insert(format!("{name}_as_string"), json!(text));
        }
    }
}
