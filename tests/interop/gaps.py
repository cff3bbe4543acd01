"""Offsets that are not there, and batches that are larger than a fetch may be, as six clients see them, hot and cold.

Every client gets an order as JSON (`bootstrap`, `topic`, `starts` by partition, `max_bytes` of a fetch per partition,
`group`, which has the starts committed as well), prints each record as `[partition, offset, key, length of the value]`,
and ends when its input does. It must print every committed record from its start on, once and in order; then, after
whatever ends the partition, a record that is produced while it waits: so it has got over a hole at the tail.

Transactions make the holes: a control record takes an offset, and the records of an aborted transaction take theirs.
In the archive neither is there any more.
"""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading

import confluent_kafka

import toolchains
from harness import PROMPT_GROUPS, STEP_SECONDS, arguments, check, check_broker, check_equal, say, wait_for

PROGRAMS = toolchains.PROGRAMS
READ_SECONDS = 60
# Fetch limits per partition: enough for everything, and less than any one of the large batches.
LARGE_FETCH = 1 << 20
SMALL_FETCH = 2000
SMALL_VALUE, LARGE_VALUE = 30, 20_000
BATCH = 12


def clients():
    """The commands of the readers. kafkajs has no codec but gzip built in, so topics here are compressed with that or
    not at all."""
    jars = toolchains.java_jars()
    commands = {name: [sys.executable, PROGRAMS / "read.py", name] for name in ("confluent-kafka", "kafka-python", "aiokafka")}
    return commands | {
        "kafkajs": ["node", toolchains.kafkajs() / "read.js"],
        "franz-go": [toolchains.franz_go()],
        "java": ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*", PROGRAMS / "java" / "Read.java"],
    }


class Reader:
    """A client at work."""

    def __init__(self, command, order, log):
        self.lines = queue.Queue()
        self.process = subprocess.Popen(
            [str(part) for part in command] + [json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def take(self, count, what):
        """So many records, by partition."""
        found = {}
        for number in range(count):
            try:
                record = self.lines.get(timeout=READ_SECONDS)
            except queue.Empty:
                record = "silent"
            check(record is not None, f"{what}: the client ended after {number} of {count} records")
            check(record != "silent", f"{what}: {number} of {count} records, then nothing for {READ_SECONDS} s")
            found.setdefault(record[0], []).append(tuple(record[1:]))
        return found

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(STEP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Topic:
    """A topic and what a consumer of committed records must find in each partition."""

    def __init__(self, broker, name, partitions, codec, transactional):
        self.broker, self.name, self.codec = broker, name, codec
        self.committed = {number: [] for number in range(partitions)}
        # Where each partition ends, and whether it must end in a hole.
        self.ends, self.tails = dict.fromkeys(self.committed, 0), {}
        self.plain = self.producer({})
        self.transactional = self.producer({"transactional.id": name}) if transactional else None
        if transactional:
            self.transactional.init_transactions(STEP_SECONDS)
        broker.create_topic(name, partitions)

    def producer(self, settings):
        common = {"bootstrap.servers": self.broker.kafka, "compression.type": self.codec, "linger.ms": 50}
        return confluent_kafka.Producer(common | {"enable.idempotence": True, "message.max.bytes": 900_000} | settings)

    def send(self, producer, partition, count, size):
        """One batch, or few; returns what it became."""
        placed = []

        def told(error, message):
            check(error is None, f"{self.name}: {error}")
            placed.append((message.offset(), message.key().decode(), len(message.value())))

        for number in range(count):
            key = f"{self.ends[partition] + number}"
            # Hardly compressible, so that a batch of them is as large as it looks.
            value = os.urandom(size // 2).hex().encode() if size > SMALL_VALUE else key.zfill(size).encode()
            producer.produce(self.name, value, key, partition=partition, on_delivery=told)
        check_equal(producer.flush(STEP_SECONDS), 0, f"{self.name}: messages that were not delivered")
        self.ends[partition] = placed[-1][0] + 1
        return placed

    def add(self, partition, count=BATCH, size=SMALL_VALUE):
        self.committed[partition] += self.send(self.plain, partition, count, size)

    def transaction(self, partition, commit, batches=1, count=BATCH, size=SMALL_VALUE):
        """Returns the first offset that no consumer sees: that of the first aborted record, or of the marker."""
        self.transactional.begin_transaction()
        placed = [record for _ in range(batches) for record in self.send(self.transactional, partition, count, size)]
        if commit:
            self.committed[partition] += placed
            self.transactional.commit_transaction(STEP_SECONDS)
        else:
            self.transactional.abort_transaction(STEP_SECONDS)
        self.ends[partition] += 1
        # The marker is written after the client has heard of the end.
        wait_for(f"the end of a transaction of {self.name}", READ_SECONDS, self.is_stable)
        return self.ends[partition] - 1 if commit else placed[0][0]

    def is_stable(self):
        return all(p["last_stable_offset"] == p["high_watermark"] for p in self.broker.partitions(self.name))

    def wanted(self, starts):
        return {p: [r for r in records if r[0] >= starts[p]] for p, records in self.committed.items()}


def plain_topic(broker, codec):
    """Small batches, batches larger than a small fetch, batches of one record; starts within batches."""
    topic = Topic(broker, f"plain-{codec}", 3, codec, transactional=False)
    for _ in range(20):
        topic.add(0)
        topic.add(2, count=1)
    for _ in range(6):
        topic.add(1, size=LARGE_VALUE)
    return topic, {0: BATCH * 7 + 5, 1: BATCH * 2 + 3, 2: 13}


def holey_topic(broker, codec):
    """A hole in each place where there can be one; starts in the holes."""
    topic = Topic(broker, f"holes-{codec}", 5, codec, transactional=True)
    starts = {}
    # A control record after every batch: start at one.
    for _ in range(10):
        starts[0] = topic.transaction(0, commit=True)
    topic.add(0)
    # A hole over several whole fetches: start in the middle of it.
    topic.add(1)
    starts[1] = topic.transaction(1, commit=False, batches=4, size=LARGE_VALUE) + BATCH + 1
    topic.add(1)
    # A hole at the beginning.
    starts[2] = topic.transaction(2, commit=False)
    topic.transaction(2, commit=True)
    # A hole at the tail: start in it.
    topic.add(3)
    starts[3] = topic.transaction(3, commit=False, batches=2) + 1
    # Nothing but a hole.
    starts[4] = topic.transaction(4, commit=False, size=LARGE_VALUE)
    topic.tails = {3: SMALL_VALUE, 4: LARGE_VALUE}
    return topic, starts


def commit(topic, group, starts):
    consumer = confluent_kafka.Consumer({"bootstrap.servers": topic.broker.kafka, "group.id": group})
    places = [confluent_kafka.TopicPartition(topic.name, partition, offset) for partition, offset in starts.items()]
    consumer.commit(offsets=places, asynchronous=False)
    consumer.close()


def read(topic, name, command, starts, max_bytes, what):
    order = {
        "bootstrap": topic.broker.kafka,
        "topic": topic.name,
        "starts": {str(partition): offset for partition, offset in starts.items()},
        "max_bytes": max_bytes,
        "group": f"{topic.name}, {what}",
    }
    commit(topic, order["group"], starts)
    with open(topic.broker.folder / f"{name}.log", "ab") as log, contextlib.closing(
        Reader(command, order, log)
    ) as reader:
        wanted = topic.wanted(starts)
        found = reader.take(sum(map(len, wanted.values())), what)
        check_equal(found, {p: records for p, records in wanted.items() if records}, what)
        for partition in starts:
            topic.add(partition, count=1)
        found = reader.take(len(starts), f"{what}, after the tail")
        check_equal(found, {p: topic.committed[p][-1:] for p in starts}, f"{what}, after the tail")
    for partition, size in topic.tails.items():
        topic.transaction(partition, commit=False, size=size)


def check_client(topic, name, command, starts, state, thorough):
    begin, large, small = dict.fromkeys(starts, 0), LARGE_FETCH, SMALL_FETCH
    cases = [(begin, large), (starts, small)] + [(begin, small), (starts, large)] * thorough
    for offsets, max_bytes in cases:
        if state == "cold":
            topic.broker.archive(topic.name)
        where = "the beginning" if offsets is begin else "the middle"
        read(topic, name, command, offsets, max_bytes, f"{name}, {state}, from {where}, fetches of {max_bytes} bytes")


def main():
    parser = arguments(__doc__)
    parser.add_argument("--client", action="append", help="only this one; may be given more than once")
    parser.add_argument("--no-transactions", action="store_true", help="only what needs none")
    parser.add_argument("--thorough", action="store_true", help="every codec with every topic, start and limit")
    args = parser.parse_args()

    def checks(broker):
        commands = clients()
        makers = [(plain_topic, "gzip")] + [(plain_topic, "none")] * args.thorough
        if not args.no_transactions:
            makers += [(holey_topic, "none")] + [(holey_topic, "gzip")] * args.thorough
        for make, codec in makers:
            topic, starts = make(broker, codec)
            for state in ("hot", "cold"):
                for name, command in commands.items():
                    if not args.client or name in args.client:
                        check_client(topic, name, command, starts, state, args.thorough)
                say(f"  {topic.name}, {state}: {sum(map(len, topic.committed.values()))} records")

    for program in ("node", "npm", "go", "java", "mvn"):
        check(shutil.which(program), f"{program} is not installed")
    return check_broker("gaps", args, checks, PROMPT_GROUPS)


if __name__ == "__main__":
    sys.exit(main())
