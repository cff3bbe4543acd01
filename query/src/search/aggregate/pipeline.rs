//! Pipelines: numbers that follow from those in a bucket and in its neighbours, computed on the finished answer.
//!
//! They are applied bucket list by bucket list, in the order of the tree, in which a pipeline comes behind those that
//! it reads. They are given by what Elasticsearch documents of them:
//!
//! - A bucket without documents has no number, though its count is one, nor has one whose metric is null; such a gap is
//!   skipped, or counts as zero, or counts if the metric has a value all the same ([`Gaps`]).
//! - Where there is nothing to compute from (the first derivative), a bucket has no member of the pipeline's name;
//!   where what was computed is no number (a division by zero, a derivative beside a gap), its value is null.

mod expression;

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

pub(crate) use expression::Expression;

/// Buckets that a moving function or a difference may reach back.
pub(crate) const WINDOW_MAX: usize = 10_000;

/// Where a number stands in a bucket as it is written: the names of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetricPath(pub Vec<String>);

/// What a bucket without a number counts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gaps {
    #[default]
    Skip,
    Zeros,
    /// As `Skip`, but for buckets without documents whose metric has a value.
    KeepValues,
}

/// A number computed for each bucket of a list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pipeline {
    /// By how much the number changed, and where a unit is given, how much that is for each so many milliseconds.
    Derivative {
        of: MetricPath,
        gaps: Gaps,
        unit_ms: Option<f64>,
    },
    CumulativeSum {
        of: MetricPath,
        gaps: Gaps,
    },
    /// The difference from so many buckets before.
    SerialDiff {
        of: MetricPath,
        gaps: Gaps,
        lag: usize,
    },
    /// A function of the numbers before the bucket, or `shift` buckets later.
    Moving {
        of: MetricPath,
        gaps: Gaps,
        function: MovingFunction,
        window: usize,
        shift: i64,
    },
    Script {
        variables: BTreeMap<String, MetricPath>,
        gaps: Gaps,
        script: Expression,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MovingFunction {
    Max,
    Min,
    Sum,
    /// Of the population.
    StdDev,
    UnweightedAvg,
}

impl MetricPath {
    /// The number of documents.
    pub fn count() -> Self {
        Self(vec!["doc_count".to_owned()])
    }

    fn is_count(&self) -> bool {
        self.0.first().is_some_and(|name| name == "doc_count")
    }

    /// None where it is null or not there.
    pub fn value_in(&self, bucket: &Map<String, Value>) -> Option<f64> {
        let (first, rest) = self.0.split_first()?;
        let value = rest.iter().try_fold(bucket.get(first)?, |value, name| value.get(name))?;
        value.as_f64()
    }

    fn value(&self, bucket: &Map<String, Value>, gaps: Gaps) -> Option<f64> {
        let is_empty = bucket.get("doc_count").and_then(Value::as_u64) == Some(0);
        let value = self.value_in(bucket);
        match gaps {
            Gaps::Skip => value.filter(|_| !is_empty || self.is_count()),
            Gaps::Zeros => Some(value.filter(|_| !is_empty || self.is_count()).unwrap_or(0.0)),
            Gaps::KeepValues => value,
        }
    }
}

impl MovingFunction {
    fn of(self, values: &[f64]) -> f64 {
        let count = values.len() as f64;
        let sum = || values.iter().sum::<f64>();
        match self {
            Self::Max => values.iter().copied().reduce(f64::max).unwrap_or(f64::NAN),
            Self::Min => values.iter().copied().reduce(f64::min).unwrap_or(f64::NAN),
            Self::Sum => sum(),
            Self::UnweightedAvg => sum() / count,
            Self::StdDev => {
                let mean = sum() / count;
                (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
            }
        }
    }
}

impl Pipeline {
    /// Adds the pipeline's member to buckets of one list.
    pub fn apply(&self, name: &str, buckets: &mut [Map<String, Value>]) {
        match self {
            Self::Derivative { of, gaps, unit_ms } => derive(name, buckets, of, *gaps, *unit_ms),
            Self::CumulativeSum { of, gaps } => {
                let mut sum = 0.0;
                for bucket in buckets {
                    sum += of.value(bucket, *gaps).unwrap_or(0.0);
                    put(bucket, name, sum);
                }
            }
            Self::SerialDiff { of, gaps, lag } => {
                let mut before = VecDeque::with_capacity(*lag);
                for bucket in buckets {
                    let value = of.value(bucket, *gaps);
                    let lagged = if before.len() == *lag { before.pop_front().flatten() } else { None };
                    if let Some((value, lagged)) = value.zip(lagged) {
                        put(bucket, name, value - lagged);
                    }
                    before.push_back(value);
                }
            }
            Self::Moving { of, gaps, function, window, shift } => {
                let values: Vec<f64> = buckets.iter().filter_map(|bucket| of.value(bucket, *gaps)).collect();
                let at = |place: i64| usize::try_from(place.max(0)).unwrap_or(usize::MAX).min(values.len());
                let window = i64::try_from(*window).unwrap_or(i64::MAX);
                let full = buckets.iter_mut().filter(|bucket| of.value(bucket, *gaps).is_some());
                for (index, bucket) in (0_i64..).zip(full) {
                    let end = index.saturating_add(*shift);
                    let inside = values.get(at(end.saturating_sub(window))..at(end)).unwrap_or_default();
                    put(bucket, name, function.of(inside));
                }
            }
            Self::Script { variables, gaps, script } => {
                for bucket in buckets {
                    let value = |name: &str| variables.get(name)?.value(bucket, *gaps);
                    // Every variable counts, also one that the script does not name.
                    let is_whole = variables.keys().all(|name| value(name).is_some());
                    if let Some(result) = script.value(&value).filter(|_| is_whole) {
                        put(bucket, name, result);
                    }
                }
            }
        }
    }
}

fn derive(name: &str, buckets: &mut [Map<String, Value>], of: &MetricPath, gaps: Gaps, unit_ms: Option<f64>) {
    let mut before: Option<(f64, f64)> = None;
    for bucket in buckets {
        let key = bucket.get("key").and_then(Value::as_f64).unwrap_or(f64::NAN);
        let value = of.value(bucket, gaps).unwrap_or(f64::NAN);
        if let Some((last_key, last)) = before {
            put(bucket, name, value - last);
            if let (Some(unit), Some(Value::Object(members))) = (unit_ms, bucket.get_mut(name)) {
                let normalized = (value - last) / ((key - last_key) / unit);
                members.insert("normalized_value".to_owned(), number(normalized));
            }
        }
        before = Some((key, value));
    }
}

fn put(bucket: &mut Map<String, Value>, name: &str, value: f64) {
    bucket.insert(name.to_owned(), json!({"value": number(value)}));
}

/// Null where it is none.
fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { Value::Null }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buckets of a minute, with a count and a metric.
    fn buckets(values: &[(u64, Option<f64>)]) -> Vec<Map<String, Value>> {
        let bucket = |(n, (count, value)): (u64, &(u64, Option<f64>))| {
            let bucket = json!({"key": n * 60_000, "doc_count": count, "m": {"value": value}});
            bucket.as_object().unwrap().clone()
        };
        (0..).zip(values).map(bucket).collect()
    }

    fn metric() -> MetricPath {
        MetricPath(vec!["m".to_owned(), "value".to_owned()])
    }

    /// The pipeline's values; `Some(None)` is null.
    fn applied(pipeline: &Pipeline, values: &[(u64, Option<f64>)]) -> Vec<Option<Option<f64>>> {
        let mut buckets = buckets(values);
        pipeline.apply("p", &mut buckets);
        buckets.iter().map(|bucket| bucket.get("p").map(|value| value["value"].as_f64())).collect()
    }

    const VALUES: [(u64, Option<f64>); 5] = [(1, Some(3.0)), (2, Some(5.0)), (0, None), (1, Some(1.0)), (1, Some(4.0))];

    #[test]
    fn derivatives_are_differences_of_neighbours() {
        let derivative = |of, gaps| Pipeline::Derivative { of, gaps, unit_ms: None };
        let some = |value: f64| Some(Some(value));
        let skipped = applied(&derivative(metric(), Gaps::Skip), &VALUES);
        assert_eq!(skipped, [None, some(2.0), Some(None), Some(None), some(3.0)]);
        let zeros = applied(&derivative(metric(), Gaps::Zeros), &VALUES);
        assert_eq!(zeros, [None, some(2.0), some(-5.0), some(1.0), some(3.0)]);
        let counts = applied(&derivative(MetricPath::count(), Gaps::Skip), &VALUES);
        assert_eq!(counts, [None, some(1.0), some(-2.0), some(1.0), some(0.0)]);
        let mut buckets = buckets(&VALUES);
        let by_second = Pipeline::Derivative { of: metric(), gaps: Gaps::Skip, unit_ms: Some(1000.0) };
        by_second.apply("p", &mut buckets);
        assert_eq!(buckets[4]["p"], json!({"value": 3.0, "normalized_value": 0.05}));
    }

    #[test]
    fn sums_and_differences_reach_back() {
        let sums = applied(&Pipeline::CumulativeSum { of: metric(), gaps: Gaps::Skip }, &VALUES);
        assert_eq!(sums, [3.0, 8.0, 8.0, 9.0, 13.0].map(|sum| Some(Some(sum))));
        let differences = |lag| applied(&Pipeline::SerialDiff { of: metric(), gaps: Gaps::Skip, lag }, &VALUES);
        assert_eq!(differences(1), [None, Some(Some(2.0)), None, None, Some(Some(3.0))]);
        assert_eq!(differences(3), [None, None, None, Some(Some(-2.0)), Some(Some(-1.0))]);
        assert_eq!(differences(9), [None; 5]);
    }

    #[test]
    fn moving_functions_look_at_what_came_before() {
        let moving = |function, window, shift| {
            let pipeline = Pipeline::Moving { of: metric(), gaps: Gaps::Skip, function, window, shift };
            applied(&pipeline, &VALUES)
        };
        let some = |value: f64| Some(Some(value));
        assert_eq!(moving(MovingFunction::UnweightedAvg, 2, 0), [Some(None), some(3.0), None, some(4.0), some(3.0)]);
        assert_eq!(moving(MovingFunction::Sum, 9, 0), [some(0.0), some(3.0), None, some(8.0), some(9.0)]);
        assert_eq!(moving(MovingFunction::Max, 2, 1), [some(3.0), some(5.0), None, some(5.0), some(4.0)]);
        assert_eq!(moving(MovingFunction::Min, 2, 1), [some(3.0), some(3.0), None, some(1.0), some(1.0)]);
        assert_eq!(moving(MovingFunction::StdDev, 2, 1), [some(0.0), some(1.0), None, some(2.0), some(1.5)]);
        assert_eq!(moving(MovingFunction::Sum, 2, i64::MIN), [some(0.0), some(0.0), None, some(0.0), some(0.0)]);
        assert_eq!(
            moving(MovingFunction::Sum, usize::MAX, i64::MAX),
            [some(13.0), some(13.0), None, some(13.0), some(13.0)]
        );
    }

    #[test]
    fn scripts_read_several_numbers() {
        let variables = BTreeMap::from([("a".to_owned(), metric()), ("n".to_owned(), MetricPath::count())]);
        let script = Expression::parse("params.a / (params.n - 1)").unwrap();
        let pipeline = Pipeline::Script { variables, gaps: Gaps::Skip, script };
        assert_eq!(applied(&pipeline, &VALUES), [Some(None), Some(Some(5.0)), None, Some(None), Some(None)]);
    }
}
