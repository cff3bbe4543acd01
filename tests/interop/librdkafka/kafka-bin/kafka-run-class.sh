#!/bin/sh
# As Kafka's script of this name: runs a class of Kafka's jars, which lie beside this folder.
exec java -XX:TieredStopAtLevel=1 -cp "$CLASSPATH:$(dirname "$0")/../libs/*" "$@"
