//! A message as JSON, the one form in which replay, search and the command line show it and produce takes it:
//!
//! ```text
//! {"topic":"t","partition":0,"offset":7,"timestamp":"2015-05-17T10:05:03.000Z",
//!  "key":null,"value":"text","headers":[{"key":"h","value":"text"}]}
//! ```
//!
//! - `key`, `value` and header values are bytes: `null` where there are none, a string where they are UTF-8 (`""` is
//!   empty, not absent), else base64 with `"<field>_encoding":"base64"` beside it.
//! - `timestamp` is RFC 3339 in UTC with milliseconds; a time outside the years 0 to 9999, which RFC 3339 cannot say,
//!   is a number of milliseconds since the Unix epoch.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Timelike, Utc};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use thermocline_ingest::model::{Offset, PartitionId, Timestamp};
use thermocline_ingest::record::Record;
use thermocline_tiering::reader::OwnedRecord;

/// Years that RFC 3339 can write.
const RFC3339_YEARS: std::ops::RangeInclusive<i32> = 0..=9999;
const BASE64_ENCODING: &str = "base64";

/// A message, borrowed, with its place. `H` yields header keys and values in order, duplicates included.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a, H> {
    pub topic: &'a str,
    pub partition: PartitionId,
    pub offset: Offset,
    pub timestamp: Timestamp,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: H,
}

/// A header's key and value, borrowed from the line where it has no escapes.
pub type Header<'a> = (Cow<'a, str>, Option<Cow<'a, [u8]>>);

/// A line of produce input, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceLine<'a> {
    pub key: Option<Cow<'a, [u8]>>,
    pub value: Option<Cow<'a, [u8]>>,
    pub headers: Vec<Header<'a>>,
    pub timestamp: Option<Timestamp>,
    pub partition: Option<PartitionId>,
}

/// Why a line of produce input is not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("not a message: {0}")]
    Json(#[from] serde_json::Error),
    #[error("not a JSON object; write {{\"key\"?,\"value\",\"headers\"?,\"timestamp\"?,\"partition\"?}}")]
    NotAnObject,
    #[error("the field value is missing; write null for a message without one")]
    ValueMissing,
    #[error("{field}_encoding is {encoding:?}; only \"base64\" is known")]
    Encoding { field: &'static str, encoding: String },
    #[error("{field}_encoding without {field}")]
    EncodingOfNothing { field: &'static str },
    #[error("{field} is not base64: {source}")]
    Base64 { field: &'static str, source: base64::DecodeError },
}

/// A point in time that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time; write 2015-05-17T10:05:03Z, 2015-05-17 or milliseconds since 1970")]
pub struct TimeError(String);

/// The message of a record in a batch.
pub fn of_record<'a>(
    topic: &'a str,
    partition: PartitionId,
    record: &Record<'a>,
) -> Message<'a, impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a>> {
    Message {
        topic,
        partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key,
        value: record.value,
        headers: record.headers.iter(),
    }
}

/// The message of a record that was looked up.
pub fn of_owned<'a>(
    topic: &'a str,
    partition: PartitionId,
    record: &'a OwnedRecord,
) -> Message<'a, impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a>> {
    Message {
        topic,
        partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())),
    }
}

impl<'a, H: Iterator<Item = (&'a str, Option<&'a [u8]>)>> Message<'a, H> {
    /// Appends the JSON object to `out`, on one line, without a line feed.
    pub fn write_json(self, out: &mut Vec<u8>) {
        out.push(b'{');
        self.write_fields(out);
        out.push(b'}');
    }

    /// Appends the members of the JSON object without its braces, for a caller that adds some of its own.
    pub fn write_fields(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"topic\":");
        write_string(out, self.topic);
        write_number(out, ",\"partition\":", i64::from(self.partition.0));
        write_number(out, ",\"offset\":", self.offset.0);
        out.extend_from_slice(b",\"timestamp\":");
        write_timestamp(out, self.timestamp);
        out.push(b',');
        write_bytes(out, "key", self.key);
        out.push(b',');
        write_bytes(out, "value", self.value);
        out.extend_from_slice(b",\"headers\":[");
        for (index, (key, value)) in self.headers.enumerate() {
            out.extend_from_slice(if index == 0 { b"{\"key\":" } else { b",{\"key\":" });
            write_string(out, key);
            out.push(b',');
            write_bytes(out, "value", value);
            out.push(b'}');
        }
        out.push(b']');
    }
}

/// Appends `text` as a JSON string.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    // Serialising a string into memory has nothing that could fail.
    let _ = serde_json::to_writer(out, text);
}

fn write_number(out: &mut Vec<u8>, name: &str, number: i64) {
    let _ = write!(out, "{name}{number}");
}

fn write_bytes(out: &mut Vec<u8>, name: &str, bytes: Option<&[u8]>) {
    let _ = write!(out, "\"{name}\":");
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => out.extend_from_slice(b"null"),
        Some((_, Ok(text))) => write_string(out, text),
        Some((bytes, Err(_))) => {
            let _ = write!(out, "\"{}\",\"{name}_encoding\":\"{BASE64_ENCODING}\"", BASE64.encode(bytes));
        }
    }
}

/// Appends a timestamp as a JSON value: an RFC 3339 string, or a number where its year has more than four digits.
pub fn write_timestamp(out: &mut Vec<u8>, timestamp: Timestamp) {
    let _ = match DateTime::<Utc>::from_timestamp_millis(timestamp.0) {
        Some(time) if RFC3339_YEARS.contains(&time.year()) => write!(
            out,
            "\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z\"",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.timestamp_subsec_millis()
        ),
        _ => write!(out, "{}", timestamp.0),
    };
}

/// Reads a point in time: RFC 3339, a date (its first instant in UTC) or milliseconds since the Unix epoch. Digits
/// finer than a millisecond are dropped.
pub fn parse_time(text: &str) -> Result<Timestamp, TimeError> {
    let error = || TimeError(text.chars().take(64).collect());
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Timestamp(time.timestamp_millis()));
    }
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(Timestamp(date.and_time(NaiveTime::MIN).and_utc().timestamp_millis()));
    }
    text.parse().map(Timestamp).map_err(|_| error())
}

/// Reads one line of produce input. `topic` and `offset`, as replay writes them, are accepted and mean nothing here, so
/// that what was replayed can be produced again; other unknown fields are refused.
pub fn parse_produce_line(line: &[u8]) -> Result<ProduceLine<'_>, MessageError> {
    // Serde would take an array for the fields in order.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(MessageError::NotAnObject);
    }
    let raw: RawLine<'_> = serde_json::from_slice(line)?;
    let headers = raw.headers.unwrap_or_default().into_iter().map(|header| {
        let value = decode("header value", header.value.flatten(), header.value_encoding)?;
        Ok::<_, MessageError>((header.key.0, value))
    });
    Ok(ProduceLine {
        headers: headers.collect::<Result<_, _>>()?,
        key: decode("key", raw.key, raw.key_encoding)?,
        value: decode("value", raw.value.ok_or(MessageError::ValueMissing)?, raw.value_encoding)?,
        timestamp: raw.timestamp,
        partition: raw.partition,
    })
}

fn decode<'a>(
    field: &'static str,
    text: Option<Text<'a>>,
    encoding: Option<Text<'a>>,
) -> Result<Option<Cow<'a, [u8]>>, MessageError> {
    match (text, encoding) {
        (None, Some(_)) => Err(MessageError::EncodingOfNothing { field }),
        (Some(text), Some(encoding)) if encoding.0 == BASE64_ENCODING => match BASE64.decode(text.0.as_bytes()) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(source) => Err(MessageError::Base64 { field, source }),
        },
        (Some(_), Some(encoding)) => {
            Err(MessageError::Encoding { field, encoding: encoding.0.chars().take(64).collect() })
        }
        (Some(Text(Cow::Borrowed(text))), None) => Ok(Some(Cow::Borrowed(text.as_bytes()))),
        (Some(Text(Cow::Owned(text))), None) => Ok(Some(Cow::Owned(text.into_bytes()))),
        (None, None) => Ok(None),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLine<'a> {
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(borrow, default)]
    key_encoding: Option<Text<'a>>,
    /// The outer layer says whether the field is there, the inner one whether it is null.
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<Option<Text<'a>>>,
    #[serde(borrow, default)]
    value_encoding: Option<Text<'a>>,
    #[serde(borrow, default)]
    headers: Option<Vec<RawHeader<'a>>>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    timestamp: Option<Timestamp>,
    #[serde(default)]
    partition: Option<PartitionId>,
    #[serde(default, rename = "topic")]
    _topic: de::IgnoredAny,
    #[serde(default, rename = "offset")]
    _offset: de::IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader<'a> {
    #[serde(borrow)]
    key: Text<'a>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<Option<Text<'a>>>,
    #[serde(borrow, default)]
    value_encoding: Option<Text<'a>>,
}

/// A JSON string, borrowed from the input where it has no escapes.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Text<'a>>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn optional_timestamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<Time>::deserialize(deserializer)?.map(|time| time.0))
}

/// A point in time as JSON or a query parameter gives it: see [`parse_time`]; a number is milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Timestamp);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TimeVisitor;
        impl Visitor<'_> for TimeVisitor {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time or milliseconds since 1970")
            }
            fn visit_i64<E: de::Error>(self, ms: i64) -> Result<Time, E> {
                Ok(Time(Timestamp(ms)))
            }
            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Time, E> {
                i64::try_from(ms).map(|ms| Time(Timestamp(ms))).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                parse_time(text).map(Time).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TimeVisitor)
    }
}

#[cfg(test)]
mod tests;
