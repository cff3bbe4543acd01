//! What the query language means, written as naively as possible: a query is asked of each message by itself, over its
//! own words. In `generated`, where such queries and messages come from.
#![allow(clippy::expect_used, reason = "a test")]
#![allow(dead_code, reason = "each test uses its own part")]

pub mod generated;
pub mod words;

use std::cmp::Ordering;
use std::ops::Bound;

use serde_json::Value;
use words::{Tokenizer, Word};

/// What `now` means in every query; 2015-05-17T00:10:00Z.
pub const NOW: i64 = 1_431_821_400_000;

/// A topic and how it is indexed.
#[derive(Debug, PartialEq)]
pub struct TopicKind {
    pub name: &'static str,
    pub partitions: i32,
    /// Whether the leaves of JSON values are indexed.
    pub has_json: bool,
    pub tokenizer: Tokenizer,
}

pub const TOPICS: [TopicKind; 5] = [
    TopicKind { name: "orders", partitions: 3, has_json: true, tokenizer: Tokenizer::Default },
    TopicKind { name: "orders-archive", partitions: 1, has_json: true, tokenizer: Tokenizer::Default },
    TopicKind { name: "payments", partitions: 1, has_json: false, tokenizer: Tokenizer::Default },
    TopicKind { name: "orders-log", partitions: 2, has_json: true, tokenizer: Tokenizer::Log },
    TopicKind { name: "payments-log", partitions: 1, has_json: false, tokenizer: Tokenizer::Log },
];

/// Whether a word is one that is looked for.
type IsWanted = fn(&str) -> bool;

/// Regular expressions, and what they say of a word.
pub const REGEXES: [(&str, IsWanted); 11] = [
    ("l(ost|ate)", |word| word == "lost" || word == "late"),
    ("\\d+", |word| !word.is_empty() && word.chars().all(|c| c.is_ascii_digit())),
    ("[^0-9]{4}", |word| word.chars().count() == 4 && !word.contains(|c: char| c.is_ascii_digit())),
    (".*e.*", |word| word.contains('e')),
    ("PAR.+", |word| word.starts_with("par") && word.len() > 3),
    ("z.rich|get", |word| word == "zürich" || word == "get"),
    ("東.?", |word| word.starts_with('東') && word.chars().count() <= 2),
    ("[a-k]+[0-9]", |word| {
        let start = word.trim_end_matches(|c: char| c.is_ascii_digit());
        word.len() == start.len() + 1 && !start.is_empty() && start.chars().all(|c| ('a'..='k').contains(&c))
    }),
    ("nowhere", |word| word == "nowhere"),
    ("\\d+\\..*", |word| {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
        rest.len() < word.len() && rest.starts_with('.')
    }),
    (".*[=@].+", |word| word.char_indices().any(|(at, c)| "=@".contains(c) && at + 1 < word.len())),
];

/// A message as it is searched.
#[derive(Clone, Debug)]
pub struct Message {
    pub topic: &'static TopicKind,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    /// What is indexed, under the name of its field, in order.
    leaves: Vec<(String, Leaf)>,
}

#[derive(Clone, Debug)]
enum Leaf {
    Text(Vec<Word>),
    Number(Number),
    Truth(bool),
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

/// The leaves of a JSON value with their paths.
fn leaves(tokenizer: Tokenizer, value: &Value, path: &str, into: &mut Vec<(String, Leaf)>) {
    let mut push = |leaf| into.push((path.to_owned(), leaf));
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| leaves(tokenizer, member, &format!("{path}.{name}"), into));
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(tokenizer, item, path, into)),
        Value::String(text) => push(Leaf::Text(tokenizer.words(text))),
        Value::Number(number) => push(Leaf::Number(Number::of(number))),
        Value::Bool(truth) => push(Leaf::Truth(*truth)),
        Value::Null => {}
    }
}

impl Content {
    pub fn timestamp(&self) -> i64 {
        NOW - self.second * 1000
    }
}

impl Message {
    pub fn new(topic: &'static TopicKind, partition: i32, offset: i64, content: &Content) -> Self {
        let Content { key, value, headers, .. } = content;
        let words = |text: &String| Leaf::Text(topic.tokenizer.words(text));
        let mut found: Vec<(String, Leaf)> = Vec::new();
        found.extend(key.iter().map(|key| ("key".to_owned(), words(key))));
        found.extend(value.iter().map(|value| ("value".to_owned(), words(value))));
        let texts = headers.iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
        found.extend(texts.map(|(name, text)| (format!("headers.{name}"), words(text))));
        let json = value.as_deref().filter(|_| topic.has_json);
        if let Some(json) = json.and_then(|value| serde_json::from_str(value).ok()).filter(Value::is_object) {
            leaves(topic.tokenizer, &json, "json", &mut found);
        }
        Self { topic, partition, offset, timestamp: content.timestamp(), leaves: found }
    }

    /// What is indexed of a field; with `below` also of the fields below it.
    fn leaves(&self, field: &str, below: bool) -> impl Iterator<Item = &Leaf> {
        let is_of_it = move |name: &str| {
            let rest = name.strip_prefix(field);
            rest.is_some_and(|rest| rest.is_empty() || (below && rest.starts_with('.')))
        };
        self.leaves.iter().filter(move |(name, _)| is_of_it(name)).map(|(_, leaf)| leaf)
    }

    fn numbers(&self, field: &str) -> impl Iterator<Item = Number> {
        self.leaves(field, false).filter_map(|leaf| if let Leaf::Number(number) = leaf { Some(*number) } else { None })
    }

    /// The words of a field with their places; between two texts two places are left out.
    fn words(&self, field: &str) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        let mut start = 0;
        for leaf in self.leaves(field, false) {
            if let Leaf::Text(words) = leaf {
                found.extend(words.iter().map(|word| (start + word.first, word.text.as_str())));
                start += words.iter().map(|word| word.first + 1).max().unwrap_or(0) + 1;
            }
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
            Self::Text { field, text, .. } if field == "topic" => Some(message.topic.name == *text),
            Self::Prefix { field, text } if field == "topic" => Some(message.topic.name.starts_with(text)),
            Self::Text { field, text, .. } if field == "partition" => Some(message.partition.to_string() == *text),
            Self::Text { field, text, .. } if field == "_id" => {
                Some(format!("{}/{}/{}", message.topic.name, message.partition, message.offset) == *text)
            }
            Self::Wildcard { field, pattern } if field == "topic" => Some(fits(pattern, message.topic.name)),
            Self::Wildcard { field, pattern } => {
                Some(has_word(message, field, &|word| fits(&pattern.to_lowercase(), word)))
            }
            Self::Regex { field, number } => Some(has_word(message, field, &REGEXES[*number].1)),
            Self::Text { field, text, slop } => has_text(message, field, text, *slop),
            Self::Prefix { field, text } => {
                let start = message.topic.tokenizer.wanted_start(text)?;
                Some(has_word(message, field, &|word| word.starts_with(&start)))
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
            Self::Prefix { field, text } => format!("{}{}*", prefixed(field), escaped(text)),
            Self::Range { field, lower, upper } => range_text(field, lower, upper),
            Self::Wildcard { field, pattern } => format!("{}{}", prefixed(field), escaped(pattern)),
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
    message.words(field).iter().any(|(_, word)| is_wanted(word))
}

fn has_text(message: &Message, field: &str, text: &str, slop: u32) -> Option<bool> {
    let wanted = message.topic.tokenizer.wanted(text);
    let is_json = field.starts_with("json.");
    let number = Number::parse(text).filter(|_| is_json);
    let truth = text.parse::<bool>().ok().filter(|_| is_json);
    if wanted.is_empty() && number.is_none() && truth.is_none() {
        return None;
    }
    let found = message.words(field);
    let by_words = match wanted.as_slice() {
        [] => false,
        [a, b] if slop > 0 => places(&found, a)
            .any(|at| places(&found, b).any(|place| place.abs_diff(at + b.first - a.first) <= slop as usize)),
        [first, ..] => places(&found, first).any(|start| {
            wanted.iter().all(|word| places(&found, word).any(|at| at == start + word.first - first.first))
        }),
    };
    let by_number = number.is_some_and(|wanted| message.numbers(field).any(|n| n.compare(wanted) == Ordering::Equal));
    let is_true = |leaf: &Leaf| matches!(leaf, Leaf::Truth(found) if Some(*found) == truth);
    Some(by_words || by_number || message.leaves(field, false).any(is_true))
}

fn places(found: &[(usize, &str)], word: &Word) -> impl Iterator<Item = usize> {
    found.iter().filter(|(_, other)| *other == word.text).map(|(place, _)| *place)
}

/// A text without words is as nothing.
fn exists(message: &Message, field: &str) -> bool {
    message.leaves(field, true).any(|leaf| !matches!(leaf, Leaf::Text(words) if words.is_empty()))
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
        (_, Literal::Number(_)) => message.numbers(field).any(|number| {
            is_in(&|literal| match literal {
                Literal::Number(text) => number.compare(Number::parse(text).expect("a number")),
                other => panic!("{other:?} is no number"),
            })
        }),
        _ => has_word(message, field, &|word| {
            is_in(&|literal| match literal {
                Literal::Word(text) => word.cmp(&message.topic.tokenizer.wanted(text).pop().expect("a word").text),
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

/// What joins words in logs, and would end one here.
fn escaped(pattern: &str) -> String {
    pattern.replace('\\', "\\\\").replace(':', "\\:")
}

fn typed(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || ['-', '.', '/', '_', '='].contains(&c);
    let is_operator = ["AND", "OR", "NOT", "IN", "TO"].contains(&text);
    let is_bare = text.starts_with(char::is_alphanumeric) && text.chars().all(is_plain) && !is_operator;
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
