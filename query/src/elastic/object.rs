//! JSON objects whose members are taken one by one: what nobody took is refused, never ignored.

use serde_json::{Map, Value};

use super::error::{ElasticError, shown};

/// The members of an object, and what to call it in errors.
#[derive(Debug)]
pub(crate) struct Members {
    what: String,
    members: Map<String, Value>,
}

impl Members {
    /// `what` names the object, as in `[match] query`.
    pub fn of(what: impl Into<String>, value: Value) -> Result<Self, ElasticError> {
        let what = what.into();
        match value {
            Value::Object(members) => Ok(Self { what, members }),
            other => Err(ElasticError::parsing(format!("[{what}] is {}, not an object", kind_of(&other)))),
        }
    }

    /// The one member of an object that must have exactly one.
    pub fn only(self) -> Result<(String, Value), ElasticError> {
        let count = self.members.len();
        let mut members = self.members.into_iter();
        match (members.next(), count) {
            (Some(member), 1) => Ok(member),
            _ => Err(ElasticError::parsing(format!("[{}] has {count} members; it must have one", self.what))),
        }
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    /// Adds a member; whether there was one of this name, other than null, in its place.
    pub fn put(&mut self, name: &str, value: Value) -> bool {
        self.members.insert(name.to_owned(), value).is_some_and(|before| !before.is_null())
    }

    /// The value of a member that must be there.
    pub fn required(&mut self, name: &str) -> Result<Value, ElasticError> {
        self.take(name).ok_or_else(|| ElasticError::parsing(format!("[{}] needs [{name}]", self.what)))
    }

    /// Whether there is such a member, other than null.
    pub fn has(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(|value| !value.is_null())
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, ElasticError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a text", &other)),
        }
    }

    /// A number, or a text that says one.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, ElasticError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        number_of(&value).map(Some).ok_or_else(|| self.wrong(name, "a number", &value))
    }

    /// A whole number that is not negative, or a text that says one.
    pub fn count(&mut self, name: &str) -> Result<Option<u64>, ElasticError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let count = match &value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_u64(),
        };
        count.map(Some).ok_or_else(|| self.wrong(name, "a whole number, 0 or more", &value))
    }

    /// A truth value, or a text that says one.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ElasticError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        flag_of(&value).map(Some).ok_or_else(|| self.wrong(name, "true or false", &value))
    }

    /// Drops members that change nothing here, whatever they say.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.members.remove(*name);
        }
    }

    /// What has not been taken yet.
    pub fn rest(self) -> Map<String, Value> {
        self.members
    }

    /// Refuses what has not been taken.
    pub fn done(self) -> Result<(), ElasticError> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => Err(ElasticError::parsing(format!("[{}] does not support [{}]", self.what, shown(name)))),
        }
    }

    pub fn wrong(&self, name: &str, wanted: &str, value: &Value) -> ElasticError {
        let reason = format!("[{}] [{name}] must be {wanted}, not {}", self.what, shown(&value.to_string()));
        ElasticError::parsing(reason)
    }
}

pub(crate) fn number_of(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    number.filter(|number: &f64| number.is_finite())
}

pub(crate) fn flag_of(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        // `?ignore_unavailable` without a value means true.
        Value::String(text) if text.is_empty() || text == "true" => Some(true),
        Value::String(text) if text == "false" => Some(false),
        _ => None,
    }
}

pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
