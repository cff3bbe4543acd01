"""A broker and an S3 server as child processes, and what the checks share. Every wait here has an end."""

import argparse
import collections
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import zstandard

START_SECONDS = 60
STOP_SECONDS = 60
STEP_SECONDS = 120
POLL_SECONDS = 0.05
LOG_TAIL_BYTES = 8000
# As in tests/support/s3.rs.
S3_ACCESS_KEY = "thermocline-test"
S3_SECRET_KEY = "thermocline-test-secret"
S3_BUCKET = "lake"
S3_PREFIX = "cold"
# For checks in which consumers join one after the other.
PROMPT_GROUPS = {"THERMOCLINE_GROUPS__INITIAL_REBALANCE_DELAY": "0s"}


class CheckFailed(Exception):
    """What the broker did is not what it promises."""


def check(condition, message):
    if not condition:
        raise CheckFailed(message)


def check_equal(found, wanted, what):
    if found != wanted:
        raise CheckFailed(f"{what}: found {short(found)}, wanted {short(wanted)}")


def short(value):
    text = repr(value)
    return text if len(text) <= 500 else f"{text[:500]}... ({len(text)} characters)"


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def wait_for(what, seconds, ready):
    """Calls `ready` until it returns something that is not None or False."""
    deadline = time.monotonic() + seconds
    while True:
        result = ready()
        if result is not None and result is not False:
            return result
        if time.monotonic() > deadline:
            raise CheckFailed(f"{what}: not within {seconds} s")
        time.sleep(POLL_SECONDS)


class Child:
    """A process that does not outlive the check."""

    def __init__(self, name, log_path):
        self.name, self.log_path, self.process = name, log_path, None

    def spawn(self, command, env=None):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("THERMOCLINE_")}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=inherited | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """kill -9, by process id."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            self.process = None

    def log_tail(self):
        try:
            return self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return ""


class S3Server(Child):
    """The example `s3-server` over a folder of its own."""

    def __init__(self, binary, folder):
        super().__init__("s3-server", folder / "s3-server.log")
        self.binary, self.buckets = binary, folder / "buckets"
        (self.buckets / S3_BUCKET).mkdir(parents=True)

    def start(self):
        self.spawn([self.binary, self.buckets, "127.0.0.1:0"])

        def address():
            check(self.running(), f"the S3 server ended: {self.log_tail()}")
            found = re.search(r"^127\.0\.0\.1:\d+\n", self.log_path.read_text(), re.MULTILINE)
            return found and found.group().strip()

        self.address = wait_for("start of the S3 server", START_SECONDS, address)

    def environment(self):
        return {
            "THERMOCLINE_STORE__URL": f"s3://{S3_BUCKET}/{S3_PREFIX}",
            "THERMOCLINE_STORE__ENDPOINT": f"http://{self.address}",
            "THERMOCLINE_STORE__REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": S3_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": S3_SECRET_KEY,
        }


class Broker(Child):
    """A broker on a folder; comes back on the same ports after a stop or a kill."""

    def __init__(self, binary, folder, env=None):
        super().__init__("broker", folder / "broker.log")
        self.binary, self.folder, self.data_dir, self.env = binary, folder, folder / "data", env or {}
        self.listeners = self.data_dir / "listeners.json"
        self.kafka = self.http = "127.0.0.1:0"

    def launch(self):
        """Begins to start."""
        # A killed broker leaves it behind, and it would be taken for that of the new one.
        self.listeners.unlink(missing_ok=True)
        command = [self.binary, "serve", "--data-dir", self.data_dir]
        self.spawn(command + ["--kafka-listen", self.kafka, "--http-listen", self.http], self.env)

    def start(self):
        """Starts and waits until requests are taken."""
        self.launch()

        def addresses():
            check(self.running(), f"the broker ended while starting:\n{self.log_tail()}")
            with contextlib.suppress(FileNotFoundError):
                return json.loads(self.listeners.read_text())

        found = wait_for("start of the broker", START_SECONDS, addresses)
        self.kafka, self.http = found["kafka"], found["http"]
        wait_for("readiness of the broker", START_SECONDS, self.ready)

    def ready(self):
        check(self.running(), f"the broker ended:\n{self.log_tail()}")
        with contextlib.suppress(OSError, http.client.HTTPException, CheckFailed):
            return self.call("GET", "/health/ready")["status"] == "ready"

    def stop(self):
        """SIGTERM; the broker must drain and end well."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"the broker did not end {STOP_SECONDS} s after SIGTERM") from error
        check_equal(code, 0, "exit code after SIGTERM")
        self.process = None

    def request(self, method, path, body=None, timeout=STEP_SECONDS):
        """The open response."""
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        request = urllib.request.Request(f"http://{self.http}{path}", data=data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=timeout)

    def call(self, method, path, body=None, timeout=STEP_SECONDS):
        """The answer as JSON; refusals raise."""
        try:
            with self.request(method, path, body, timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise CheckFailed(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error
        return json.loads(answer) if answer else None

    def create_topic(self, name, partitions, configs=None):
        self.call("POST", "/v1/topics", {"name": name, "partitions": partitions, "configs": configs or {}})

    def partitions(self, topic):
        return self.call("GET", f"/v1/topics/{topic}")["partitions"]

    def archive(self, topic, trim=True):
        """Archives what there is and checks that nothing is left that is only local."""
        report = self.call("POST", f"/v1/topics/{topic}/archive?trim={str(trim).lower()}")
        for partition in self.partitions(topic):
            check_equal(partition["archived_through"], partition["high_watermark"], f"{topic}: archived_through")
            if trim:
                check_equal(partition["local_start_offset"], partition["high_watermark"], f"{topic}: local_start_offset")
        return report

    def wait_indexed(self, topic):
        def indexed():
            return all(p["indexed_through"] >= p["high_watermark"] for p in self.partitions(topic))

        wait_for(f"the index of {topic}", STEP_SECONDS, indexed)

    def search(self, topic, query, page=500):
        """Every hit, page by page, as {(partition, offset): hit}."""
        hits, cursor = {}, None
        while True:
            body = {"q": query, "topic": topic, "limit": page}
            answer = self.call("POST", "/v1/search", body | ({"cursor": cursor} if cursor else {}))
            for hit in answer["hits"]:
                place = (hit["partition"], hit["offset"])
                check(place not in hits, f"{topic}: {query!r} found {place} twice")
                hits[place] = hit
            cursor = answer.get("cursor")
            if not cursor:
                return hits
            check(answer["hits"], f"{topic}: {query!r} gave a page without hits and a cursor")

    def replay(self, topic, **parameters):
        """The messages of a replay, in order."""
        path = f"/v1/topics/{topic}/messages?{urllib.parse.urlencode(parameters)}"
        with self.request("GET", path) as response:
            return [json.loads(line) for line in response]


class Manifests:
    """The cold tier as its newest manifests name it, read from the folder that holds the objects."""

    def __init__(self, root, prefix=""):
        self.root, self.prefix = root, prefix

    def path_of(self, key):
        """Where an object lies; keys may or may not say the prefix."""
        whole = self.root / key
        return whole if whole.exists() else self.root / self.prefix / key

    def newest(self):
        """(path, content) of the newest manifest of every partition."""
        newest = {}
        for path in (self.root / self.prefix).glob("topics/*/*/manifest/*.json"):
            folder = path.parent
            if path.stem.isdigit() and (folder not in newest or newest[folder].stem < path.stem):
                newest[folder] = path
        return [(path, json.loads(path.read_text())) for path in sorted(newest.values())]

    def data_files(self, topic):
        """The data files of a topic by partition, in offset order."""
        partitions = collections.defaultdict(list)
        for path, manifest in self.newest():
            if manifest["topic"] != topic:
                continue
            check_equal(int(path.stem), manifest["version"], f"{path}: version")
            partitions[manifest["partition"]] += self.files_of(manifest["parts"]) + manifest["tail"]
        return partitions

    def files_of(self, parts):
        """The data files of a tree of parts."""
        files = []
        for part in parts:
            packed = self.path_of(part["object"]["key"]).read_bytes()
            content = json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
            files += content["files"] if part["level"] == 0 else self.files_of(content["parts"])
        return files

    def check_objects(self, topic, parquet):
        """Every object that a newest manifest names is there, has its size and opens. Returns how many there are."""
        count = 0
        for partition, files in self.data_files(topic).items():
            for before, after in zip(files, files[1:]):
                check_equal(after["base_offset"], before["last_offset"] + 1, f"{topic}-{partition}: archive has a gap")
            for file in files:
                raw = file.get("raw")
                for ref in [file["data"], file.get("split"), raw and raw["object"]]:
                    if ref:
                        path = self.path_of(ref["key"])
                        check(path.exists(), f"{topic}: a manifest names {ref['key']}, which does not exist")
                        check_equal(path.stat().st_size, ref["size_bytes"], f"{ref['key']}: size in bytes")
                        count += 1
                rows = parquet.ParquetFile(self.path_of(file["data"]["key"])).metadata.num_rows
                check_equal(rows, file["rows"], f"{file['data']['key']}: rows")
        return count


def arguments(doc):
    """The parser of a program that checks a broker."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", required=True, type=pathlib.Path, help="the thermocline binary")
    return parser


def started(child, children):
    """Starts a child; `run_checks` ends it."""
    children.append(child)
    child.start()
    return child


def check_broker(name, args, checks, env=None):
    """Holds one broker against `checks(broker)`; it must end well. Returns the exit code."""

    def run(scratch, children):
        broker = started(Broker(args.broker, scratch, env), children)
        checks(broker)
        broker.stop()
        say("passed")

    return run_checks(name, run)


def run_checks(name, main):
    """Runs `main(folder, children)` in a temporary folder; children are killed whatever happens. Returns the exit code."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"thermocline-{name}-"))
    children = []
    try:
        main(folder, children)
    except Exception as error:  # noqa: BLE001: any failure is to be reported with the broker's log
        for child in children:
            print(f"---- end of the log of {child.name}\n{child.log_tail()}", file=sys.stderr)
        if not isinstance(error, CheckFailed):
            raise
        print(f"FAILED: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        for child in reversed(children):
            child.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return 0
