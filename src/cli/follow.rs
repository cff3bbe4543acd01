//! `thermocline search --follow`: prints matches as they become searchable, until Ctrl-C. Comes back after the
//! connection was lost, where it was.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Client, Lines, ServerError};
use super::output::Output;
use super::search::human_line;

/// Wait before the first attempt to come back; doubled each time up to the second.
const RECONNECT_FIRST: Duration = Duration::from_millis(500);
const RECONNECT_MAX: Duration = Duration::from_secs(10);

/// A request to `POST /v1/search/follow`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FollowRequest {
    pub q: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The lines that are no messages, and what of a message says where it is.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Cursor { cursor: String },
    Error { error: ServerError },
    Message { topic: String, partition: i32, offset: i64 },
}

/// What has been printed.
#[derive(Default)]
struct Seen {
    /// The place after all that was printed up to then.
    cursor: Option<String>,
    /// The next offset of each partition of which something was printed since.
    since: HashMap<(String, i32), i64>,
}

pub async fn run(client: &Client, request: FollowRequest, json: bool) -> anyhow::Result<()> {
    tokio::select! {
        ended = follow(client, request, json) => ended,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

async fn follow(client: &Client, mut request: FollowRequest, json: bool) -> anyhow::Result<()> {
    let (mut seen, mut output) = (Seen::default(), Output::new());
    let mut pause = RECONNECT_FIRST;
    loop {
        let lost = match client.post_stream(&["v1", "search", "follow"], &request).await {
            Ok(mut lines) => {
                let cursor = seen.cursor.clone();
                let lost = print(&mut lines, &mut seen, &mut output, json).await?;
                if seen.cursor != cursor {
                    pause = RECONNECT_FIRST;
                }
                lost
            }
            // What the broker refuses now it refuses again; who was never there may be misspelt.
            Err(error) if seen.cursor.is_none() || error.is::<ServerError>() => return Err(error),
            Err(error) => error,
        };
        tracing::warn!(error = %format!("{lost:#}"), "the connection was lost; coming back in {pause:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
        request.cursor.clone_from(&seen.cursor);
    }
}

/// Prints what comes until the stream ends, which is returned as why; fails where there is no use in coming back.
async fn print(lines: &mut Lines, seen: &mut Seen, output: &mut Output, json: bool) -> anyhow::Result<anyhow::Error> {
    loop {
        match lines.next().await {
            Ok(Some(line)) => {
                if let Some(message) = seen.take(&line)? {
                    output.line(if json { message.as_ref().to_vec() } else { shown(&message)? })?;
                } else {
                    output.flush()?;
                }
            }
            Ok(None) => return Ok(anyhow::anyhow!("the broker ended the stream")),
            Err(error) => return Ok(error),
        }
    }
}

fn shown(line: &[u8]) -> anyhow::Result<Vec<u8>> {
    let hit: Value = serde_json::from_slice(line)?;
    Ok(human_line(&hit)?.into_bytes())
}

impl Seen {
    /// The line again if it is a message that was not printed yet.
    fn take(&mut self, line: &Bytes) -> anyhow::Result<Option<Bytes>> {
        match serde_json::from_slice(line)? {
            Line::Cursor { cursor } => {
                self.cursor = Some(cursor);
                self.since.clear();
                Ok(None)
            }
            Line::Error { error } => bail!(error),
            Line::Message { topic, partition, offset } => {
                let next = self.since.entry((topic, partition)).or_insert(i64::MIN);
                let is_new = offset >= *next;
                *next = offset.saturating_add(1).max(*next);
                Ok(is_new.then(|| line.clone()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::{answer, canned};
    use super::*;

    fn message(offset: i64) -> String {
        format!(r#"{{"topic":"t","partition":0,"offset":{offset},"timestamp":0,"key":null,"value":"x","headers":[]}}"#)
    }

    #[test]
    fn each_message_is_printed_once() {
        let mut seen = Seen::default();
        let mut take = |line: String| seen.take(&line.into()).map(|line| line.is_some());
        assert!(!take(r#"{"cursor":"t@0:4"}"#.to_owned()).unwrap());
        assert!(take(message(4)).unwrap());
        assert!(take(message(6)).unwrap());
        // The stream broke off before the next cursor: the broker begins at offset 4 again.
        assert!(!take(message(4)).unwrap());
        assert!(!take(message(6)).unwrap());
        assert!(take(message(7)).unwrap());
        let gone = take(r#"{"error":{"code":"unknown_topic","message":"topic t does not exist"}}"#.to_owned());
        assert_eq!(gone.unwrap_err().to_string(), "topic t does not exist (unknown_topic)");
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_back_with_its_cursor_and_ends_where_that_is_of_no_use() {
        let first = answer("200 OK", &format!("{{\"cursor\":\"t@0:4\"}}\n{}\n{{\"cursor\":\"t@0:5\"}}\n", message(4)));
        let gone = answer("404 Not Found", r#"{"error":{"code":"unknown_topic","message":"topic t does not exist"}}"#);
        let (client, server) = canned(vec![first, gone]).await;
        let request = FollowRequest { q: "x".to_owned(), topics: vec!["t".to_owned()], ..FollowRequest::default() };
        let ended = follow(&client, request, true).await.unwrap_err();
        assert_eq!(ended.to_string(), "topic t does not exist (unknown_topic)");
        let requests = server.await.unwrap().unwrap();
        assert_eq!(requests[0].1, r#"{"q":"x","topics":["t"]}"#);
        assert_eq!(requests[1].1, r#"{"q":"x","topics":["t"],"cursor":"t@0:5"}"#);
    }
}
