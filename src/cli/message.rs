//! A message as the HTTP interface writes it: text as it is, other bytes as base64 with `"<field>_encoding":"base64"`.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::time::Moment;

const BASE64: &str = "base64";

/// A message from a replay or a hit of a search.
#[derive(Debug, Deserialize)]
pub struct Message {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    timestamp: serde_json::Value,
    #[serde(flatten)]
    payload: Payload,
}

/// The part of a message that both directions share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Payload {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_encoding: Option<Cow<'static, str>>,
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_encoding: Option<Cow<'static, str>>,
    /// RFC 3339; without one the broker's clock counts.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
}

impl Message {
    /// RFC 3339, whether the time came as text or as milliseconds.
    pub fn time(&self) -> String {
        match &self.timestamp {
            serde_json::Value::String(text) => text.clone(),
            other => other.as_i64().and_then(Moment::from_millis).map_or_else(|| other.to_string(), |m| m.to_string()),
        }
    }

    /// The value's bytes; `None` for a tombstone.
    pub fn value(&self) -> Result<Option<Cow<'_, [u8]>>, base64::DecodeError> {
        match (&self.payload.value, self.payload.value_encoding.as_deref()) {
            (None, _) => Ok(None),
            (Some(text), Some(BASE64)) => STANDARD.decode(text).map(|bytes| Some(Cow::Owned(bytes))),
            (Some(text), _) => Ok(Some(Cow::Borrowed(text.as_bytes()))),
        }
    }
}

impl Payload {
    pub fn new(key: Option<&[u8]>, value: &[u8], time: Option<Moment>) -> Self {
        let (value, value_encoding) = encoded(value);
        let (key, key_encoding) = key.map(encoded).map_or((None, None), |(key, encoding)| (Some(key), encoding));
        let timestamp = time.map(|time| time.to_string());
        Self { key, key_encoding, value: Some(value), value_encoding, timestamp }
    }

    /// Appends the message as one line of JSON.
    pub fn write_line(&self, lines: &mut Vec<u8>) -> serde_json::Result<()> {
        serde_json::to_writer(&mut *lines, self)?;
        lines.push(b'\n');
        Ok(())
    }
}

fn encoded(bytes: &[u8]) -> (String, Option<Cow<'static, str>>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (STANDARD.encode(bytes), Some(Cow::Borrowed(BASE64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_bytes_survive() {
        let mut lines = Vec::new();
        Payload::new(Some(b"k\""), "grüße\n".as_bytes(), None).write_line(&mut lines).unwrap();
        Payload::new(None, b"\xff\x00", Moment::from_millis(0)).write_line(&mut lines).unwrap();
        let text = String::from_utf8(lines).unwrap();
        assert_eq!(
            text,
            "{\"key\":\"k\\\"\",\"value\":\"grüße\\n\"}\n\
             {\"value\":\"/wA=\",\"value_encoding\":\"base64\",\"timestamp\":\"1970-01-01T00:00:00.000Z\"}\n"
        );
    }

    #[test]
    fn messages_are_read_back() {
        let json = r#"{"topic":"t","partition":1,"offset":7,"timestamp":"2015-05-17T10:05:00.000Z","key":null,
                       "value":"/wA=","value_encoding":"base64","headers":[],"score":1.5}"#;
        let message: Message = serde_json::from_str(json).unwrap();
        assert_eq!(message.value().unwrap().as_deref(), Some(&b"\xff\x00"[..]));
        assert_eq!(message.time(), "2015-05-17T10:05:00.000Z");
        let json = r#"{"topic":"t","partition":1,"offset":7,"timestamp":0,"key":"k","value":null,"headers":[]}"#;
        let message: Message = serde_json::from_str(json).unwrap();
        assert_eq!(message.value().unwrap(), None);
        assert_eq!(message.time(), "1970-01-01T00:00:00.000Z");
    }
}
