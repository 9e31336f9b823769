#!/usr/bin/env python3
"""The admin page in headless Chromium against three real nodes, of which two are lost in turn.

Speaks the DevTools protocol over a pipe: needs a Chromium, and nothing from pip or npm.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time

from harness import directory, main, spawn, three_nodes, until

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page in one browser."""

    def __init__(self, program):
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # The browser reads from 3 and writes to 4; our own ends must not be in the way there.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, from_write)]
        home = directory()
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank",
        ]
        shell = f'exec 3<&{theirs[0]} 4>&{theirs[1]}; exec "$@"'
        self.process = spawn(
            ["bash", "-c", shell, "browser", program, *flags],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(home / "log", "wb"),
            env={**os.environ, "HOME": str(home)}, start_new_session=True,
        )
        for fd in (to_read, from_write, *theirs):
            os.close(fd)
        self.to, self.source = to_write, from_read
        self.buffer, self.number, self.session = b"", 0, None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, seconds=20, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            got = self.receive(end)
            if got.get("id") == self.number:
                if "error" in got:
                    raise AssertionError(f"{method}: {got['error']}")
                return got["result"]
            self.events.append(got)

    def receive(self, end):
        while b"\0" not in self.buffer:
            if not select.select([self.source], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError("the browser does not answer")
            piece = os.read(self.source, 1 << 16)
            if not piece:
                raise AssertionError(f"the browser has ended with {self.process.poll()}")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def eval(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def seen(self, method):
        return [event["params"] for event in self.events if event.get("method") == method]

    def text(self, selector):
        return self.eval(f"document.querySelector({json.dumps(selector)})?.innerText ?? null")

    def rows(self, selector):
        """The cells of each row, as text."""
        return self.eval(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(row => [...row.children].map(c => c.innerText))"
        )

    def state(self):
        return self.eval('document.querySelector("#verdict")?.dataset.state ?? null')


def run(checks):
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if not program:
        sys.exit("no Chromium is here: apt-get install chromium")
    nodes = three_nodes()
    first = nodes[0]
    ids = {node: json.loads(node.get("/api/v1/node")[2])["node"] for node in nodes}
    groups = len(first.overview()["groups"])
    browser = Browser(program)
    with checks.part("the page", nodes):
        origin = f"http://127.0.0.1:{first.admin}"
        browser.call("Page.navigate", url=f"{origin}/")

        until("the verdict is 'well'", lambda: browser.state() == "well", 20)
        checks.that("three nodes: the verdict is 'well'", True)
        checks.that("it may lose one", "lose 1 more node" in browser.text("#may-lose"), browser.text("#may-lose"))
        table = browser.rows("#nodes tr[data-node]")
        checks.equal("a row for each node", [row[0] for row in table], [str(ids[n]) for n in sorted(nodes, key=ids.get)])
        checks.equal("each is ready", [row[2] for row in table], ["ready"] * 3)
        checks.equal(
            "with its Redis address",
            [row[7] for row in table],
            [f"127.0.0.1:{node.redis}" for node in sorted(nodes, key=ids.get)],
        )
        shards = browser.rows("#shards tr[data-group]")
        checks.equal("a row for each group", len(shards), groups)
        checks.that("each with a leader", all(row[2].startswith("node ") for row in shards), shards)
        checks.that("each with three replicas", all(sum(cell not in ("–", "") for cell in row[5:8]) == 3 for row in shards), shards)
        checks.that("one of which leads", all(sum(cell.startswith("leader") for cell in row[5:8]) == 1 for row in shards), shards)

        # What passes while the page is open shows in its live figures.
        traffic = subprocess.run(
            ["redis-benchmark", "-p", str(first.redis), "-t", "set", "-n", "5000", "-q"], capture_output=True, timeout=60
        )
        checks.equal("traffic runs", traffic.returncode, 0)
        until("the doors' table fills", lambda: any("redis" in " ".join(r).lower() for r in browser.rows("#doors tr")), 10)
        checks.that("doors: Redis and HTTP are listed", True)
        figures = browser.text("#queues")
        checks.that("queues: every figure is known", figures and "?" not in figures, figures)

        origins = {
            event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")
            if not event["request"]["url"].startswith((origin, "data:", "about:"))
        }
        checks.equal("the page asks nobody but this node", origins, set())
        broken = [e["exceptionDetails"]["text"] for e in browser.seen("Runtime.exceptionThrown")]
        logged = [e["entry"]["text"] for e in browser.seen("Log.entryAdded") if e["entry"]["level"] == "error"]
        checks.equal("no script error", broken + logged, [])

        second, third = nodes[1], nodes[2]
        third.kill()
        until("the verdict is 'degraded'", lambda: browser.state() == "degraded", 25)
        checks.that("one killed: the verdict is 'degraded'", True)
        checks.that("and names the node", f"node {ids[third]}" in browser.text("#verdict"), browser.text("#verdict"))
        row = f'#nodes tr[data-node="{ids[third]}"]'
        checks.that("its row says 'no answer'", "no answer" in browser.text(row), browser.text(row))

        def led():
            rows = browser.rows("#shards tr[data-group]")
            return all(r[2].startswith("node ") and r[2] != f"node {ids[third]}" for r in rows)

        until("its groups have other leaders", led, 25)
        checks.that("its groups have other leaders", True)
        checks.that("it may lose none", "lose 0 more nodes" in browser.text("#may-lose"), browser.text("#may-lose"))

        second.kill()
        until("the verdict is 'no-quorum'", lambda: browser.state() == "no-quorum", 25)
        checks.that("two killed: the verdict is 'no-quorum'", True)
        until("every group says that it has no leader", lambda: all(r[2] == "none" for r in browser.rows("#shards tr[data-group]")), 20)
        checks.that("no group shows a leader", True)
        checks.that("and it says what that means", "wait for a quorum" in browser.text("#may-lose"), browser.text("#may-lose"))

        second.start()
        third.start()
        until("the verdict is 'well' again", lambda: browser.state() == "well", 40)
        checks.that("both back: 'well' again, without a reload", True)
        first.kill()
        until("the verdict is 'unknown'", lambda: browser.state() == "unknown", 20)
        checks.that("the asked node lost: the page says that it does not know", "Not known" in browser.text("#verdict"))
    os.close(browser.to)
    browser.process.terminate()


if __name__ == "__main__":
    main("the admin page", 170, run)
