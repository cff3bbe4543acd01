"""librdkafka's own tests against a broker.

    suite.py --broker BINARY [--tests 0030,0081] [--jobs N] [--quick]

Builds the tests (`build.py`), starts one broker per scenario and runs each test in a process of its own. `tests.allow`
names what must pass; a test that is not named there is run too, and said when it passes. FINDINGS.md says why each of
those is not named. Tests that never speak to a broker (marked local, or against librdkafka's mock) are counted, not
run.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from build import build, kafka_distribution  # noqa: E402
from harness import Broker, arguments, check, run_checks, say, started  # noqa: E402
from toolchains import cache_folder  # noqa: E402

# What the broker is taken for: like Kafka 4.0 it has neither magic 0 nor magic 1.
KAFKA_VERSION = "4.0.0"
# 0109 asks for kafka-acls.sh, and so for an authorizer, from every broker that could have one.
OLDER_VERSION = {"0109": "2.0.0"}
# Unmarked, and yet against the mock alone.
MOCK = {"0139_offset_validation_mock", "0150_telemetry_mock"}
# Run function by function: what one of them asks for and does not get would hide the others, and they take long.
SPLIT = {"0081_admin": "0081-admin.c", "0113_cooperative_rebalance": "0113-cooperative_rebalance.cpp"}
RUN_SECONDS = 420
JOBS = 6
# A test that fails is run again, alone: many measure time, and share the machine with the others.
ATTEMPTS = 3
REASON_LEN_MAX = 300
# As in librdkafka's own cluster setup.
TIMEOUT_MULTIPLIER = 2

BROKER = {
    "THERMOCLINE_BROKER__NUM_PARTITIONS": "4",
    "THERMOCLINE_BROKER__LENIENT_REPLICATION_FACTOR": "true",
    # Long enough for two consumers that start together to be in the first generation, which several tests count on.
    "THERMOCLINE_GROUPS__INITIAL_REBALANCE_DELAY": "1s",
}
SCENARIOS = {
    "default": BROKER | {"THERMOCLINE_BROKER__AUTO_CREATE_TOPICS_ENABLE": "true"},
    "noautocreate": BROKER | {"THERMOCLINE_BROKER__AUTO_CREATE_TOPICS_ENABLE": "false"},
}

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
FAILURE = re.compile(r'^### Test "(\w+).*? failed at (\S+) at .*\n(.*)$', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Test:
    """A row of the table in test.c, or one function of it."""

    name: str
    flags: frozenset
    scenario: str
    subtest: str = ""

    @property
    def number(self):
        return self.name.split("_")[0]

    @property
    def title(self):
        return f"{self.name}/{self.subtest}" if self.subtest else self.name

    @property
    def local(self):
        return "TEST_F_LOCAL" in self.flags or self.name in MOCK


@dataclasses.dataclass
class Result:
    state: str
    seconds: float
    reason: str


def all_tests(folder):
    """Every test of the runner that is not run by hand only."""
    table = (folder / "tests" / "test.c").read_text().split("struct test tests[] = {", 1)[1].split("{NULL}", 1)[0]
    tests = []
    for row in table.split("_TEST(")[1:]:
        scenarios = re.search(r'\.scenario\s*=\s*"([^"]*)"', row)
        scenario = scenarios.group(1).split(",")[0] if scenarios else "default"
        test = Test(row.split(",", 1)[0].strip(), frozenset(re.findall(r"TEST_F_\w+", row)), scenario)
        if "TEST_F_MANUAL" in test.flags:
            continue
        if test.name in SPLIT:
            code = (folder / "tests" / SPLIT[test.name]).read_text()
            tests += [dataclasses.replace(test, subtest=name) for name in subtests(code, test.name)]
        else:
            tests.append(test)
    check(len(tests) > 150, f"only {len(tests)} tests found in test.c: is the table still as it was?")
    return tests


def subtests(code, name):
    """The functions of a test that call themselves subtests, so that they can be chosen."""
    functions = dict(re.findall(r"^(?:static void|int)\s+(\w+)\([^;{]*\) {\n(.*?)^}", code, re.MULTILINE | re.DOTALL))
    callers = functions[f"main_{name}"] + "".join(
        body for function, body in functions.items() if "SUB_TEST" not in body and not function.startswith("main_")
    )
    return [function for function, body in functions.items() if "SUB_TEST" in body and f"{function}(" in callers]


def allowed_names():
    lines = (line.split("#")[0].strip() for line in (HERE / "tests.allow").read_text().splitlines())
    return [line for line in lines if line]


class Suite:
    def __init__(self, folder, scratch, logs, quick):
        self.folder, self.scratch, self.logs, self.quick = folder, scratch, logs, quick
        self.kafka = kafka_distribution(scratch / "kafka")
        self.brokers = {}

    def start(self, binary, children):
        for scenario, env in SCENARIOS.items():
            folder = self.scratch / scenario
            folder.mkdir()
            broker = started(Broker(binary, folder, env), children)
            (folder / "test.conf").write_text(
                f"bootstrap.servers={broker.kafka}\ntest.timeout.multiplier={TIMEOUT_MULTIPLIER}\n"
            )
            self.brokers[scenario] = broker

    def run(self, tests):
        """Runs the tests of one number and scenario, or one function; returns their results by title."""
        first = tests[0]
        broker = self.brokers[first.scenario]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.scratch),
            "LD_LIBRARY_PATH": f"{self.folder}/src:{self.folder}/src-cpp",
            "RDKAFKA_TEST_CONF": str(self.scratch / first.scenario / "test.conf"),
            "TEST_KAFKA_VERSION": OLDER_VERSION.get(first.number, KAFKA_VERSION),
            "TESTS": first.number,
            "BROKERS": broker.kafka,
            "KAFKA_PATH": str(self.kafka),
            "THERMOCLINE_PYTHON": sys.executable,
            "THERMOCLINE_TOPICS": str(HERE / "topics.py"),
        }
        if first.subtest:
            environment["SUBTESTS"] = f"{first.subtest}:"
        command = [str(self.folder / "tests" / "test-runner"), "-p1", "-L", "-s", first.scenario]
        command += ["-Q"] * self.quick + ["-k"] * ("TEST_F_KNOWN_ISSUE" in first.flags)
        log = self.logs / f"{first.title.replace('/', '.')}.log"
        written = self.scratch / f"{log.stem}.json"
        written.unlink(missing_ok=True)
        environment["TEST_REPORT"] = str(written)
        began = time.monotonic()
        with open(log, "wb") as output:
            try:
                subprocess.run(
                    command,
                    cwd=self.folder / "tests",
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=RUN_SECONDS,
                )
                ended = "ended without a report"
            except subprocess.TimeoutExpired:
                ended = f"still running after {RUN_SECONDS} s"
        missing = Result("FAILED", time.monotonic() - began, ended)
        said = COLOUR.sub("", log.read_text(errors="replace"))
        reasons = {name: f"{place}: {reason}" for name, place, reason in reversed(FAILURE.findall(said))}
        found = {}
        if written.exists():
            for name, row in json.loads(written.read_text(), strict=False)["tests"].items():
                found[name] = Result(row["state"], row["duration"], reasons.get(name, ""))
        if first.subtest and found.get(first.name, missing).state == "PASSED":
            if not re.search(rf"\[ {first.subtest}:.*: PASS", said):
                found[first.name] = Result("SKIPPED", 0.0, "this function leaves itself out")
        results = {test.title: found.get(test.name, missing) for test in tests}
        for title, result in results.items():
            say(f"  {title}: {result.state} in {result.seconds:.1f} s {result.reason[:REASON_LEN_MAX]}")
        return results

    def run_all(self, tests, jobs):
        groups = collections.defaultdict(list)
        for test in tests:
            groups[test.number, test.scenario, test.subtest].append(test)
        durations = Durations()
        order = sorted(groups.values(), key=durations.of, reverse=True)
        results = {}
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for answer in pool.map(self.run, order):
                results |= answer
        for group in order:
            durations.note(group, results)
        durations.save()
        return results


class Durations:
    """What each test took the last time, so that the longest begin first."""

    def __init__(self):
        self.path = cache_folder() / "librdkafka-durations.json"
        self.seconds = json.loads(self.path.read_text()) if self.path.exists() else {}

    def of(self, group):
        return sum(self.seconds.get(test.title, RUN_SECONDS) for test in group)

    def note(self, group, results):
        self.seconds |= {test.title: results[test.title].seconds for test in group}

    def save(self):
        self.path.write_text(json.dumps(self.seconds, indent=1, sort_keys=True))


def report(results, allowed, local):
    """Says what is not as `tests.allow` has it; whether all that is named there passed."""
    failed = [title for title in allowed if title in results and results[title].state != "PASSED"]
    for title in sorted(results):
        if results[title].state == "PASSED" and title not in allowed:
            say(f"  {title} passes and is not in tests.allow")
    states = collections.Counter(result.state for result in results.values())
    say(f"  {local} tests speak to no broker and were not run")
    say(f"  of {len(allowed)} that must pass, {len(failed)} did not: {', '.join(failed) or 'none'}")
    print(f"{states['PASSED']} passed, {len(failed)} failed, {len(results) - states['PASSED'] - len(failed)} skipped")
    return not failed


def main():
    parser = arguments(__doc__)
    parser.add_argument("--tests", default="", help="numbers of the tests to run, or none for all")
    parser.add_argument("--jobs", type=int, default=JOBS, help="how many run side by side")
    parser.add_argument("--quick", action="store_true", help="librdkafka's quick mode: less data, fewer functions")
    args = parser.parse_args()

    folder = build()
    logs = cache_folder() / "librdkafka-logs"
    logs.mkdir(exist_ok=True)
    tests = all_tests(folder)
    allowed = allowed_names()
    unknown = set(allowed) - {test.title for test in tests}

    def run(scratch, children):
        check(not unknown, f"tests.allow names tests that there are not: {', '.join(sorted(unknown))}")
        remote = [test for test in tests if not test.local]
        numbers = args.tests.split(",") if args.tests else []
        chosen = [test for test in remote if not numbers or test.number in numbers or test.title in numbers]
        suite = Suite(folder, scratch, logs, args.quick)
        suite.start(args.broker, children)
        results = suite.run_all(chosen, args.jobs)
        again = [test for test in chosen if test.title in allowed and results[test.title].state != "PASSED"]
        for _ in range(1, ATTEMPTS):
            for test in again:
                say(f"  {test.title}: once more, alone")
            results |= suite.run_all(again, 1)
            again = [test for test in again if results[test.title].state != "PASSED"]
        for scenario, broker in suite.brokers.items():
            broker.stop()
            shutil.copy(broker.log_path, logs / f"broker-{scenario}.log")
        check(report(results, allowed, len(tests) - len(remote)), f"see the logs in {logs}")
        say("passed")

    return run_checks("librdkafka", run)


if __name__ == "__main__":
    sys.exit(main())
