//! A message as a document: `_source`, and the values of `fields`.
//!
//! ```text
//! {"@timestamp":"2015-05-17T10:05:03.000Z", "timestamp":1431857103000, "topic":"t", "partition":0, "offset":7,
//!  "key":"k", "value":"text", "headers":{"trace":"abc"}, "json":{...}}
//! ```
//!
//! The names are those of the index, so that what is seen in a document can be asked for. `json` is there where the
//! value is a JSON object. Bytes that are not UTF-8 are base64, said by `<field>_encoding`; a header that is there
//! several times has a list.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::date::{DateFormat, iso};
use super::index::matches;
use crate::search::Hit;

/// Values of one document that `fields` may carry.
const FIELD_VALUES_MAX: usize = 1024;

/// Which parts of a document an answer carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceFilter {
    /// Leave `_source` out.
    pub is_off: bool,
    /// Patterns; empty means everything.
    pub includes: Vec<String>,
    pub excludes: Vec<String>,
}

/// A pattern of `fields` or `docvalue_fields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldPattern {
    pub pattern: String,
    /// How times are written.
    pub format: DateFormat,
}

/// `topic/partition/offset`.
pub(crate) fn id_of(hit: &Hit) -> String {
    format!("{}/{}/{}", hit.topic, hit.partition.0, hit.record.offset.0)
}

pub(crate) fn source_of(hit: &Hit) -> Map<String, Value> {
    let record = &hit.record;
    let mut source = Map::new();
    source.insert("@timestamp".to_owned(), json!(iso(record.timestamp.0)));
    source.insert("timestamp".to_owned(), json!(record.timestamp.0));
    source.insert("topic".to_owned(), json!(hit.topic.as_str()));
    source.insert("partition".to_owned(), json!(hit.partition.0));
    source.insert("offset".to_owned(), json!(record.offset.0));
    for (name, bytes) in [("key", &record.key), ("value", &record.value)] {
        let Some(bytes) = bytes else { continue };
        let (text, is_text) = text_of(bytes);
        source.insert(name.to_owned(), text);
        if !is_text {
            source.insert(format!("{name}_encoding"), json!("base64"));
        }
    }
    if !record.headers.is_empty() {
        let mut headers = Map::new();
        for (name, bytes) in &record.headers {
            let value = bytes.as_ref().map_or(Value::Null, |bytes| text_of(bytes).0);
            match headers.get_mut(name) {
                None => {
                    headers.insert(name.clone(), value);
                }
                Some(Value::Array(list)) => list.push(value),
                Some(first) => *first = Value::Array(vec![first.take(), value]),
            }
        }
        source.insert("headers".to_owned(), Value::Object(headers));
    }
    let value = record.value.as_deref().unwrap_or_default();
    if value.trim_ascii_start().starts_with(b"{")
        && let Ok(parsed @ Value::Object(_)) = serde_json::from_slice::<Value>(value)
    {
        source.insert("json".to_owned(), parsed);
    }
    source
}

/// Bytes as text, and whether they are.
fn text_of(bytes: &[u8]) -> (Value, bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (json!(text), true),
        Err(_) => (json!(BASE64.encode(bytes)), false),
    }
}

impl SourceFilter {
    /// What is left of `source`; None where nothing is to be shown.
    pub fn apply(&self, source: Map<String, Value>) -> Option<Value> {
        if self.is_off {
            return None;
        }
        if self.includes.is_empty() && self.excludes.is_empty() {
            return Some(Value::Object(source));
        }
        Some(Value::Object(self.filtered(source, "", self.includes.is_empty())))
    }

    /// `is_in`: an object around has been chosen as a whole.
    fn filtered(&self, members: Map<String, Value>, path: &str, is_in: bool) -> Map<String, Value> {
        let mut left = Map::new();
        for (name, value) in members {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if self.excludes.iter().any(|pattern| matches(pattern, &path)) {
                continue;
            }
            let is_in = is_in || self.includes.iter().any(|pattern| matches(pattern, &path));
            match value {
                Value::Object(members) => {
                    let was_empty = members.is_empty();
                    let inner = self.filtered(members, &path, is_in);
                    if !inner.is_empty() || (was_empty && is_in) {
                        left.insert(name, Value::Object(inner));
                    }
                }
                value if is_in => {
                    left.insert(name, value);
                }
                _ => {}
            }
        }
        left
    }
}

/// The values of a document that `patterns` ask for, each in a list.
pub(crate) fn fields_of(source: &Map<String, Value>, patterns: &[FieldPattern]) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut left = FIELD_VALUES_MAX;
    for (name, value) in source {
        add_fields(name, value, patterns, &mut fields, &mut left);
    }
    let millis = source.get("timestamp").and_then(Value::as_i64);
    for name in ["@timestamp", "timestamp"] {
        let pattern = patterns.iter().find(|pattern| matches(&pattern.pattern, name));
        if let Some((pattern, millis)) = pattern.zip(millis) {
            fields.insert(name.to_owned(), json!([pattern.format.write(millis)]));
        }
    }
    fields
}

fn add_fields(path: &str, value: &Value, patterns: &[FieldPattern], fields: &mut Map<String, Value>, left: &mut usize) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                add_fields(&format!("{path}.{name}"), value, patterns, fields, left);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| add_fields(path, item, patterns, fields, left)),
        Value::Null => {}
        leaf => {
            if *left == 0 || !patterns.iter().any(|pattern| matches(&pattern.pattern, path)) {
                return;
            }
            *left -= 1;
            match fields.get_mut(path) {
                Some(Value::Array(list)) => list.push(leaf.clone()),
                _ => {
                    fields.insert(path.to_owned(), json!([leaf]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType, TopicName};
    use thermocline_tiering::reader::OwnedRecord;

    use super::*;

    fn hit(value: &'static [u8], headers: &[(&str, &'static [u8])]) -> Hit {
        Hit {
            topic: TopicName::new("orders").unwrap(),
            partition: PartitionId(2),
            record: OwnedRecord {
                offset: Offset(7),
                timestamp: Timestamp(1_431_857_103_250),
                timestamp_type: TimestampType::CreateTime,
                key: Some(Bytes::from_static(b"k\xff")),
                value: Some(Bytes::from_static(value)),
                headers: headers
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), Some(Bytes::from_static(value))))
                    .collect(),
            },
            score: None,
            highlights: BTreeMap::new(),
        }
    }

    #[test]
    fn a_message_is_a_document() {
        let hit = hit(br#"{"user":{"id":42},"tags":["a","b"]}"#, &[("h", b"1"), ("h", b"2"), ("x", b"3")]);
        assert_eq!(id_of(&hit), "orders/2/7");
        let source = source_of(&hit);
        assert_eq!(
            Value::Object(source.clone()),
            json!({
                "@timestamp": "2015-05-17T10:05:03.250Z", "timestamp": 1_431_857_103_250_i64,
                "topic": "orders", "partition": 2, "offset": 7, "key": "a/8=", "key_encoding": "base64",
                "value": r#"{"user":{"id":42},"tags":["a","b"]}"#,
                "headers": {"h": ["1", "2"], "x": "3"}, "json": {"user": {"id": 42}, "tags": ["a", "b"]},
            })
        );
        let pattern = |pattern: &str, format| FieldPattern { pattern: pattern.to_owned(), format };
        let patterns = [pattern("json.*", DateFormat::default()), pattern("@timestamp", DateFormat::Millis)];
        let fields = json!({"json.user.id": [42], "json.tags": ["a", "b"], "@timestamp": ["1431857103250"]});
        assert_eq!(Value::Object(fields_of(&source, &patterns)), fields);
        assert!(!source_of(&self::hit(b"[1]", &[])).contains_key("json"));
        assert!(!source_of(&self::hit(b"{1]", &[])).contains_key("json"));
    }

    #[test]
    fn sources_are_filtered_by_path() {
        let source = json!({"a": 1, "json": {"user": {"id": 1, "name": "n"}, "x": 2}}).as_object().unwrap().clone();
        let filtered = |includes: &[&str], excludes: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let filter = SourceFilter { is_off: false, includes: owned(includes), excludes: owned(excludes) };
            filter.apply(source.clone()).unwrap()
        };
        assert_eq!(filtered(&["json.user"], &[]), json!({"json": {"user": {"id": 1, "name": "n"}}}));
        assert_eq!(filtered(&["json.*.id", "a"], &[]), json!({"a": 1, "json": {"user": {"id": 1}}}));
        assert_eq!(filtered(&[], &["json.user.*"]), json!({"a": 1, "json": {"x": 2}}));
        assert_eq!(filtered(&["json"], &["*.name"]), json!({"json": {"user": {"id": 1}, "x": 2}}));
        assert_eq!(SourceFilter { is_off: true, ..SourceFilter::default() }.apply(Map::new()), None);
    }
}
