# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, one after the other: ``make bench``, or ``make bench-full`` for large images and long curves.

python benchmarks/run.py [--full] [--only PROGRAM[,PROGRAM...]] [--again] [--draw], or make bench BENCH="--only s3"

What a program found is kept in benchmarks/.work; a run that was interrupted goes on with the programs that had not
ended, as long as the checkout has the same commit. At the end a table is shown, and results.json and one SVG for each
question are written into docs/performance. ``--again`` forgets what is kept, ``--draw`` measures nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pairs import MiB, argument, workplace

HERE = Path(__file__).parent
CHARTS = HERE.parent / "docs" / "performance"
#: Bytes that the largest program may have on the disk, and those that stay free beside them.
NEEDED, SPARE = 20 * 1024 * MiB, 2 * 1024 * MiB
#: Seconds that a program has to end its servers when it is interrupted.
GRACE = 30.0
PEERS = (
    "glance_store",
    "boto3",
    "obstore",
    "s3fs",
    "python-swiftclient",
    "python-cinderclient",
    "pymongo",
    "oslo.vmware",
)
#: Programs that tell their version as the second word.
COMMANDS = {"rclone": "version", "restic": "version"}


@dataclass(frozen=True)
class Program:
    """One of the programs beside this one: what it asks, and with which options in a short and in a full run."""

    name: str
    title: str
    short: str
    full: str = ""
    #: Seconds after which it is ended.
    timeout: int = 600

    def options(self) -> list[str]:
        return (self.full if FULL else self.short).split()


FULL = "--full" in sys.argv
PROGRAMS = [
    Program("filesystem", "Files: add, get and copy", "--size 512"),
    Program("s3", "S3: a free server, 20 ms away, and radosgw", "--size 128"),
    Program("small", "Small images: files, S3 and GridFS", ""),
    Program("swift", "Swift", "--size 256"),
    Program("rbd", "Ceph RBD", "--size 128 --sparse 2"),
    Program("gridfs", "MongoDB GridFS", "--size 256"),
    Program("cinder", "Cinder on Ceph", "--size 512 --sparse 4"),
    Program("vmware", "VMware", "--size 512"),
    Program("api", "The image API, beside Glance 33 and nginx", "--size 256"),
    Program("drop_in", "Glance 33 on storelib instead of glance_store", "--size 128 --rounds 2"),
    Program("preload", "Images on sixteen nodes at once, and on one", "--size 96 --rate 3"),
    Program("memory", "Memory of one transfer", "--size 512"),
    Program("growth", "How cost grows", "", "--full", timeout=3600),
]


def main() -> None:
    # As Ctrl-C does, so that the program under way ends, and its servers with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    wanted = [name for name in argument("--only", "").split(",") if name]
    unknown = set(wanted) - {program.name for program in PROGRAMS}
    if unknown:
        known = ", ".join(program.name for program in PROGRAMS)
        sys.exit(f"there is no benchmark {', '.join(sorted(unknown))}; known are: {known}")
    programs = [program for program in PROGRAMS if not wanted or program.name in wanted]
    kept = Path(workplace()) / f"results-{'full' if FULL else 'short'}-{commit()}"
    if "--again" in sys.argv:
        shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(exist_ok=True)
    failed = []
    if "--draw" not in sys.argv:
        check_disk()
        for number, program in enumerate(programs, 1):
            print(f"\n[{number}/{len(programs)}] {program.title}", flush=True)
            if not measure(program, kept / f"{program.name}.json"):
                failed.append(program.name)
    found = {
        program.name: json.loads((kept / f"{program.name}.json").read_text())
        for program in programs
        if (kept / f"{program.name}.json").exists()
    }
    if found:
        publish(programs, found)
    if failed:
        sys.exit(f"these failed, their output is in {kept}: {', '.join(failed)}")


def check_disk() -> None:
    free = shutil.disk_usage(workplace()).free
    if free < NEEDED + SPARE:
        sys.exit(
            f"{free // MiB} MiB are free in {workplace()}, and {(NEEDED + SPARE) // MiB} are needed: "
            "set BENCH_DIR to a directory with more"
        )


@contextlib.contextmanager
def started(
    command: list[str], errors: IO[str], environment: dict[str, str], timeout: float
) -> Iterator[subprocess.Popen[str]]:
    """A program while it runs; interrupted after ``timeout`` seconds, or if this block is left before its end."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
    ) as process:
        timer = threading.Timer(timeout, interrupt, [process])
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            interrupt(process)


def interrupt(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does, so that it ends its servers; what is left of it after half a minute is killed."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(program: Program, result: Path) -> bool:
    """Run it unless its result is there; whether it ended well."""
    if result.exists():
        print(f"  done before: {result}", flush=True)
        show(json.loads(result.read_text())["records"])
        return True
    command = [sys.executable, str(HERE / f"{program.name}.py"), "--json", *program.options()]
    log = result.with_suffix(".log")
    records, begun = [], time.time()
    with (
        tempfile.TemporaryDirectory(prefix="storelib-bench-", dir=workplace()) as directory,
        log.open("w") as errors,
        started(command, errors, {**os.environ, "TMPDIR": directory}, program.timeout) as process,
    ):
        for line in process.stdout or ():
            errors.write(line)
            if line.startswith("{"):
                records.append(json.loads(line))
                show(records[-1:])
        status = process.wait()
    if status or not records:
        print(f"  failed with {status}; see {log}", flush=True)
        return False
    told = {"command": f"python benchmarks/{program.name}.py {' '.join(program.options())}".strip(), "records": records}
    written = result.with_suffix(".new")
    written.write_text(json.dumps({**told, "seconds": time.time() - begun, **machine()}))
    written.rename(result)
    return True


def show(records: list[dict[str, Any]]) -> None:
    for record in records:
        if "ratio" in record:
            ratios = record["ratios"] or [record["ratio"]]
            text = (
                f"{record['ours']:10.4g} {record['theirs']:10.4g} {record['unit']:8} ratio {record['ratio']:6.2f} "
                f"({min(ratios):.2f}-{max(ratios):.2f})  {record['name']}, against {record['peer']}"
            )
        elif "slope" in record:
            text = f"{record['series']} by {record['question']}: grows by the power of {record['slope']:.2f}"
        elif "y" in record:
            continue
        else:
            text = f"{record['growth_mib']:10.1f} MiB  {record['name']}"
        print(f"  {text}", flush=True)


def publish(programs: list[Program], found: dict[str, Any]) -> None:
    import charts

    CHARTS.mkdir(exist_ok=True)
    for program in programs:
        if program.name not in found:
            continue
        result = found[program.name]
        caption = "{command} on {date}: {processor}, {cores} cores, Python {python}; {versions}".format(
            **{**result, "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items())}
        )
        compared = [record for record in result["records"] if "ratio" in record]
        if compared:
            charts.pairs(CHARTS / f"{program.name}.svg", program.title, compared, caption)
        questions = dict.fromkeys(record["question"] for record in result["records"] if "question" in record)
        for question in questions:
            points = [record for record in result["records"] if record.get("question") == question]
            name = re.sub(r"[^a-z]+", "-", question.lower()).strip("-")
            charts.curves(CHARTS / f"growth-{name}.svg", question, points, caption)
    results = CHARTS / "results.json"
    before = json.loads(results.read_text()) if results.exists() else {}
    results.write_text(json.dumps({**before, **found}, indent=1, sort_keys=True) + "\n")
    print(f"\n{results}, and a picture for each question beside it", flush=True)


def machine() -> dict[str, Any]:
    """What a reader must know to judge the figures, and nothing that tells whose machine it is."""
    versions = {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, word in COMMANDS.items():
        with contextlib.suppress(OSError):
            told = subprocess.run([name, word], capture_output=True, text=True).stdout.split()
            versions[name] = told[1].removeprefix("v")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "processor": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "limits": limits(),
        "versions": versions,
    }


def limits() -> dict[str, float]:
    """What no program can be faster than here, in MiB/s: hashing on one core, copying memory, the disk."""
    block = os.urandom(16 * MiB)
    found = {}
    for name in ("md5", "sha512", "sha256"):
        found[name] = _rate(lambda name=name: hashlib.new(name, block))
    target = bytearray(len(block))

    def copy() -> None:
        target[:] = block

    found["memory copy"] = _rate(copy)
    with tempfile.TemporaryFile(dir=workplace()) as file:

        def write() -> None:
            file.seek(0)
            file.write(block)
            file.flush()
            os.fsync(file.fileno())

        found["disk, 16 MiB and fsync"] = _rate(write)
    return found


def _rate(function: Any) -> float:
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.3:
        function()
        done += 16
    return done / (time.perf_counter() - begun)


def commit() -> str:
    """The first characters of the commit; and that something was changed since, if it was."""
    git = ["git", "-C", str(HERE.parent), "-c", "safe.directory=*"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "diff", "HEAD"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (f"-{hashlib.sha256(dirty).hexdigest()[:6]}" if dirty else "")


if __name__ == "__main__":
    main()
