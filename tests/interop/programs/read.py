"""Reads partitions with one of the Python clients: `read.py CLIENT ORDER`, see ../gaps.py for the order and the answer."""

import asyncio
import json
import sys
import threading

POLL_SECONDS = 0.2

stopped = threading.Event()


def watch_stdin():
    sys.stdin.read()
    stopped.set()


def tell(partition, offset, key, value):
    print(json.dumps([partition, offset, key.decode(), len(value)]), flush=True)


def with_confluent(order):
    import confluent_kafka

    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": order["bootstrap"],
            "group.id": order["group"],
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "max.partition.fetch.bytes": order["max_bytes"],
        }
    )
    consumer.assign([confluent_kafka.TopicPartition(order["topic"], int(p), o) for p, o in order["starts"].items()])
    while not stopped.is_set():
        message = consumer.poll(POLL_SECONDS)
        if message is not None:
            if message.error():
                raise SystemExit(f"confluent-kafka: {message.error()}")
            tell(message.partition(), message.offset(), message.key(), message.value())
    consumer.close()


def with_kafka_python(order):
    import kafka

    consumer = kafka.KafkaConsumer(
        bootstrap_servers=order["bootstrap"],
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_partition_fetch_bytes=order["max_bytes"],
    )
    partitions = {kafka.TopicPartition(order["topic"], int(p)): o for p, o in order["starts"].items()}
    consumer.assign(list(partitions))
    for partition, offset in partitions.items():
        consumer.seek(partition, offset)
    while not stopped.is_set():
        for messages in consumer.poll(timeout_ms=int(POLL_SECONDS * 1000)).values():
            for message in messages:
                tell(message.partition, message.offset, message.key, message.value)
    consumer.close()


def with_aiokafka(order):
    import aiokafka

    async def read():
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=order["bootstrap"],
            enable_auto_commit=False,
            isolation_level="read_committed",
            max_partition_fetch_bytes=order["max_bytes"],
        )
        await consumer.start()
        partitions = {aiokafka.TopicPartition(order["topic"], int(p)): o for p, o in order["starts"].items()}
        consumer.assign(list(partitions))
        for partition, offset in partitions.items():
            consumer.seek(partition, offset)
        while not stopped.is_set():
            batches = await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000))
            for messages in batches.values():
                for message in messages:
                    tell(message.partition, message.offset, message.key, message.value)
        await consumer.stop()

    asyncio.run(read())


CLIENTS = {"confluent-kafka": with_confluent, "kafka-python": with_kafka_python, "aiokafka": with_aiokafka}

if __name__ == "__main__":
    threading.Thread(target=watch_stdin, daemon=True).start()
    CLIENTS[sys.argv[1]](json.loads(sys.argv[2]))
