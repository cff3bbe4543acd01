#!/bin/sh
# As Kafka's script of this name: runs a class of Kafka's jars.
exec java -XX:TieredStopAtLevel=1 -cp "$CLASSPATH:$KAFKA_PATH/libs/*" "$@"
