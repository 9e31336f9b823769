#!/usr/bin/env python3
"""Bad input and bad days against the real binary: wrong settings, damaged files, kill -9, hostile
clients. Standard library only.

A refusal is one clear line on standard error, an exit code other than 0, and no panic.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time

from harness import Node, directory, free_port, main, one_node, until


def crc32c(data):
    """The checksum of our files; slow, for a few bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


class Raw:
    """A connection that sends what it is told."""

    def __init__(self, port, seconds=10):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.buffer = b""

    def send(self, data):
        self.socket.sendall(data)
        return self

    def line(self):
        while b"\r\n" not in self.buffer:
            piece = self.socket.recv(65536)
            if not piece:
                raise ConnectionError("closed")
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def value(self):
        """One simple string, integer, error or bulk string."""
        line = self.line()
        if line[:1] != b"$" or line == b"$-1":
            return line
        size = int(line[1:]) + 2
        while len(self.buffer) < size:
            piece = self.socket.recv(65536)
            if not piece:
                raise ConnectionError("closed")
            self.buffer += piece
        found, self.buffer = self.buffer[: size - 2], self.buffer[size:]
        return found

    def ask(self, *words):
        return self.send(command(*words)).value()

    def rest(self):
        """What comes until the server closes, or b'?' if it does not."""
        found = self.buffer
        try:
            while piece := self.socket.recv(65536):
                found += piece
        except TimeoutError:
            return b"?"
        except OSError:
            pass
        return found

    def close(self):
        self.socket.close()


def command(*words):
    parts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


def refused(checks, what, node, *says, seconds=15):
    """The process ends by itself, with one line that says each of `says`."""
    process = subprocess.Popen(
        node.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return checks.that(what, False, f"still running after {seconds} s: {err[-400:]}")
    lines = [line for line in (out + err).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith(("leadline:", "error:"))]
    bad = [text for text in ("panicked", "RUST_BACKTRACE", "unwrap()") if text in out + err]
    missing = [text for text in says if text not in "".join(ours)]
    return checks.that(
        f"{what}: {ours[0][:150] if ours else 'no line'}",
        process.returncode not in (0, None) and process.returncode > 0 and len(ours) == 1 and not bad and not missing,
        f"code {process.returncode}, bad {bad}, missing {missing}: {lines[-4:]}",
    )


def settings(checks):
    running = one_node()
    ports = ("--redis", running.redis), ("--s3", running.s3), ("--admin", running.admin), ("--grpc", running.grpc)
    for flag, port in ports:
        node = Node()
        setattr(node, flag[2:], port)
        refused(checks, f"{flag}: the port is in use", node, str(port), flag)
    refused(checks, "a directory that another process uses", Node(data_dir=running.data_dir), "in use by process", str(running.process.pid))
    one = Raw(running.redis)
    checks.equal("the process that has it goes on", one.ask("PING"), b"+PONG")
    one.close()

    plain = directory() / "file"
    plain.write_text("x")
    refused(checks, "the data directory is a file", Node(data_dir=plain), str(plain), "--data-dir")
    refused(checks, "the data directory cannot be made", Node(data_dir="/proc/leadline"), "/proc/leadline", "--data-dir")
    if os.getuid() != 0:
        closed = directory()
        closed.chmod(0o500)
        refused(checks, "the data directory is not writable", Node(data_dir=closed), str(closed), "permission")

    for what, flags, says in (
        ("an unknown flag", ["--nosuch"], "--nosuch"),
        ("a number out of range", ["--shards", "0"], "--shards"),
        ("an unknown engine", ["--engine", "rocks"], "rocks"),
        ("a size that is none", ["--cache-bytes", "much"], "much"),
        ("an address that is none", ["--bind", "nowhere"], "nowhere"),
        ("everywhere without --advertise", ["--bind", "0.0.0.0"], "--advertise"),
        ("half a certificate", ["--peer-ca", "ca.pem"], "--peer-key"),
        ("a certificate that is not there", ["--peer-ca", "/no/ca.pem", "--peer-cert", "/no/c.pem", "--peer-key", "/no/k.pem"], "/no/"),
        ("a settings file that is not there", ["--config", "/no/leadline.toml"], "/no/leadline.toml"),
        ("a log filter that is none", ["--log", "a=b=c"], "a=b=c"),
        ("a join address without a port", ["--join", "nowhere"], "nowhere"),
    ):
        refused(checks, what, Node(*flags), says)
    wrong = directory() / "leadline.toml"
    wrong.write_text("shards = 8\nsharts = 9\n")
    refused(checks, "a settings file with an unknown key", Node("--config", wrong), str(wrong), "sharts")

    lonely = Node(join=f"127.0.0.1:{free_port()}").start()
    until("the node says whom it asks", lambda: lonely.join in lonely.log() or lonely.process.poll() is not None, 10)
    time.sleep(3)
    said = [line for line in lonely.log().splitlines() if lonely.join in line]
    checks.that("a seed that does not answer is named, a few times at most", 1 <= len(said) <= 3, f"{len(said)} lines in 3 s")
    checks.equal("and the wait ends at SIGTERM", lonely.stop(10), 0)

    checks.equal("SIGTERM ends a serving node with 0", running.stop(), 0)
    engine = running.data_dir
    refused(checks, "a directory of another engine", Node("--engine", "sled", data_dir=engine), "fjall", "--engine")
    newer = copy(engine)
    body = (newer / "identity").read_text().split("checksum")[0].replace("format 1", "format 99")
    (newer / "identity").write_text(f"{body}checksum {crc32c(body.encode()):08x}\n")
    refused(checks, "a directory of a newer format", Node(data_dir=newer), "99")
    for what, text in (("damaged", "leadline data dirextory\n"), ("cut short", "leadline"), ("empty", "")):
        broken = copy(engine)
        (broken / "identity").write_text(text)
        refused(checks, f"an identity file that is {what}", Node(data_dir=broken), "identity")
    again = Node(data_dir=engine)
    began = time.monotonic()
    again.start().ready()
    checks.that(f"after SIGTERM it serves again within 5 s ({time.monotonic() - began:.2f} s)", time.monotonic() - began < 5)
    again.kill()


def copy(source):
    """A copy of a data directory, as a stopped node left it."""
    target = directory() / "data"
    # Logs are preallocated: keep the holes.
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True)
    return target


class Writer(threading.Thread):
    """Writes numbers under its own keys, 16 at a time, and remembers what was acknowledged."""

    def __init__(self, port, name):
        super().__init__(daemon=True)
        self.port, self.name, self.acknowledged, self.sent, self.over = port, name, 0, 0, False
        self.start()

    def run(self):
        try:
            one = Raw(self.port)
            while not self.over:
                batch = range(self.sent, self.sent + 16)
                self.sent += 16
                one.send(b"".join(command("SET", f"{self.name}:{n}", f"value-{n}-" + "x" * (n % 300)) for n in batch))
                for _ in batch:
                    if one.line() != b"+OK":
                        return
                    self.acknowledged += 1
        except OSError:
            return


def missing(port, writers):
    """Acknowledged writes that are not there, or not whole."""
    lost = []
    one = Raw(port, 30)
    for writer in writers:
        for begin in range(0, writer.acknowledged, 500):
            numbers = range(begin, min(begin + 500, writer.acknowledged))
            one.send(b"".join(command("GET", f"{writer.name}:{n}") for n in numbers))
            for n in numbers:
                if one.value() != f"value-{n}-".encode() + b"x" * (n % 300):
                    lost.append((writer.name, n))
    one.close()
    return lost


def write_and_kill(node, name, seconds):
    """Eight writers, and kill -9 in their midst."""
    writers = [Writer(node.redis, f"{name}{number}") for number in range(8)]
    end = time.monotonic() + seconds
    until("writes are acknowledged", lambda: all(w.acknowledged > 50 for w in writers) and time.monotonic() > end, 20)
    node.kill()
    for writer in writers:
        writer.join(10)
    return writers


def sudden_death(checks, engine):
    node = one_node("--engine", engine)
    written = []
    for turn in range(3):
        written += write_and_kill(node, f"{engine}{turn}-", 0.7)
        began = time.monotonic()
        node.start().ready()
        took = time.monotonic() - began
        total = sum(writer.acknowledged for writer in written)
        lost = missing(node.redis, written)
        checks.that(f"{engine}: kill -9 under writes, {total} acknowledged, ready after {took:.1f} s: all are there", not lost, lost[:5])
    written += write_and_kill(node, f"{engine}-torn", 0.5)
    return node, written


def damage(checks, engine, node, written):
    """Each file changed in its own copy: a clear refusal, or every acknowledged write."""
    sizes = {}
    for path in sorted(p for p in node.data_dir.rglob("*") if p.is_file()):
        data = path.read_bytes()
        used = len(data.rstrip(b"\0"))
        if used:
            sizes[path.relative_to(node.data_dir)] = used
    cases = []
    for path, used in sizes.items():
        if path.name in ("lock", "LOCK"):
            continue
        log = path.parts[0] == "log"
        places = (0.1, 0.5, 0.9) if log and path.suffix == ".log" else (0.5,)
        cases += [(path, "flip", int(used * place)) for place in places]
        cases += [(path, "cut", used // 2)]
    # The log first, then as many others as there is time for.
    cases.sort(key=lambda case: (case[0].parts[0] != "log", str(case[0])))
    for path, how, at in cases[:14]:
        data_dir = copy(node.data_dir)
        with open(data_dir / path, "r+b") as file:
            if how == "cut":
                file.truncate(at)
            else:
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 0x5A]))
        damaged = Node("--engine", engine, data_dir=data_dir)
        damaged.start()
        what = f"{engine}: {path} {how} at {at} of {sizes[path]}"
        ended = until("serves or ends", lambda d=damaged: d.process.poll() is not None or d.get("/readyz", 2)[0] == 200, 20)
        if damaged.process.poll() is None:
            lost = missing(damaged.redis, written)
            checks.that(f"{what}: serves, with all {sum(w.acknowledged for w in written)}", ended and not lost, f"{len(lost)} lost: {lost[:5]}")
            damaged.kill()
        else:
            log = damaged.log()
            lines = [line for line in log.splitlines() if line.startswith("leadline:")]
            clear = damaged.process.returncode > 0 and len(lines) == 1 and "panicked" not in log
            checks.that(f"{what}: refuses: {lines[0][:110] if lines else 'no line'}", clear, log[-500:])
        shutil.rmtree(data_dir.parent, ignore_errors=True)


def hostile(checks):
    """Raw sockets that mean harm; another client must not notice, and memory must stay bounded."""
    node = one_node()
    before = node.memory()
    slowest, stop, failures = [0.0], threading.Event(), []

    def neighbour():
        one = Raw(node.redis, 20)
        try:
            while not stop.is_set():
                began = time.monotonic()
                if one.ask("SET", "neighbour", "x") != b"+OK":
                    failures.append("no OK")
                slowest[0] = max(slowest[0], time.monotonic() - began)
                time.sleep(0.01)
        except OSError as error:
            failures.append(repr(error))

    witness = threading.Thread(target=neighbour)
    witness.start()

    for what, data in (
        ("a bulk string of 600 GB", b"*2\r\n$3\r\nGET\r\n$600000000000\r\n"),
        ("a negative bulk string", b"*1\r\n$-5\r\n"),
        ("a length that is none", b"*1\r\n$abc\r\nx\r\n"),
        ("2 billion arguments", b"*2000000000\r\n"),
        ("a length of 10 000 digits", b"*" + b"9" * 10000 + b"\r\n"),
        ("arrays in arrays", b"*1\r\n" * 20000),
        ("no bulk string in an array", b"*1\r\n:1\r\n"),
        ("no CRLF after a bulk string", b"*1\r\n$4\r\nPINGxx"),
        ("an endless inline command", b"x" * (1 << 20)),
        ("an open quote", b'SET "a b\r\n'),
        ("an HTTP request", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"),
    ):
        one = Raw(node.redis, 8)
        try:
            one.send(data)
        except OSError:
            pass
        answer = one.rest()
        one.close()
        checks.that(f"{what}: an error, then the end", answer != b"?" and (answer.startswith(b"-") or answer == b""), answer[:100])

    one = Raw(node.redis)
    checks.that("bytes that are no command", one.ask(b"\x00\xff\r\n", b"\n").startswith(b"-ERR unknown command"))
    checks.that("200 000 arguments", one.ask("DEL", *(f"{{t}}{n}" for n in range(200_000))) == b":0")
    checks.that("a command of no words", one.send(b"*0\r\n\r\n").ask("PING") == b"+PONG")
    # In pieces of one byte.
    for byte in command("ECHO", "pieces"):
        one.send(bytes([byte]))
    checks.equal("a command byte by byte", one.value(), b"pieces")
    one.close()

    # Sizes that are claimed and never sent: 200 times 512 MiB.
    claims = [Raw(node.redis).send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n" + b"x" * 1000) for _ in range(200)]
    time.sleep(0.5)
    checks.that("200 claims of 512 MiB cost little", node.memory() - before < 128 << 20, f"{(node.memory() - before) >> 20} MiB")
    [one.close() for one in claims]

    # Half a command, then gone.
    for cut in range(1, 30):
        one = Raw(node.redis).send(command("SET", "half", "value")[:cut])
        one.close()

    # Asks for 4 GiB of answers and never reads.
    one = Raw(node.redis)
    checks.equal("a value of 1 MiB", one.ask("SET", "big", b"v" * (1 << 20)), b"+OK")
    one.close()
    silent = []
    for _ in range(4):
        deaf = Raw(node.redis, 3)
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            deaf.send(command("GET", "big") * 1000)
        except OSError:
            pass
        silent.append(deaf)
    time.sleep(1.5)
    grown = node.memory() - before
    # Each may have 64 replies under way before the first shows how large they are.
    checks.that(f"4 clients that never read hold no more than 4 x 64 replies: {grown >> 20} MiB", grown < 400 << 20)
    [deaf.close() for deaf in silent]

    # Many connections at once, each with a little.
    crowd = []
    for _ in range(800):
        crowd.append(Raw(node.redis).send(b"*2\r\n$3\r\nGET\r\n$5\r\nab"))
    checks.that("800 half-sent commands", Raw(node.redis).ask("PING") == b"+PONG")
    [one.close() for one in crowd]

    stop.set()
    witness.join(25)
    checks.equal("the neighbour was served all the while", failures, [])
    checks.that(f"and never waited 1 s (slowest {slowest[0] * 1000:.0f} ms)", slowest[0] < 1.0)
    checks.that("no panic", "panicked" not in node.log(), node.log()[-500:])
    one = Raw(node.redis)
    until("all are gone", lambda: int(dict(l.split(":", 1) for l in one.ask("INFO", "clients").decode().split("\r\n") if ":" in l)["connected_clients"]) <= 2, 10)
    checks.that("their connections are closed", True)
    checks.equal("SIGTERM ends it with 0", node.stop(), 0)


def stopped_and_continued(checks):
    """SIGSTOP for longer than an election, then on: nothing is lost, nothing hangs."""
    node = one_node()
    one = Raw(node.redis, 20)
    one.ask("SET", "k", "before")
    node.process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    node.process.send_signal(signal.SIGCONT)
    until("it serves again", lambda: one.ask("GET", "k") == b"before", 10, 0.1)
    checks.that("stopped for 3 s and continued: it serves", one.ask("SET", "k", "after") in (b"+OK",))
    node.kill()


def run(checks):
    with checks.part("settings"):
        settings(checks)
    for engine in ("fjall", "sled"):
        with checks.part(f"{engine}: kill -9 and damage"):
            damage(checks, engine, *sudden_death(checks, engine))
    with checks.part("hostile clients"):
        hostile(checks)
    with checks.part("stopped and continued"):
        stopped_and_continued(checks)


if __name__ == "__main__":
    main("bad days", 200, run)
