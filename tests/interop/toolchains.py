"""What the clients that are not written in Python need, made once in the cache folder outside the clone."""

import hashlib
import os
import pathlib
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = HERE / "programs"
FETCH_SECONDS = 600


def cache_folder():
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "thermocline"


def made_once(name, sources, make):
    """A folder of the cache that `make(folder)` filled, for these contents of `sources`. Half-made ones have no stamp
    and are made again."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{digest}"
    stamp = folder / "complete"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        stamp.touch()
    return folder


def run(*command, **options):
    subprocess.run([str(part) for part in command], check=True, timeout=FETCH_SECONDS, **options)


def kafkajs():
    """A folder with read.js and the packages that it asks for."""
    sources = [PROGRAMS / "kafkajs" / name for name in ("package.json", "package-lock.json", "read.js")]

    def make(folder):
        for source in sources:
            shutil.copy(source, folder)
        run("npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)

    return made_once("kafkajs", sources, make)


def franz_go():
    """The built reader."""
    sources = [PROGRAMS / "franz_go" / name for name in ("go.mod", "go.sum", "main.go")]

    def make(folder):
        run("go", "build", "-o", folder / "read", ".", cwd=PROGRAMS / "franz_go")

    return made_once("franz-go", sources, make) / "read"


def java_jars():
    """A folder with the jars of Kafka's Java clients and tools."""
    pom = PROGRAMS / "java" / "pom.xml"

    def make(folder):
        goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
        run("mvn", "-q", "-B", "-f", pom, goal, f"-DoutputDirectory={folder}", "-DincludeScope=runtime")

    return made_once("kafka-jars", [pom], make)
