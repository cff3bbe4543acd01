//! Pipelines of a request, checked and turned into [`Pipeline`]s, and the paths to the numbers that they and orders of
//! terms read. Pure.
//!
//! `derivative`, `cumulative_sum`, `serial_diff`, `moving_fn` with one of the `MovingFunctions` named here, and
//! `bucket_script` with arithmetic. A path is `_count`, `metric`, `metric.part` or `metric[part]`, of what lies beside
//! the pipeline in the same bucket.

use std::collections::BTreeMap;

use serde_json::Value;

use super::error::{ElasticError, shown};
use super::object::Members;
use crate::search::aggregate::pipeline::{Expression, Gaps, MetricPath, MovingFunction, Pipeline, WINDOW_MAX};
use crate::search::aggregate::{Aggregation, AggregationKind, Metric};

/// Numbers that one script may read.
const VARIABLES_MAX: usize = 32;
/// Percentiles where a request names none, as in Tantivy and Elasticsearch.
const PERCENTS_DEFAULT: [f64; 7] = [1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0];

/// Whether `kind` is one of a pipeline.
pub(super) fn is_pipeline(kind: &str) -> bool {
    matches!(kind, "derivative" | "cumulative_sum" | "serial_diff" | "moving_fn" | "bucket_script")
}

/// Why a pipeline could not be read.
pub(super) enum Unread {
    /// It reads what is not there, or not there yet.
    Path(ElasticError),
    Wrong(ElasticError),
}

impl From<ElasticError> for Unread {
    fn from(error: ElasticError) -> Self {
        Self::Wrong(error)
    }
}

/// Reads a pipeline of the buckets of `parent`, in which `beside` lies beside it.
pub(super) fn pipeline(
    kind: &str,
    settings: Value,
    parent: Option<&str>,
    beside: &[Aggregation],
) -> Result<Pipeline, Unread> {
    let place = match (kind, parent) {
        (_, Some("date_histogram" | "histogram"))
        | ("bucket_script", Some("terms" | "filters" | "range" | "date_range")) => None,
        ("bucket_script", _) => Some("several buckets"),
        _ => Some("a histogram or date_histogram"),
    };
    if let Some(place) = place {
        return Err(ElasticError::illegal(format!("[{kind}] must lie directly inside {place}")).into());
    }
    let mut settings = Members::of(kind, settings)?;
    let gaps = match settings.text("gap_policy")?.as_deref() {
        None if kind == "cumulative_sum" => Gaps::Zeros,
        None | Some("skip") => Gaps::Skip,
        Some("insert_zeros") => Gaps::Zeros,
        Some("keep_values") => Gaps::KeepValues,
        Some(other) => {
            return Err(ElasticError::unsupported(&format!("[{kind}] gap_policy [{other}]")).into());
        }
    };
    // How a number is written beside its value.
    settings.ignore(&["format"]);
    let paths = settings.required("buckets_path")?;
    let path = |paths: &Value| match paths.as_str() {
        Some(text) => path(kind, text, beside),
        None => Err(ElasticError::parsing(format!("[{kind}] [buckets_path] must be a text")).into()),
    };
    let pipeline = match kind {
        "derivative" => {
            let unit = settings.text("unit")?;
            let unit_ms = unit.map(|unit| {
                let length = super::aggs::length(&unit).filter(|length| *length > 0);
                length.map(|length| length as f64).ok_or_else(|| {
                    ElasticError::illegal(format!(
                        "[derivative] unit [{}] is not a length of time like 1s",
                        shown(&unit)
                    ))
                })
            });
            Pipeline::Derivative { of: path(&paths)?, gaps, unit_ms: unit_ms.transpose()? }
        }
        "cumulative_sum" => Pipeline::CumulativeSum { of: path(&paths)?, gaps },
        "serial_diff" => {
            let lag = window(&mut settings, "lag")?.unwrap_or(1);
            Pipeline::SerialDiff { of: path(&paths)?, gaps, lag }
        }
        "moving_fn" => {
            let window = window(&mut settings, "window")?
                .ok_or_else(|| ElasticError::parsing("[moving_fn] needs [window]".to_owned()))?;
            let shift = settings.number("shift")?.unwrap_or(0.0);
            if shift.fract() != 0.0 || shift.abs() > WINDOW_MAX as f64 {
                let reason = format!("[moving_fn] shift {shift} must be a whole number of at most {WINDOW_MAX}");
                return Err(ElasticError::illegal(reason).into());
            }
            let function = function(&script(&mut settings, kind)?)?;
            Pipeline::Moving { of: path(&paths)?, gaps, function, window, shift: shift as i64 }
        }
        _ => {
            let Value::Object(named) = &paths else {
                let reason = format!("[{kind}] [buckets_path] must be an object of names and paths");
                return Err(ElasticError::parsing(reason).into());
            };
            if named.len() > VARIABLES_MAX {
                let reason = format!("[{kind}] {} paths exceed the limit of {VARIABLES_MAX}", named.len());
                return Err(ElasticError::illegal(reason).into());
            }
            let variables = named.iter().map(|(name, text)| Ok((name.clone(), path(text)?)));
            let variables = variables.collect::<Result<BTreeMap<_, _>, Unread>>()?;
            let text = script(&mut settings, kind)?;
            let script = Expression::parse(&text).map_err(|reason| {
                ElasticError::illegal(format!("[{kind}] the script [{}] is not supported: {reason}", shown(&text)))
            })?;
            if let Some(name) = script.variables().into_iter().find(|name| !variables.contains_key(*name)) {
                let reason = format!("[{kind}] the script reads params.{}, which [buckets_path] lacks", shown(name));
                return Err(ElasticError::illegal(reason).into());
            }
            Pipeline::Script { variables, gaps, script }
        }
    };
    settings.done()?;
    Ok(pipeline)
}

fn path(kind: &str, text: &str, beside: &[Aggregation]) -> Result<MetricPath, Unread> {
    metric_path(text, beside).ok_or_else(|| {
        let text = shown(text);
        let reason = format!("[{kind}] [buckets_path] [{text}] is not _count, nor a metric or a part of one beside it");
        Unread::Path(ElasticError::illegal(reason))
    })
}

/// A number of buckets.
fn window(settings: &mut Members, name: &str) -> Result<Option<usize>, ElasticError> {
    let Some(count) = settings.count(name)? else { return Ok(None) };
    let count = usize::try_from(count).ok().filter(|count| (1..=WINDOW_MAX).contains(count));
    count.map(Some).ok_or_else(|| ElasticError::illegal(format!("[{name}] must be 1 to {WINDOW_MAX}")))
}

/// A script as a text, or under one of the names that it had over the years.
fn script(settings: &mut Members, kind: &str) -> Result<String, ElasticError> {
    let source = match settings.required("script")? {
        Value::Object(members) => {
            let mut members = Members::of("script", Value::Object(members))?;
            let source = members.take("source").or_else(|| members.take("inline"));
            if members.text("lang")?.is_some_and(|lang| !matches!(lang.as_str(), "painless" | "expression")) {
                return Err(ElasticError::unsupported(&format!("[{kind}] [script] in another language")));
            }
            members.done()?;
            source
        }
        script => Some(script),
    };
    let text = source.as_ref().and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| ElasticError::parsing(format!("[{kind}] [script] must be a text")))
}

fn function(script: &str) -> Result<MovingFunction, ElasticError> {
    let plain: String = script.chars().filter(|c| !c.is_whitespace()).collect();
    Ok(match plain.trim_start_matches("return").trim_end_matches(';') {
        "MovingFunctions.max(values)" => MovingFunction::Max,
        "MovingFunctions.min(values)" => MovingFunction::Min,
        "MovingFunctions.sum(values)" => MovingFunction::Sum,
        "MovingFunctions.unweightedAvg(values)" => MovingFunction::UnweightedAvg,
        "MovingFunctions.stdDev(values,MovingFunctions.unweightedAvg(values))" => MovingFunction::StdDev,
        _ => {
            let reason = format!(
                "[moving_fn] the script [{}] is not supported, only MovingFunctions.max, min, sum and unweightedAvg of \
                 (values), and stdDev(values, MovingFunctions.unweightedAvg(values))",
                shown(script)
            );
            return Err(ElasticError::illegal(reason));
        }
    })
}

/// Where the number stands that `text` names, of what lies in the same bucket.
pub(super) fn metric_path(text: &str, beside: &[Aggregation]) -> Option<MetricPath> {
    if text == "_count" {
        return Some(MetricPath::count());
    }
    let find = |name: &str| beside.iter().find(|aggregation| aggregation.name == name);
    let (aggregation, part) = match find(text) {
        Some(aggregation) => (aggregation, ""),
        None => {
            let (name, part) = match text.strip_suffix(']') {
                Some(text) => text.split_once('[')?,
                None => text.split_once('.')?,
            };
            (find(name)?, part)
        }
    };
    let members = match &aggregation.kind {
        AggregationKind::Metric { metric, settings, .. } => part_of(*metric, settings, part)?,
        AggregationKind::Pipeline(Pipeline::Derivative { unit_ms: Some(_), .. }) if part == "normalized_value" => {
            vec![part.to_owned()]
        }
        AggregationKind::Pipeline(_) | AggregationKind::Rate { .. } if matches!(part, "" | "value") => {
            vec!["value".to_owned()]
        }
        _ => return None,
    };
    Some(MetricPath([vec![aggregation.name.clone()], members].concat()))
}

/// The members of a metric that hold its `part`.
fn part_of(metric: Metric, settings: &serde_json::Map<String, Value>, part: &str) -> Option<Vec<String>> {
    let one = |name: &str| Some(vec![name.to_owned()]);
    match (metric, part) {
        (Metric::Stats | Metric::ExtendedStats, "count" | "sum" | "min" | "max" | "avg") => one(part),
        (
            Metric::ExtendedStats,
            "sum_of_squares"
            | "variance"
            | "variance_population"
            | "variance_sampling"
            | "std_deviation"
            | "std_deviation_population"
            | "std_deviation_sampling",
        ) => one(part),
        (Metric::ExtendedStats, part) => {
            let bound = part.strip_prefix("std_deviation_bounds.").or_else(|| part.strip_prefix("std_"))?;
            let known = ["upper", "lower", "upper_population", "lower_population", "upper_sampling", "lower_sampling"];
            known.contains(&bound).then(|| vec!["std_deviation_bounds".to_owned(), bound.to_owned()])
        }
        (Metric::Percentiles, part) if settings.get("keyed") != Some(&Value::Bool(false)) => {
            let wanted: f64 = part.parse().ok()?;
            let percents = settings.get("percents").and_then(Value::as_array);
            let is_asked = match percents {
                Some(percents) => percents.iter().any(|percent| percent.as_f64() == Some(wanted)),
                None => PERCENTS_DEFAULT.contains(&wanted),
            };
            is_asked.then(|| vec!["values".to_owned(), format!("{wanted:?}")])
        }
        (Metric::Stats | Metric::Percentiles, _) => None,
        (_, "" | "value") => one("value"),
        _ => None,
    }
}
