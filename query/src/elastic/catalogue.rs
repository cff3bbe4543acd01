//! What there is: field capabilities, mappings, indices, as Elasticsearch tells them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use thermocline_ingest::model::TopicName;

use super::error::{ElasticError, shown};
use super::index::matches;
use crate::search::fields::{FieldKind, Fields};

/// A topic as a line of `_cat/indices`.
#[derive(Clone, Debug)]
pub(crate) struct IndexLine {
    pub name: TopicName,
    pub id: String,
    pub partitions: usize,
    pub messages: u64,
    pub size_bytes: u64,
}

impl FieldKind {
    fn name(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Double => "double",
            Self::Keyword => "keyword",
            Self::Long => "long",
        }
    }
}

/// Name, type, and whether it can be searched for and aggregated, of the fields that every message has.
const FIXED: [(&str, &str, bool, bool); 6] = [
    ("@timestamp", "date", true, true),
    ("timestamp", "date", true, true),
    ("topic", "keyword", true, true),
    ("partition", "long", true, true),
    ("offset", "long", true, true),
    ("value", "text", true, false),
];

/// The answer of `_field_caps`, for the fields that `patterns` name.
pub(crate) fn field_caps(found: &BTreeMap<TopicName, Fields>, patterns: &[String]) -> Value {
    let is_wanted = |name: &str| patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, name));
    let mut fields = Map::new();
    let mut add = |name: &str, kind: &str, searchable: bool, aggregatable: bool, indices: Option<Vec<&str>>| {
        if !is_wanted(name) {
            return;
        }
        let mut capability = json!({
            "type": kind, "metadata_field": name.starts_with('_'), "searchable": searchable, "aggregatable": aggregatable,
        });
        if let (Some(indices), Value::Object(members)) = (indices, &mut capability) {
            members.insert("indices".to_owned(), json!(indices));
        }
        let entry = fields.entry(name.to_owned()).or_insert_with(|| json!({}));
        if let Value::Object(kinds) = entry {
            kinds.insert(kind.to_owned(), capability);
        }
    };
    if !found.is_empty() {
        for (name, kind, searchable, aggregatable) in FIXED {
            add(name, kind, searchable, aggregatable, None);
        }
        add("_index", "keyword", true, true, None);
        if !found.values().any(|fields| fields.contains_key("key")) {
            add("key", "text", true, false, None);
        }
    }
    let mut topics_of: BTreeMap<(&str, FieldKind), BTreeSet<&str>> = BTreeMap::new();
    for (topic, fields) in found {
        for (name, kinds) in fields {
            for kind in kinds {
                topics_of.entry((name, *kind)).or_default().insert(topic.as_str());
            }
        }
    }
    for ((name, kind), topics) in topics_of {
        // An array of names is there only where not every index has the field in this kind.
        let indices = (topics.len() < found.len()).then(|| topics.into_iter().collect());
        add(name, kind.name(), true, true, indices);
    }
    let indices: Vec<_> = found.keys().map(TopicName::as_str).collect();
    json!({"indices": indices, "fields": fields})
}

/// The answer of `_mapping`.
pub(crate) fn mappings(found: &BTreeMap<TopicName, Fields>) -> Value {
    let mut all = Map::new();
    for (topic, fields) in found {
        let mut properties = Map::new();
        for (name, kind, ..) in FIXED {
            properties.insert(name.to_owned(), json!({"type": kind}));
        }
        // Its kind where it is in no column: text, which clients do not offer to aggregate.
        if !fields.contains_key("key") {
            properties.insert("key".to_owned(), json!({"type": "text"}));
        }
        for (path, kinds) in fields {
            // Where a field has several kinds, the one that holds any value.
            let kind = if kinds.contains(&FieldKind::Keyword) {
                FieldKind::Keyword
            } else {
                kinds.iter().next_back().copied().unwrap_or(FieldKind::Keyword)
            };
            insert_property(&mut properties, path, kind);
        }
        all.insert(topic.as_str().to_owned(), json!({"mappings": {"properties": properties}}));
    }
    Value::Object(all)
}

/// Puts `a.b.c` at `a.properties.b.properties.c`. A key that is a leaf elsewhere stays the leaf.
fn insert_property(properties: &mut Map<String, Value>, path: &str, kind: FieldKind) {
    let mut properties = properties;
    let mut rest = path;
    while let Some((key, after)) = rest.split_once('.') {
        let entry = properties.entry(key.to_owned()).or_insert_with(|| json!({"properties": {}}));
        let Some(Value::Object(inner)) = entry.get_mut("properties") else { return };
        properties = inner;
        rest = after;
    }
    properties.entry(rest.to_owned()).or_insert_with(|| json!({"type": kind.name()}));
}

/// Columns of `_cat/indices`.
const COLUMNS: [&str; 10] =
    ["health", "status", "index", "uuid", "pri", "rep", "docs.count", "docs.deleted", "store.size", "pri.store.size"];

/// `_cat/indices`, of the columns that were asked for.
pub(crate) struct Cat {
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Cat {
    /// `wanted` holds names of columns, separated by commas.
    pub fn new(lines: &[IndexLine], wanted: Option<&str>) -> Result<Self, ElasticError> {
        let find = |name: &str| {
            let known = COLUMNS.iter().position(|column| *column == name || (name == "i" && *column == "index"));
            known.ok_or_else(|| {
                let reason = format!("there is no column [{}], only {}", shown(name), COLUMNS.join(", "));
                ElasticError::illegal(reason)
            })
        };
        let chosen: Vec<usize> = match wanted {
            None => (0..COLUMNS.len()).collect(),
            Some(names) => names.split(',').take(COLUMNS.len()).map(find).collect::<Result<_, _>>()?,
        };
        let rows = lines.iter().map(|line| {
            let size = line.size_bytes.to_string();
            let cells = [
                "green".to_owned(),
                "open".to_owned(),
                line.name.as_str().to_owned(),
                line.id.clone(),
                line.partitions.to_string(),
                "0".to_owned(),
                line.messages.to_string(),
                "0".to_owned(),
                size.clone(),
                size,
            ];
            chosen.iter().filter_map(|column| cells.get(*column).cloned()).collect()
        });
        let rows = rows.collect();
        Ok(Self { columns: chosen.iter().filter_map(|column| COLUMNS.get(*column).copied()).collect(), rows })
    }

    pub fn json(&self) -> Value {
        let object = |row: &Vec<String>| {
            let cells = self.columns.iter().zip(row);
            Value::Object(cells.map(|(column, cell)| ((*column).to_owned(), json!(cell))).collect())
        };
        self.rows.iter().map(object).collect()
    }

    /// Columns separated by blanks.
    pub fn text(&self, with_head: bool) -> String {
        let head = with_head.then(|| self.columns.iter().map(|column| (*column).to_owned()).collect());
        let rows: Vec<&Vec<String>> = head.iter().chain(&self.rows).collect();
        let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join(" ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> BTreeMap<TopicName, Fields> {
        let fields = |list: &[(&str, FieldKind)]| {
            let mut fields = Fields::new();
            for (name, kind) in list {
                fields.entry((*name).to_owned()).or_default().insert(*kind);
            }
            fields
        };
        let logs =
            fields(&[("key", FieldKind::Keyword), ("json.a.b", FieldKind::Long), ("json.a.b", FieldKind::Keyword)]);
        let orders = fields(&[("json.a.b", FieldKind::Long), ("json.x", FieldKind::Double)]);
        let name = |name| TopicName::new(name).unwrap();
        [(name("logs"), logs), (name("orders"), orders)].into()
    }

    #[test]
    fn capabilities_say_where_a_field_is() {
        let caps = field_caps(&found(), &[]);
        assert_eq!(caps["indices"], json!(["logs", "orders"]));
        assert_eq!(
            caps["fields"]["json.a.b"]["long"],
            json!({"type": "long", "metadata_field": false, "searchable": true, "aggregatable": true})
        );
        assert_eq!(caps["fields"]["json.a.b"]["keyword"]["indices"], json!(["logs"]));
        assert_eq!(caps["fields"]["@timestamp"]["date"]["aggregatable"], true);
        assert_eq!(caps["fields"]["_index"]["keyword"]["aggregatable"], true);
        let some = field_caps(&found(), &["json.*".to_owned()]);
        assert_eq!(some["fields"].as_object().unwrap().keys().collect::<Vec<_>>(), ["json.a.b", "json.x"]);
        assert_eq!(field_caps(&BTreeMap::new(), &[]), json!({"indices": [], "fields": {}}));
    }

    #[test]
    fn mappings_nest() {
        let mappings = mappings(&found());
        let properties = &mappings["orders"]["mappings"]["properties"];
        assert_eq!(properties["json"]["properties"]["a"]["properties"]["b"], json!({"type": "long"}));
        assert_eq!(properties["@timestamp"]["type"], "date");
        assert_eq!(properties["topic"], json!({"type": "keyword"}));
        // Where it can be aggregated, and where it cannot.
        assert_eq!(mappings["logs"]["mappings"]["properties"]["key"]["type"], "keyword");
        assert_eq!(properties["key"]["type"], "text");
        let logs = &mappings["logs"]["mappings"]["properties"]["json"]["properties"]["a"]["properties"]["b"];
        assert_eq!(logs["type"], "keyword");
    }

    #[test]
    fn lines_stand_in_columns() {
        let line = |name: &str, messages| IndexLine {
            name: TopicName::new(name).unwrap(),
            id: "u".to_owned(),
            partitions: 2,
            messages,
            size_bytes: 10,
        };
        let lines = [line("a", 5), line("long-name", 12345)];
        let all = Cat::new(&lines, None).unwrap();
        assert_eq!(
            all.text(false),
            "green open a         u 2 0 5     0 10 10\ngreen open long-name u 2 0 12345 0 10 10\n"
        );
        assert!(all.text(true).starts_with("health status index     uuid pri rep docs.count"));
        assert_eq!(all.json()[1]["docs.count"], "12345");
        let some = Cat::new(&lines, Some("docs.count,index")).unwrap();
        assert_eq!(some.text(false), "5     a\n12345 long-name\n");
        assert_eq!(some.json()[0], json!({"docs.count": "5", "index": "a"}));
        assert!(Cat::new(&lines, Some("creation.date")).is_err());
    }
}
