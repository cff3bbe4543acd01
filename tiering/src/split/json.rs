//! A JSON object as it is indexed: owned, keys in order and with repetitions, paths and number of values bounded.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// Longest path to a leaf that is indexed, in bytes of its keys; longer ones would be repeated in every term of the
/// dictionary. Leaves below are left out of the `json` field, not out of `value`.
pub(super) const PATH_LEN_MAX: usize = 1024;
/// Values within one document, at any depth: they take many times the memory of their text, which may have been sent
/// compressed to next to nothing. A document of more is left out of the `json` field, not out of `value`.
pub(super) const NODES_MAX: usize = 1_000_000;

/// A JSON value. Text that looks like a date stays text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    I64(i64),
    U64(u64),
    F64(f64),
    Text(String),
    Array(Vec<Node>),
    Object(Vec<Member>),
}

/// One key of an object with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub name: String,
    pub value: Node,
}

/// The members of `text` if it is a JSON object of at most [`NODES_MAX`] values; depth is limited by the parser (128).
pub(super) fn parse_object(text: &str) -> Option<Vec<Member>> {
    if !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    let mut parser = serde_json::Deserializer::from_str(text);
    let nodes_left = Cell::new(NODES_MAX);
    let node = NodeSeed { path_left: PATH_LEN_MAX, nodes_left: &nodes_left }.deserialize(&mut parser).ok()?;
    parser.end().ok()?;
    match node {
        Node::Object(members) => Some(members),
        _ => None,
    }
}

#[derive(Clone, Copy)]
struct NodeSeed<'a> {
    path_left: usize,
    nodes_left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let nodes_left = self.nodes_left.get().checked_sub(1).ok_or_else(|| D::Error::custom("too many values"))?;
        self.nodes_left.set(nodes_left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::I64(value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::U64(value))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::F64(value))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }
    fn visit_string<E: Error>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(Node::Array(nodes))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = entries.next_key::<String>()? {
            // One byte for the separator; an over-long path is still parsed, so that the text is known to be JSON.
            let path_left = self.path_left.checked_sub(name.len() + 1);
            let value = entries.next_value_seed(NodeSeed { path_left: path_left.unwrap_or(0), ..self })?;
            if path_left.is_some() {
                members.push(Member { name, value });
            }
        }
        Ok(Node::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_repetitions() {
        let members = parse_object(r#" {"b":1,"a":[null,true,-2,1.5,"x"],"b":{"c":18446744073709551615}} "#).unwrap();
        let names: Vec<_> = members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["b", "a", "b"]);
        assert_eq!(members[0].value, Node::I64(1).or_unsigned());
        assert_eq!(members[2].value, Node::Object(vec![Member { name: "c".into(), value: Node::U64(u64::MAX) }]));
    }

    impl Node {
        /// serde_json reports non-negative integers as unsigned.
        fn or_unsigned(self) -> Self {
            match self {
                Node::I64(n) => Node::U64(n.unsigned_abs()),
                other => other,
            }
        }
    }

    #[test]
    fn only_whole_objects() {
        for text in [
            "",
            "{",
            "[1]",
            "7",
            "{} x",
            "plain",
            "{\"a\":}",
            &format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200)),
        ] {
            assert!(parse_object(text).is_none(), "{text}");
        }
        assert_eq!(parse_object("{}"), Some(vec![]));
    }

    #[test]
    fn objects_of_too_many_values_are_none() {
        // The object itself and its array count as well.
        let object = |items: usize| format!(r#"{{"a":[{}0]}}"#, "0,".repeat(items - 1));
        assert!(parse_object(&object(NODES_MAX - 2)).is_some());
        assert!(parse_object(&object(NODES_MAX - 1)).is_none());
        let nested = format!(r#"{{"a":[{}0]}}"#, r#"{"b":[]},"#.repeat(NODES_MAX / 2));
        assert!(parse_object(&nested).is_none());
    }

    #[test]
    fn long_paths_are_left_out() {
        let long = "k".repeat(PATH_LEN_MAX);
        let members = parse_object(&format!(r#"{{"{long}":1,"ok":{{"{long}":2}}}}"#)).unwrap();
        assert_eq!(members, vec![Member { name: "ok".into(), value: Node::Object(vec![]) }]);
    }
}
