"""librdkafka and its test runner, built from the source inside the `rdkafka-sys` crate that Cargo.lock names, and the
part of a Kafka distribution that the tests call: a few scripts over the jars of its tools."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import toolchains  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
METADATA_SECONDS = 300
BUILD_SECONDS = 1200
# The client's TLS, SASL and HTTP parts speak to nothing that this broker has.
CONFIGURE = ["--disable-ssl", "--disable-gssapi", "--disable-curl", "--disable-lz4-ext", "--disable-debug-symbols"]


def source():
    """The folder of librdkafka's source, and its version."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    answer = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, timeout=METADATA_SECONDS)
    crates = [crate for crate in json.loads(answer.stdout)["packages"] if crate["name"] == "rdkafka-sys"]
    if len(crates) != 1:
        raise RuntimeError(f"Cargo.lock names {len(crates)} crates rdkafka-sys, wanted 1")
    return pathlib.Path(crates[0]["manifest_path"]).parent / "librdkafka", crates[0]["version"]


def kafka_distribution(folder):
    """Makes of a folder what the tests take for a Kafka distribution."""
    folder.mkdir()
    (folder / "bin").symlink_to(HERE / "kafka-bin")
    (folder / "libs").symlink_to(toolchains.java_jars())
    return folder


def build():
    """The folder of the built runner. A half-made one has no stamp and is made again."""
    found, version = source()
    folder = toolchains.cache_folder() / f"librdkafka-{version}"
    stamp = folder / "complete"
    if stamp.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(found, folder, symlinks=True)
    jars = toolchains.java_jars()
    jobs = f"-j{os.cpu_count()}"
    log = folder / "build.log"
    with open(log, "wb") as output:
        for command in (
            ["./configure", *CONFIGURE],
            ["make", jobs, "libs"],
            ["make", jobs, "-C", "tests", "build"],
            ["make", "-C", "tests", "java", f"KAFKA_JARS={jars}"],
        ):
            try:
                subprocess.run(command, cwd=folder, check=True, stdout=output, stderr=output, timeout=BUILD_SECONDS)
            except subprocess.SubprocessError as error:
                raise RuntimeError(f"{' '.join(command)} failed, see {log}") from error
    stamp.touch()
    return folder


if __name__ == "__main__":
    print(build())
