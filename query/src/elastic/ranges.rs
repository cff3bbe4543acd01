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
