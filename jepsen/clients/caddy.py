#!/usr/bin/env python3
"""Debian's Caddy with docs/operations/Caddyfile in front of three nodes: probes, and a lost leader."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

from harness import ROOT, directory, free_port, http_get, main, spawn, three_nodes, until

CADDYFILE = ROOT / "docs" / "operations" / "Caddyfile"


def start_caddy(nodes, leader_front, front):
    home = directory()
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "LEADLINE_NODES": " ".join(f"127.0.0.1:{node.admin}" for node in nodes),
        "LEADLINE_LEADER_FRONT": f":{leader_front}",
        # Both forms that the file names.
        "LEADLINE_FRONT": f"127.0.0.1:{front}",
    }
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(CADDYFILE)]
    with open(home / "log", "wb") as log:
        return spawn(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def asked(port, seconds=5):
    """The id of the node that answers at this front door, or None."""
    status, _, body = http_get(port, "/api/v1/node", seconds)
    return json.loads(body)["node"] if status == 200 else None


def leader_of(nodes):
    """The node that proves that it leads the meta group."""
    proving = [node for node in nodes if node.get("/healthz/leader?timeout=2s")[0] == 200]
    return proving[0] if len(proving) == 1 else None


def run(checks):
    if not shutil.which("caddy"):
        sys.exit("caddy is not here: apt-get install caddy")
    nodes = three_nodes()
    ids = {node: json.loads(node.get("/api/v1/node")[2])["node"] for node in nodes}
    leader_front, front = free_port(), free_port()
    caddy = start_caddy(nodes, leader_front, front)
    leader = until("one node leads", lambda: leader_of(nodes))

    others = [node for node in nodes if node is not leader]
    answers = [node.get("/healthz/leader") for node in others]
    checks.equal("a follower's probe is 503", [status for status, _, _ in answers], [503, 503])
    checks.equal(
        "and names the leader", [headers.get("x-leadline-leader") for _, headers, _ in answers], [str(ids[leader])] * 2
    )
    until("Caddy answers", lambda: asked(leader_front) is not None and asked(front) is not None, 15)
    until("Caddy has judged all nodes", lambda: all(asked(leader_front) == ids[leader] for _ in range(5)), 15)
    checks.equal(
        "the leader's door leads to the leader only", {asked(leader_front) for _ in range(30)}, {ids[leader]}
    )
    checks.equal("the other door leads to every node", {asked(front) for _ in range(30)}, set(ids.values()))
    checks.that("the page comes through", "<title>" in http_get(front, "/")[2])
    checks.equal("so does an error", http_get(front, "/api/v1/nosuch")[0], 404)

    for name, port in (("leader's", leader_front), ("other", front)):
        refused = [http_get(port, path)[0] for path in ("/api/v1/s3/keys", "//api/v1/s3/keys", "/api/v1/s3/keys/K/grants")]
        checks.equal(f"the {name} door makes no S3 keys", refused, [403, 403, 403])

    # Visitors all the while, one at a time and often.
    stopped, seen = threading.Event(), []

    def visit():
        while not stopped.is_set():
            began = time.monotonic()
            seen.append((began, asked(front, 10)))
            time.sleep(0.02)

    visitor = threading.Thread(target=visit)
    visitor.start()
    leader.kill()
    killed = time.monotonic()
    gone = ids[leader]
    new = until("another node leads", lambda: leader_of(others), 20)
    moved = until("the leader's door has moved", lambda: asked(leader_front) == ids[new] and time.monotonic(), 20)
    checks.that(f"traffic moved {moved - killed:.1f} s after kill -9 of the leader", moved - killed < 15, moved - killed)
    until("probes have run twice since", lambda: time.monotonic() > killed + 6, 10)
    stopped.set()
    visitor.join()
    after = [who for began, who in seen if began > killed + 0.2]
    checks.that("visitors of the other door were served all the while", after and None not in after, f"{after.count(None)} of {len(after)} failed")
    checks.equal("by the two nodes that live", set(after), {ids[node] for node in others})
    checks.equal("the leader's door leads to the new leader", {asked(leader_front) for _ in range(20)}, {ids[new]})

    leader.start().ready()
    back = until("the killed node serves again behind the door", lambda: gone in {asked(front) for _ in range(6)}, 20)
    checks.that("a node that comes back gets its share", back)

    # No quorum: nobody can prove leadership, and nobody gets a guess.
    victims = [node for node in nodes if node is not new]
    for node in victims:
        node.kill()
    lost = time.monotonic()
    status = until(
        "no one passes", lambda: (s := http_get(leader_front, "/api/v1/node", 10)[0]) in (502, 503) and s, 20
    )
    checks.that(f"without a quorum the leader's door answers {status}", status in (502, 503))
    began = time.monotonic()
    proof = new.get("/healthz/leader?timeout=500ms")
    took = time.monotonic() - began
    checks.that(f"the last node's probe says 503 within its own 500 ms ({took * 1000:.0f} ms)", proof[0] == 503 and took < 1.5, proof)
    for node in victims:
        node.start()
    again = until("a leader behind the door again", lambda: asked(leader_front), 40)
    checks.that(f"healed: the leader's door serves again after {time.monotonic() - lost:.1f} s", again)
    caddy.terminate()
    checks.equal("Caddy ends", caddy.wait(10), 0)


if __name__ == "__main__":
    main("Caddy", 150, run)
