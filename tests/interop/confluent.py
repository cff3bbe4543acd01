"""confluent-kafka (librdkafka): every codec, a group that rebalances cooperatively, a static member, the admin client."""

import sys
import time

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from harness import PROMPT_GROUPS, STEP_SECONDS, arguments, check, check_broker, check_equal, say, wait_for

TOPIC, GROUP = "confluent", "confluent-group"
PARTITIONS = 6
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
MESSAGES_PER_PRODUCER = 120
FIRST_TIMESTAMP = 1_500_000_000_000
HEADERS = [("trace", b"1"), ("trace", b""), ("other", None)]
POLL_SECONDS = 0.1
# As long as a member may be silent before the group goes on without it.
SESSION_TIMEOUT_MS = 6000
# As long as a static member may be away.
ABSENCE_MS = 20_000


def produce(bootstrap, first=0):
    """One producer for each codec, with and without idempotence; returns what was acknowledged, by place."""
    acked, number = {}, first

    def told(error, message):
        check(error is None, f"not delivered: {error}")
        acked[message.partition(), message.offset()] = (message.timestamp()[1], message.key(), message.value())

    for codec in CODECS:
        for idempotent in (False, True):
            settings = {"compression.type": codec, "enable.idempotence": idempotent, "linger.ms": 5}
            producer = Producer({"bootstrap.servers": bootstrap} | settings)
            for _ in range(MESSAGES_PER_PRODUCER):
                key, value = str(number).encode(), f"{codec} {number} ".encode() * 5
                producer.produce(
                    TOPIC,
                    value,
                    key,
                    partition=number % PARTITIONS,
                    timestamp=FIRST_TIMESTAMP + number,
                    headers=HEADERS,
                    on_delivery=told,
                )
                number += 1
            check_equal(producer.flush(STEP_SECONDS), 0, "messages that were not delivered")
    check_equal(len(acked), number - first, "messages acknowledged")
    return acked


class Member:
    """A consumer of the group, and what it was given and had taken."""

    def __init__(self, bootstrap, name, settings=None):
        common = {
            "bootstrap.servers": bootstrap,
            "group.id": GROUP,
            "client.id": name,
            "partition.assignment.strategy": "cooperative-sticky",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": 500,
        }
        self.consumer = Consumer(common | (settings or {}))
        self.owned, self.revoked, self.seen = set(), set(), {}
        self.consumer.subscribe([TOPIC], on_assign=self.on_assign, on_revoke=self.on_revoke)

    def on_assign(self, _, partitions):
        self.owned |= {partition.partition for partition in partitions}

    def on_revoke(self, _, partitions):
        self.commit()
        gone = {partition.partition for partition in partitions}
        self.owned -= gone
        self.revoked |= gone

    def poll(self):
        for message in self.consumer.consume(MESSAGES_PER_PRODUCER, POLL_SECONDS):
            check(message.error() is None, f"consumer: {message.error()}")
            place = (message.partition(), message.offset())
            check(place not in self.seen, f"{place} came twice")
            check_equal(message.headers(), HEADERS, "headers")
            self.seen[place] = (message.timestamp()[1], message.key(), message.value())

    def commit(self):
        """Commits where it is; that there is nothing new since the last time is no error."""
        try:
            self.consumer.commit(asynchronous=False)
        except KafkaException as error:
            check_equal(error.args[0].code(), KafkaError._NO_OFFSET, "commit refused with")

    def close(self):
        self.commit()
        self.consumer.close()


def settle(members, what):
    """Polls until the members own all partitions, each its share and none of them twice."""
    share = PARTITIONS // len(members)

    def settled():
        for member in members:
            member.poll()
        return all(len(member.owned) == share for member in members)

    wait_for(what, STEP_SECONDS, settled)
    check_equal(set().union(*(member.owned for member in members)), set(range(PARTITIONS)), f"{what}: partitions owned")


def check_group(bootstrap, acked):
    """Two members, with messages read before, between and after the rebalances; nothing twice, nothing left out."""
    first = Member(bootstrap, "first")
    settle([first], "one member")
    second = Member(bootstrap, "second")
    settle([first, second], "two members")
    kept = set(range(PARTITIONS)) - first.revoked
    check_equal(len(kept), PARTITIONS // 2, "partitions that the first member kept through the rebalance")
    acked = acked | produce(bootstrap, first=len(acked))

    def seen():
        for member in (first, second):
            member.poll()
        return first.seen | second.seen == acked

    wait_for("all messages in two members", STEP_SECONDS, seen)
    check(not first.seen.keys() & second.seen.keys(), "both members read the same message")
    second.close()
    settle([first], "one member again")
    first.close()
    return acked


def check_static_member(broker):
    """A static member that comes back in time gets its partitions back, without a rebalance of the group."""
    bootstrap = broker.kafka
    static = {"group.instance.id": "static", "session.timeout.ms": ABSENCE_MS}

    def generation():
        return broker.call("GET", f"/v1/groups/{GROUP}")["generation"]

    other = Member(bootstrap, "other")
    member = Member(bootstrap, "member", static)
    settle([other, member], "a static member")
    # Not the number of assignments the other one was told of: it may hear of the last one, which gives it nothing,
    # after its partitions are settled.
    before, settled_in = set(member.owned), generation()
    member.close()
    member = Member(bootstrap, "member", static)
    settle([other, member], "the static member again")
    check_equal(member.owned, before, "partitions of the static member")
    check_equal(generation(), settled_in, "generation of the group")
    member.close()
    other.close()


def result(future):
    return future.result(STEP_SECONDS)


def results(futures):
    return {key: result(future) for key, future in futures.items()}


def refused(name, futures):
    """The answer must be this error."""
    for future in futures.values():
        try:
            result(future)
        except KafkaException as error:
            check_equal(error.args[0].name(), name, "refused with")
        else:
            check(False, f"taken, wanted {name}")


def check_configs(admin):
    resource = ConfigResource(ResourceType.TOPIC, TOPIC)
    wanted = {"max.message.bytes": "500000", "message.timestamp.type": "LogAppendTime"}
    for name, value in wanted.items():
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource.add_incremental_config(entry)
    results(admin.incremental_alter_configs([resource]))
    (found,) = results(admin.describe_configs([ConfigResource(ResourceType.TOPIC, TOPIC)])).values()
    check_equal({name: found[name].value for name in wanted}, wanted, "topic settings")
    check(not found["max.message.bytes"].is_default and found["segment.bytes"].is_default, "which settings are defaults")
    unknown = ConfigResource(ResourceType.TOPIC, TOPIC)
    unknown.add_incremental_config(ConfigEntry("no.such.key", "1", incremental_operation=AlterConfigOpType.SET))
    refused("INVALID_CONFIG", admin.incremental_alter_configs([unknown]))


def check_admin(admin, acked):
    ends = {number: 1 + max(offset for p, offset in acked if p == number) for number in range(PARTITIONS)}
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    for spec, wanted in ((OffsetSpec.earliest(), dict.fromkeys(ends, 0)), (OffsetSpec.latest(), ends)):
        found = results(admin.list_offsets({partition: spec for partition in partitions}))
        check_equal({p.partition: info.offset for p, info in found.items()}, wanted, "offsets listed")
    time_wanted = FIRST_TIMESTAMP + len(acked) // 2
    found = results(admin.list_offsets({p: OffsetSpec.for_timestamp(time_wanted) for p in partitions}))
    for partition, info in found.items():
        later = {o for (p, o), message in acked.items() if p == partition.partition and message[0] >= time_wanted}
        check_equal(info.offset, min(later), "offset by time")

    listed = {group.group_id: group.state for group in result(admin.list_consumer_groups()).valid}
    check_equal(listed.get(GROUP), ConsumerGroupState.EMPTY, "state of the group as listed")
    described = result(admin.describe_consumer_groups([GROUP])[GROUP])
    check_equal((described.state, described.members), (ConsumerGroupState.EMPTY, []), "the group as described")
    (committed,) = results(admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP)])).values()
    check_equal({p.partition: p.offset for p in committed.topic_partitions}, ends, "committed offsets")
    moved = ConsumerGroupTopicPartitions(GROUP, [TopicPartition(TOPIC, 0, 3)])
    results(admin.alter_consumer_group_offsets([moved]))
    (committed,) = results(admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP)])).values()
    check_equal({p.partition: p.offset for p in committed.topic_partitions}, ends | {0: 3}, "offsets that were moved")

    check_configs(admin)
    (topic,) = results(admin.describe_topics(TopicCollection([TOPIC]))).values()
    check_equal([p.id for p in topic.partitions], list(range(PARTITIONS)), "partitions described")
    check_equal(len(result(admin.describe_cluster()).nodes), 1, "brokers")
    lows = results(admin.delete_records([TopicPartition(TOPIC, number, 10) for number in range(PARTITIONS)]))
    check_equal({deleted.low_watermark for deleted in lows.values()}, {10}, "low watermarks")
    refused("OFFSET_OUT_OF_RANGE", admin.delete_records([TopicPartition(TOPIC, 0, ends[0] + 1)]))
    refused("TOPIC_ALREADY_EXISTS", admin.create_topics([NewTopic(TOPIC, 1, 1)]))
    refused("TOPIC_EXCEPTION", admin.create_topics([NewTopic("no/such", 1, 1)]))
    results(admin.delete_topics([TOPIC]))
    refused("UNKNOWN_TOPIC_OR_PART", admin.delete_topics([TOPIC]))


def checks(broker):
    admin = AdminClient({"bootstrap.servers": broker.kafka})
    results(admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)]))
    acked = produce(broker.kafka)
    began = time.monotonic()
    acked = check_group(broker.kafka, acked)
    say(f"  group: {len(acked)} messages in {time.monotonic() - began:.1f} s")
    check_static_member(broker)
    say("  static member")
    # Both members left; the static one goes when its session ends.
    wait_for(
        "an empty group",
        STEP_SECONDS,
        lambda: result(admin.describe_consumer_groups([GROUP])[GROUP]).state == ConsumerGroupState.EMPTY,
    )
    check_admin(admin, acked)
    say("  admin")


if __name__ == "__main__":
    sys.exit(check_broker("confluent", arguments(__doc__).parse_args(), checks, PROMPT_GROUPS))
