// The Java client: `java -cp 'jars/*' Checks.java BOOTSTRAP`. Every codec, a group that rebalances cooperatively, the
// admin client. What is not as it should be is an exception.

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.CooperativeStickyAssignor;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.OffsetOutOfRangeException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Checks {
    private static final String TOPIC = "java", GROUP = "java-group";
    private static final int PARTITIONS = 6, PER_CODEC = 120;
    private static final List<String> CODECS = List.of("none", "gzip", "snappy", "lz4", "zstd");
    private static final long FIRST_TIMESTAMP = 1_500_000_000_000L;
    private static final Duration POLL = Duration.ofMillis(100), WAIT = Duration.ofSeconds(60);

    private final String bootstrap;
    // What was acknowledged, by place.
    private final Map<TopicPartition, TreeMap<Long, String>> acked = new HashMap<>();

    private Checks(String bootstrap) {
        this.bootstrap = bootstrap;
    }

    private static void equal(Object found, Object wanted, String what) {
        if (!wanted.equals(found)) {
            throw new AssertionError(what + ": found " + found + ", wanted " + wanted);
        }
    }

    private static <T> T get(Future<T> future) throws Exception {
        return future.get(WAIT.toSeconds(), TimeUnit.SECONDS);
    }

    private static void refused(Class<? extends Exception> wanted, Future<?> future) throws Exception {
        try {
            get(future);
        } catch (ExecutionException refusal) {
            equal(refusal.getCause().getClass(), wanted, "refused with");
            return;
        }
        throw new AssertionError("taken, wanted " + wanted);
    }

    private int ackedCount() {
        return acked.values().stream().mapToInt(Map::size).sum();
    }

    private void produce() throws Exception {
        for (String codec : CODECS) {
            Map<String, Object> settings =
                Map.of("bootstrap.servers", bootstrap, "compression.type", codec, "linger.ms", 5);
            try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
                List<Future<RecordMetadata>> sent = new ArrayList<>();
                List<String> values = new ArrayList<>();
                for (int i = 0; i < PER_CODEC; i++) {
                    int number = ackedCount() + i;
                    String value = (codec + " " + number + " ").repeat(5);
                    var record = new ProducerRecord<>(
                        TOPIC, number % PARTITIONS, FIRST_TIMESTAMP + number, "" + number, value);
                    record.headers().add("trace", "1".getBytes(StandardCharsets.UTF_8)).add("trace", null);
                    sent.add(producer.send(record));
                    values.add(value);
                }
                for (int i = 0; i < sent.size(); i++) {
                    RecordMetadata place = get(sent.get(i));
                    var partition = new TopicPartition(place.topic(), place.partition());
                    acked.computeIfAbsent(partition, one -> new TreeMap<>()).put(place.offset(), values.get(i));
                }
            }
        }
    }

    /** A consumer of the group, and what it was given and had taken. */
    private class Member implements ConsumerRebalanceListener, AutoCloseable {
        final KafkaConsumer<String, String> consumer;
        final Set<TopicPartition> owned = new HashSet<>(), revoked = new HashSet<>();
        final Map<TopicPartition, TreeMap<Long, String>> seen = new HashMap<>();

        Member(String name) {
            consumer = new KafkaConsumer<>(
                Map.of(
                    "bootstrap.servers", bootstrap,
                    "group.id", GROUP,
                    "client.id", name,
                    "partition.assignment.strategy", CooperativeStickyAssignor.class.getName(),
                    "auto.offset.reset", "earliest",
                    "enable.auto.commit", false,
                    "heartbeat.interval.ms", 500),
                new StringDeserializer(),
                new StringDeserializer());
            consumer.subscribe(List.of(TOPIC), this);
        }

        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
            owned.addAll(partitions);
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
            owned.removeAll(partitions);
            revoked.addAll(partitions);
        }

        void poll() {
            var records = consumer.poll(POLL);
            for (ConsumerRecord<String, String> record : records) {
                var partition = new TopicPartition(record.topic(), record.partition());
                String before = seen.computeIfAbsent(partition, one -> new TreeMap<>()).put(record.offset(), record.value());
                equal(before == null, true, partition + " at " + record.offset() + " came once");
                equal(record.headers().toArray().length, 2, "headers");
                equal(record.timestamp(), FIRST_TIMESTAMP + Long.parseLong(record.key()), "timestamp");
            }
            if (!records.isEmpty()) {
                consumer.commitSync();
            }
        }

        int seenCount() {
            return seen.values().stream().mapToInt(Map::size).sum();
        }

        @Override
        public void close() {
            consumer.close();
        }
    }

    private static void settle(List<Member> members) {
        Instant deadline = Instant.now().plus(WAIT);
        while (members.stream().anyMatch(member -> member.owned.size() != PARTITIONS / members.size())) {
            equal(Instant.now().isBefore(deadline), true, members.size() + " members settle in time");
            members.forEach(Member::poll);
        }
    }

    private void readAll(Member... members) {
        Instant deadline = Instant.now().plus(WAIT);
        while (Stream.of(members).mapToInt(Member::seenCount).sum() < ackedCount()) {
            equal(Instant.now().isBefore(deadline), true, "all messages come in time");
            Stream.of(members).forEach(Member::poll);
        }
    }

    private void group() throws Exception {
        try (Member first = new Member("first")) {
            settle(List.of(first));
            // Nothing is left to be read, and so to be committed, while the members join.
            readAll(first);
            try (Member second = new Member("second")) {
                settle(List.of(first, second));
                equal(first.revoked.size(), PARTITIONS / 2, "partitions taken from the first member");
                produce();
                readAll(first, second);
                Map<TopicPartition, TreeMap<Long, String>> seen = new HashMap<>(first.seen);
                second.seen.forEach((partition, messages) -> seen.merge(partition, messages, (one, other) -> {
                    var both = new TreeMap<>(one);
                    both.putAll(other);
                    return both;
                }));
                equal(seen, acked, "messages of both members");
                equal(first.seenCount() + second.seenCount(), ackedCount(), "messages that came to both");
            }
            settle(List.of(first));
        }
    }

    private void admin(Admin admin) throws Exception {
        Map<TopicPartition, Long> ends = acked.entrySet().stream()
            .collect(Collectors.toMap(Map.Entry::getKey, entry -> entry.getValue().lastKey() + 1));
        Set<TopicPartition> partitions = ends.keySet();
        for (TopicPartition partition : partitions) {
            var listed = admin.listOffsets(Map.of(partition, OffsetSpec.latest()));
            equal(get(listed.partitionResult(partition)).offset(), ends.get(partition), "end of " + partition);
        }
        var listed = get(admin.listGroups().all()).stream().map(group -> group.groupId()).toList();
        equal(listed.contains(GROUP), true, "the group is listed");
        var described = get(admin.describeConsumerGroups(List.of(GROUP)).all()).get(GROUP);
        equal(described.groupState(), GroupState.EMPTY, "state of the group");
        Map<TopicPartition, OffsetAndMetadata> committed =
            get(admin.listConsumerGroupOffsets(GROUP).partitionsToOffsetAndMetadata());
        for (TopicPartition partition : partitions) {
            equal(committed.get(partition).offset(), ends.get(partition), "committed offset of " + partition);
        }
        var moved = Map.of(new TopicPartition(TOPIC, 0), new OffsetAndMetadata(3, "note"));
        get(admin.alterConsumerGroupOffsets(GROUP, moved).all());
        committed = get(admin.listConsumerGroupOffsets(GROUP).partitionsToOffsetAndMetadata());
        equal(committed.get(new TopicPartition(TOPIC, 0)).metadata(), "note", "metadata of a committed offset");

        var resource = new ConfigResource(ConfigResource.Type.TOPIC, TOPIC);
        var set = new AlterConfigOp(new ConfigEntry("max.message.bytes", "500000"), AlterConfigOp.OpType.SET);
        get(admin.incrementalAlterConfigs(Map.of(resource, List.of(set))).all());
        var config = get(admin.describeConfigs(List.of(resource)).all()).get(resource);
        equal(config.get("max.message.bytes").value(), "500000", "a setting");
        equal(
            config.get("max.message.bytes").source(),
            ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG,
            "source of a setting");

        equal(get(admin.describeTopics(List.of(TOPIC)).allTopicNames()).get(TOPIC).partitions().size(), PARTITIONS,
            "partitions described");
        equal(get(admin.describeCluster().nodes()).size(), 1, "brokers");
        var first = new TopicPartition(TOPIC, 0);
        var deleted = admin.deleteRecords(Map.of(first, RecordsToDelete.beforeOffset(10)));
        equal(get(deleted.lowWatermarks().get(first)).lowWatermark(), 10L, "low watermark");
        var beyond = admin.deleteRecords(Map.of(first, RecordsToDelete.beforeOffset(ends.get(first) + 1)));
        refused(OffsetOutOfRangeException.class, beyond.all());
        refused(TopicExistsException.class, admin.createTopics(List.of(new NewTopic(TOPIC, 1, (short) 1))).all());
        get(admin.deleteTopics(List.of(TOPIC)).all());
        refused(UnknownTopicOrPartitionException.class, admin.deleteTopics(List.of(TOPIC)).all());
    }

    public static void main(String[] arguments) throws Exception {
        Checks checks = new Checks(arguments[0]);
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", (Object) arguments[0]))) {
            get(admin.createTopics(List.of(new NewTopic(TOPIC, PARTITIONS, (short) 1))).all());
            checks.produce();
            checks.group();
            System.out.println("group: " + checks.ackedCount() + " messages");
            checks.admin(admin);
            System.out.println("admin");
        }
    }
}
