"""kill -9 at random moments, while producing and while archiving.

One idempotent producer with acks=all writes through all of it, on to the broker that comes back on the same port. After
each kill the store must hold every object that the newest manifests name, whole; every few rounds and at the end a
replay must give every acknowledged message at the offset of its acknowledgement, nothing twice, and every partition in
the order of sending.
"""

import http.client
import random
import sys
import threading
import time

import confluent_kafka
import pyarrow.parquet

from harness import STEP_SECONDS, Broker, CheckFailed, Manifests, arguments, check, check_equal
from harness import run_checks, say, started, wait_for

TOPIC = "kill9"
PARTITIONS = 3
# Small, so that every round seals, archives and trims some.
SEGMENT_BYTES = 65536
CONFIGS = {"segment.bytes": str(SEGMENT_BYTES), "max.message.bytes": "32768"}
BATCH_BYTES = 16384
# Rounds between two full replays.
REPLAY_EVERY = 10
# Messages sent and not yet acknowledged; past it the producer waits.
IN_FLIGHT_MAX = 2000
BURST = 20
BURST_PAUSE_SECONDS = 0.005
KILL_WHILE_PRODUCING_SECONDS = 1.0
KILL_WHILE_ARCHIVING_SECONDS = 0.4
KILL_WHILE_STARTING_SECONDS = 0.2


class Traffic(threading.Thread):
    """Sends numbered messages until it is stopped, and remembers where each was acknowledged."""

    def __init__(self, bootstrap, seed):
        super().__init__(daemon=True)
        self.random = random.Random(seed)
        self.producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "batch.size": BATCH_BYTES,
                "message.timeout.ms": 600_000,
                "retry.backoff.ms": 50,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 200,
                "log_level": 0,
            }
        )
        self.sent, self.acked, self.failures = 0, {}, []
        self.going, self.ended = threading.Event(), threading.Event()
        self.idle = threading.Event()
        self.going.set()

    def value(self, number):
        """Text that says which message it is; of a size that follows from its number."""
        return f"{number} {'event ' * (5 + number * 7919 % 60)}".encode()

    def delivered(self, error, message):
        if error:
            self.failures.append(f"message {message.key()}: {error}")
        else:
            self.acked[int(message.key())] = (message.partition(), message.offset())

    def run(self):
        while not self.ended.is_set():
            if not self.going.is_set():
                self.producer.poll(0.02)
                if len(self.producer) == 0:
                    self.idle.set()
                continue
            if len(self.producer) >= IN_FLIGHT_MAX:
                self.producer.poll(0.02)
                continue
            for number in range(self.sent, self.sent + BURST):
                self.producer.produce(
                    TOPIC,
                    self.value(number),
                    str(number).encode(),
                    partition=number % PARTITIONS,
                    on_delivery=self.delivered,
                )
            self.sent += BURST
            self.producer.poll(0)
            time.sleep(BURST_PAUSE_SECONDS)

    def check_well(self):
        check(not self.failures, f"{len(self.failures)} messages failed: {self.failures[:3]}")
        check(self.is_alive(), "the producing thread ended")

    def pause(self):
        """Stops sending and waits until everything sent is answered."""
        self.idle.clear()
        self.going.clear()

        def idle():
            self.check_well()
            return self.idle.is_set()

        wait_for("acknowledgement of everything sent", STEP_SECONDS, idle)

    def go_on(self):
        self.going.set()

    def wait_for_acks(self, more):
        """Until so many more messages are acknowledged than now."""
        before = len(self.acked)

        def enough():
            self.check_well()
            return len(self.acked) >= before + more

        wait_for("acknowledgements after a restart", STEP_SECONDS, enough)


class Archiving(threading.Thread):
    """Asks for archive and trim over and over until the broker is gone."""

    def __init__(self, broker):
        super().__init__(daemon=True)
        self.broker, self.finished, self.failure = broker, 0, None

    def run(self):
        try:
            while True:
                self.broker.call("POST", f"/v1/topics/{TOPIC}/archive?trim=true")
                self.finished += 1
        except (OSError, http.client.HTTPException):
            pass  # killed in the middle of it, which is the point
        except CheckFailed as error:
            self.failure = error


class Rounds:
    def __init__(self, broker, manifests, traffic, rng):
        self.broker, self.manifests, self.traffic, self.random = broker, manifests, traffic, rng
        self.passed = self.archived = self.objects = 0

    def one(self, number):
        if self.random.random() < 0.7:
            self.traffic.wait_for_acks(1)
        if number % 2:
            archiving = Archiving(self.broker)
            archiving.start()
            time.sleep(self.random.uniform(0, KILL_WHILE_ARCHIVING_SECONDS))
            self.broker.kill()
            archiving.join(STEP_SECONDS)
            check(not archiving.is_alive(), "a request for archiving outlived the broker")
            check(archiving.failure is None, f"archiving was refused: {archiving.failure}")
            self.archived += archiving.finished
        else:
            time.sleep(self.random.uniform(0, KILL_WHILE_PRODUCING_SECONDS))
            self.broker.kill()
        self.objects = self.manifests.check_objects(TOPIC, pyarrow.parquet)
        if self.random.random() < 0.2:
            self.broker.launch()
            time.sleep(self.random.uniform(0, KILL_WHILE_STARTING_SECONDS))
            self.broker.kill()
        # Before the restart: what comes later needs not be there at the restart.
        acked = dict(self.traffic.acked)
        self.broker.start()
        self.check_watermarks(acked)
        self.traffic.check_well()

    def check_watermarks(self, acked):
        last = {}
        for partition, offset in acked.values():
            last[partition] = max(last.get(partition, -1), offset)
        for partition in self.broker.partitions(TOPIC):
            wanted = last.get(partition["partition"], -1)
            found = partition["high_watermark"]
            check(found > wanted, f"partition {partition['partition']}: offset {wanted} was acknowledged, but {found} is next")

    def check_everything(self):
        """With the producer paused: everything sent is acknowledged, and there exactly once."""
        traffic = self.traffic
        traffic.pause()
        check_equal(len(traffic.acked), traffic.sent, "acknowledged messages")
        by_place = {place: number for number, place in traffic.acked.items()}
        check_equal(len(by_place), traffic.sent, "places of acknowledged messages")
        replayed = self.broker.replay(TOPIC)
        self.check_messages(
            ((m["partition"], m["offset"], m["key"], m["value"].encode()) for m in replayed), by_place, "replay"
        )
        return by_place

    def check_messages(self, messages, by_place, what):
        seen, last = 0, {}
        for partition, offset, key, value in messages:
            number = int(key)
            check_equal(by_place.get((partition, offset)), number, f"{what}: message at {partition}/{offset}")
            check_equal(value, self.traffic.value(number), f"{what}: message {number}")
            before = last.get(partition, (-1, -1))
            check_equal(offset, before[0] + 1, f"{what}: next offset of partition {partition}")
            check(number > before[1], f"{what}: partition {partition} has message {number} after {before[1]}")
            last[partition] = (offset, number)
            seen += 1
        check_equal(seen, len(by_place), f"{what}: number of messages")

    def check_other_readers(self, by_place):
        """At the end: a Kafka consumer over both tiers, and the Parquet files alone."""
        begin = confluent_kafka.OFFSET_BEGINNING
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": self.broker.kafka,
                "group.id": "unused",
                "check.crcs": True,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        consumer.assign([confluent_kafka.TopicPartition(TOPIC, p, begin) for p in range(PARTITIONS)])
        messages, ended = [], set()
        # To the end of every partition, not to the number expected: one message too many must be seen.
        while len(ended) < PARTITIONS:
            message = consumer.poll(STEP_SECONDS)
            check(message is not None, f"the consumer got {len(messages)} of {len(by_place)} messages")
            error = message.error()
            if error is None:
                messages.append((message.partition(), message.offset(), message.key(), message.value()))
            else:
                check_equal(error.code(), confluent_kafka.KafkaError._PARTITION_EOF, "what a consumer is told")
                ended.add(message.partition())
        consumer.close()
        self.check_messages(messages, by_place, "consumer")

        self.broker.archive(TOPIC)
        rows = []
        for files in self.manifests.data_files(TOPIC).values():
            for file in files:
                table = pyarrow.parquet.ParquetFile(self.manifests.path_of(file["data"]["key"])).read()
                rows += zip(*(table[column].to_pylist() for column in ["partition", "offset", "key", "value"]))
        self.check_messages(rows, by_place, "Parquet files")


def main():
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    say(f"seed {seed}")

    def checks(scratch, children):
        broker = started(Broker(args.broker, scratch), children)
        broker.create_topic(TOPIC, PARTITIONS, CONFIGS)
        traffic = Traffic(broker.kafka, seed)
        traffic.start()
        rounds = Rounds(broker, Manifests(scratch / "data" / "cold"), traffic, random.Random(seed))
        try:
            for number in range(args.rounds):
                rounds.one(number)
                rounds.passed += 1
                if rounds.passed % REPLAY_EVERY == 0:
                    rounds.check_everything()
                    traffic.go_on()
                    counts = f"{len(traffic.acked)} messages acknowledged, {rounds.objects} objects in manifests"
                    say(f"  round {rounds.passed}: {counts}, {rounds.archived} archive requests answered")
            by_place = rounds.check_everything()
            rounds.check_other_readers(by_place)
        except BaseException:
            print(f"{rounds.passed} passed, 1 failed (seed {seed})", flush=True)
            raise
        finally:
            traffic.ended.set()
            traffic.join(STEP_SECONDS)
        broker.stop()
        print(f"{rounds.passed} passed, 0 failed", flush=True)

    return run_checks("kill9", checks)


if __name__ == "__main__":
    sys.exit(main())
