//! Where messages and queries come from, biased so that they meet.

use std::ops::Bound;

use proptest::prelude::*;
use proptest::sample::{Select, select};
use serde_json::Value;

use super::words::Tokenizer;
use super::{Content, Literal, NOW, Query, REGEXES, TOPICS};

const WORDS: [&str; 10] = ["parcel", "lost", "late", "Zürich", "error", "GET", "10", "500", "true", "東京"];
/// What is joined in logs.
const JOINED: [&str; 9] = [
    "10.0.0.7",
    "10.0.0.7:8080",
    "peer=10.0.0.7:8080",
    "user-42",
    "/var/log/sys.log",
    "C:\\Temp\\error.log",
    "status=500",
    "ada@Zürich.example",
    "lost_parcel",
];
const KEYS: [&str; 5] = ["k1", "k2-b", "user 42", "user-42", ""];
const JSON_PATHS: [&str; 11] = [
    "json.status",
    "json.latency",
    "json.user.id",
    "json.user.name",
    "json.user",
    "json.ok",
    "json.tags",
    "json.a.b",
    "json.msg",
    "json.nothing",
    "json.absent",
];
const OTHER_FIELDS: [&str; 4] = ["key", "headers.trace", "headers.from.host", "headers.absent"];
const NUMBERS: [&str; 18] = [
    "0",
    "1",
    "-3",
    "10",
    "42",
    "200",
    "404",
    "500",
    "503",
    "1.5",
    "-0.25",
    "499.99",
    "500.0",
    "9007199254740992",
    "9007199254740993",
    "18446744073709551615",
    "9223372036854775807",
    "1e300",
];

/// What queries are made of.
pub struct Vocabulary {
    /// Each is one word.
    pub words: Vec<String>,
    /// Any text.
    pub texts: Vec<String>,
    pub prefixes: Vec<String>,
    pub wildcards: Vec<String>,
    /// Each is one word.
    pub bounds: Vec<String>,
    pub numbers: Vec<String>,
    /// That have words; the more often, the likelier.
    pub fields: Vec<String>,
    pub json_paths: Vec<String>,
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn one_of(texts: &[String]) -> Select<String> {
    select(texts.to_vec())
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![4 => select(&WORDS[..]), 1 => select(&JOINED[..])].prop_map(str::to_owned)
}

fn line() -> impl Strategy<Value = String> {
    let separator = select(vec![" ", " ", " ", " ", "-", "/", ": ", " -- ", ".", "=", "::", "..."]);
    prop::collection::vec((word(), separator), 0..6)
        .prop_map(|parts| parts.into_iter().map(|(word, separator)| word + separator).collect())
}

fn number() -> impl Strategy<Value = String> + Clone {
    select(&NUMBERS[..]).prop_map(str::to_owned)
}

/// The text of a JSON leaf: a number, words, a truth value, or nothing.
fn json_leaf() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => number(),
        3 => line().prop_map(|text| Value::from(text).to_string()),
        1 => number().prop_map(|text| Value::from(text).to_string()),
        1 => select(vec!["true", "false", "null", "\"\"", "\"true\"", "{}", "[]"]).prop_map(str::to_owned),
    ]
}

fn json_object() -> impl Strategy<Value = String> {
    let member = (select(&["status", "latency", "ok", "tags", "a.b", "msg", "nothing"][..]), json_leaf());
    let user = prop::option::of((json_leaf(), line()));
    let tags = prop::collection::vec(json_leaf(), 0..3);
    (prop::collection::btree_map(member.0, member.1, 0..6), user, tags).prop_map(|(members, user, tags)| {
        let mut members: Vec<String> = members.iter().map(|(name, leaf)| format!("\"{name}\":{leaf}")).collect();
        members.extend(user.map(|(id, name)| format!("\"user\":{{\"id\":{id},\"name\":{}}}", Value::from(name))));
        members.push(format!("\"a\":{{\"b\":[{}]}}", tags.join(",")));
        // As a map has them, for the order of texts in one path counts.
        members.sort_unstable();
        format!("{{{}}}", members.join(", "))
    })
}

pub fn contents() -> impl Strategy<Value = Content> {
    let value = prop_oneof![
        3 => line().prop_map(Some),
        4 => json_object().prop_map(Some),
        1 => Just(None),
        1 => select(vec!["{\"status\":500", "[500]", "500", "---", ""]).prop_map(|text| Some(text.to_owned())),
    ];
    let key = prop::option::of(select(&KEYS[..]).prop_map(str::to_owned));
    let header = (select(&["trace", "from.host"][..]).prop_map(str::to_owned), prop::option::of(line()));
    (0_i64..600, key, value, prop::collection::vec(header, 0..3)).prop_map(|(second, key, value, headers)| {
        // Ten different times.
        Content { second: second / 60 * 60 + i64::from(second % 7 == 0), key, value, headers }
    })
}

impl Vocabulary {
    /// That of [`contents`]. Patterns and bounds that have joints in them are for logs alone: elsewhere they are
    /// several words, and refused.
    pub fn generated(tokenizer: Tokenizer) -> Self {
        let mut prefixes = owned(&["p", "lo", "L", "zü", "Z", "5", "10", "k", "e", "東", "parcel", "x"]);
        let mut wildcards = owned(&[
            "*t", "l?st", "*E*", "p*l", "Z*ch", "?0*", "50?", "*東*", "東?", "tr?e", "k?", "*b", "L*t", "??", "??*",
            "*ü*", "p**", "x*y", "*r*r*",
        ]);
        let mut bounds = owned(&["error", "late", "lost", "parcel", "10", "zürich"]);
        if tokenizer == Tokenizer::Log {
            prefixes.extend(owned(&[
                "10.0",
                "10.0.",
                "10.0.0.7:",
                "User-",
                "var/l",
                "status=",
                "c:\\t",
                "lost_",
                "lost.",
            ]));
            wildcards.extend(owned(&[
                "10.*.7",
                "*.log",
                "user-??",
                "VAR/*/*",
                "*:8080",
                "*=5*",
                "?0.0.0.7",
                "*@zür*",
                "lost?parcel",
                "c:\\*",
                "*..*",
            ]));
            bounds.extend(owned(&["10.0.0.7", "k2-b", "user-42", "status=500", "var/log"]));
        }
        let others = ["true", "false", "nowhere", "k1", "k2", "42", "---", "7:8080", "log/sys", "C:\\Temp", "0.0"];
        Self {
            words: owned(&WORDS),
            texts: [owned(&JOINED), owned(&others)].concat(),
            prefixes,
            wildcards,
            bounds,
            numbers: owned(&NUMBERS),
            fields: [vec!["value".to_owned(); 11], owned(&JSON_PATHS), owned(&OTHER_FIELDS)].concat(),
            json_paths: owned(&JSON_PATHS),
        }
    }

    fn wanted_text(&self) -> impl Strategy<Value = String> + use<> {
        let word = || one_of(&self.words);
        prop_oneof![
            4 => word(),
            2 => (word(), word()).prop_map(|(a, b)| format!("{a} {b}")),
            1 => (word(), word()).prop_map(|(a, b)| format!("{a}-{b}")),
            1 => (word(), one_of(&self.texts)).prop_map(|(a, b)| format!("{a} {b}")),
            2 => one_of(&self.texts),
            2 => one_of(&self.numbers),
        ]
    }

    fn range(&self) -> impl Strategy<Value = Query> + use<> {
        let numbers = bounds(one_of(&self.numbers).prop_map(Literal::Number));
        let words = bounds(one_of(&self.bounds).prop_map(Literal::Word));
        let offsets = bounds((0..40_i64).prop_map(|offset| Literal::Number(offset.to_string())));
        let query = |(field, (lower, upper)): (String, _)| Query::Range { field, lower, upper };
        prop_oneof![
            4 => (one_of(&self.json_paths), numbers).prop_map(query),
            3 => (one_of(&self.fields), words).prop_map(query),
            3 => (Just("timestamp".to_owned()), bounds(time())).prop_map(query),
            1 => (Just("offset".to_owned()), offsets).prop_map(query),
        ]
    }

    fn leaf(&self) -> impl Strategy<Value = Query> + use<> {
        let field = || one_of(&self.fields);
        let word = || one_of(&self.words);
        prop_oneof![
            1 => Just(Query::All),
            8 => (field(), self.wanted_text()).prop_map(|(field, text)| Query::Text { field, text, slop: 0 }),
            2 => (field(), word(), word(), 1..4_u32)
                .prop_map(|(field, a, b, slop)| Query::Text { field, text: format!("{a} {b}"), slop }),
            3 => (field(), one_of(&self.prefixes)).prop_map(|(field, text)| Query::Prefix { field, text }),
            3 => (field(), one_of(&self.wildcards)).prop_map(|(field, pattern)| Query::Wildcard { field, pattern }),
            3 => (field(), 0..REGEXES.len()).prop_map(|(field, number)| Query::Regex { field, number }),
            6 => self.range(),
            2 => field().prop_map(|field| Query::Exists { field }),
            2 => (field(), prop::collection::vec(self.wanted_text(), 0..4))
                .prop_map(|(field, values)| Query::Set { field, values }),
            4 => about_places(),
        ]
    }

    pub fn queries(&self) -> BoxedStrategy<Query> {
        let nested = self.leaf().prop_recursive(3, 12, 4, |inner| {
            let several = || prop::collection::vec(inner.clone(), 2..4);
            prop_oneof![
                3 => several().prop_map(Query::And),
                3 => several().prop_map(Query::Or),
                2 => inner.clone().prop_map(|part| Query::Not(Box::new(part))),
            ]
        });
        nested.boxed()
    }
}

/// About what every message has: topic, partition and offset.
fn about_places() -> impl Strategy<Value = Query> {
    let known = || select(TOPICS.map(|topic| topic.name).to_vec());
    let text = |field: &str, text: String| Query::Text { field: field.to_owned(), text, slop: 0 };
    let topic = prop_oneof![4 => known(), 1 => Just("nowhere")];
    let pattern = select(vec!["*der*", "o?ders", "*-archive", "P*s", "x*y", "*-log*"]);
    let start = select(vec!["ord", "orders", "p", "x"]);
    prop_oneof![
        topic.prop_map(move |name| text("topic", name.to_owned())),
        pattern.prop_map(|pattern| Query::Wildcard { field: "topic".to_owned(), pattern: pattern.to_owned() }),
        start.prop_map(|start| Query::Prefix { field: "topic".to_owned(), text: start.to_owned() }),
        (0..3_i32).prop_map(move |partition| text("partition", partition.to_string())),
        (known(), 0..3_i32, 0..40_i64)
            .prop_map(move |(topic, partition, offset)| text("_id", format!("{topic}/{partition}/{offset}"))),
    ]
}

fn bounds(literal: impl Strategy<Value = Literal> + Clone) -> impl Strategy<Value = (Bound<Literal>, Bound<Literal>)> {
    let bound = |literal| {
        (literal, 0..5_u8).prop_map(|(literal, kind)| match kind {
            0 | 1 => Bound::Included(literal),
            2 | 3 => Bound::Excluded(literal),
            _ => Bound::Unbounded,
        })
    };
    (bound(literal.clone()), bound(literal))
}

fn time() -> impl Strategy<Value = Literal> + Clone {
    (0_i64..660, 0..4_u8).prop_map(|(back, form)| {
        let millis = NOW - back * 1000;
        let minute = millis.div_euclid(60_000) * 60_000;
        match form {
            0 => Literal::Time(format!("now-{back}s"), millis, millis),
            1 => Literal::Time(format!("now-{back}s/m"), minute, minute + 59_999),
            2 => Literal::Time(millis.to_string(), millis, millis),
            _ => Literal::Time(
                format!("2015-05-17||+{}s", 600 - back.min(600)),
                millis.max(NOW - 600_000),
                millis.max(NOW - 600_000),
            ),
        }
    })
}
