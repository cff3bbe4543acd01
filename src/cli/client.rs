//! The broker's HTTP interface, from outside.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest line of a stream: the largest message Kafka's framing allows would not come as one line of JSON anyway.
const LINE_BYTES_MAX: usize = 256 << 20;
/// How much of an answer that is not the expected JSON an error repeats, in characters.
const SHOWN_BODY_LEN_MAX: usize = 300;

pub const NO_QUERY: &[(&str, String)] = &[];

/// A refusal, as the broker words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Deserialize)]
#[error("{message} ({code})")]
pub struct ServerError {
    pub code: String,
    pub message: String,
}

#[derive(serde::Deserialize)]
struct ErrorBody {
    error: ServerError,
}

/// Talks to one broker. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let base = Url::parse(url).with_context(|| format!("--url {url:?}; write it like http://127.0.0.1:8080"))?;
        if base.scheme() != "http" || base.cannot_be_a_base() {
            bail!("--url {url:?}: a broker is reached over http, like http://127.0.0.1:8080");
        }
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy().build()?;
        Ok(Self { http, base })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> anyhow::Result<T> {
        self.json(self.request(Method::GET, path, query)).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.json(self.request(Method::POST, path, query).json(body)).await
    }

    /// Sends lines of JSON; the answer's body is not looked at.
    pub async fn post_lines(&self, path: &[&str], lines: Bytes) -> anyhow::Result<()> {
        let request = self.request(Method::POST, path, NO_QUERY);
        let request = request.header(reqwest::header::CONTENT_TYPE, "application/x-ndjson").body(lines);
        self.send(request).await?.bytes().await.context("reading the answer")?;
        Ok(())
    }

    /// Changes something; the answer's body is not looked at.
    pub async fn patch(&self, path: &[&str], body: &impl Serialize) -> anyhow::Result<()> {
        let response = self.send(self.request(Method::PATCH, path, NO_QUERY).json(body)).await?;
        response.bytes().await.context("reading the answer")?;
        Ok(())
    }

    pub async fn delete(&self, path: &[&str]) -> anyhow::Result<()> {
        let response = self.send(self.request(Method::DELETE, path, NO_QUERY)).await?;
        response.bytes().await.context("reading the answer")?;
        Ok(())
    }

    /// An answer of one JSON document per line, as it arrives.
    pub async fn stream(&self, path: &[&str], query: &[(&str, String)]) -> anyhow::Result<Lines> {
        Ok(Lines::of(self.send(self.request(Method::GET, path, query)).await?))
    }

    /// The same, for a question that is asked in a body.
    pub async fn post_stream(&self, path: &[&str], body: &impl Serialize) -> anyhow::Result<Lines> {
        Ok(Lines::of(self.send(self.request(Method::POST, path, NO_QUERY).json(body)).await?))
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.base.clone();
        // Cannot fail: `new` took only addresses that can have a path.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        self.http.request(method, url).query(query)
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let body = self.send(request).await?.bytes().await.context("reading the answer")?;
        serde_json::from_slice(&body).with_context(|| format!("answer {:?} is not what was expected", shown(&body)))
    }

    /// Sends and turns every status but success into an error.
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|e| {
            let hint = format!("cannot reach a broker at {}; start one or name another with --url", self.base);
            if e.is_connect() { anyhow::Error::new(e).context(hint) } else { e.into() }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.context("reading the answer")?;
        Err(server_error(&body).map_or_else(
            || anyhow::anyhow!("the server at {} answered {status}: {}", self.base, shown(&body)),
            anyhow::Error::new,
        ))
    }
}

/// A streamed answer, cut into lines.
pub struct Lines {
    response: Response,
    buffer: BytesMut,
    /// Bytes of `buffer` that are known to hold no line end.
    searched: usize,
    ended: bool,
}

impl Lines {
    fn of(response: Response) -> Self {
        Self { response, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next line without its end; `None` after the last. A server that cannot go on breaks the stream off, which is
    /// an error here.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(line) = self.buffered_line() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("a line of the answer exceeds the limit of {LINE_BYTES_MAX} bytes");
            }
            match self.response.chunk().await.context("the stream broke off")? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => self.ended = true,
            }
        }
    }

    /// A complete line, or after the end of the stream whatever is left.
    fn buffered_line(&mut self) -> Option<Bytes> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.searched + at).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            return Some(line);
        }
        self.searched = self.buffer.len();
        (self.ended && !self.buffer.is_empty()).then(|| {
            self.searched = 0;
            self.buffer.split().freeze()
        })
    }
}

fn server_error(body: &[u8]) -> Option<ServerError> {
    let body: ErrorBody = serde_json::from_slice(body).ok()?;
    Some(body.error)
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(SHOWN_BODY_LEN_MAX).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    /// A server that answers one request after the other with what it was given, and returns what it was sent:
    /// request line and body.
    pub async fn canned(
        answers: Vec<String>,
    ) -> (Client, tokio::task::JoinHandle<std::io::Result<Vec<(String, String)>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (stream, _) = listener.accept().await?;
                let mut stream = BufReader::new(stream);
                let mut request_line = String::new();
                stream.read_line(&mut request_line).await?;
                let mut length = 0;
                loop {
                    let mut header = String::new();
                    stream.read_line(&mut header).await?;
                    if header.trim().is_empty() {
                        break;
                    }
                    if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap_or(0);
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await?;
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await?;
                requests.push((request_line.trim().to_owned(), String::from_utf8_lossy(&body).into_owned()));
            }
            Ok(requests)
        });
        (client, server)
    }

    impl Client {
        pub fn base_url(&self) -> String {
            self.base.to_string()
        }
    }

    pub fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_brokers_words() {
        let refusal =
            answer("404 Not Found", r#"{"error":{"code":"unknown_topic","message":"topic x does not exist"}}"#);
        let (client, server) = canned(vec![refusal, answer("502 Bad Gateway", "<html>")]).await;
        let error = client.get::<serde_json::Value>(&["v1", "topics", "a/b c"], NO_QUERY).await.unwrap_err();
        assert_eq!(error.to_string(), "topic x does not exist (unknown_topic)");
        let error = client.delete(&["v1"]).await.unwrap_err();
        assert!(error.to_string().ends_with("answered 502 Bad Gateway: <html>"), "{error}");
        let requests = server.await.unwrap().unwrap();
        assert_eq!(requests[0].0, "GET /v1/topics/a%2Fb%20c HTTP/1.1");
    }

    #[tokio::test]
    async fn streams_come_line_by_line_whatever_the_chunks() {
        let chunked = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
                       2\r\n{\"\r\n8\r\na\":1}\n{}\r\n1\r\n\n\r\n3\r\n[1]\r\n0\r\n\r\n";
        let broken = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
        let (client, _server) = canned(vec![chunked.to_owned(), broken.to_owned()]).await;

        let mut lines = client.stream(&[], NO_QUERY).await.unwrap();
        for line in ["{\"a\":1}", "{}", "[1]"] {
            assert_eq!(lines.next().await.unwrap().as_deref(), Some(line.as_bytes()));
        }
        assert_eq!(lines.next().await.unwrap(), None);

        let mut lines = client.stream(&[], NO_QUERY).await.unwrap();
        assert!(lines.next().await.unwrap().is_some());
        assert_eq!(lines.next().await.unwrap_err().to_string(), "the stream broke off");
    }

    #[test]
    fn only_http_addresses_are_taken() {
        for bad in ["", "127.0.0.1:8080", "https://broker", "mailto:a@b"] {
            assert!(Client::new(bad).is_err(), "{bad}");
        }
    }
}
