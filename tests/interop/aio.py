"""aiokafka: every codec, idempotence, a group of two members, times and places, the admin client, hot and cold."""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import TopicAlreadyExistsError, for_code

from harness import PROMPT_GROUPS, STEP_SECONDS, arguments, check, check_broker, check_equal, say

TOPIC, GROUP = "aiokafka", "aiokafka-group"
PARTITIONS = 4
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]
MESSAGES_PER_PRODUCER = 100
FIRST_TIMESTAMP = 1_500_000_000_000
HEADERS = [("trace", b"1"), ("trace", b""), ("other", b"\xff")]


async def produce(bootstrap):
    """One producer for each codec, with and without idempotence; returns what was acknowledged, by place."""
    acked, number = {}, 0
    for codec in CODECS:
        for idempotent in (False, True):
            async with AIOKafkaProducer(
                bootstrap_servers=bootstrap, compression_type=codec, enable_idempotence=idempotent, acks="all"
            ) as producer:
                sent = []
                for _ in range(MESSAGES_PER_PRODUCER):
                    key, value, timestamp = str(number).encode(), f"{codec} {number} ".encode() * 5, FIRST_TIMESTAMP + number
                    place = {"partition": number % PARTITIONS, "timestamp_ms": timestamp, "headers": HEADERS}
                    sent.append((await producer.send(TOPIC, value, key, **place), (timestamp, key, value)))
                    number += 1
                for future, message in sent:
                    place = await future
                    acked[place.partition, place.offset] = message
    return acked


async def read_group(bootstrap, acked, group):
    """Reads everything through two members of a group and commits; returns how many messages each had."""
    found, shares = {}, []
    complete = asyncio.Event()

    async def member(name):
        consumer = AIOKafkaConsumer(
            TOPIC,
            bootstrap_servers=bootstrap,
            group_id=group,
            client_id=name,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            partition_assignment_strategy=(StickyPartitionAssignor,),
        )
        await consumer.start()
        while len(consumer.assignment()) != PARTITIONS // 2:
            await asyncio.sleep(0.05)
        both.append(name)
        while len(both) < 2:
            await asyncio.sleep(0.05)
        count = 0
        while not complete.is_set():
            for messages in (await consumer.getmany(timeout_ms=100)).values():
                for message in messages:
                    place = (message.partition, message.offset)
                    check(place not in found, f"{place} came twice")
                    check_equal(list(message.headers), HEADERS, "headers")
                    found[place] = (message.timestamp, message.key, message.value)
                    count += 1
            if len(found) == len(acked):
                complete.set()
        await consumer.commit()
        committed.append(name)
        # Who leaves earlier makes the other one join again, and have nothing to commit.
        while len(committed) < 2:
            await asyncio.sleep(0.05)
        await consumer.stop()
        shares.append(count)

    both, committed = [], []
    await asyncio.wait_for(asyncio.gather(member("one"), member("two")), STEP_SECONDS)
    check_equal(found, acked, f"messages read by {group}")
    return shares


async def check_places(bootstrap, acked, group):
    """Ends, committed offsets, offsets by time, and a read that begins within a batch."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    wanted = FIRST_TIMESTAMP + len(acked) // 2
    by_time = await consumer.offsets_for_times(dict.fromkeys(partitions, wanted))
    ends = await consumer.end_offsets(partitions)
    consumer.assign(partitions)
    for partition in partitions:
        offsets = {offset: message for (number, offset), message in acked.items() if number == partition.partition}
        check_equal(ends[partition], max(offsets) + 1, "end offset")
        check_equal(await consumer.committed(partition), max(offsets) + 1, "committed offset")
        first = min(offset for offset, message in offsets.items() if message[0] >= wanted)
        check_equal(by_time[partition].offset, first, "offset by time")
        consumer.seek(partition, first + 1)
        message = await asyncio.wait_for(consumer.getone(partition), STEP_SECONDS)
        check_equal((message.offset, message.value), (first + 1, offsets[first + 1][2]), "message after a seek")
    await consumer.stop()


async def check_admin(bootstrap):
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    check(GROUP in {group[0] for group in await admin.list_consumer_groups()}, "the group is not listed")
    offsets = await admin.list_consumer_group_offsets(GROUP)
    check_equal(len(offsets), PARTITIONS, "partitions with committed offsets")
    answer = await admin.create_topics([NewTopic(TOPIC, 1, 1)])
    check_equal(for_code(answer.topic_errors[0][1]), TopicAlreadyExistsError, "creating it again")
    (topic,) = await admin.describe_topics([TOPIC])
    check_equal(len(topic["partitions"]), PARTITIONS, "partitions described")
    await admin.delete_topics([TOPIC])
    check(TOPIC not in await admin.list_topics(), "the deleted topic is listed")
    await admin.close()


async def all_checks(broker):
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.kafka)
    await admin.start()
    await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
    await admin.close()
    acked = await produce(broker.kafka)
    check_equal(len(acked), len(CODECS) * 2 * MESSAGES_PER_PRODUCER, "messages acknowledged")
    for state, group in (("hot", GROUP), ("cold", f"{GROUP}-again")):
        shares = await read_group(broker.kafka, acked, group)
        check(all(shares), f"one member had all {len(acked)} messages")
        await check_places(broker.kafka, acked, group)
        say(f"  {state}: {len(acked)} messages")
        broker.archive(TOPIC)
    await check_admin(broker.kafka)
    say("  admin")


def checks(broker):
    asyncio.run(all_checks(broker))


if __name__ == "__main__":
    sys.exit(check_broker("aiokafka", arguments(__doc__).parse_args(), checks, PROMPT_GROUPS))
