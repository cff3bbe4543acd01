//! Lines of real files as messages, and queries made of what stands in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::reference::Content;
use crate::reference::generated::Vocabulary;
use crate::reference::words::Tokenizer;
use crate::support::Failure;

/// Lines from which the words of queries are taken.
const SOURCES_MAX: usize = 400;
/// Longest word that is asked for.
const WORD_LEN_MAX: usize = 60;
/// JSON paths that are asked for.
const PATHS_MAX: usize = 12;

/// Where the environment says, else beside the clone; `None` where there are no files.
pub fn folder() -> Option<PathBuf> {
    let beside = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data").into();
    let folder: PathBuf = std::env::var_os("THERMOCLINE_DATA").unwrap_or_else(beside).into();
    folder.is_dir().then_some(folder)
}

/// `count` lines, as many of each file as it has, spread over it; from one file after the other.
pub fn lines(folder: &Path, count: usize) -> Result<Vec<Content>, Failure> {
    let mut files = BTreeMap::new();
    for group in std::fs::read_dir(folder)? {
        for file in std::fs::read_dir(group?.path())? {
            let path = file?.path();
            let name = path.file_name().ok_or("no name")?.to_string_lossy().into_owned();
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            files.insert((name, path), text);
        }
    }
    let share = count / files.len() + 1;
    let mut rows: Vec<Vec<Content>> = vec![Vec::new(); count];
    for ((name, _), text) in &files {
        let lines: Vec<(usize, &str)> = text.lines().enumerate().collect();
        for (row, (number, line)) in rows.iter_mut().zip(lines.iter().step_by((lines.len() / share).max(1))) {
            row.push(Content {
                second: 0,
                key: Some(name.clone()),
                value: Some((*line).to_owned()),
                headers: vec![("trace".to_owned(), Some(format!("{name}:{number}")))],
            });
        }
    }
    let mut lines: Vec<Content> = rows.into_iter().flatten().take(count).collect();
    // As in the queries: ten minutes, many at the same time.
    lines.iter_mut().zip(0_i64..).for_each(|(line, number)| line.second = number % 600 / 4 * 4);
    Ok(lines)
}

/// What is joined in logs.
fn joined(line: &str) -> impl Iterator<Item = &str> {
    let parts = line.split(|c: char| !c.is_ascii_alphanumeric() && !"._-/:@=".contains(c));
    let parts = parts.map(|part| part.trim_matches(|c: char| !c.is_ascii_alphanumeric()));
    parts.filter(|part| !part.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// The start of a word, and patterns that it fits.
fn patterns(word: &str, number: usize) -> (String, String) {
    let (start, end) = (word.len().div_ceil(2), word.len() / 3);
    let pattern = match number % 3 {
        0 => format!("*{}", &word[end..]),
        1 => format!("{}*{}", &word[..end.max(1)], &word[word.len() - end.max(1)..]),
        _ => format!("{}?{}", &word[..end], &word[end + 1..]),
    };
    (word[..start].to_owned(), pattern)
}

/// Paths of a JSON value, and its numbers.
fn look_into(value: &Value, path: &str, paths: &mut BTreeSet<String>, numbers: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| look_into(member, &format!("{path}.{name}"), paths, numbers));
        }
        Value::Array(items) => items.iter().for_each(|item| look_into(item, path, paths, numbers)),
        leaf => {
            numbers.extend(leaf.as_number().map(ToString::to_string));
            paths.insert(path.to_owned());
        }
    }
}

/// At most `count` of the items, evenly.
fn spread<T: Clone>(items: impl IntoIterator<Item = T>, count: usize) -> Vec<T> {
    let items: Vec<T> = items.into_iter().collect();
    items.iter().step_by(items.len().div_ceil(count).max(1)).cloned().collect()
}

/// What stands in the lines. Patterns and bounds that have joints in them are for logs alone.
pub fn vocabulary(lines: &[Content], tokenizer: Tokenizer) -> Vocabulary {
    let lines: Vec<&String> = spread(lines, SOURCES_MAX).into_iter().filter_map(|line| line.value.as_ref()).collect();
    let is_word = |word: &&str| (2..=WORD_LEN_MAX).contains(&word.len()) && Tokenizer::Log.wanted(word).len() == 1;
    // Another one of each line.
    fn one_of<'l>(words: impl Iterator<Item = &'l str>, number: usize) -> Option<String> {
        let words: Vec<&str> = words.collect();
        words.get(number * 7 % words.len().max(1)).map(|word| (*word).to_owned())
    }
    let of_lines = |pick: &dyn Fn(usize, &str) -> Option<String>| -> Vec<String> {
        lines.iter().enumerate().filter_map(|(number, line)| pick(number, line)).collect()
    };
    let words =
        of_lines(&|number, line| one_of(line.split(|c: char| !c.is_ascii_alphanumeric()).filter(is_word), number));
    let joined = of_lines(&|number, line| one_of(joined(line).filter(is_word), number));
    let texts = of_lines(&|number, line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.chunks(number % 4 + 1).nth(number % 3).map(|words| words.join(" "))
    });
    let whole = if tokenizer == Tokenizer::Log { [words.clone(), joined.clone()].concat() } else { words.clone() };
    let (prefixes, wildcards) = whole.iter().enumerate().map(|(number, word)| patterns(word, number)).unzip();
    let (mut paths, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for value in lines.iter().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object) {
        look_into(&value, "json", &mut paths, &mut numbers);
    }
    let json_paths = spread(paths, PATHS_MAX);
    let other = ["key", "headers.trace"].map(str::to_owned);
    let fields = [vec!["value".to_owned(); 3 * PATHS_MAX], json_paths.clone(), [&other[..]; 3].concat()].concat();
    let texts = [texts, joined].concat();
    Vocabulary {
        words,
        texts,
        prefixes,
        wildcards,
        bounds: whole,
        numbers: spread(numbers, SOURCES_MAX),
        fields,
        json_paths,
    }
}
