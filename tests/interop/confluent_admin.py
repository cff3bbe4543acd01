"""Administration by two clients that share no code, librdkafka's (confluent-kafka) and kafka-python's: topics and
partitions, settings, groups with their lag, deletion of groups and offsets, and what one broker has to say of clusters."""

import sys
import urllib.request

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka import ElectionType, KafkaError, TopicCollection
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)
from kafka import KafkaConsumer
from kafka import TopicPartition as PythonPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import GroupSubscribedToTopicError, NoError

from harness import PROMPT_GROUPS, CheckFailed, arguments, check, check_broker, check_equal, say, wait_for

TOPIC = "administered"
PARTITIONS = 2
GROWN = 5
MESSAGES = 200
GROUP = "readers"
WAIT_SECONDS = 60


def done(futures):
    """The results of a call by what it was asked for."""
    return {key: future.result(WAIT_SECONDS) for key, future in futures.items()}


def refused(future, code, what):
    try:
        future.result(WAIT_SECONDS)
    except KafkaException as error:
        check_equal(error.args[0].code(), code, what)
        return
    check(False, f"{what} was not refused")


def check_topics(broker, admin):
    """Creating, growing, and what is only validated."""
    done(admin.create_topics([NewTopic("only-looked-at", 3, 1)], validate_only=True))
    new = NewTopic(TOPIC, PARTITIONS, 1, config={"retention.ms": "86400000"})
    done(admin.create_topics([new]))
    refused(admin.create_topics([NewTopic("replicated", 1, 3)])["replicated"], 38, "a replication factor of 3")
    topics = admin.list_topics(timeout=WAIT_SECONDS).topics
    check("only-looked-at" not in topics, "a topic that was only validated exists")
    refused(admin.create_partitions([NewPartitions(TOPIC, PARTITIONS)])[TOPIC], 37, "no more partitions")
    done(admin.create_partitions([NewPartitions(TOPIC, GROWN)], validate_only=True))
    check_equal(len(admin.list_topics(TOPIC, timeout=WAIT_SECONDS).topics[TOPIC].partitions), PARTITIONS, "partitions")
    done(admin.create_partitions([NewPartitions(TOPIC, GROWN)]))
    check_equal(len(admin.list_topics(TOPIC, timeout=WAIT_SECONDS).topics[TOPIC].partitions), GROWN, "partitions")
    described = done(admin.describe_topics(TopicCollection([TOPIC])))[TOPIC]
    check_equal([p.leader.id for p in described.partitions], [1] * GROWN, "leaders")
    check_equal(len(broker.partitions(TOPIC)), GROWN, "partitions over HTTP")


def check_settings(admin):
    resource = ConfigResource(ConfigResource.Type.TOPIC, TOPIC)
    found = done(admin.describe_configs([resource]))[resource]
    check_equal(found["retention.ms"].value, "86400000", "retention.ms")
    check_equal(found["retention.ms"].source, ConfigSource.DYNAMIC_TOPIC_CONFIG.value, "source of retention.ms")
    check_equal(found["segment.ms"].source, ConfigSource.DEFAULT_CONFIG.value, "source of segment.ms")
    check("log.retention.ms" in found["retention.ms"].synonyms, "log.retention.ms is no synonym of retention.ms")

    def entry(name, value, operation):
        return ConfigEntry(name, value, incremental_operation=operation)

    changes = [
        entry("max.message.bytes", "2000000", AlterConfigOpType.SET),
        entry("retention.ms", None, AlterConfigOpType.DELETE),
        entry("search.fields", "headers", AlterConfigOpType.SUBTRACT),
    ]
    changed = ConfigResource(ConfigResource.Type.TOPIC, TOPIC, incremental_configs=changes)
    done(admin.incremental_alter_configs([changed]))
    found = done(admin.describe_configs([resource]))[resource]
    check_equal(found["max.message.bytes"].value, "2000000", "max.message.bytes")
    check_equal(found["retention.ms"].value, "-1", "retention.ms")
    check_equal(found["search.fields"].value, "value,json,key", "search.fields")
    node = ConfigResource(ConfigResource.Type.BROKER, "1")
    found = done(admin.describe_configs([node]))[node]
    check(all(row.is_read_only for row in found.values()), "a setting of the broker can be changed")
    check_equal(found["log.segment.bytes"].value, str(128 << 20), "log.segment.bytes")
    forbidden = ConfigResource(
        ConfigResource.Type.BROKER,
        "1",
        incremental_configs=[entry("num.partitions", "7", AlterConfigOpType.SET)],
    )
    refused(admin.incremental_alter_configs([forbidden])[forbidden], 42, "changing the broker")


def fill(bootstrap):
    """Messages in every partition, also in those that were added."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    for number in range(MESSAGES):
        producer.produce(TOPIC, f"message {number}", partition=number % GROWN)
    check_equal(producer.flush(WAIT_SECONDS), 0, "messages without an ack")


def consumer_of(bootstrap, **settings):
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
        | settings
    )


def lag_metric(broker):
    with urllib.request.urlopen(f"http://{broker.http}/metrics", timeout=WAIT_SECONDS) as response:
        lines = response.read().decode().splitlines()
    prefix = "thermocline_group_lag_records{"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefix) and f'"{GROUP}"' in line)


def check_groups(broker, admin, python):
    """A group while it reads, its lag by every way there is, and how it is taken apart."""
    consumer = consumer_of(broker.kafka, **{"partition.assignment.strategy": "cooperative-sticky"})
    consumer.subscribe([TOPIC])
    read = 0
    while read < MESSAGES // 2:
        message = consumer.poll(WAIT_SECONDS)
        check(message is not None and message.error() is None, f"no message: {message and message.error()}")
        read += 1
    consumer.commit(asynchronous=False)
    listed = admin.list_consumer_groups().result(WAIT_SECONDS)
    check_equal([(group.group_id, group.state.name) for group in listed.valid], [(GROUP, "STABLE")], "groups")
    described = done(admin.describe_consumer_groups([GROUP]))[GROUP]
    assigned = {(at.topic, at.partition) for member in described.members for at in member.assignment.topic_partitions}
    check_equal(assigned, {(TOPIC, number) for number in range(GROWN)}, "assignment")

    committed = done(admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP)]))[GROUP]
    positions = {at.partition: at.offset for at in committed.topic_partitions}
    ends = done(admin.list_offsets({TopicPartition(TOPIC, number): OffsetSpec.latest() for number in range(GROWN)}))
    by_protocol = sum(end.offset - positions.get(at.partition, 0) for at, end in ends.items())
    group = broker.call("GET", f"/v1/groups/{GROUP}")
    check_equal(by_protocol, MESSAGES - read, "lag by the protocol")
    # A partition without a committed offset has no lag there.
    uncommitted = sum(ends[at].offset for at in ends if at.partition not in positions)
    check_equal(group["lag"], by_protocol - uncommitted, "lag over HTTP")
    check_equal(lag_metric(broker), float(group["lag"]), "lag as a metric")
    check_equal(group["state"], "Stable", "state over HTTP")
    owned = {number for member in group["members"] for topic in member["assignment"] for number in topic["partitions"]}
    check_equal(owned, set(range(GROWN)), "assignment over HTTP")

    refused(admin.delete_consumer_groups([GROUP])[GROUP], 68, "deleting a group that is in use")
    place = PythonPartition(TOPIC, 0)
    check_equal(python.delete_group_offsets(GROUP, [place]), {place: GroupSubscribedToTopicError}, "deleting its offsets")
    consumer.close()
    wait_for("the group to be empty", WAIT_SECONDS, lambda: broker.call("GET", f"/v1/groups/{GROUP}")["state"] == "Empty")
    first = min(positions)
    place = PythonPartition(TOPIC, first)
    check_equal(python.delete_group_offsets(GROUP, [place]), {place: NoError}, "deleting an offset")
    left = {row["partition"] for row in broker.call("GET", f"/v1/groups/{GROUP}")["offsets"]}
    check_equal(left, set(positions) - {first}, "offsets left")
    done(admin.delete_consumer_groups([GROUP]))
    refused(admin.delete_consumer_groups([GROUP])[GROUP], 69, "deleting a group twice")
    try:
        broker.call("GET", f"/v1/groups/{GROUP}")
    except CheckFailed as error:
        check("404" in str(error), f"a deleted group: {error}")
        return
    check(False, "a deleted group is described")


def check_sessions(bootstrap):
    """kafka-python fetches in sessions: everything is read once, whatever order partitions answer in."""
    consumer = KafkaConsumer(
        TOPIC,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=200,
        fetch_max_bytes=500,
        consumer_timeout_ms=WAIT_SECONDS * 1000,
    )
    seen = set()
    for message in consumer:
        place = (message.partition, message.offset)
        check(place not in seen, f"{place} came twice")
        seen.add(place)
        if len(seen) == MESSAGES:
            break
    consumer.close()
    check_equal(len(seen), MESSAGES, "messages read in sessions")


def check_cluster(broker, admin, python):
    cluster = admin.describe_cluster().result(WAIT_SECONDS)
    check_equal(([node.id for node in cluster.nodes], cluster.controller.id), ([1], 1), "cluster")
    elected = admin.elect_leaders(ElectionType.PREFERRED, [TopicPartition(TOPIC, 0)]).result(WAIT_SECONDS)
    codes = [error.code() for error in elected.values()]
    check_equal(codes, [KafkaError.ELECTION_NOT_NEEDED], "election")
    acl = (ResourceType.TOPIC, TOPIC, ResourcePatternType.LITERAL, "User:alice", "*", AclOperation.READ)
    binding = AclBinding(*acl, AclPermissionType.ALLOW)
    refused(admin.create_acls([binding])[binding], 54, "making an ACL")
    # Refused with the same error, of which librdkafka tells nothing.
    described = admin.describe_acls(AclBindingFilter(*acl, AclPermissionType.ANY)).result(WAIT_SECONDS)
    check_equal(described, [], "ACLs")
    users = admin.describe_user_scram_credentials(["alice"])
    refused(users["alice"], KafkaError.RESOURCE_NOT_FOUND, "the credentials of nobody")
    sizes = python.describe_log_dirs()
    check(TOPIC in repr(sizes), f"{TOPIC} is in no log directory: {sizes}")
    check_equal(len(python.list_partition_reassignments() or {}), 0, "reassignments")
    check(TOPIC in repr(python.describe_topic_partitions([TOPIC])), f"{TOPIC} is not described by partitions")


def checks(broker):
    admin = AdminClient({"bootstrap.servers": broker.kafka})
    python = KafkaAdminClient(bootstrap_servers=broker.kafka)
    check_topics(broker, admin)
    check_settings(admin)
    fill(broker.kafka)
    say("  topics and settings")
    check_sessions(broker.kafka)
    check_groups(broker, admin, python)
    say("  groups and sessions")
    check_cluster(broker, admin, python)
    broker.archive(TOPIC)
    check_sessions(broker.kafka)
    python.close()
    broker.kill()
    broker.start()
    python = KafkaAdminClient(bootstrap_servers=broker.kafka)
    check_equal(len(broker.partitions(TOPIC)), GROWN, "partitions after a kill")
    check_sessions(broker.kafka)
    say("  cluster, and all of it after a kill")
    check_equal(python.delete_groups([GROUP]), {GROUP: "GroupIdNotFoundError"}, "a group that is gone after a kill")
    done(admin.delete_topics([TOPIC]))
    python.close()


if __name__ == "__main__":
    sys.exit(check_broker("confluent-admin", arguments(__doc__).parse_args(), checks, PROMPT_GROUPS))
