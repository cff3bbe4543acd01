"""Kafka's Java client and its command line tools."""

import re
import subprocess
import sys

import toolchains
from harness import PROMPT_GROUPS, STEP_SECONDS, arguments, check, check_broker, check_equal, say

TOPIC, GROUP = "tools", "tools-group"
PARTITIONS = 3
MESSAGES = 200
# The client has limits for its own steps, which together take less.
CLIENT_SECONDS = 600
TOOLS = "org.apache.kafka.tools"


class Java:
    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        # The first tier of the compiler alone: these programs are over before the second pays.
        self.command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{toolchains.java_jars()}/*"]

    def run(self, *arguments, text=None, seconds=STEP_SECONDS):
        """What it prints."""
        command = self.command + [str(argument) for argument in arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
        check(done.returncode == 0, f"{' '.join(command[4:])} exits {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def tool(self, name, *arguments, text=None):
        return self.run(f"{TOOLS}.{name}", "--bootstrap-server", self.bootstrap, *arguments, text=text)


def check_topics(java):
    java.tool("TopicCommand", "--create", "--topic", TOPIC, "--partitions", PARTITIONS, "--config", "segment.bytes=1048576")
    check_equal(TOPIC in java.tool("TopicCommand", "--list").split(), True, "the topic is listed")
    described = java.tool("TopicCommand", "--describe", "--topic", TOPIC)
    check(f"PartitionCount: {PARTITIONS}" in described and "segment.bytes=1048576" in described, f"described: {described}")


def check_messages(java):
    lines = [f"k{number}\tmessage {number}" for number in range(MESSAGES)]
    java.tool("ConsoleProducer", "--topic", TOPIC, "--property", "parse.key=true", text="\n".join(lines) + "\n")
    offsets = java.tool("GetOffsetShell", "--topic", TOPIC)
    ends = [int(end) for end in re.findall(rf"^{TOPIC}:\d+:(\d+)$", offsets, re.MULTILINE)]
    check_equal(sum(ends), MESSAGES, f"messages by offset, of {offsets!r}")
    consumed = java.tool(
        "consumer.ConsoleConsumer",
        *("--topic", TOPIC, "--group", GROUP, "--from-beginning", "--max-messages", MESSAGES),
        *("--property", "print.key=true", "--timeout-ms", STEP_SECONDS * 1000 // 2),
    )
    check_equal(sorted(consumed.splitlines()), sorted(lines), "messages consumed")
    return ends


def check_groups(java, ends):
    command = "consumer.group.ConsumerGroupCommand"
    check_equal(GROUP in java.tool(command, "--list").split(), True, "the group is listed")
    described = java.tool(command, "--describe", "--group", GROUP)
    lags = re.findall(rf"^{GROUP}\s+{TOPIC}\s+\d+\s+(\d+)\s+(\d+)\s+(\d+)", described, re.MULTILINE)
    check_equal(sorted(lags), sorted((f"{end}", f"{end}", "0") for end in ends), f"lags, of {described!r}")
    reset = ("--reset-offsets", "--group", GROUP, "--topic", TOPIC, "--to-offset", 1, "--execute")
    java.tool(command, *reset)
    described = java.tool(command, "--describe", "--group", GROUP)
    check_equal(len(re.findall(rf"^{GROUP}\s+{TOPIC}\s+\d+\s+1\s", described, re.MULTILINE)), PARTITIONS, "offsets reset")


def check_records_deleted(java, scratch):
    orders = scratch / "delete.json"
    partitions = ", ".join(f'{{"topic": "{TOPIC}", "partition": {n}, "offset": 2}}' for n in range(PARTITIONS))
    orders.write_text(f'{{"partitions": [{partitions}], "version": 1}}')
    answer = java.tool("DeleteRecordsCommand", "--offset-json-file", orders)
    check_equal(answer.count("low_watermark: 2"), PARTITIONS, f"low watermarks, of {answer!r}")


def check_compatibility(java):
    """Kafka's own test of what a client may expect of a broker."""
    versions = java.tool("BrokerApiVersionsCommand")
    for api in ("Produce(0)", "Fetch(1)", "ListOffsets(2)", "Metadata(3)", "JoinGroup(11)", "InitProducerId(22)"):
        check(re.search(rf"{re.escape(api)}: \d+ to \d+ \[usable: \d+\]", versions), f"{api} is not usable: {versions}")
    supported = [
        "--offsets-for-times-supported",
        "--cluster-id-supported",
        "--expect-record-too-large-exception",
        "--create-topics-supported",
        "--describe-acls-supported",
        "--describe-configs-supported",
        "--idempotent-producer-supported",
    ]
    truth = {"--expect-record-too-large-exception": "false"}
    flags = [word for name in supported for word in (name, truth.get(name, "true"))]
    java.tool("ClientCompatibilityTest", "--topic", f"{TOPIC}-compatibility", "--num-cluster-nodes", 1, *flags)


def checks(broker):
    java = Java(broker.kafka)
    client = java.run(toolchains.PROGRAMS / "java" / "Checks.java", broker.kafka, seconds=CLIENT_SECONDS)
    for line in client.splitlines():
        say(f"  client: {line}")
    check_topics(java)
    check_groups(java, check_messages(java))
    check_records_deleted(java, broker.folder)
    check_compatibility(java)
    java.tool("TopicCommand", "--delete", "--topic", TOPIC)
    say("  command line tools")


if __name__ == "__main__":
    sys.exit(check_broker("java", arguments(__doc__).parse_args(), checks, PROMPT_GROUPS))
