//! Producing over the Kafka protocol, every ack durable, beside writing and syncing the same bytes to a plain file.
//! One connection, several requests in flight; rates are megabytes of record batches per second.

mod support;

use std::io::Write;
use std::time::Instant;

use bytes::Bytes;
use support::{BenchResult, Corpus, Table, megabytes_per_second, timed, wire};
use thermocline::Broker;
use thermocline_config::Config;
use tokio::io::AsyncWriteExt;

/// Requests sent before the first answer is awaited (`max.in.flight.requests.per.connection`).
const IN_FLIGHT: usize = 5;

#[tokio::main]
async fn main() -> BenchResult {
    let corpus = Corpus::generate(support::corpus_bytes());
    let batches = corpus.batches();
    let bytes = batches.iter().map(Bytes::len).sum();
    let dir = tempfile::tempdir()?;
    let mut table = Table::default();

    let (done, took) = timed(|| write_and_sync(dir.path(), &batches));
    done?;
    let plain = megabytes_per_second(bytes, took);

    let mut config = Config::default();
    config.broker.data_dir = dir.path().join("data");
    config.kafka.listen.set_port(0);
    config.http.listen.set_port(0);
    let broker = Broker::start(config).await?;
    let topic = serde_json::json!({"name": "bench", "partitions": 1, "configs": {"search.index": "off"}});
    let topics = format!("http://{}/v1/topics", broker.http_addr());
    reqwest::Client::new().post(topics).json(&topic).send().await?.error_for_status()?;
    let start = Instant::now();
    produce(broker.kafka_addr(), &batches).await?;
    table.row(
        "produce, acks=all",
        megabytes_per_second(bytes, start.elapsed()),
        "write + fdatasync, same groups",
        plain,
    );
    broker.shutdown().await?;
    table.print("MB/s");
    Ok(())
}

/// Writes the batches, syncing as often as the producer waits.
fn write_and_sync(dir: &std::path::Path, batches: &[Bytes]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(dir.join("plain"))?;
    for group in batches.chunks(IN_FLIGHT) {
        for batch in group {
            file.write_all(batch)?;
        }
        file.sync_data()?;
    }
    Ok(())
}

async fn produce(addr: std::net::SocketAddr, batches: &[Bytes]) -> BenchResult {
    let mut stream = wire::connect(addr).await?;
    let topic = wire::topic_name("bench");
    let (mut read, mut write) = stream.split();
    let mut waiting = 0;
    for batch in batches {
        if waiting == IN_FLIGHT {
            wire::expect_ack(&mut read).await?;
            waiting -= 1;
        }
        write.write_all(&wire::produce_frame([(&topic, batch)])?).await?;
        waiting += 1;
    }
    for _ in 0..waiting {
        wire::expect_ack(&mut read).await?;
    }
    Ok(())
}
