//! Ranges, as queries and as the buckets of aggregations.

use std::ops::Bound;

use serde_json::Value;

use super::date::{self, DateFormat};
use super::dsl::{Dsl, literal, unknown_format, unknown_zone};
use super::error::ElasticError;
use super::object::Members;
use crate::search::ast::{FieldName, Literal, LiteralValue, QueryNode};
use crate::time::Rounding;

impl Dsl {
    /// `{"gte": 1, "lt": 5}` of a field.
    pub(super) fn range(&mut self, name: &str, settings: &mut Members) -> Result<QueryNode, ElasticError> {
        let format = match settings.text("format")? {
            Some(name) => DateFormat::named(&name).ok_or_else(|| unknown_format(&name))?,
            None => DateFormat::default(),
        };
        let zone = match settings.text("time_zone")? {
            Some(name) => date::zone(&name).ok_or_else(|| unknown_zone(&name))?,
            None => date::utc(),
        };
        let is_time = self.is_time(name);
        let is_json = name.starts_with("json.");
        older_bounds(settings)?;
        let mut bound = |name: &str, round| -> Result<Option<Literal>, ElasticError> {
            let Some(value) = settings.take(name) else { return Ok(None) };
            match &value {
                _ if is_time => Ok(Some(self.moment(&value, format, round, zone)?.into())),
                // Forms that people fill in send numbers so, and know of no other way.
                Value::String(text) if is_json => Ok(Some(LiteralValue::of_word(text.trim()).into())),
                _ => literal(&value).map(Some).ok_or_else(|| settings.wrong(name, "a text or a number", &value)),
            }
        };
        let lower = match (bound("gte", Rounding::Down)?, bound("gt", Rounding::Up)?) {
            (None, None) => Bound::Unbounded,
            (Some(value), None) => Bound::Included(value),
            (None, Some(value)) => Bound::Excluded(value),
            _ => return Err(ElasticError::parsing("[range] has both [gt] and [gte]")),
        };
        let upper = match (bound("lte", Rounding::Up)?, bound("lt", Rounding::Down)?) {
            (None, None) => Bound::Unbounded,
            (Some(value), None) => Bound::Included(value),
            (None, Some(value)) => Bound::Excluded(value),
            _ => return Err(ElasticError::parsing("[range] has both [lt] and [lte]")),
        };
        Ok(QueryNode::Range { field: self.field(name)?, lower, upper })
    }

    /// A query with its times filled and rounded as those of [`Self::range`] are.
    pub(super) fn rounded_times(&self, node: QueryNode) -> QueryNode {
        let all = |nodes: Vec<QueryNode>| nodes.into_iter().map(|node| self.rounded_times(node)).collect::<Vec<_>>();
        match node {
            QueryNode::Range { field, lower, upper } if field.is_timestamp() => {
                let lower = match lower {
                    Bound::Included(time) => Bound::Included(self.rounded(&time, Rounding::Down)),
                    Bound::Excluded(time) => Bound::Excluded(self.rounded(&time, Rounding::Up)),
                    Bound::Unbounded => Bound::Unbounded,
                };
                let upper = match upper {
                    Bound::Included(time) => Bound::Included(self.rounded(&time, Rounding::Up)),
                    Bound::Excluded(time) => Bound::Excluded(self.rounded(&time, Rounding::Down)),
                    Bound::Unbounded => Bound::Unbounded,
                };
                QueryNode::Range { field, lower, upper }
            }
            QueryNode::Exact { field, value } if field.is_timestamp() => QueryNode::Range {
                field,
                lower: Bound::Included(self.rounded(&value, Rounding::Down)),
                upper: Bound::Included(self.rounded(&value, Rounding::Up)),
            },
            QueryNode::Bool { must, should, must_not, filter, minimum_should_match } => QueryNode::Bool {
                must: all(must),
                should: all(should),
                must_not: all(must_not),
                filter: all(filter),
                minimum_should_match,
            },
            QueryNode::Boost { node, factor } => QueryNode::Boost { node: Box::new(self.rounded_times(*node)), factor },
            other => other,
        }
    }

    /// What is no time here is left to the query language, which knows where it stands.
    fn rounded(&self, time: &Literal, round: Rounding) -> Literal {
        let text = Value::String(time.to_text().text);
        match self.moment(&text, DateFormat::default(), round, date::utc()) {
            Ok(millis) => Literal { value: LiteralValue::I64(millis), column: time.column },
            Err(_) => time.clone(),
        }
    }
}

/// `from <= field < to`.
pub(crate) fn number_range(field: FieldName, from: Option<f64>, to: Option<f64>, is_time: bool) -> QueryNode {
    let value = |end: f64| {
        // Whole numbers of this size are exact in both types; times are whole.
        let is_whole = end.fract() == 0.0 && end.abs() < 9_007_199_254_740_992.0;
        Literal::from(if is_time || is_whole { LiteralValue::I64(end as i64) } else { LiteralValue::F64(end) })
    };
    let lower = from.map_or(Bound::Unbounded, |end| Bound::Included(value(end)));
    let upper = to.map_or(Bound::Unbounded, |end| Bound::Excluded(value(end)));
    QueryNode::Range { field, lower, upper }
}

/// `from`, `to` and whether they are included, under the names that later versions have for them.
fn older_bounds(settings: &mut Members) -> Result<(), ElasticError> {
    for (end, flag, [included, excluded]) in
        [("from", "include_lower", ["gte", "gt"]), ("to", "include_upper", ["lte", "lt"])]
    {
        let is_included = settings.flag(flag)?.unwrap_or(true);
        if let Some(value) = settings.take(end) {
            let name = if is_included { included } else { excluded };
            if settings.put(name, value) {
                return Err(ElasticError::parsing(format!("[range] has both [{end}] and [{name}]")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use thermocline_ingest::model::Timestamp;

    use super::*;
    use crate::search::ast::{SearchQuery, Times};

    /// 2015-05-17T10:05:03.250Z
    const NOW: Timestamp = Timestamp(1_431_857_103_250);

    #[test]
    fn times_in_query_strings_are_filled_and_rounded() {
        let day = |number: i64| 1_431_820_800_000 + (number - 17) * 86_400_000;
        for (query, first, last) in [
            ("@timestamp:[2015-05-17 TO 2015-05-18]", day(17), day(19) - 1),
            ("@timestamp:{2015-05-17 TO 2015-05-19}", day(18), day(19) - 1),
            ("@timestamp:2015-05-17", day(17), day(18) - 1),
            ("late AND (timestamp:\"2015-05-17\"^2 AND NOT lost)", day(17), day(18) - 1),
            ("@timestamp:>2015-05-17", day(18), i64::MAX),
            ("@timestamp:>=2015-05-17", day(17), i64::MAX),
            ("@timestamp:<2015-05-18", i64::MIN, day(18) - 1),
            ("@timestamp:<=2015-05-18", i64::MIN, day(19) - 1),
            ("@timestamp:[2015 TO 2015]", 1_420_070_400_000, 1_451_606_399_999),
            ("@timestamp:[now/d TO now}", day(17), NOW.0 - 1),
            ("@timestamp:1431857103250", NOW.0, NOW.0),
        ] {
            let root = Dsl::new(NOW).query(json!({"query_string": {"query": query}})).unwrap();
            assert_eq!(SearchQuery { root, now: NOW }.times(), Times { first, last }, "{query}");
        }
    }
}
