"""Real `leadline` processes on loopback, and checks that print one line each.

Standard library only. The binary is $LEADLINE_BINARY, else target/release/leadline. Every process
that is started here is ended here, by its own id, however the suite ends.
"""

import atexit
import contextlib
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("LEADLINE_BINARY", str(ROOT / "target" / "release" / "leadline"))

_processes = []
_directories = []


class TookTooLong(Exception):
    """The whole suite has used up its time."""


def begin(seconds):
    """Bounds the suite's time and makes a SIGTERM clean up too."""

    def late(_signal, _frame):
        raise TookTooLong(f"the suite took longer than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not os.access(BINARY, os.X_OK):
        sys.exit(f"no binary at {BINARY}: cargo build --release -p leadline, or set LEADLINE_BINARY")


@atexit.register
def _clean_up():
    signal.alarm(0)
    for process in _processes:
        if process.poll() is None:
            # A stopped process takes SIGKILL too.
            process.kill()
            process.wait()
    for directory in _directories:
        shutil.rmtree(directory, ignore_errors=True)


def directory():
    """A new directory that goes with the suite."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="leadline-"))
    _directories.append(path)
    return path


def spawn(command, **options):
    """A child process that goes with the suite."""
    process = subprocess.Popen(command, **options)
    _processes.append(process)
    return process


_given = set()


def free_port():
    """A port that nothing listens on, below those that the kernel gives to connections."""
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no free port between 20000 and 32000")


def until(what, condition, seconds=30, step=0.05):
    """Waits for `condition()` to give something true, and returns it."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(step)


class Node:
    """One `leadline serve`."""

    def __init__(self, *flags, data_dir=None, join=None):
        self.flags = [str(flag) for flag in flags]
        self.data_dir = pathlib.Path(data_dir) if data_dir else directory() / "data"
        self.join = join
        self.redis, self.s3 = free_port(), free_port()
        self.admin, self.grpc = free_port(), free_port()
        self.process = None
        self.log_path = directory() / "log"

    def command(self):
        ports = ["--redis", self.redis, "--s3", self.s3, "--admin", self.admin, "--grpc", self.grpc]
        command = [BINARY, "serve", *ports, "--data-dir", self.data_dir, *self.flags]
        if self.join:
            command += ["--join", self.join]
        return [str(part) for part in command]

    def start(self):
        """Starts the process; it need not serve yet."""
        with open(self.log_path, "ab") as log:
            self.process = spawn(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def ready(self, seconds=30):
        """Waits until the node says that it may be used."""
        until(f"node on port {self.redis} is ready: {self.log()[-800:]}", self._is_ready, seconds)
        return self

    def _is_ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the node ended with {self.process.returncode}: {self.log()[-800:]}")
        return self.get("/readyz", 2)[0] == 200

    def get(self, path, seconds=10):
        """Status, headers and body; status 0 when there is no answer."""
        return http_get(self.admin, path, seconds)

    def overview(self):
        """What the node tells about its cluster, or None."""
        status, _, body = self.get("/api/v1/overview")
        return json.loads(body) if status == 200 else None

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds=30):
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def log(self):
        """All that the node has logged."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def memory(self, what="VmRSS"):
        """Bytes of memory that the process holds, or with `VmHWM` has held at the most."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith(f"{what}:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError(f"the process has no {what}")


def http_get(port, path, seconds=10):
    """Status, headers (lower case) and body; status 0 when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, {}, ""
    finally:
        connection.close()


def one_node(*flags, **options):
    """A node that serves."""
    return Node(*flags, **options).start().ready()


def three_nodes(*flags):
    """Three nodes, each shard with three voters, leaderships dealt out."""
    first = one_node(*flags)
    others = [Node(*flags, join=f"127.0.0.1:{first.grpc}").start() for _ in range(2)]
    nodes = [first, *(node.ready() for node in others)]

    def whole():
        overview = first.overview()
        return (
            overview
            and overview["has_quorum"]
            and overview["may_lose"] == 1
            and len(overview["members"]) == 3
            and all(sum(r["role"] == "voter" for r in g["replicas"]) == 3 for g in overview["groups"])
        )

    until("three voters in every group", whole, 40)

    # A handover refuses what a pipeline has under way: let those that growing brings be over.
    def balanced():
        leads = [member["leads"] for member in (first.overview() or {"members": []})["members"]]
        return len(leads) == 3 and max(leads) - min(leads) <= 1

    until("leaderships are balanced", balanced, 40)
    return nodes


class Checks:
    """Prints a line for each check and remembers what failed."""

    def __init__(self, suite):
        self.suite, self.passed, self.failed = suite, 0, 0

    def that(self, what, holds, detail=""):
        if holds:
            self.passed += 1
            print(f"ok    {what}", flush=True)
        else:
            self.failed += 1
            shown = str(detail).encode("unicode_escape").decode()
            print(f"FAIL  {what}: {shown}", flush=True)
        return bool(holds)

    def equal(self, what, got, expected):
        return self.that(what, got == expected, f"got {got!r:.600}, expected {expected!r:.600}")

    def raises(self, what, call, text, kind=Exception):
        try:
            got = call()
        except kind as error:
            # Some clients' exceptions show less as text than they hold.
            return self.that(what, text in f"{error!r} {error}", f"{error!r} does not say {text!r}")
        return self.that(what, False, f"got {got!r:.200}, expected an error that says {text!r}")

    @contextlib.contextmanager
    def part(self, name, nodes=()):
        """A part of the suite: what it throws is a failure, and the next part still runs."""
        try:
            yield
        except TookTooLong:
            raise
        except Exception as error:  # noqa: BLE001: whatever a client throws is a failed check
            self.that(name, False, f"{type(error).__name__}: {error}")
            for node in nodes:
                print(f"      log of port {node.redis}: ...{node.log()[-600:]}", flush=True)

    def finish(self):
        """Prints the sum and ends the process."""
        print(f"{self.suite}: {self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed or not self.passed else 0)


def main(suite, seconds, run):
    """Runs `run(checks)` within `seconds`."""
    begin(seconds)
    checks = Checks(suite)
    try:
        run(checks)
    except Exception as error:  # noqa: BLE001: the suite itself broke off
        checks.that("the suite ran to its end", False, f"{type(error).__name__}: {error}")
    checks.finish()
