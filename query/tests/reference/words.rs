//! How text is cut into words, by the two tokenisers.

use std::collections::BTreeSet;

/// Longest word that is indexed, in bytes.
const WORD_LEN_MAX: usize = 255;
/// What joins words in logs, the weakest last.
const JOINTS: [&str; 3] = [".-_", "/\\:@", "="];
/// Most characters between two words that are joined.
const JOINT_LEN_MAX: usize = 2;
/// Most words that are joined to one.
const PARTS_MAX: usize = 64;

/// As the topic sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokenizer {
    Default,
    Log,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Places of the first and last plain word in it.
    pub first: usize,
    pub last: usize,
    pub text: String,
}

impl Tokenizer {
    /// The value of `search.tokenizer`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Log => "log",
        }
    }

    /// Runs of letters and digits in lower case, with their places; a Chinese character is one with the next. For logs
    /// also what is joined, as a whole and, cut at the weakest joints first, in parts.
    pub fn words(self, text: &str) -> Vec<Word> {
        let chars: Vec<char> = text.chars().collect();
        let parts = parts(&chars);
        let joints = joints(&chars, &parts);
        let weakest_max = if self == Self::Log { JOINTS.len() } else { 0 };
        let mut pieces = BTreeSet::new();
        for weakest in 0..=weakest_max {
            let mut first = 0;
            for (last, joint) in joints.iter().take(parts.len()).enumerate() {
                if joint.is_none_or(|joint| joint > weakest) {
                    pieces.insert((first, last));
                    first = last + 1;
                }
            }
        }
        let word = |(first, last): (usize, usize)| {
            let (start, mut end) = (parts[first].0, parts[last].1);
            if is_chinese(chars[start]) && chars.get(end).copied().is_some_and(is_chinese) {
                end += 1;
            }
            Word { first, last, text: chars[start..end].iter().flat_map(|c| c.to_lowercase()).collect() }
        };
        pieces.into_iter().map(word).filter(|word| word.text.len() <= WORD_LEN_MAX).collect()
    }

    /// Of what is looked for only the largest; and the last Chinese character of several is in the pair before.
    pub fn wanted(self, text: &str) -> Vec<Word> {
        let words = self.words(text);
        let is_in = |word: &Word, other: &Word| {
            let is_part = word != other && other.first <= word.first && word.last <= other.last;
            let is_second = other.last + 1 == word.first
                && word.text.starts_with(is_chinese)
                && word.text.chars().count() == 1
                && other.text.chars().count() == 2
                && other.text.ends_with(&word.text);
            is_part || is_second
        };
        words.iter().filter(|word| !words.iter().any(|other| is_in(word, other))).cloned().collect()
    }

    /// What words start with that are looked for by one word of which only the start is given.
    pub fn wanted_start(self, text: &str) -> Option<String> {
        let start = self.wanted(text).pop()?.text;
        let joint = &text[text.trim_end_matches(|c| strength(c).is_some()).len()..];
        Some(if self == Self::Log { start + joint } else { start })
    }
}

fn is_chinese(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

/// Where each run of letters and digits starts and ends, and each Chinese character.
fn parts(chars: &[char]) -> Vec<(usize, usize)> {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for (at, c) in chars.iter().enumerate().filter(|(_, c)| c.is_alphanumeric()) {
        match parts.last_mut() {
            Some((start, end)) if *end == at && !is_chinese(*c) && !is_chinese(chars[*start]) => *end += 1,
            _ => parts.push((at, at + 1)),
        }
    }
    parts
}

/// By what each part is joined to the next one.
fn joints(chars: &[char], parts: &[(usize, usize)]) -> Vec<Option<usize>> {
    let mut joined = 1;
    let mut joints: Vec<Option<usize>> = Vec::new();
    for pair in parts.windows(2) {
        let between = &chars[pair[0].1..pair[1].0];
        let is_plain = !is_chinese(chars[pair[0].0]) && !is_chinese(chars[pair[1].0]);
        let is_joint = is_plain && (1..=JOINT_LEN_MAX).contains(&between.len()) && joined < PARTS_MAX;
        // None is less than any.
        let weakest = between.iter().map(|c| strength(*c)).max().flatten();
        let joint = weakest.filter(|_| is_joint && between.iter().all(|c| strength(*c).is_some()));
        joined = if joint.is_some() { joined + 1 } else { 1 };
        joints.push(joint);
    }
    joints.push(None);
    joints
}

fn strength(c: char) -> Option<usize> {
    JOINTS.iter().position(|joints| joints.contains(c)).map(|at| at + 1)
}
