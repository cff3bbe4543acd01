"""What archiving costs: the real log files, repeated to a size, through a broker into the cold tier and back.

Prints the rate of archiving, the bytes on the store by kind, and the store's requests per gigabyte archived and replayed.
Every message that comes back is compared with the one that was sent.
"""

import itertools
import os
import pathlib
import re
import sys
import time

import confluent_kafka

from harness import STEP_SECONDS, Broker, S3Server, arguments, check, check_equal, run_checks, say, started

TOPIC = "bulk"
PARTITIONS = 2
# A consumer that waits so long has met a broken broker.
ARCHIVE_SECONDS = 1800
QUEUE_MESSAGES = 500_000
RAW_BATCHES = "thermocline_archived_raw_batches_total"
METRIC = re.compile(r"^(thermocline_\w+?)(?:\{(.*)\})? ([0-9.e+]+)$", re.MULTILINE)


def load_lines(folder):
    lines = []
    for path in sorted(folder.glob("*/*")):
        lines += [line for line in path.read_bytes().split(b"\n") if line]
    return lines


class Bulk:
    def __init__(self, broker, lines, megabytes):
        self.broker, self.lines = broker, lines
        self.count, self.bytes = 0, 0
        for line in itertools.cycle(lines):
            if self.bytes >= megabytes * 1_000_000:
                break
            self.count, self.bytes = self.count + 1, self.bytes + len(line)

    def line(self, number):
        return self.lines[number % len(self.lines)]

    def metrics(self):
        with self.broker.request("GET", "/metrics") as response:
            text = response.read().decode()
        return {(name, labels): float(value) for name, labels, value in METRIC.findall(text)}

    def requests(self, before, after):
        """{operation: requests} between two readings."""
        spent = {}
        for (name, labels), value in after.items():
            grown = value - before.get((name, labels), 0)
            if name == "thermocline_store_requests_total" and grown:
                op = re.search(r'operation="(\w+)"', labels).group(1)
                spent[op] = spent.get(op, 0) + int(grown)
        return spent

    def produce(self):
        failures = []
        producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": self.broker.kafka,
                "enable.idempotence": True,
                "linger.ms": 50,
                "batch.size": 262144,
                "queue.buffering.max.messages": QUEUE_MESSAGES,
            }
        )

        def delivered(error, _message):
            if error:
                failures.append(str(error))

        for number in range(self.count):
            while True:
                try:
                    producer.produce(TOPIC, self.line(number), partition=number % PARTITIONS, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        check_equal(producer.flush(STEP_SECONDS), 0, "messages without an answer")
        check(not failures, failures[:3])

    def consume(self):
        consumer = confluent_kafka.Consumer(
            {"bootstrap.servers": self.broker.kafka, "group.id": "bulk", "enable.auto.commit": False}
        )
        begin = confluent_kafka.OFFSET_BEGINNING
        consumer.assign([confluent_kafka.TopicPartition(TOPIC, p, begin) for p in range(PARTITIONS)])
        seen = [0] * PARTITIONS
        while sum(seen) < self.count:
            messages = consumer.consume(min(10_000, self.count - sum(seen)), STEP_SECONDS)
            check(messages, f"{sum(seen)} of {self.count} messages, then none for {STEP_SECONDS} s")
            for message in messages:
                check(not message.error(), message.error())
                partition = message.partition()
                check_equal(message.offset(), seen[partition], f"next offset of partition {partition}")
                number = message.offset() * PARTITIONS + partition
                check(message.value() == self.line(number), f"message {number} came back as {message.value()!r}")
                seen[partition] += 1
        consumer.close()

    def run(self, index):
        # Segments that do not seal by themselves, so that all of the archiving is measured.
        configs = {"search.index": index, "segment.bytes": str(1 << 30)}
        self.broker.create_topic(TOPIC, PARTITIONS, configs)
        started = time.monotonic()
        self.produce()
        say(f"index {index}: produced {self.count} messages in {time.monotonic() - started:.1f} s")

        before, started = self.metrics(), time.monotonic()
        path = f"/v1/topics/{TOPIC}/archive?trim=true"
        report = self.broker.call("POST", path, timeout=ARCHIVE_SECONDS)
        took, archived = time.monotonic() - started, self.metrics()
        gigabytes = self.bytes / 1e9
        say(f"  archived {self.bytes / 1e6:.0f} MB of values in {took:.1f} s: {self.bytes / 1e6 / took:.1f} MB/s")
        raw_batches = sum(v - before.get(k, 0) for k, v in archived.items() if k[0] == RAW_BATCHES)
        for what, size in [("log", report["log_bytes"]), ("data", report["data_bytes"]), ("index", report["index_bytes"])]:
            say(f"  {what:<6} {size / 1e6:9.1f} MB   {size / self.bytes:6.3f} of the values")
        say(f"  {report['files']} data files, {raw_batches:.0f} raw batches")
        self.say_requests("archived", gigabytes, before, archived)

        started = time.monotonic()
        self.consume()
        took = time.monotonic() - started
        say(f"  replayed and compared in {took:.1f} s: {self.bytes / 1e6 / took:.1f} MB/s")
        self.say_requests("replayed", gigabytes, archived, self.metrics())
        self.broker.call("DELETE", f"/v1/topics/{TOPIC}")

    def say_requests(self, what, gigabytes, before, after):
        spent = self.requests(before, after)
        by_op = ", ".join(f"{op} {count / gigabytes:.0f}" for op, count in sorted(spent.items()))
        say(f"  requests per GB {what}: {sum(spent.values()) / gigabytes:.0f} ({by_op})")


def main():
    parser = arguments(__doc__)
    store = parser.add_mutually_exclusive_group()
    store.add_argument("--s3-server", type=pathlib.Path, help="the example s3-server; default: a folder")
    store.add_argument("--s3", metavar="ENDPOINT/BUCKET", help="another S3; its keys come from the environment (AWS_...)")
    parser.add_argument("--megabytes", type=int, default=1000)
    args = parser.parse_args()
    default = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
    data = pathlib.Path(os.environ.get("THERMOCLINE_DATA", default))
    if not data.is_dir():
        print(f"SKIPPED: no real files in {data}; THERMOCLINE_DATA may name another folder")
        return 0

    def checks(scratch, children):
        env = {}
        if args.s3_server:
            server = started(S3Server(args.s3_server, scratch), children)
            env = server.environment()
        elif args.s3:
            endpoint, _, bucket = args.s3.rpartition("/")
            env = {
                "THERMOCLINE_STORE__URL": f"s3://{bucket}/bulk",
                "THERMOCLINE_STORE__ENDPOINT": endpoint,
                "THERMOCLINE_STORE__REGION": os.environ.get("AWS_REGION", "us-east-1"),
            }
        broker = started(Broker(args.broker, scratch, env), children)
        bulk = Bulk(broker, load_lines(data), args.megabytes)
        for index in ["text", "off"]:
            bulk.run(index)
        broker.stop()

    return run_checks("bulk", checks)


if __name__ == "__main__":
    sys.exit(main())
