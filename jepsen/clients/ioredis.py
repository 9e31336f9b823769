#!/usr/bin/env python3
"""Starts one node and three, and lets ioredis talk to them (ioredis.mjs).

$LEADLINE_NODE_MODULES is the directory in which `npm install ioredis` was run.
"""

import pathlib
import subprocess

from harness import main, one_node, three_nodes

SCRIPT = pathlib.Path(__file__).with_name("ioredis.mjs")


def run(checks):
    for name, nodes in (("one node", [one_node()]), ("three nodes", three_nodes())):
        addresses = [f"127.0.0.1:{node.redis}" for node in nodes]
        done = subprocess.run(["node", SCRIPT, *addresses], timeout=60)
        checks.equal(f"ioredis.mjs, {name}: exit code", done.returncode, 0)
        for node in nodes:
            node.kill()


if __name__ == "__main__":
    main("ioredis", 150, run)
