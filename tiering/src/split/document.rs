//! A record as Tantivy reads it. Tantivy wants documents that own their content, so each part is copied once, here.

use std::slice::Iter;

use tantivy::schema::Field;
use tantivy::schema::document::{Document, ReferenceValue, ReferenceValueLeaf, Value};
use thermocline_ingest::record::Record;

use super::json::{Member, Node, parse_object};
use super::{SplitOptions, SplitSchema};

const FIELDS: usize = 6;
/// Headers of one record that are indexed, the first ones: a record may have been sent compressed to next to nothing.
pub(super) const HEADERS_MAX: usize = 100_000;

/// One record, ready to be indexed.
pub(super) struct RecordDocument {
    fields: [Field; FIELDS],
    value: Option<String>,
    json: Option<Vec<Member>>,
    key: Option<String>,
    headers: Option<Vec<Member>>,
    timestamp: i64,
    offset: i64,
}

/// What a field holds, borrowed from the document.
#[derive(Clone, Copy, Debug)]
pub(super) enum FieldValue<'a> {
    Text(&'a str),
    Number(i64),
    Object(&'a [Member]),
    Node(&'a Node),
}

impl RecordDocument {
    pub fn new(record: &Record<'_>, options: SplitOptions, schema: &SplitSchema) -> Self {
        let mut value = if options.value || options.json { record.value.map(lossy) } else { None };
        let json = if options.json { value.as_deref().and_then(parse_object) } else { None };
        if !options.value {
            value = None;
        }
        let headers = (options.headers && !record.headers.is_empty()).then(|| {
            let member = |(name, value): (&str, Option<&[u8]>)| Member {
                name: name.to_owned(),
                value: value.map_or(Node::Null, |bytes| Node::Text(lossy(bytes))),
            };
            let headers = record.headers.iter().filter(|(name, _)| name.len() <= super::json::PATH_LEN_MAX);
            headers.take(HEADERS_MAX).map(member).collect()
        });
        Self {
            fields: [schema.value, schema.json, schema.key, schema.headers, schema.timestamp, schema.offset],
            value,
            json,
            key: if options.key { record.key.map(lossy) } else { None },
            headers,
            timestamp: record.timestamp.0,
            offset: record.offset.0,
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Document for RecordDocument {
    type Value<'a> = FieldValue<'a>;
    type FieldsValuesIter<'a> = std::iter::Flatten<std::array::IntoIter<Option<(Field, FieldValue<'a>)>, FIELDS>>;

    fn iter_fields_and_values(&self) -> Self::FieldsValuesIter<'_> {
        let [value, json, key, headers, timestamp, offset] = self.fields;
        [
            self.value.as_deref().map(|text| (value, FieldValue::Text(text))),
            self.json.as_deref().map(|members| (json, FieldValue::Object(members))),
            self.key.as_deref().map(|text| (key, FieldValue::Text(text))),
            self.headers.as_deref().map(|members| (headers, FieldValue::Object(members))),
            Some((timestamp, FieldValue::Number(self.timestamp))),
            Some((offset, FieldValue::Number(self.offset))),
        ]
        .into_iter()
        .flatten()
    }
}

impl<'a> Value<'a> for FieldValue<'a> {
    type ArrayIter = std::iter::Map<Iter<'a, Node>, fn(&'a Node) -> Self>;
    type ObjectIter = std::iter::Map<Iter<'a, Member>, fn(&'a Member) -> (&'a str, Self)>;

    fn as_value(&self) -> ReferenceValue<'a, Self> {
        let leaf = match *self {
            Self::Text(text) => ReferenceValueLeaf::Str(text),
            Self::Number(number) => ReferenceValueLeaf::I64(number),
            Self::Object(members) => return ReferenceValue::Object(members.iter().map(member as fn(&'a Member) -> _)),
            Self::Node(node) => match node {
                Node::Null => ReferenceValueLeaf::Null,
                Node::Bool(value) => ReferenceValueLeaf::Bool(*value),
                Node::I64(value) => ReferenceValueLeaf::I64(*value),
                Node::U64(value) => ReferenceValueLeaf::U64(*value),
                Node::F64(value) => ReferenceValueLeaf::F64(*value),
                Node::Text(text) => ReferenceValueLeaf::Str(text),
                Node::Array(nodes) => {
                    return ReferenceValue::Array(nodes.iter().map(FieldValue::Node as fn(&'a Node) -> Self));
                }
                Node::Object(members) => {
                    return ReferenceValue::Object(members.iter().map(member as fn(&'a Member) -> _));
                }
            },
        };
        ReferenceValue::Leaf(leaf)
    }
}

fn member(member: &Member) -> (&str, FieldValue<'_>) {
    (&member.name, FieldValue::Node(&member.value))
}
