"""kafka-python, a client that shares no code with librdkafka: topics, all codecs, idempotence, times, groups, deleting
records, hot and cold."""

import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import OffsetOutOfRangeError

from harness import arguments, check, check_broker, check_equal, say

TOPIC = "kafka-python"
PARTITIONS = 3
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]
MESSAGES_PER_PRODUCER = 100
FIRST_TIMESTAMP = 1_500_000_000_000
HEADERS = [("trace", b"1"), ("trace", b""), ("other", b"\xff")]
WAIT_SECONDS = 60


def produce(bootstrap):
    """One producer for each codec, with and without idempotence; returns what was acknowledged, by place."""
    acked, number = {}, 0
    for codec in CODECS:
        for idempotent in (False, True):
            producer = KafkaProducer(
                bootstrap_servers=bootstrap, compression_type=codec, enable_idempotence=idempotent, acks="all"
            )
            sent = []
            for _ in range(MESSAGES_PER_PRODUCER):
                value = f"{codec} {number} ".encode() * 5
                timestamp = FIRST_TIMESTAMP + number
                future = producer.send(
                    TOPIC,
                    key=str(number).encode(),
                    value=value,
                    headers=HEADERS,
                    partition=number % PARTITIONS,
                    timestamp_ms=timestamp,
                )
                sent.append((future, (timestamp, str(number).encode(), value)))
                number += 1
            producer.flush()
            for future, message in sent:
                place = future.get(WAIT_SECONDS)
                acked[place.partition, place.offset] = message
            producer.close()
    return acked


def consume(bootstrap, count, group=None):
    """The first `count` messages, by place."""
    consumer = KafkaConsumer(
        TOPIC,
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_timeout_ms=WAIT_SECONDS * 1000,
    )
    found = {}
    for message in consumer:
        check((message.partition, message.offset) not in found, f"offset {message.offset} came twice")
        check_equal(message.headers, HEADERS, "headers")
        found[message.partition, message.offset] = (message.timestamp, message.key, message.value)
        if len(found) == count:
            break
    if group:
        consumer.commit()
    consumer.close()
    return found


def check_places(bootstrap, acked):
    """Ends, committed offsets and offsets by time, as a consumer sees them."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id="kafka-python")
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    wanted = FIRST_TIMESTAMP + len(acked) // 2
    by_time = consumer.offsets_for_times(dict.fromkeys(partitions, wanted))
    ends = consumer.end_offsets(partitions)
    for partition in partitions:
        offsets = {offset: message for (number, offset), message in acked.items() if number == partition.partition}
        check_equal(ends[partition], max(offsets) + 1, "end offset")
        check_equal(consumer.committed(partition), max(offsets) + 1, "committed offset")
        first = min(offset for offset, message in offsets.items() if message[0] >= wanted)
        check_equal(by_time[partition].offset, first, "offset by time")
    consumer.close()


def check_deletion(bootstrap, admin, acked):
    """Deletes the older half of each partition, then the rest of the last one."""
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    ends = {partition: 1 + max(o for (n, o) in acked if n == partition.partition) for partition in partitions}
    wanted = {partition: end // 2 for partition, end in ends.items()}
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    for starts, targets in ((wanted, wanted), (wanted | {partitions[-1]: ends[partitions[-1]]}, {partitions[-1]: -1})):
        answer = admin.delete_records(targets)
        low = {partition: row["low_watermark"] for partition, row in answer.items()}
        check_equal(low, {partition: starts[partition] for partition in targets}, "low watermarks")
        check_equal(consumer.beginning_offsets(partitions), starts, "beginning offsets")
        check_equal(consumer.end_offsets(partitions), ends, "end offsets after deletion")
        kept = {place: message for place, message in acked.items() if place[1] >= starts[TopicPartition(TOPIC, place[0])]}
        check_equal(consume(bootstrap, len(kept)), kept, "messages left")
    consumer.close()
    try:
        admin.delete_records({partitions[0]: ends[partitions[0]] + 1})
    except OffsetOutOfRangeError:
        return
    check(False, "records beyond the end were deleted")


def checks(broker):
    admin = KafkaAdminClient(bootstrap_servers=broker.kafka)
    admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
    acked = produce(broker.kafka)
    check_equal(len(acked), len(CODECS) * 2 * MESSAGES_PER_PRODUCER, "messages acknowledged")
    for state in ("hot", "cold"):
        check_equal(consume(broker.kafka, len(acked)), acked, f"messages read {state}")
        check_equal(consume(broker.kafka, len(acked), "kafka-python" if state == "hot" else "again"), acked, "by group")
        check_places(broker.kafka, acked)
        say(f"  {state}: {len(acked)} messages")
        broker.archive(TOPIC)
    check("kafka-python" in {group["group_id"] for group in admin.list_groups()}, "the group is not listed")
    check_deletion(broker.kafka, admin, acked)
    say("  records deleted")
    admin.delete_topics([TOPIC])
    admin.close()


if __name__ == "__main__":
    sys.exit(check_broker("kafka-python", arguments(__doc__).parse_args(), checks))
