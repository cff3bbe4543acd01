"""Transactions with three clients that share no code: messages moved from one topic to another exactly once, with some
transactions aborted and made again; fencing; what an open transaction hides; what its timeout does."""

import asyncio
import sys

import aiokafka
import confluent_kafka
import kafka

from harness import PROMPT_GROUPS, STEP_SECONDS, arguments, check, check_broker, check_equal, say, wait_for

PARTITIONS = 3
MESSAGES = 300
PER_TRANSACTION = 20
READ_SECONDS = 60
# Ends while somebody waits, and long enough for a message to be delivered within it.
SHORT_TIMEOUT_MS = 5000


def topics_of(client):
    return f"{client}-in", f"{client}-out"


def fill(bootstrap, topic):
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap})
    for number in range(MESSAGES):
        producer.produce(topic, str(number).encode(), partition=number % PARTITIONS)
    check_equal(producer.flush(STEP_SECONDS), 0, "messages that were not delivered")


def aborts(attempt):
    """Every third transaction is aborted, after a flush: clients drop what they have not sent when they abort."""
    return attempt % 3 == 1


def move_with_confluent(bootstrap, source, target):
    group = {"group.id": source, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = confluent_kafka.Consumer({"bootstrap.servers": bootstrap} | group)
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "transactional.id": target})
    producer.init_transactions(STEP_SECONDS)
    consumer.subscribe([source])
    moved, attempt = 0, 0
    while moved < MESSAGES:
        messages = consumer.consume(PER_TRANSACTION, READ_SECONDS)
        check(messages and not any(message.error() for message in messages), f"nothing more after {moved} messages")
        positions = consumer.position(consumer.assignment())
        producer.begin_transaction()
        for message in messages:
            producer.produce(target, message.value(), partition=message.partition())
        producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), STEP_SECONDS)
        if aborts(attempt):
            check_equal(producer.flush(STEP_SECONDS), 0, "messages that were not delivered")
            producer.abort_transaction(STEP_SECONDS)
            first = {}
            for message in messages:
                first.setdefault(message.partition(), message.offset())
            for partition, offset in first.items():
                consumer.seek(confluent_kafka.TopicPartition(source, partition, offset))
        else:
            producer.commit_transaction(STEP_SECONDS)
            moved += len(messages)
        attempt += 1
    consumer.close()


def move_with_kafka_python(bootstrap, source, target):
    consumer = kafka.KafkaConsumer(
        source,
        bootstrap_servers=bootstrap,
        group_id=source,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=PER_TRANSACTION,
    )
    producer = kafka.KafkaProducer(bootstrap_servers=bootstrap, transactional_id=target)
    producer.init_transactions()
    moved, attempt = 0, 0
    while moved < MESSAGES:
        polled = consumer.poll(timeout_ms=READ_SECONDS * 1000)
        check(polled, f"nothing more after {moved} messages")
        producer.begin_transaction()
        for partition, messages in polled.items():
            for message in messages:
                producer.send(target, message.value, partition=partition.partition)
        positions = {p: kafka.OffsetAndMetadata(m[-1].offset + 1, "", -1) for p, m in polled.items()}
        producer.send_offsets_to_transaction(positions, consumer.group_metadata())
        if aborts(attempt):
            producer.flush()
            producer.abort_transaction()
            for partition, messages in polled.items():
                consumer.seek(partition, messages[0].offset)
        else:
            producer.commit_transaction()
            moved += sum(map(len, polled.values()))
        attempt += 1
    producer.close()
    consumer.close()


def move_with_aiokafka(bootstrap, source, target):
    async def move():
        consumer = aiokafka.AIOKafkaConsumer(
            source,
            bootstrap_servers=bootstrap,
            group_id=source,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=target)
        async with consumer, producer:
            moved, attempt = 0, 0
            while moved < MESSAGES:
                polled = await consumer.getmany(timeout_ms=READ_SECONDS * 1000, max_records=PER_TRANSACTION)
                check(polled, f"nothing more after {moved} messages")
                await producer.begin_transaction()
                for partition, messages in polled.items():
                    for message in messages:
                        await producer.send(target, message.value, partition=partition.partition)
                positions = {partition: messages[-1].offset + 1 for partition, messages in polled.items()}
                await producer.send_offsets_to_transaction(positions, source)
                if aborts(attempt):
                    await producer.flush()
                    await producer.abort_transaction()
                    for partition, messages in polled.items():
                        consumer.seek(partition, messages[0].offset)
                else:
                    await producer.commit_transaction()
                    moved += sum(map(len, polled.values()))
                attempt += 1

    asyncio.run(move())


MOVERS = {
    "confluent-kafka": move_with_confluent,
    "kafka-python": move_with_kafka_python,
    "aiokafka": move_with_aiokafka,
}


def read(bootstrap, topic, isolation, settings=None):
    """Everything there is to read at that isolation, up to where each partition ends for it."""
    common = {
        "bootstrap.servers": bootstrap,
        "group.id": f"{topic}-{isolation}",
        "isolation.level": isolation,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    }
    consumer = confluent_kafka.Consumer(common | (settings or {}))
    begin = confluent_kafka.OFFSET_BEGINNING
    consumer.assign([confluent_kafka.TopicPartition(topic, number, begin) for number in range(PARTITIONS)])
    values, ended = [], set()
    while len(ended) < PARTITIONS:
        message = consumer.poll(READ_SECONDS)
        check(message is not None, f"{topic}: silent after {len(values)} messages, ended are {ended}")
        if message.error() is None:
            values.append(message.value())
        else:
            check_equal(message.error().code(), confluent_kafka.KafkaError._PARTITION_EOF, "error")
            ended.add(message.partition())
    consumer.close()
    return values


def metric(broker, name):
    with broker.request("GET", "/metrics") as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def wait_ended(broker):
    """Until all is written of transactions that have ended: a client hears as soon as the decision is durable."""
    wait_for("the ends of transactions", STEP_SECONDS, lambda: metric(broker, "thermocline_open_transactions") == 0)


def committed(bootstrap, group):
    consumer = confluent_kafka.Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    partitions = [confluent_kafka.TopicPartition(group, number) for number in range(PARTITIONS)]
    offsets = [partition.offset for partition in consumer.committed(partitions, STEP_SECONDS)]
    consumer.close()
    return offsets


def check_moves(broker, client, move):
    source, target = topics_of(client)
    for topic in (source, target):
        broker.create_topic(topic, PARTITIONS)
    fill(broker.kafka, source)
    move(broker.kafka, source, target)
    wait_ended(broker)
    wanted = sorted(str(number).encode() for number in range(MESSAGES))
    check_equal(sorted(read(broker.kafka, target, "read_committed")), wanted, f"{client}: messages moved")
    everything = read(broker.kafka, target, "read_uncommitted")
    check(len(everything) > MESSAGES, f"{client}: no aborted message is there for those who read uncommitted")
    check_equal(committed(broker.kafka, source), [MESSAGES // PARTITIONS] * PARTITIONS, f"{client}: offsets committed")
    broker.archive(target)
    for isolation in ("read_committed", "read_uncommitted"):
        check_equal(sorted(read(broker.kafka, target, isolation)), wanted, f"{client}: messages archived, {isolation}")
    say(f"  {client}: {MESSAGES} messages moved, {len(everything) - MESSAGES} aborted")


def producer_of(bootstrap, name, settings=None):
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "transactional.id": name} | (settings or {}))
    producer.init_transactions(STEP_SECONDS)
    return producer


def end_of(bootstrap, topic, isolation):
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "ends", "isolation.level": isolation}
    )
    end = consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, 0), STEP_SECONDS)[1]
    consumer.close()
    return end


def check_fencing(broker):
    """A second producer of the same id ends what the first one had begun, and the first one hears of it."""
    broker.create_topic("fenced", PARTITIONS)
    first = producer_of(broker.kafka, "fenced")
    first.begin_transaction()
    first.produce("fenced", b"lost", partition=0)
    check_equal(first.flush(STEP_SECONDS), 0, "messages that were not delivered")
    second = producer_of(broker.kafka, "fenced")
    try:
        first.commit_transaction(STEP_SECONDS)
    except confluent_kafka.KafkaException as error:
        check(error.args[0].fatal(), f"the fenced producer's commit is refused with {error}, which is not fatal")
    else:
        check(False, "the fenced producer has committed")
    second.begin_transaction()
    second.produce("fenced", b"kept", partition=0)
    second.commit_transaction(STEP_SECONDS)
    wait_ended(broker)
    check_equal(read(broker.kafka, "fenced", "read_committed"), [b"kept"], "messages after the fencing")
    say("  fencing")


def check_open(broker):
    """Nothing after an open transaction is there for those who read committed, until its timeout aborts it."""
    broker.create_topic("open", PARTITIONS)
    hanging = producer_of(broker.kafka, "hanging", {"transaction.timeout.ms": 60_000})
    hanging.begin_transaction()
    hanging.produce("open", b"hanging", partition=0)
    check_equal(hanging.flush(STEP_SECONDS), 0, "messages that were not delivered")
    plain = confluent_kafka.Producer({"bootstrap.servers": broker.kafka})
    plain.produce("open", b"behind", partition=0)
    check_equal(plain.flush(STEP_SECONDS), 0, "messages that were not delivered")
    check_equal(end_of(broker.kafka, "open", "read_committed"), 0, "end of what is committed")
    check_equal(end_of(broker.kafka, "open", "read_uncommitted"), 2, "end of what is there")
    check_equal(read(broker.kafka, "open", "read_committed"), [], "messages behind an open transaction")
    check_equal(read(broker.kafka, "open", "read_uncommitted"), [b"hanging", b"behind"], "messages uncommitted")
    check_equal(metric(broker, "thermocline_open_transactions"), 1, "open transactions")
    check(metric(broker, "thermocline_oldest_transaction_seconds") > 0, "the open transaction has no age")
    hanging.commit_transaction(STEP_SECONDS)
    wait_ended(broker)
    check_equal(read(broker.kafka, "open", "read_committed"), [b"hanging", b"behind"], "messages after the commit")
    check_equal(metric(broker, "thermocline_oldest_transaction_seconds"), 0, "age of no transaction")

    late = producer_of(
        broker.kafka, "late", {"transaction.timeout.ms": SHORT_TIMEOUT_MS, "message.timeout.ms": SHORT_TIMEOUT_MS}
    )
    end = end_of(broker.kafka, "open", "read_uncommitted")
    late.begin_transaction()
    late.produce("open", b"late", partition=0, on_delivery=lambda error, _: check(error is None, f"late: {error}"))
    check_equal(late.flush(STEP_SECONDS), 0, "messages that were not delivered")
    wait_for(
        "the abort of a transaction that timed out",
        STEP_SECONDS,
        lambda: end_of(broker.kafka, "open", "read_committed") == end + len(["message", "marker"]),
    )
    check_equal(read(broker.kafka, "open", "read_committed"), [b"hanging", b"behind"], "messages after the timeout")
    try:
        late.commit_transaction(STEP_SECONDS)
    except confluent_kafka.KafkaException:
        pass
    else:
        check(False, "a transaction that timed out was committed")
    say("  open transactions")


def check_restart(broker):
    """What is open and what is aborted is known after a kill -9."""
    broker.create_topic("restart", PARTITIONS)
    producer = producer_of(broker.kafka, "restart")
    for value, commit in ((b"one", True), (b"two", False), (b"three", True)):
        producer.begin_transaction()
        producer.produce("restart", value, partition=0)
        (producer.commit_transaction if commit else producer.abort_transaction)(STEP_SECONDS)
    producer.begin_transaction()
    producer.produce("restart", b"four", partition=0)
    check_equal(producer.flush(STEP_SECONDS), 0, "messages that were not delivered")
    broker.kill()
    broker.start()
    check_equal(read(broker.kafka, "restart", "read_committed"), [b"one", b"three"], "messages after a kill")
    producer.commit_transaction(STEP_SECONDS)
    wait_ended(broker)
    check_equal(read(broker.kafka, "restart", "read_committed"), [b"one", b"three", b"four"], "messages committed then")
    say("  kill -9")


def checks(broker):
    for client, move in MOVERS.items():
        check_moves(broker, client, move)
    check_fencing(broker)
    check_open(broker)
    check_restart(broker)


if __name__ == "__main__":
    sys.exit(check_broker("transactions", arguments(__doc__).parse_args(), checks, PROMPT_GROUPS))
