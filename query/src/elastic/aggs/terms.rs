//! `terms`, and by what they are ordered.

use serde_json::{Map, Value, json};

use super::{LIST_MAX, Parser, column};
use crate::elastic::error::{ElasticError, shown};
use crate::elastic::object::Members;
use crate::elastic::pipelines::metric_path;
use crate::search::aggregate::pipeline::MetricPath;
use crate::search::aggregate::{Aggregation, AggregationKind, TermsBy};

impl Parser<'_> {
    pub(super) fn terms(
        &mut self,
        mut settings: Members,
        inner: &[Aggregation],
    ) -> Result<AggregationKind, ElasticError> {
        let column = column(&mut settings, "terms")?;
        let mut tantivy = Map::new();
        let size = settings.count("size")?.unwrap_or(10);
        if size == 0 || size > u64::from(self.buckets_max) {
            let reason =
                format!("[terms] size {size} must be 1 to {} (search.aggregation_buckets_max)", self.buckets_max);
            return Err(ElasticError::illegal(reason));
        }
        // What a split keeps: enough that counts are exact wherever there are not very many terms.
        let kept = settings.count("shard_size")?.unwrap_or(size.saturating_mul(10).max(1000));
        let kept = kept.clamp(size, u64::from(self.buckets_max));
        tantivy.insert("size".to_owned(), json!(size));
        tantivy.insert("segment_size".to_owned(), json!(kept));
        if let Some(count) = settings.count("min_doc_count")? {
            tantivy.insert("min_doc_count".to_owned(), json!(count));
        }
        let mut by = None;
        match settings.take("order").map(|order| terms_order(order, inner)).transpose()? {
            None => {}
            Some(TermsOrder::Merged(target, order)) => {
                tantivy.insert("order".to_owned(), json!({target: order}));
            }
            // All that were kept are ordered and cut here; those are the most frequent ones.
            Some(TermsOrder::Written(path, is_descending)) => {
                by = Some(TermsBy { path, is_descending, size: usize::try_from(size).unwrap_or(usize::MAX) });
                tantivy.insert("size".to_owned(), json!(kept));
            }
        }
        if let Some(missing) = settings.take("missing") {
            if !matches!(missing, Value::String(_) | Value::Number(_)) {
                return Err(settings.wrong("missing", "a text or a number", &missing));
            }
            tantivy.insert("missing".to_owned(), missing);
        }
        for name in ["include", "exclude"] {
            let Some(list) = settings.take(name) else { continue };
            let is_list =
                list.as_array().is_some_and(|list| list.len() <= LIST_MAX && list.iter().all(Value::is_string));
            if !is_list {
                return Err(settings.wrong(name, &format!("a list of at most {LIST_MAX} texts"), &list));
            }
            tantivy.insert(name.to_owned(), list);
        }
        settings.ignore(&["show_term_doc_count_error", "execution_hint", "collect_mode", "shard_min_doc_count"]);
        settings.done()?;
        Ok(AggregationKind::Terms { column, settings: tantivy, by })
    }
}

/// By what terms are ordered.
enum TermsOrder {
    /// Tantivy orders them as splits are merged: the target and the direction in its words.
    Merged(String, String),
    /// By a number of their finished buckets, which Tantivy cannot order by; whether the largest comes first.
    Written(MetricPath, bool),
}

/// An order of terms: `_count`, `_key`, or a metric inside, as `name`, `name.part` or `name[part]`.
fn terms_order(value: Value, inner: &[Aggregation]) -> Result<TermsOrder, ElasticError> {
    let first = match value {
        Value::Array(list) => {
            let mut list = list.into_iter();
            let first = list.next().unwrap_or_default();
            // Ties are broken by the key, ascending, in any case.
            if list.any(|next| next != json!({"_key": "asc"})) {
                return Err(ElasticError::unsupported("[terms] an order by several values"));
            }
            first
        }
        other => other,
    };
    let (target, order) = Members::of("order", first)?.only()?;
    let order = match order.as_str().map(str::to_ascii_lowercase).as_deref() {
        Some(order @ ("asc" | "desc")) => order.to_owned(),
        _ => return Err(ElasticError::parsing("[order] must be asc or desc")),
    };
    let target = match target.as_str() {
        "_count" | "_key" => target,
        "_term" => "_key".to_owned(),
        text => {
            let path = metric_path(text, inner).ok_or_else(|| {
                let text = shown(text);
                ElasticError::illegal(format!("[order] [{text}] is not _count, _key, a metric inside or a part of one"))
            })?;
            match path.0.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                [_, "values", _] => return Ok(TermsOrder::Written(path, order == "desc")),
                [metric, "value"] => (*metric).to_owned(),
                parts => parts.join("."),
            }
        }
    };
    Ok(TermsOrder::Merged(target, order))
}
