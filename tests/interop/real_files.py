"""Real log files through the whole path, seen by programs this project did not write.

Every file becomes a topic of three partitions, a message per line, the line number as key. The first half is produced,
searched while hot, archived, searched while cold; then the second half is produced and both are searched together, and
all of it is archived. Every line must come back byte for byte and in order: to confluent-kafka, to kcat, to a consumer
group over a SIGTERM and a kill -9, to replay, and to pyarrow and duckdb from the Parquet files alone.

With --s3-server the cold tier lies behind a real S3 wire.
"""

import collections
import datetime
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import confluent_kafka
import confluent_kafka.admin
import duckdb
import pyarrow.parquet

from harness import (
    STEP_SECONDS,
    S3_BUCKET,
    S3_PREFIX,
    Broker,
    Manifests,
    S3Server,
    arguments,
    check,
    check_equal,
    run_checks,
    say,
    started,
)

PARTITIONS = 3
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
# Files that kcat produces; the rest goes through confluent-kafka, every second one idempotently.
KCAT_FILES = ["HDFS.log", "OpenSSH.log", "Zookeeper.log", "loghub.LICENSE"]
GROUP_FILES = ["Apache.log", "Linux.log", "nginxplus.jsonl"]
ACCESS_LOG = "apache_access.log"
# Words that mean something to the query language in upper case.
OPERATORS = {"and", "or", "not", "in", "to"}
# Longest word that is searched for; the index leaves out overlong ones.
WORD_LEN_MAX = 32
# JSON paths of each kind that are asked for.
JSON_PATHS_MAX = 10
ABSENT_WORD = "thermoclineneverwrotethis"


def load_files(folder):
    """{topic: lines as bytes}; the line feed at the end of a file does not begin another line.

    Topics are named after the file alone where that will do: the S3 server of the tests makes a file name of at most 255
    bytes out of each key.
    """
    files = {}
    paths = sorted(folder.glob("*/*"))
    count = collections.Counter(path.name for path in paths)
    for path in paths:
        name = path.name if count[path.name] == 1 else f"{path.parent.name}.{path.name}"
        lines = path.read_bytes().split(b"\n")
        if lines and lines[-1] == b"":
            lines.pop()
        files[re.sub(r"[^A-Za-z0-9._-]", "_", name)] = lines
    return files


def tokens(line):
    """The reference for the index: maximal runs of alphanumeric characters, in lower case."""
    text = line.decode(errors="replace")
    runs = itertools.groupby(text, key=str.isalnum)
    return ["".join(run).lower() for alphanumeric, run in runs if alphanumeric]


def leaves(value, path=""):
    """(path, leaf) of every leaf of a JSON value that is indexed: numbers, truth values, texts."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from leaves(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    elif value is not None:
        yield path, value


def kind_of(leaf):
    return "truth" if isinstance(leaf, bool) else "text" if isinstance(leaf, str) else "number"


def has_phrase(words, phrase, slop=0):
    """Whether the words stand in a row, or two of them so near to that."""
    if slop:
        first, second = phrase
        places = [[at for at, word in enumerate(words) if word == wanted] for wanted in (first, second)]
        return any(abs(b - (a + 1)) <= slop for a in places[0] for b in places[1])
    return any(words[i : i + len(phrase)] == phrase for i in range(len(words)))


def spread(items, count):
    """At most `count` of the items, evenly."""
    step = max(1, -(-len(items) // count))
    return items[::step]


class Checks:
    def __init__(self, broker, files, manifests):
        self.broker, self.files, self.manifests = broker, files, manifests
        self.tokens = {topic: [tokens(line) for line in lines] for topic, lines in files.items()}
        # {topic: per line {path: leaves}}
        self.leaves = {}
        for topic, lines in files.items():
            if topic.endswith(".jsonl"):
                self.leaves[topic] = [collections.defaultdict(list) for _ in lines]
                for line, found in zip(lines, self.leaves[topic]):
                    for path, leaf in leaves(json.loads(line)):
                        found[path].append(leaf)
        # {topic: {(partition, offset): line number}}, as the first full read found it
        self.places = {}

    # -- producing

    def create_topics(self):
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": self.broker.kafka})
        for index, topic in enumerate(self.files):
            if index % 2 == 0:
                self.broker.create_topic(topic, PARTITIONS)
            else:
                new = confluent_kafka.admin.NewTopic(topic, PARTITIONS, 1)
                admin.create_topics([new])[topic].result(STEP_SECONDS)

    def produce(self, topic, numbers):
        index = list(self.files).index(topic)
        codec = CODECS[index % len(CODECS)]
        if topic in KCAT_FILES:
            # The kcat of Debian has no zstd.
            self.produce_with_kcat(topic, numbers, "gzip" if codec == "zstd" else codec)
        else:
            self.produce_with_confluent(topic, numbers, codec, idempotent=index % 2 == 1)

    def produce_with_confluent(self, topic, numbers, codec, idempotent, timestamps=None, name=None):
        settings = {
            "bootstrap.servers": self.broker.kafka,
            "compression.codec": codec,
            "enable.idempotence": idempotent,
            # Without idempotence a retry may change the order; one request at a time keeps it.
            "max.in.flight": 5 if idempotent else 1,
            "linger.ms": 20,
            "message.timeout.ms": STEP_SECONDS * 1000,
        }
        producer = confluent_kafka.Producer(settings)
        failures = []

        def delivered(error, message):
            if error:
                failures.append(f"{message.key()}: {error}")

        for number in numbers:
            extra = {"timestamp": timestamps[number]} if timestamps else {}
            line = self.files[topic][number]
            producer.produce(name or topic, line, str(number).encode(), on_delivery=delivered, **extra)
            producer.poll(0)
        check_equal(producer.flush(STEP_SECONDS), 0, f"{topic}: messages without an answer")
        check(not failures, f"{topic}: {failures[:3]}")

    def produce_with_kcat(self, topic, numbers, codec):
        lines = b"".join(b"%d\t%s\n" % (number, self.files[topic][number]) for number in numbers)
        command = ["kcat", "-P", "-b", self.broker.kafka, "-t", topic, "-K", "\t", "-z", codec]
        subprocess.run(command, input=lines, check=True, timeout=STEP_SECONDS)

    # -- reading back

    def check_lines(self, topic, messages, what):
        """`messages` are (partition, offset, key, value) in the order they came: all lines, each once, in order."""
        lines = self.files[topic]
        places, next_offset, last_number = {}, collections.Counter(), {}
        for partition, offset, key, value in messages:
            check_equal(offset, next_offset[partition], f"{what}: next offset of {topic}-{partition}")
            next_offset[partition] += 1
            number = int(key)
            check(number > last_number.get(partition, -1), f"{what}: {topic}-{partition} has line {number} out of order")
            last_number[partition] = number
            check_equal(value, lines[number], f"{what}: line {number} of {topic}")
            places[partition, offset] = number
        check_equal(sorted(places.values()), list(range(len(lines))), f"{what}: line numbers of {topic}")
        check_equal(self.places.setdefault(topic, places), places, f"{what}: places of {topic}")

    def consumer(self, group, **settings):
        config = {
            "bootstrap.servers": self.broker.kafka,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "check.crcs": True,
        }
        return confluent_kafka.Consumer({**config, **settings})

    def receive(self, consumer, count, what):
        """The next `count` messages."""
        messages = []
        while len(messages) < count:
            message = consumer.poll(STEP_SECONDS)
            check(message is not None, f"{what}: {len(messages)} of {count} messages, then none for {STEP_SECONDS} s")
            check(not message.error(), f"{what}: {message.error()}")
            messages.append(message)
        return messages

    def consume_all(self, topic):
        consumer = self.consumer("unused")
        begin = confluent_kafka.OFFSET_BEGINNING
        consumer.assign([confluent_kafka.TopicPartition(topic, p, begin) for p in range(PARTITIONS)])
        messages = self.receive(consumer, len(self.files[topic]), f"consuming {topic}")
        check(consumer.poll(0.2) is None, f"{topic}: more messages than lines")
        consumer.close()
        return [(m.partition(), m.offset(), m.key(), m.value()) for m in messages]

    def kcat(self, topic, *options):
        """(partition, offset, timestamp, key, value) of what kcat reads up to the end."""
        command = ["kcat", "-C", "-q", "-e", "-m", str(STEP_SECONDS), "-b", self.broker.kafka, "-t", topic, *options]
        form = ["-f", "%p %o %T %K %S\\n%k%s"]
        output = subprocess.run(command + form, check=True, capture_output=True, timeout=STEP_SECONDS).stdout
        messages, at = [], 0
        while at < len(output):
            end = output.index(b"\n", at)
            partition, offset, timestamp, key_len, value_len = map(int, output[at:end].split())
            value_at = end + 1 + max(key_len, 0)
            key, value = output[end + 1 : value_at], output[value_at : value_at + max(value_len, 0)]
            messages.append((partition, offset, timestamp, key, value))
            at = value_at + len(value)
        return messages

    def check_read_back(self, topic):
        self.check_lines(topic, self.consume_all(topic), "confluent-kafka")
        with_time = self.kcat(topic, "-o", "beginning")
        self.check_lines(topic, [(p, o, key, value) for p, o, _, key, value in with_time], "kcat")
        replayed = self.broker.replay(topic)
        rows = [(m["partition"], m["offset"], m["key"], m["value"].encode()) for m in replayed]
        self.check_lines(topic, rows, "replay")

    # -- searching

    def queries(self, topic):
        """(query, test of a line's number)."""
        words = self.tokens[topic]
        for query, matches in self.word_queries(topic):
            yield query, lambda number, matches=matches: matches(words[number])
        if topic in self.leaves:
            yield from self.json_queries(topic)

    def word_queries(self, topic):
        """(query, test of a line's words): words of every frequency, numbers, two words, phrases, beginnings, ranges."""
        frequency = collections.Counter(itertools.chain.from_iterable(map(set, self.tokens[topic])))
        ranked = sorted(frequency, key=lambda word: (-frequency[word], word))
        ranked = [word for word in ranked if word.isascii() and len(word) <= WORD_LEN_MAX]
        words = [word for word in ranked if not word.isdigit()]
        numbers = [word for word in ranked if word.isdigit()]
        middle = len(words) // 2
        chosen = words[:1] + words[middle : middle + 2] + words[-2:] + numbers[:1] + numbers[-1:] + [ABSENT_WORD]
        for word in dict.fromkeys(chosen):
            yield f"value:{word}", lambda line, word=word: word in line
            # Upper case finds the same; without a field, numbers would find the keys too.
            if not word.isdigit() and word not in OPERATORS and not topic.endswith(".jsonl"):
                yield word.upper(), lambda line, word=word: word in line
        line = next(line for line in self.tokens[topic] if len(set(line)) >= 3)
        first, second = line[0], next(word for word in line[1:] if word != line[0])
        yield f"value:{first} AND value:{second}", lambda line: first in line and second in line
        pair = line[1:3]
        yield f'value:"{" ".join(pair)}"', lambda line: has_phrase(line, pair)
        far = [line[0], line[2]]
        yield f'value:"{" ".join(far)}"~1', lambda line: has_phrase(line, far, slop=1)
        triple = line[:3]
        yield f'value:"{" ".join(triple)}"', lambda line: has_phrase(line, triple)
        for word in [words[0], words[middle]]:
            start = word[: (len(word) + 1) // 2]
            yield f"value:{start}*", lambda line, start=start: any(word.startswith(start) for word in line)
        low, high = sorted([words[middle], words[-1]])
        yield f"value:[{low} TO {high}}}", lambda line: any(low <= word < high for word in line)
        yield f"value:>{high} AND NOT value:{words[0]}", lambda line: words[0] not in line and any(w > high for w in line)

    def json_queries(self, topic):
        """(query, test of a line's number) over paths of every kind: equality, ranges, words, phrases, existence."""
        lines = self.leaves[topic]
        distinct = collections.defaultdict(lambda: collections.defaultdict(set))
        for found in lines:
            for path, values in found.items():
                for value in values:
                    distinct[kind_of(value)][path].add(value)

        def some(path, kind, test):
            return lambda number: any(kind_of(leaf) == kind and test(leaf) for leaf in lines[number][path])

        numbers = sorted(path for path, values in distinct["number"].items() if len(values) > 3)
        for path in spread(numbers, JSON_PATHS_MAX):
            values = sorted(distinct["number"][path])
            low, mid, high = (values[len(values) * quarter // 4] for quarter in (1, 2, 3))
            yield f"json.{path}:{mid}", some(path, "number", lambda n, mid=mid: n == mid)
            yield f"json.{path}:>={mid}", some(path, "number", lambda n, mid=mid: n >= mid)
            yield f"json.{path}:<{mid + 0.5}", some(path, "number", lambda n, mid=mid: n < mid + 0.5)
            between = some(path, "number", lambda n, low=low, high=high: low <= n < high)
            yield f"json.{path}:[{low} TO {high}}}", between
            exists = lambda number, path=path: bool(lines[number][path])
            yield f"json.{path}:* AND NOT json.{path}:[{low} TO {high}}}", (
                lambda number, exists=exists, between=between: exists(number) and not between(number)
            )
        for path in spread(sorted(distinct["truth"]), JSON_PATHS_MAX):
            for truth in [True, False]:
                yield f"json.{path}:{str(truth).lower()}", some(path, "truth", lambda leaf, truth=truth: leaf == truth)
        for path in spread(sorted(distinct["text"]), JSON_PATHS_MAX):
            words = tokens(sorted(distinct["text"][path])[0].encode())
            yield f"json.{path}:*", some(path, "text", lambda text: tokens(text.encode()))
            if not words:
                continue
            has = lambda text, test: any(test(word) for word in tokens(text.encode()))
            yield f'json.{path}:"{" ".join(words)}"', some(
                path, "text", lambda text, words=words: has_phrase(tokens(text.encode()), words)
            )
            start = words[0][:2]
            yield f"json.{path}:{start}*", some(path, "text", lambda text, start=start: has(text, lambda w: w.startswith(start)))
            yield f'json.{path}:>"{start}"', some(path, "text", lambda text, start=start: has(text, lambda w: w > start))

    def check_search(self, topic, count, when):
        """Against the first `count` lines. Returns how many queries there were."""
        self.broker.wait_indexed(topic)
        queries = 0
        for query, matches in self.queries(topic):
            wanted = sorted(number for number in range(count) if matches(number))
            hits = self.broker.search(topic, query)
            found = sorted(int(hit["key"]) for hit in hits.values())
            check_equal(found, wanted, f"{when}: lines of {topic} that {query!r} finds")
            for place, hit in hits.items():
                check_equal(hit["value"].encode(), self.files[topic][int(hit["key"])], f"{when}: hit at {place}")
                if topic in self.places:
                    check_equal(self.places[topic][place], int(hit["key"]), f"{when}: line at {place}")
            queries += 1
        return queries

    # -- groups

    def check_groups(self):
        """Three consumers of one group, a SIGTERM and a kill -9 between them: each line once."""
        received = {topic: [] for topic in GROUP_FILES}
        for round_number, stop in enumerate([self.broker.stop, self.broker.kill, None]):
            for topic in GROUP_FILES:
                total = len(self.files[topic])
                count = total // 3 if stop else total - len(received[topic])
                consumer = self.consumer(f"group-of-{topic}")
                consumer.subscribe([topic])
                messages = self.receive(consumer, count, f"group of {topic}, consumer {round_number}")
                # Only what this script has seen: the consumer itself has fetched further.
                ends = {}
                for message in messages:
                    ends[message.partition()] = message.offset() + 1
                offsets = [confluent_kafka.TopicPartition(topic, p, offset) for p, offset in ends.items()]
                consumer.commit(offsets=offsets, asynchronous=False)
                consumer.close()
                received[topic] += [(m.partition(), m.offset(), m.key(), m.value()) for m in messages]
            if stop:
                say(f"  {stop.__name__} and start again")
                stop()
                self.broker.start()
        for topic, messages in received.items():
            self.check_lines(topic, messages, "consumer group")

    # -- time

    def check_time(self, when):
        """The access log under its own times: the command line and kcat find the right messages."""
        topic = "access-by-time"
        times = self.times
        by_place = {(p, o): (timestamp, int(key)) for p, o, timestamp, key, _ in self.kcat(topic, "-o", "beginning")}
        check_equal(sorted(by_place.values(), key=lambda m: m[1]), [(t, n) for n, t in enumerate(times)], "timestamps")

        begin, end = (int(datetime.datetime(2015, 5, day, tzinfo=datetime.UTC).timestamp() * 1000) for day in (18, 19))
        for options, low, high in [
            (["--from", "2015-05-17"], 0, 1 << 62),
            (["--from", "2015-05-18", "--to", "2015-05-19"], begin, end),
        ]:
            command = [self.broker.binary, "consume", topic, "--url", f"http://{self.broker.http}", "--format", "value"]
            done = subprocess.run(command + options, check=True, capture_output=True, timeout=STEP_SECONDS)
            wanted = sorted(self.files[ACCESS_LOG][n] for n, t in enumerate(times) if low <= t < high)
            check_equal(sorted(done.stdout.split(b"\n")[:-1]), wanted, f"{when}: thermocline consume {options}")
        wanted = [place for place, (timestamp, _) in sorted(by_place.items()) if begin <= timestamp < end]
        replayed = self.broker.replay(topic, **{"from": "2015-05-18", "to": "2015-05-19"})
        check_equal([(m["partition"], m["offset"]) for m in replayed], wanted, f"{when}: replay of one day")

        # Kafka's rule: from the first message at or after the time, whatever follows.
        first = {}
        for (partition, offset), (timestamp, _) in sorted(by_place.items()):
            if timestamp >= begin:
                first.setdefault(partition, offset)
        wanted = sorted(place for place in by_place if place[1] >= first.get(place[0], 1 << 62))
        found = sorted((p, o) for p, o, *_ in self.kcat(topic, "-o", f"s@{begin}"))
        check_equal(found, wanted, f"{when}: kcat -o s@{begin}")

    def produce_access_log_by_time(self):
        pattern = re.compile(rb"\[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\]")
        parse = datetime.datetime.strptime
        stamps = [pattern.search(line).group(1).decode() for line in self.files[ACCESS_LOG]]
        self.times = [int(parse(stamp, "%d/%b/%Y:%H:%M:%S %z").timestamp() * 1000) for stamp in stamps]
        self.broker.create_topic("access-by-time", PARTITIONS)
        numbers = range(len(stamps))
        self.produce_with_confluent(ACCESS_LOG, numbers, "zstd", True, self.times, "access-by-time")

    # -- Parquet

    def check_parquet(self, topic):
        """pyarrow and duckdb agree with the file and with each other."""
        columns = ["partition", "offset", "key", "value"]
        self.manifests.check_objects(topic, pyarrow.parquet)
        partitions = self.manifests.data_files(topic)
        paths = [self.manifests.path_of(f["data"]["key"]) for p in sorted(partitions) for f in partitions[p]]
        rows = []
        for path in paths:
            table = pyarrow.parquet.ParquetFile(path).read(columns)
            rows += zip(*(table[column].to_pylist() for column in columns))
        self.check_lines(topic, rows, "pyarrow")
        query = 'select "partition", "offset", "key", "value" from read_parquet($1) order by 1, 2'
        self.check_lines(topic, duckdb.execute(query, [[str(path) for path in paths]]).fetchall(), "duckdb")

    # -- the whole

    def run(self):
        self.create_topics()
        queries, halves = 0, {topic: (len(lines) + 1) // 2 for topic, lines in self.files.items()}
        for topic, lines in self.files.items():
            half = halves[topic]
            self.produce(topic, range(half))
            queries += self.check_search(topic, half, "hot")
            self.broker.archive(topic)
            queries += self.check_search(topic, half, "cold")
            self.produce(topic, range(half, len(lines)))
            queries += self.check_search(topic, len(lines), "half and half")
            self.check_read_back(topic)
            self.broker.archive(topic)
            self.check_read_back(topic)
            queries += self.check_search(topic, len(lines), "all cold")
            self.check_parquet(topic)
            say(f"  {topic}: {len(lines)} lines")
        say(f"read back and searched: {len(self.files)} files, {queries} queries")

        self.produce_access_log_by_time()
        self.check_time("hot")
        self.broker.archive("access-by-time")
        self.check_time("cold")
        say("by time: thermocline consume, replay and kcat")

        self.check_groups()
        say("consumer groups over SIGTERM and kill -9")
        for topic, lines in self.files.items():
            self.check_read_back(topic)
            if topic in GROUP_FILES:
                self.check_search(topic, len(lines), "after restarts")
        say("read back and searched once more after the restarts")


def main():
    parser = arguments(__doc__)
    parser.add_argument("--s3-server", type=pathlib.Path, help="the s3-server binary; without it, a folder")
    args = parser.parse_args()
    default = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = pathlib.Path(os.environ.get("THERMOCLINE_DATA", default))
    if not folder.is_dir():
        print(f"SKIPPED: no real files in {folder}; THERMOCLINE_DATA may name another folder")
        return 0

    def checks(scratch, children):
        store = None
        if args.s3_server:
            store = started(S3Server(args.s3_server, scratch), children)
            manifests = Manifests(store.buckets / S3_BUCKET, S3_PREFIX)
        else:
            manifests = Manifests(scratch / "data" / "cold")
        broker = started(Broker(args.broker, scratch, store and store.environment()), children)
        Checks(broker, load_files(folder), manifests).run()
        broker.stop()
        print("passed")

    return run_checks("real-files", checks)


if __name__ == "__main__":
    sys.exit(main())
