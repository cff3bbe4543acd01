// Reads partitions with the Java client: `java -cp 'jars/*' Read.java ORDER`, see ../../gaps.py for the order and the
// answer.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

public class Read {
    private static final Duration POLL = Duration.ofMillis(200);

    public static void main(String[] arguments) throws Exception {
        ObjectMapper json = new ObjectMapper();
        JsonNode order = json.readTree(arguments[0]);
        Map<TopicPartition, Long> starts = new TreeMap<>((one, other) -> one.partition() - other.partition());
        order.get("starts").fields().forEachRemaining(start -> starts.put(
            new TopicPartition(order.get("topic").asText(), Integer.parseInt(start.getKey())),
            start.getValue().asLong()));

        AtomicBoolean stopped = new AtomicBoolean();
        Thread watch = new Thread(() -> {
            try {
                System.in.readAllBytes();
            } catch (java.io.IOException closed) {
                // The same as the end of it.
            }
            stopped.set(true);
        });
        watch.setDaemon(true);
        watch.start();

        Map<String, Object> settings = Map.of(
            "bootstrap.servers", order.get("bootstrap").asText(),
            "enable.auto.commit", false,
            "isolation.level", "read_committed",
            "max.partition.fetch.bytes", order.get("max_bytes").asInt());
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(starts.keySet());
            starts.forEach(consumer::seek);
            while (!stopped.get()) {
                for (ConsumerRecord<String, byte[]> record : consumer.poll(POLL)) {
                    System.out.println(json.writeValueAsString(
                        List.of(record.partition(), record.offset(), record.key(), record.value().length)));
                }
            }
        }
    }
}
