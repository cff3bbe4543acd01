#!/bin/sh
# As Kafka's script of this name, which itself refuses the small segments that 0077 asks for.
exec "$THERMOCLINE_PYTHON" "$THERMOCLINE_TOPICS" "$@"
