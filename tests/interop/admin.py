"""The rest of the admin API with three clients: partitions added, groups and offsets deleted, offsets by kind, log
directories, leader elections, open transactions. kafka-python and confluent-kafka here, Kafka's own tools beside them.
"""

import sys

import confluent_kafka
import kafka
from confluent_kafka.admin import AdminClient, NewPartitions, OffsetSpec
from kafka.admin import KafkaAdminClient

from harness import PROMPT_GROUPS, STEP_SECONDS, arguments, check, check_broker, check_equal, say
from java_client import Java

TOPIC, GROUP = "admin", "admin-group"
PARTITIONS, MORE_PARTITIONS = 2, 5
MESSAGES = 50
FIRST_TIMESTAMP = 1_500_000_000_000


def result(future):
    return future.result(STEP_SECONDS)


def refused(name, future):
    try:
        result(future)
    except confluent_kafka.KafkaException as error:
        check_equal(error.args[0].name(), name, "refused with")
    else:
        check(False, f"taken, wanted {name}")


def fill(bootstrap):
    """The message with the greatest timestamp is the first one of partition 0."""
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap})
    for number in range(MESSAGES):
        producer.produce(TOPIC, f"{number}".encode(), partition=0, timestamp=FIRST_TIMESTAMP + MESSAGES - number)
    check_equal(producer.flush(STEP_SECONDS), 0, "messages that were not delivered")


def check_partitions(broker, admin):
    result(admin.create_partitions([NewPartitions(TOPIC, MORE_PARTITIONS)])[TOPIC])
    check_equal(len(broker.partitions(TOPIC)), MORE_PARTITIONS, "partitions")
    refused("INVALID_PARTITIONS", admin.create_partitions([NewPartitions(TOPIC, PARTITIONS)])[TOPIC])
    refused("UNKNOWN_TOPIC_OR_PART", admin.create_partitions([NewPartitions("absent", PARTITIONS)])["absent"])
    producer = confluent_kafka.Producer({"bootstrap.servers": broker.kafka})
    producer.produce(TOPIC, b"new", partition=MORE_PARTITIONS - 1)
    check_equal(producer.flush(STEP_SECONDS), 0, "messages that were not delivered")


def check_offsets(broker, admin, java):
    partition = confluent_kafka.TopicPartition(TOPIC, 0)
    found = result(admin.list_offsets({partition: OffsetSpec.max_timestamp()})[partition])
    check_equal((found.offset, found.timestamp), (0, FIRST_TIMESTAMP + MESSAGES), "the greatest timestamp")
    special = {"earliest-local": 0, "latest-tiered": -1}
    for kind, wanted in special.items():
        answer = java.tool("GetOffsetShell", "--topic-partitions", f"{TOPIC}:0", "--time", kind)
        check_equal(answer.split(), [f"{TOPIC}:0:{wanted}"] if wanted >= 0 else [], f"{kind} before the archive")
    broker.archive(TOPIC)
    for kind, wanted in {"earliest-local": MESSAGES, "latest-tiered": MESSAGES - 1, "earliest": 0}.items():
        answer = java.tool("GetOffsetShell", "--topic-partitions", f"{TOPIC}:0", "--time", kind)
        check_equal(answer.split(), [f"{TOPIC}:0:{wanted}"], f"{kind} after the archive")
    found = result(admin.list_offsets({partition: OffsetSpec.max_timestamp()})[partition])
    check_equal((found.offset, found.timestamp), (0, FIRST_TIMESTAMP + MESSAGES), "the greatest timestamp, archived")


def check_groups(broker, admin, python):
    consumer = kafka.KafkaConsumer(
        TOPIC, bootstrap_servers=broker.kafka, group_id=GROUP, auto_offset_reset="earliest", enable_auto_commit=False
    )
    while not consumer.poll(timeout_ms=STEP_SECONDS * 1000):
        pass
    consumer.commit()
    partition = kafka.TopicPartition(TOPIC, 0)
    refused("NON_EMPTY_GROUP", admin.delete_consumer_groups([GROUP])[GROUP])
    errors = python.delete_group_offsets(GROUP, [partition])
    check_equal(errors[partition].__name__, "GroupSubscribedToTopicError", "deleting offsets of a subscribed topic")
    consumer.close()
    check_equal(python.delete_group_offsets(GROUP, [partition])[partition].__name__, "NoError", "deleting offsets")
    offsets = python.list_group_offsets(GROUP)
    check(partition not in offsets.get(GROUP, offsets), f"deleted offsets are listed: {offsets}")
    result(admin.delete_consumer_groups([GROUP])[GROUP])
    refused("GROUP_ID_NOT_FOUND", admin.delete_consumer_groups([GROUP])[GROUP])
    check(GROUP not in {group.group_id for group in result(admin.list_consumer_groups()).valid}, "the group is listed")


def check_places(java):
    directories = java.tool("LogDirsCommand", "--describe", "--topic-list", TOPIC)
    for number in range(MORE_PARTITIONS):
        check(f'"{TOPIC}-{number}"' in directories, f"log directories: {directories}")
    elected = java.tool("LeaderElectionCommand", "--election-type", "preferred", "--topic", TOPIC, "--partition", 0)
    check("already elected" in elected or "Valid replica" in elected, f"election: {elected}")


def checks(broker):
    admin, java = AdminClient({"bootstrap.servers": broker.kafka}), Java(broker.kafka)
    broker.create_topic(TOPIC, PARTITIONS)
    fill(broker.kafka)
    check_partitions(broker, admin)
    say("  partitions")
    python = KafkaAdminClient(bootstrap_servers=broker.kafka)
    check_groups(broker, admin, python)
    python.close()
    say("  groups")
    check_offsets(broker, admin, java)
    say("  offsets")
    check_places(java)
    say("  log directories and elections")


if __name__ == "__main__":
    sys.exit(check_broker("admin", arguments(__doc__).parse_args(), checks, PROMPT_GROUPS))
