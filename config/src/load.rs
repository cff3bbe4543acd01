//! Puts the effective configuration together: defaults, then the TOML file, then `THERMOCLINE_SECTION__KEY` from the
//! environment, then flags. Each setting remembers where it came from, so that an error can say what to mend.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::{DeTable, DeValue};

use crate::nearest::nearest;
use crate::sections::Config;
use crate::units::ByteSize;

/// Environment variables of this form are settings; others, with or without the prefix, are not looked at.
const ENV_PREFIX: &str = "THERMOCLINE_";
const ENV_SEPARATOR: &str = "__";
/// Largest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest part of a refused value that an error repeats, in characters.
const SHOWN_VALUE_LEN_MAX: usize = 100;

/// A setting given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// As typed, with its dashes.
    pub name: &'static str,
    /// `section.key`.
    pub key: &'static str,
    pub value: String,
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Environment { variable: String },
    Flag { name: &'static str },
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A section or key that does not exist.
    Unknown { origin: Origin, name: String, advice: String },
    /// A value that is not allowed.
    Value { origin: Origin, key: String, value: String, allowed: String },
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("config file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("config file {path} has {size_bytes} bytes, which exceeds the limit of {FILE_BYTES_MAX}")]
    TooLarge { path: PathBuf, size_bytes: u64 },
    #[error("config file {path} line {line}: {message}")]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{}", one_per_line(.0))]
    Invalid(Vec<Problem>),
}

/// Loads and checks the configuration. `environment` is usually `std::env::vars_os()`; every problem of every layer is
/// reported at once.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[Flag],
) -> Result<Config, ConfigError> {
    let mut layers = Layers::default();
    if let Some(path) = file {
        layers.add_file(path, &read_file(path)?)?;
    }
    layers.add_environment(environment);
    layers.add_flags(flags);
    layers.finish()
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let size_bytes = std::fs::metadata(path).map_err(failed)?.len();
    if size_bytes > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned(), size_bytes });
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The settings so far, as a table of the same shape as [`Config`].
struct Layers {
    table: toml::Table,
    origins: BTreeMap<String, Origin>,
    problems: Vec<Problem>,
}

/// A value as its source gives it: the file has types, environment and flags have text.
enum Given {
    Typed(Value),
    Text(String),
}

impl Default for Layers {
    fn default() -> Self {
        Self { table: default_table(), origins: BTreeMap::new(), problems: Vec::new() }
    }
}

/// The defaults as a table: it knows which sections and keys exist and of which type each is.
fn default_table() -> toml::Table {
    toml::Table::try_from(Config::default()).unwrap_or_default()
}

impl Layers {
    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let document = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_at(text, e.span().map_or(0, |span| span.start)),
            message: e.message().to_owned(),
        })?;
        let origin = |position: usize| Origin::File { path: path.to_owned(), line: line_at(text, position) };
        for (section, content) in document.get_ref() {
            let (DeValue::Table(settings), true) =
                (content.get_ref(), self.table.contains_key(section.get_ref().as_ref()))
            else {
                self.unknown_section(origin(section.span().start), section.get_ref(), None);
                continue;
            };
            for (key, value) in settings {
                let origin = origin(key.span().start);
                match plain_value(value.get_ref()) {
                    Ok(plain) => self.set(section.get_ref(), key.get_ref(), Given::Typed(plain), origin),
                    Err(shown) => self.wrong(origin, format!("{}.{}", section.get_ref(), key.get_ref()), shown),
                }
            }
        }
        Ok(())
    }

    fn add_environment(&mut self, environment: impl IntoIterator<Item = (OsString, OsString)>) {
        for (variable, value) in environment {
            let Some(variable) = variable.to_str() else { continue };
            let Some((section, key)) = variable.strip_prefix(ENV_PREFIX).and_then(|n| n.split_once(ENV_SEPARATOR))
            else {
                continue;
            };
            let origin = Origin::Environment { variable: variable.to_owned() };
            let value = value.to_string_lossy().into_owned();
            self.set(&section.to_ascii_lowercase(), &key.to_ascii_lowercase(), Given::Text(value), origin);
        }
    }

    fn add_flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            let (section, key) = flag.key.split_once('.').unwrap_or((flag.key, ""));
            self.set(section, key, Given::Text(flag.value.clone()), Origin::Flag { name: flag.name });
        }
    }

    /// Takes over one setting, or notes why not.
    fn set(&mut self, section: &str, key: &str, given: Given, origin: Origin) {
        let Some(default) = self.table.get(section).and_then(|keys| keys.get(key)) else {
            return self.unknown(origin, section, key);
        };
        let name = format!("{section}.{key}");
        let value = match given {
            // A size without a unit may be written as a bare number.
            Given::Typed(Value::Integer(bytes)) if is_byte_size(default) => Value::String(bytes.to_string()),
            Given::Typed(value) => value,
            Given::Text(text) => typed_like(default, text),
        };
        let shown = shown(&value);
        if !value.same_type(default) {
            return self.wrong(origin, name, shown);
        }
        let alone = toml::Table::from_iter([(
            section.to_owned(),
            Value::Table(toml::Table::from_iter([(key.to_owned(), value.clone())])),
        )]);
        if let Err(e) = alone.try_into::<Config>() {
            let allowed = allowed(default).map_or_else(|| e.message().to_owned(), str::to_owned);
            return self.problems.push(Problem::Value { origin, key: name, value: shown, allowed });
        }
        if let Some(slot) = self.table.get_mut(section).and_then(|keys| keys.get_mut(key)) {
            *slot = value;
        }
        self.origins.insert(name, origin);
    }

    /// Notes a value of the wrong type.
    fn wrong(&mut self, origin: Origin, key: String, value: String) {
        let default = key.split_once('.').and_then(|(section, key)| self.table.get(section)?.get(key));
        let allowed = match default {
            Some(Value::Integer(_)) => "write a whole number without quotes",
            Some(Value::Boolean(_)) => "write true or false without quotes",
            _ => "write one text in quotes",
        };
        self.problems.push(Problem::Value { origin, key, value, allowed: allowed.to_owned() });
    }

    /// Notes a key that its section does not have, with the one that was probably meant.
    fn unknown(&mut self, origin: Origin, section: &str, key: &str) {
        let Some(keys) = self.table.get(section).and_then(Value::as_table) else {
            return self.unknown_section(origin, section, Some(key));
        };
        let advice = match nearest(key, keys.keys().map(String::as_str)) {
            Some(near) => format!("did you mean {section}.{near}?"),
            None => format!("[{section}] has {}", joined(keys)),
        };
        self.problems.push(Problem::Unknown { origin, name: format!("{section}.{key}"), advice });
    }

    /// Notes a section that does not exist; a key written outside its section looks like one.
    fn unknown_section(&mut self, origin: Origin, section: &str, key: Option<&str>) {
        let owner = self.table.iter().find(|(_, keys)| keys.get(section).is_some());
        let advice = match (nearest(section, self.table.keys().map(String::as_str)), owner) {
            (Some(near), _) if near == section => format!("write its keys below a line [{section}]"),
            (_, Some((owner, _))) if key.is_none() => format!("did you mean {owner}.{section}?"),
            (Some(near), _) => format!("did you mean [{near}]?"),
            (None, _) => format!("the sections are {}", joined(&self.table)),
        };
        let name = key.map_or_else(|| section.to_owned(), |key| format!("{section}.{key}"));
        self.problems.push(Problem::Unknown { origin, name, advice });
    }

    fn finish(mut self) -> Result<Config, ConfigError> {
        match self.table.clone().try_into::<Config>() {
            Ok(config) => {
                let violations = config.violations();
                self.problems.extend(violations.into_iter().map(|violation| Problem::Value {
                    origin: self.origins.get(violation.key).cloned().unwrap_or(Origin::Default),
                    key: violation.key.to_owned(),
                    value: violation.value,
                    allowed: violation.allowed,
                }));
                if self.problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(self.problems)) }
            }
            // Each setting was read alone before it entered the table, so this is a contradiction in the table itself.
            Err(e) => Err(ConfigError::Invalid(vec![Problem::Value {
                origin: Origin::Default,
                key: "configuration".to_owned(),
                value: String::new(),
                allowed: e.message().to_owned(),
            }])),
        }
    }
}

impl Config {
    /// Checks every field and the fields against each other. [`load`] has done so already.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let problems: Vec<_> = self
            .violations()
            .into_iter()
            .map(|violation| Problem::Value {
                origin: Origin::Default,
                key: violation.key.to_owned(),
                value: violation.value,
                allowed: violation.allowed,
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }

    /// The configuration as a TOML document that [`load`] reads back.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// A scalar of the file as a plain value; arrays, tables and dates are no setting's type.
fn plain_value(value: &DeValue<'_>) -> Result<Value, String> {
    match value {
        DeValue::String(text) => Ok(Value::String(text.clone().into_owned())),
        DeValue::Boolean(flag) => Ok(Value::Boolean(*flag)),
        DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
            .map(Value::Integer)
            .map_err(|_| shown_text(digits.as_str())),
        DeValue::Float(digits) => Err(shown_text(digits.as_str())),
        DeValue::Datetime(time) => Err(time.to_string()),
        DeValue::Array(_) => Err("a list".to_owned()),
        DeValue::Table(_) => Err("a table".to_owned()),
    }
}

/// Text from environment or flag, as the type its key has; unreadable text stays text and fails the type check.
fn typed_like(default: &Value, text: String) -> Value {
    let typed = match default {
        Value::Integer(_) => text.trim().parse().ok().map(Value::Integer),
        Value::Boolean(_) => text.trim().parse().ok().map(Value::Boolean),
        _ => None,
    };
    typed.unwrap_or(Value::String(text))
}

/// What a key of this default takes, where the type's own error does not already say it.
fn allowed(default: &Value) -> Option<&'static str> {
    match default {
        Value::Integer(_) => Some("write a whole number that is neither negative nor too large for this setting"),
        Value::String(text) if text.parse::<SocketAddr>().is_ok() => {
            Some("write an IP address and a port, like 127.0.0.1:9092 or [::1]:9092")
        }
        _ => None,
    }
}

fn is_byte_size(default: &Value) -> bool {
    default.as_str().is_some_and(|text| text.parse::<ByteSize>().is_ok())
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => shown_text(&format!("{text:?}")),
        other => shown_text(&other.to_string()),
    }
}

fn shown_text(text: &str) -> String {
    match text.char_indices().nth(SHOWN_VALUE_LEN_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Line of a byte position, counted from 1.
fn line_at(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}

fn joined(table: &toml::Table) -> String {
    table.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn one_per_line(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("configuration"),
            Self::File { path, line } => write!(f, "config file {} line {line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Flag { name } => write!(f, "flag {name}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { origin, name, advice } => write!(f, "{origin}: {name} is not a setting; {advice}"),
            Self::Value { origin, key, value, allowed } => write!(f, "{origin}: {key} = {value} is refused: {allowed}"),
        }
    }
}

#[cfg(test)]
mod tests;
