//! In which ways a split can be made, and the one line that says so in the manifest.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thermocline_config::{SearchFields, SearchIndex, SearchTokenizer, TopicConfig};

use super::tokenizer::Analyser;

/// How messages are indexed.
///
/// Written out, it is a line like `words.2 value,json,key,headers positions fast`: the analyser under the name that
/// splits know it by, the fields, and what is kept of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SplitOptions {
    /// How text is cut into words (`search.tokenizer`).
    pub analyser: Analyser,
    /// Index the words of the value (`search.fields`).
    pub value: bool,
    /// Index the leaves of values that are JSON objects (`search.fields` and `search.index = json`).
    pub json: bool,
    /// Index the key (`search.fields`).
    pub key: bool,
    /// Index the headers (`search.fields`).
    pub headers: bool,
    /// Keep token positions, so that phrases can be searched (`search.positions`).
    pub positions: bool,
    /// Keep the leaves of JSON, keys and headers in columns as well, for aggregations, sorting and ranges
    /// (`search.fast`).
    pub fast: bool,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl SplitOptions {
    /// As for a topic that sets nothing.
    pub const DEFAULT: Self = Self {
        analyser: Analyser::Words,
        value: true,
        json: true,
        key: true,
        headers: true,
        positions: true,
        fast: true,
    };

    /// What a topic asks for; `None` where `search.index = off`.
    pub fn of_topic(config: &TopicConfig) -> Option<Self> {
        let analyser = match config.search_tokenizer {
            SearchTokenizer::Default => Analyser::Words,
            SearchTokenizer::Log => Analyser::Log,
        };
        let SearchFields { value, json, key, headers } = config.search_fields;
        // What is asked for is what a schema can say: a value is never kept in a column.
        let fast = config.search_fast && (json || key || headers);
        let positions = config.search_positions;
        match config.search_index {
            SearchIndex::Off => None,
            SearchIndex::Text | SearchIndex::Json => {
                Some(Self { analyser, value, json, key, headers, positions, fast })
            }
        }
    }

    /// Everything that one of the two has; the analyser must be the same.
    pub(super) fn union(self, other: Self) -> Self {
        Self {
            analyser: self.analyser,
            value: self.value || other.value,
            json: self.json || other.json,
            key: self.key || other.key,
            headers: self.headers || other.headers,
            positions: self.positions || other.positions,
            fast: self.fast || other.fast,
        }
    }

    fn fields(&self) -> [(&'static str, bool); 4] {
        [("value", self.value), ("json", self.json), ("key", self.key), ("headers", self.headers)]
    }

    /// What was written out; `None` where another program wrote it, with options that this one does not have.
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split(' ');
        let (analyser, fields) = (Analyser::named(parts.next()?)?, parts.next()?);
        let has = |field: &str| fields.split(',').any(|named| named == field);
        let mut options = Self {
            analyser,
            value: has("value"),
            json: has("json"),
            key: has("key"),
            headers: has("headers"),
            positions: false,
            fast: false,
        };
        for part in parts {
            match part {
                "positions" => options.positions = true,
                "fast" => options.fast = true,
                _ => return None,
            }
        }
        (options.to_string() == line).then_some(options)
    }

    /// Reads an option of options that may be absent, or unknown to this program, which comes to the same.
    pub(crate) fn deserialize_known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        let line = Option::<String>::deserialize(deserializer)?;
        Ok(line.as_deref().and_then(Self::parse))
    }
}

impl fmt::Display for SplitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.analyser.name())?;
        let mut separator = ' ';
        for (field, _) in self.fields().into_iter().filter(|(_, is_indexed)| *is_indexed) {
            write!(f, "{separator}{field}")?;
            separator = ',';
        }
        if separator == ' ' {
            f.write_str(" -")?;
        }
        for (option, _) in [("positions", self.positions), ("fast", self.fast)].into_iter().filter(|(_, is_on)| *is_on)
        {
            write!(f, " {option}")?;
        }
        Ok(())
    }
}

impl Serialize for SplitOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_says_it_all() {
        let line = SplitOptions::default().to_string();
        assert_eq!(line, "words.2 value,json,key,headers positions fast");
        for unknown in ["", "words.2", "words.9 value", "words.2 body", "words.2 value colours", "words.2 json,value"] {
            assert_eq!(SplitOptions::parse(unknown), None, "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(flags in any::<[bool; 6]>(), analyser in prop::sample::select(Analyser::ALL.to_vec())) {
            let [value, json, key, headers, positions, fast] = flags;
            let options = SplitOptions { analyser, value, json, key, headers, positions, fast };
            prop_assert_eq!(SplitOptions::parse(&options.to_string()), Some(options));
        }
    }
}
