//! What the query language means, written as naively as possible: a query is asked of each message by itself, over its
//! own text. Also where such queries and messages come from, biased so that they meet.
#![allow(clippy::expect_used, reason = "a test")]

use std::cmp::Ordering;
use std::ops::Bound;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

/// What `now` means in every query; 2015-05-17T00:10:00Z.
pub const NOW: i64 = 1_431_821_400_000;
/// The topic of which JSON leaves are not indexed.
pub const TEXT_TOPIC: &str = "payments";
/// Longest word that is indexed, in bytes.
const WORD_LEN_MAX: usize = 255;
const WORDS: [&str; 10] = ["parcel", "lost", "late", "Zürich", "error", "GET", "10", "500", "true", "東京"];
const KEYS: [&str; 4] = ["k1", "k2-b", "user 42", ""];
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

/// Whether a word is one that is looked for.
type IsWanted = fn(&str) -> bool;

/// Regular expressions, and what they say of a word.
pub const REGEXES: [(&str, IsWanted); 9] = [
    ("l(ost|ate)", |word| word == "lost" || word == "late"),
    ("\\d+", |word| !word.is_empty() && word.chars().all(|c| c.is_ascii_digit())),
    ("[^0-9]{4}", |word| word.chars().count() == 4 && !word.contains(|c: char| c.is_ascii_digit())),
    (".*e.*", |word| word.contains('e')),
    ("PAR.+", |word| word.starts_with("par") && word.len() > 3),
    ("z.rich|get", |word| word == "zürich" || word == "get"),
    ("東.?", |word| word.starts_with('東') && word.chars().count() <= 2),
    ("[a-k]+[0-9]", |word| ["k1", "k2"].contains(&word)),
    ("nowhere", |word| word == "nowhere"),
];

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub content: Content,
    /// The value, where it is an object and its leaves are indexed.
    json: Option<Value>,
}

/// What a producer says of a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// Before [`NOW`]; few different ones, so that many are equal.
    pub second: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: Vec<(String, Option<String>)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    All,
    /// A word, or several in a row; with two words and a slop, so far from that.
    Text {
        field: String,
        text: String,
        slop: u32,
    },
    Prefix {
        field: String,
        text: String,
    },
    /// With `*` and `?`.
    Wildcard {
        field: String,
        pattern: String,
    },
    /// One of [`REGEXES`].
    Regex {
        field: String,
        number: usize,
    },
    Range {
        field: String,
        lower: Bound<Literal>,
        upper: Bound<Literal>,
    },
    Exists {
        field: String,
    },
    Set {
        field: String,
        values: Vec<String>,
    },
    And(Vec<Query>),
    Or(Vec<Query>),
    Not(Box<Query>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Word(String),
    Number(String),
    /// As it is written, and the first and last millisecond it means.
    Time(String, i64, i64),
}

/// A number, exact.
#[derive(Clone, Copy, Debug)]
enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i128>() {
            return Some(Self::Int(number)).filter(|_| text.len() < 21);
        }
        let float = text.parse::<f64>().ok().filter(|number| number.is_finite());
        float.filter(|_| !text.contains(char::is_whitespace)).map(Self::Float)
    }

    fn of(number: &serde_json::Number) -> Self {
        match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Self::Int(i128::from(number)),
            (_, Some(number)) => Self::Int(i128::from(number)),
            _ => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
        }
    }

    fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.cmp(&b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(&b),
            (Self::Int(_), Self::Float(_)) => other.compare(self).reverse(),
            (Self::Float(a), Self::Int(b)) => {
                // Whole part first; what is behind the point decides only between equals.
                (a.floor() as i128).cmp(&b).then(if a.fract() == 0.0 { Ordering::Equal } else { Ordering::Greater })
            }
        }
    }
}

fn is_chinese(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

/// Runs of letters and digits in lower case, with their places; a Chinese character is one with the next.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words: Vec<String> = Vec::new();
    let mut run = String::new();
    let chars: Vec<char> = text.chars().chain([' ', ' ']).collect();
    for pair in chars.windows(2) {
        if pair[0].is_alphanumeric() && !is_chinese(pair[0]) {
            run.extend(pair[0].to_lowercase());
            continue;
        }
        words.extend(Some(std::mem::take(&mut run)).filter(|run| !run.is_empty()));
        if is_chinese(pair[0]) {
            words.push(pair.iter().filter(|c| is_chinese(**c)).collect());
        }
    }
    words.into_iter().enumerate().filter(|(_, word)| word.len() <= WORD_LEN_MAX).collect()
}

/// The same of what is looked for, where the last character of several is a part of the pair before.
fn wanted(text: &str) -> Vec<(usize, String)> {
    let mut words = words(text);
    let before = words.clone();
    words.retain(|(place, word)| {
        let is_pair = |(other, pair): &(usize, String)| other + 1 == *place && pair.chars().count() == 2;
        !(word.chars().count() == 1
            && word.starts_with(is_chinese)
            && before.iter().any(|pair| is_pair(pair) && pair.1.ends_with(word)))
    });
    words
}

/// The leaves of a JSON value that lie at a path, and where `below` also those below it.
fn leaves<'v>(value: &'v Value, at: &str, path: &str, below: bool, into: &mut Vec<&'v Value>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                leaves(member, &at, path, below, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(item, at, path, below, into)),
        leaf => {
            let is_below = path.is_empty() || at.starts_with(&format!("{path}."));
            if at == path || (below && is_below) {
                into.push(leaf);
            }
        }
    }
}

impl Content {
    pub fn timestamp(&self) -> i64 {
        NOW - self.second * 1000
    }
}

impl Message {
    pub fn new(topic: &str, partition: i32, offset: i64, content: Content) -> Self {
        let json = content.value.as_deref().filter(|_| topic != TEXT_TOPIC);
        let json = json.and_then(|value| serde_json::from_str(value).ok()).filter(Value::is_object);
        Self { topic: topic.to_owned(), partition, offset, timestamp: content.timestamp(), content, json }
    }

    /// What is indexed of a field: its texts, its numbers and its truth values.
    fn field(&self, field: &str, below: bool) -> (Vec<String>, Vec<Number>, Vec<bool>) {
        let Content { key, value, headers, .. } = &self.content;
        let texts: Vec<String> = match field.split_once('.').unwrap_or((field, "")) {
            ("value", _) => value.iter().cloned().collect(),
            ("key", _) => key.iter().cloned().collect(),
            ("headers", name) => {
                let named = headers.iter().filter(|(header, _)| header == name || (below && name.is_empty()));
                named.filter_map(|(_, text)| text.clone()).collect()
            }
            (_, path) => {
                let mut found = Vec::new();
                if let Some(json) = &self.json {
                    leaves(json, "", path, below, &mut found);
                }
                let texts = found.iter().filter_map(|leaf| leaf.as_str()).map(str::to_owned).collect();
                let numbers = found.iter().filter_map(|leaf| leaf.as_number()).map(Number::of).collect();
                let truths = found.iter().filter_map(|leaf| leaf.as_bool()).collect();
                return (texts, numbers, truths);
            }
        };
        (texts, Vec::new(), Vec::new())
    }

    /// The words of a field with their places; between two texts two places are left out.
    fn field_words(&self, field: &str, below: bool) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut start = 0;
        for text in self.field(field, below).0 {
            let words = words(&text);
            let end = words.last().map_or(0, |(place, _)| place + 1);
            found.extend(words.into_iter().map(|(place, word)| (start + place, word)));
            start += end + 1;
        }
        found
    }
}

impl Query {
    pub fn matches(&self, message: &Message) -> bool {
        self.answer(message) == Some(true)
    }

    /// None where there is nothing to look for.
    fn answer(&self, message: &Message) -> Option<bool> {
        match self {
            Self::All => Some(true),
            Self::Text { field, text, .. } if field == "topic" => Some(message.topic == *text),
            Self::Prefix { field, text } if field == "topic" => Some(message.topic.starts_with(text)),
            Self::Text { field, text, .. } if field == "partition" => Some(message.partition.to_string() == *text),
            Self::Text { field, text, .. } if field == "_id" => {
                Some(format!("{}/{}/{}", message.topic, message.partition, message.offset) == *text)
            }
            Self::Wildcard { field, pattern } if field == "topic" => Some(fits(pattern, &message.topic)),
            Self::Wildcard { field, pattern } => {
                Some(has_word(message, field, &|word| fits(&pattern.to_lowercase(), word)))
            }
            Self::Regex { field, number } => Some(has_word(message, field, &REGEXES[*number].1)),
            Self::Text { field, text, slop } => has_text(message, field, text, *slop),
            Self::Prefix { field, text } => {
                let start = wanted(text).pop()?.1;
                Some(message.field_words(field, false).iter().any(|(_, word)| word.starts_with(&start)))
            }
            Self::Range { field, lower, upper } => Some(in_range(message, field, lower, upper)),
            Self::Exists { field } => Some(exists(message, field)),
            Self::Set { field, values } => {
                let values = values.iter().map(|text| Self::Text { field: field.clone(), text: text.clone(), slop: 0 });
                if values.len() == 0 { Some(false) } else { Self::Or(values.collect()).answer(message) }
            }
            Self::And(parts) => {
                let mut answers = parts.iter().filter_map(|part| part.answer(message)).peekable();
                answers.peek()?;
                Some(answers.all(|answer| answer))
            }
            Self::Or(parts) => {
                let mut answers = parts.iter().filter_map(|part| part.answer(message)).peekable();
                answers.peek()?;
                Some(answers.any(|answer| answer))
            }
            Self::Not(part) => part.answer(message).map(|answer| !answer),
        }
    }

    /// As it is typed.
    pub fn text(&self) -> String {
        let several =
            |parts: &[Self], link: &str| format!("({})", parts.iter().map(Self::text).collect::<Vec<_>>().join(link));
        match self {
            Self::All => "*".to_owned(),
            Self::Text { field, text, slop: 0 } => format!("{}{}", prefixed(field), typed(text)),
            Self::Text { field, text, slop } => format!("{}{}~{slop}", prefixed(field), quoted(text)),
            Self::Prefix { field, text } => format!("{}{text}*", prefixed(field)),
            Self::Range { field, lower, upper } => range_text(field, lower, upper),
            Self::Wildcard { field, pattern } => format!("{}{pattern}", prefixed(field)),
            Self::Regex { field, number } => format!("{}/{}/", prefixed(field), REGEXES[*number].0),
            // Both ways of asking for it.
            Self::Exists { field } if field.len() % 2 == 0 => format!("_exists_:{field}"),
            Self::Exists { field } => format!("{field}:*"),
            Self::Set { field, values } => {
                format!("{field}: IN [{}]", values.iter().map(|text| typed(text)).collect::<Vec<_>>().join(" "))
            }
            // Both ways of asking for several things.
            Self::And(parts) if parts.len() % 2 == 0 => several(parts, " AND "),
            Self::And(parts) => several(parts, " "),
            Self::Or(parts) => several(parts, " OR "),
            Self::Not(part) => format!("NOT {}", part.text()),
        }
    }
}

/// Whether a text fits a pattern with `*` and `?`.
fn fits(pattern: &str, text: &str) -> bool {
    let mut chars = pattern.chars();
    match chars.next() {
        None => text.is_empty(),
        Some('*') => text.char_indices().any(|(at, _)| fits(chars.as_str(), &text[at..])) || fits(chars.as_str(), ""),
        Some(c) => {
            let mut rest = text.chars();
            rest.next().is_some_and(|found| (c == '?' || c == found) && fits(chars.as_str(), rest.as_str()))
        }
    }
}

fn has_word(message: &Message, field: &str, is_wanted: &dyn Fn(&str) -> bool) -> bool {
    message.field_words(field, false).iter().any(|(_, word)| is_wanted(word))
}

fn has_text(message: &Message, field: &str, text: &str, slop: u32) -> Option<bool> {
    let wanted = wanted(text);
    let (_, numbers, truths) = message.field(field, false);
    let is_json = field.starts_with("json.");
    let number = Number::parse(text).filter(|_| is_json);
    let truth = text.parse::<bool>().ok().filter(|_| is_json);
    if wanted.is_empty() && number.is_none() && truth.is_none() {
        return None;
    }
    let found = message.field_words(field, false);
    let is_at = |place: usize, word: &str| found.iter().any(|(at, other)| *at == place && other == word);
    let by_words = match wanted.as_slice() {
        [] => false,
        [(a_place, first), (b_place, second)] if slop > 0 => {
            let places = |word| found.iter().filter(move |(_, other)| other == word).map(|(at, _)| *at);
            places(first).any(|a| places(second).any(|b| b.abs_diff(a + b_place - a_place) <= slop as usize))
        }
        [(before, _), ..] => (0..found.last().map_or(0, |(at, _)| at + 1))
            .any(|start| wanted.iter().all(|(place, word)| is_at(start + place - before, word))),
    };
    let by_number = number.is_some_and(|wanted| numbers.iter().any(|n| n.compare(wanted) == Ordering::Equal));
    let by_truth = truth.is_some_and(|wanted| truths.contains(&wanted));
    Some(by_words || by_number || by_truth)
}

fn exists(message: &Message, field: &str) -> bool {
    let (_, numbers, truths) = message.field(field, true);
    !message.field_words(field, true).is_empty() || !numbers.is_empty() || !truths.is_empty()
}

fn in_range(message: &Message, field: &str, lower: &Bound<Literal>, upper: &Bound<Literal>) -> bool {
    let above = |compare: &dyn Fn(&Literal) -> Ordering| match lower {
        Bound::Included(literal) => compare(literal) != Ordering::Less,
        Bound::Excluded(literal) => compare(literal) == Ordering::Greater,
        Bound::Unbounded => true,
    };
    let below = |compare: &dyn Fn(&Literal) -> Ordering| match upper {
        Bound::Included(literal) => compare(literal) != Ordering::Greater,
        Bound::Excluded(literal) => compare(literal) == Ordering::Less,
        Bound::Unbounded => true,
    };
    let is_in = |compare: &dyn Fn(&Literal) -> Ordering| above(compare) && below(compare);
    let kind = match (lower, upper) {
        (Bound::Included(literal) | Bound::Excluded(literal), _)
        | (_, Bound::Included(literal) | Bound::Excluded(literal)) => literal,
        (Bound::Unbounded, Bound::Unbounded) => {
            return field == "timestamp" || field == "offset" || exists(message, field);
        }
    };
    match (field, kind) {
        // A unit is before, after or around a moment.
        ("timestamp", _) => is_in(&|literal| match literal {
            Literal::Time(_, first, _) if message.timestamp < *first => Ordering::Less,
            Literal::Time(_, _, last) if message.timestamp > *last => Ordering::Greater,
            _ => Ordering::Equal,
        }),
        ("offset", _) => is_in(&|literal| match literal {
            Literal::Number(text) => message.offset.cmp(&text.parse().expect("an offset")),
            other => panic!("{other:?} is no offset"),
        }),
        (_, Literal::Number(_)) => message.field(field, false).1.into_iter().any(|number| {
            is_in(&|literal| match literal {
                Literal::Number(text) => number.compare(Number::parse(text).expect("a number")),
                other => panic!("{other:?} is no number"),
            })
        }),
        _ => message.field_words(field, false).into_iter().any(|(_, word)| {
            is_in(&|literal| match literal {
                Literal::Word(text) => word.cmp(&words(text).pop().expect("a word").1),
                other => panic!("{other:?} is no word"),
            })
        }),
    }
}

fn prefixed(field: &str) -> String {
    if field == "value" { String::new() } else { format!("{field}:") }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn typed(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || ['-', '.', '/', '_', '='].contains(&c);
    let is_bare = text.starts_with(char::is_alphanumeric) && text.chars().all(is_plain);
    if is_bare { text.to_owned() } else { quoted(text) }
}

fn range_text(field: &str, lower: &Bound<Literal>, upper: &Bound<Literal>) -> String {
    let text = |literal: &Literal| match literal {
        // In JSON a bare number would be one.
        Literal::Word(text) => quoted(text),
        Literal::Number(text) | Literal::Time(text, ..) => text.clone(),
    };
    match (lower, upper) {
        (Bound::Included(bound), Bound::Unbounded) => return format!("{field}:>={}", text(bound)),
        (Bound::Unbounded, Bound::Excluded(bound)) => return format!("{field}:<{}", text(bound)),
        _ => {}
    }
    let lower = match lower {
        Bound::Included(bound) => format!("[{}", text(bound)),
        Bound::Excluded(bound) => format!("{{{}", text(bound)),
        Bound::Unbounded => "[*".to_owned(),
    };
    let upper = match upper {
        Bound::Included(bound) => format!("{}]", text(bound)),
        Bound::Excluded(bound) => format!("{}}}", text(bound)),
        Bound::Unbounded => "*}".to_owned(),
    };
    format!("{field}:{lower} TO {upper}")
}

// -- where they come from

fn word() -> impl Strategy<Value = String> {
    select(&WORDS[..]).prop_map(str::to_owned)
}

fn line() -> impl Strategy<Value = String> {
    let separator = select(vec![" ", " ", " ", "-", "/", ": ", " -- "]);
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

fn text_field() -> impl Strategy<Value = String> {
    let path = select(&JSON_PATHS[..]);
    let other = select(vec!["key", "headers.trace", "headers.from.host", "headers.absent"]);
    prop_oneof![3 => Just("value"), 4 => path, 2 => other].prop_map(str::to_owned)
}

fn wanted_text() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => word(),
        2 => (word(), word()).prop_map(|(a, b)| format!("{a} {b}")),
        1 => (word(), word()).prop_map(|(a, b)| format!("{a}-{b}")),
        1 => line(),
        2 => number(),
        1 => select(vec!["true", "false", "nowhere", "k1", "k2", "42", "---"]).prop_map(str::to_owned),
    ]
}

fn prefix() -> impl Strategy<Value = String> {
    select(vec!["p", "lo", "L", "zü", "Z", "5", "10", "k", "e", "東", "parcel", "x"]).prop_map(str::to_owned)
}

fn wildcard() -> impl Strategy<Value = String> {
    let patterns = vec![
        "*t", "l?st", "*E*", "p*l", "Z*ch", "?0*", "50?", "*東*", "東?", "tr?e", "k?", "*b", "L*t", "??", "??*", "*ü*",
        "p**", "x*y", "*r*r*",
    ];
    select(patterns).prop_map(str::to_owned)
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

fn range() -> impl Strategy<Value = Query> {
    let numbers = bounds(number().prop_map(Literal::Number));
    let words = bounds(
        select(&["error", "late", "lost", "parcel", "10", "zürich"][..])
            .prop_map(|word| Literal::Word(word.to_owned())),
    );
    let offsets = bounds((0..40_i64).prop_map(|offset| Literal::Number(offset.to_string())));
    let query = |(field, (lower, upper)): (String, _)| Query::Range { field, lower, upper };
    prop_oneof![
        4 => (select(&JSON_PATHS[..]).prop_map(str::to_owned), numbers).prop_map(query),
        3 => (text_field(), words).prop_map(query),
        3 => (Just("timestamp".to_owned()), bounds(time())).prop_map(query),
        1 => (Just("offset".to_owned()), offsets).prop_map(query),
    ]
}

fn leaf() -> impl Strategy<Value = Query> {
    let topic = select(vec!["orders", "orders-archive", "payments", "nowhere"]).prop_map(str::to_owned);
    let place = (select(vec!["orders", "payments"]), 0..3_i32, 0..40_i64);
    let topic_pattern = select(vec!["*der*", "o?ders", "*-archive", "P*s", "x*y"]).prop_map(str::to_owned);
    let topic_start = select(vec!["ord", "orders", "p", "x"]).prop_map(str::to_owned);
    prop_oneof![
        1 => Just(Query::All),
        8 => (text_field(), wanted_text()).prop_map(|(field, text)| Query::Text { field, text, slop: 0 }),
        2 => (text_field(), word(), word(), 1..4_u32)
            .prop_map(|(field, a, b, slop)| Query::Text { field, text: format!("{a} {b}"), slop }),
        3 => (text_field(), prefix()).prop_map(|(field, text)| Query::Prefix { field, text }),
        3 => (text_field(), wildcard()).prop_map(|(field, pattern)| Query::Wildcard { field, pattern }),
        3 => (text_field(), 0..REGEXES.len()).prop_map(|(field, number)| Query::Regex { field, number }),
        6 => range(),
        2 => text_field().prop_map(|field| Query::Exists { field }),
        2 => (text_field(), prop::collection::vec(wanted_text(), 0..4))
            .prop_map(|(field, values)| Query::Set { field, values }),
        1 => topic.prop_map(|text| Query::Text { field: "topic".to_owned(), text, slop: 0 }),
        1 => topic_pattern.prop_map(|pattern| Query::Wildcard { field: "topic".to_owned(), pattern }),
        1 => (0..3_i32).prop_map(|partition| Query::Text { field: "partition".to_owned(), text: partition.to_string(), slop: 0 }),
        1 => place.prop_map(|(topic, partition, offset)| Query::Text {
            field: "_id".to_owned(),
            text: format!("{topic}/{partition}/{offset}"),
            slop: 0,
        }),
        1 => topic_start.prop_map(|text| Query::Prefix { field: "topic".to_owned(), text }),
    ]
}

pub fn queries() -> impl Strategy<Value = Query> {
    leaf().prop_recursive(3, 12, 4, |inner| {
        let several = || prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            3 => several().prop_map(Query::And),
            3 => several().prop_map(Query::Or),
            2 => inner.clone().prop_map(|part| Query::Not(Box::new(part))),
        ]
    })
}
