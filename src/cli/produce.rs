//! `thermocline produce`: lines of standard input to messages, in requests of bounded size.

use std::io::{BufRead, IsTerminal, Read};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::BrokerArgs;
use super::client::Client;
use super::message::Payload;

/// Body of one request, about; a single message may be larger.
pub const REQUEST_BYTES: usize = 1 << 20;
/// Longest line that is taken.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// Lines read ahead while a request is under way.
const LINES_AHEAD_MAX: usize = 16;
/// How long a line waits for others to share its request.
const LINGER: Duration = Duration::from_millis(100);

#[derive(Args)]
pub struct ProduceArgs {
    topic: String,
    /// What separates key and value of a line; without it messages have no key
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// What goes into the next request.
#[derive(Default)]
struct Pending {
    lines: Vec<u8>,
    messages: u64,
}

pub async fn run(args: &ProduceArgs) -> anyhow::Result<()> {
    if args.key_separator.as_deref() == Some("") {
        bail!("--key-separator is empty; write the text between key and value, or leave it out");
    }
    let client = Client::new(&args.broker.url)?;
    let (sender, mut lines) = mpsc::channel(LINES_AHEAD_MAX);
    let reading = spawn_blocking(move || read_lines(std::io::stdin().lock(), &sender));
    let progress = progress();
    let mut pending = Pending::default();
    let mut acknowledged = 0;
    let outcome: anyhow::Result<()> = async {
        loop {
            let line = match tokio::time::timeout(LINGER, lines.recv()).await {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(_) if pending.messages > 0 => {
                    acknowledged += pending.send(&client, &args.topic).await?;
                    progress.set_position(acknowledged);
                    continue;
                }
                Err(_) => match lines.recv().await {
                    Some(line) => line,
                    None => break,
                },
            };
            pending.add(&line, args.key_separator.as_deref(), acknowledged)?;
            if pending.lines.len() >= REQUEST_BYTES {
                acknowledged += pending.send(&client, &args.topic).await?;
                progress.set_position(acknowledged);
            }
        }
        acknowledged += pending.send(&client, &args.topic).await?;
        progress.set_position(acknowledged);
        reading.await.context("reading standard input")?
    }
    .await;
    progress.finish_and_clear();
    outcome.with_context(|| format!("stopped after {acknowledged} messages were acknowledged"))
}

impl Pending {
    fn add(&mut self, line: &[u8], separator: Option<&str>, acknowledged: u64) -> anyhow::Result<()> {
        let number = acknowledged + self.messages + 1;
        let (key, value) = match separator {
            None => (None, line),
            Some(separator) => {
                let parts = split_once(line, separator.as_bytes());
                let (key, value) =
                    parts.with_context(|| format!("line {number} has no {separator:?} after its key"))?;
                (Some(key), value)
            }
        };
        Payload::new(key, value, None).write_line(&mut self.lines)?;
        self.messages += 1;
        Ok(())
    }

    /// Sends what is there and returns how many messages that were.
    async fn send(&mut self, client: &Client, topic: &str) -> anyhow::Result<u64> {
        let Self { lines, messages } = std::mem::take(self);
        if messages > 0 {
            client.post_lines(&["v1", "topics", topic, "messages"], lines.into()).await?;
        }
        Ok(messages)
    }
}

/// Reads lines without their end until the input ends or nobody takes them any more. Blocking.
fn read_lines(mut input: impl BufRead, lines: &mpsc::Sender<Vec<u8>>) -> anyhow::Result<()> {
    for number in 1_u64.. {
        let mut line = Vec::new();
        let read = input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
        if read.context("reading standard input")? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 > LINE_BYTES_MAX {
            bail!("line {number} exceeds the limit of {LINE_BYTES_MAX} bytes");
        }
        if lines.blocking_send(line).is_err() {
            break;
        }
    }
    Ok(())
}

fn split_once<'a>(line: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = line.windows(separator.len()).position(|window| window == separator)?;
    Some((line.get(..at)?, line.get(at + separator.len()..)?))
}

/// A count on a terminal that is not busy with typing; nothing in a pipe.
fn progress() -> ProgressBar {
    if std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{human_pos} messages, {per_sec}, {elapsed}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::{answer, canned};
    use super::*;

    fn lines_of(input: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let (sender, mut receiver) = mpsc::channel(16);
        read_lines(input, &sender)?;
        drop(sender);
        Ok(std::iter::from_fn(|| receiver.blocking_recv()).collect())
    }

    #[test]
    fn lines_are_cut_at_their_end_and_nowhere_else() {
        assert_eq!(lines_of(b"a\n\nb\r\n\xff").unwrap(), [&b"a"[..], b"", b"b\r", b"\xff"]);
        assert!(lines_of(b"").unwrap().is_empty());
        let longest = vec![b'x'; LINE_BYTES_MAX as usize];
        assert_eq!(lines_of(&longest).unwrap(), std::slice::from_ref(&longest));
        let too_long = [longest.as_slice(), b"x\n"].concat();
        assert_eq!(lines_of(&too_long).unwrap_err().to_string(), "line 1 exceeds the limit of 8388608 bytes");
    }

    #[tokio::test]
    async fn keys_are_split_off_and_sent() {
        let (client, server) = canned(vec![answer("200 OK", "{}")]).await;
        let mut pending = Pending::default();
        pending.add(b"k::v::w", Some("::"), 0).unwrap();
        pending.add(b"::", Some("::"), 0).unwrap();
        let missing = pending.add(b"plain", Some("::"), 5).unwrap_err();
        assert_eq!(missing.to_string(), "line 8 has no \"::\" after its key");
        assert_eq!(pending.send(&client, "t").await.unwrap(), 2);
        assert_eq!(pending.send(&client, "t").await.unwrap(), 0);
        let requests = server.await.unwrap().unwrap();
        assert_eq!(requests[0].0, "POST /v1/topics/t/messages HTTP/1.1");
        assert_eq!(requests[0].1, "{\"key\":\"k\",\"value\":\"v::w\"}\n{\"key\":\"\",\"value\":\"\"}\n");
    }
}
