#!/bin/sh
# As Kafka's script of this name.
exec "$(dirname "$0")/kafka-run-class.sh" org.apache.kafka.tools.TopicCommand "$@"
