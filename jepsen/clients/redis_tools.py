#!/usr/bin/env python3
"""redis-cli and redis-benchmark against one node and through one of three that does not lead all."""

import shutil
import subprocess
import sys

from harness import main, one_node, three_nodes

TESTS = "set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,mset"
REQUESTS, PIPELINE = 20000, 16


def tool(*command, text=None, seconds=60):
    return subprocess.run([str(c) for c in command], input=text, capture_output=True, text=True, timeout=seconds)


def cli(checks, where, port):
    def ask(*words, **options):
        return tool("redis-cli", "-p", port, *words, **options).stdout.strip()

    checks.equal(f"redis-cli, {where}: PING", ask("PING"), "PONG")
    checks.equal(f"redis-cli, {where}: SET and GET", (ask("SET", "k", "v"), ask("GET", "k")), ("OK", "v"))
    checks.equal(f"redis-cli, {where}: -n 5 is another database", ask("-n", "5", "GET", "k"), "")
    checks.equal(f"redis-cli, {where}: --no-raw shows types", ask("--no-raw", "INCR", "n"), "(integer) 1")
    checks.equal(f"redis-cli, {where}: RESP3", ask("-3", "--no-raw", "HSET", "h", "f", "v"), "(integer) 1")
    checks.equal(f"redis-cli, {where}: a map in RESP3", ask("-3", "--no-raw", "HGETALL", "h"), '1# "f" => "v"')
    checks.that(f"redis-cli, {where}: INFO", "redis_version:7" in ask("INFO", "server"))
    lines = "".join(f"SET line{n} {n}\r\n" for n in range(1000))
    loaded = tool("redis-cli", "-p", port, "--pipe", text=lines)
    checks.that(f"redis-cli, {where}: --pipe", "errors: 0, replies: 1000" in loaded.stdout, loaded.stdout + loaded.stderr)
    checks.equal(f"redis-cli, {where}: --scan", len(ask("--scan", "--pattern", "line*").split()), 1000)
    checks.that(f"redis-cli, {where}: --bigkeys", "Biggest string" in tool("redis-cli", "-p", port, "--bigkeys").stdout)
    checks.equal(f"redis-cli, {where}: FLUSHALL", (ask("FLUSHALL"), ask("DBSIZE")), ("OK", "0"))


def benchmark(checks, where, port, tests, requests):
    # MSET writes ten random keys: several shards, refused until transactions land.
    tests = ",".join(test for test in tests.split(",") if test != "mset")
    command = ["redis-benchmark", "-p", port, "-t", tests, "-n", requests, "-P", PIPELINE, "-r", 10000, "-q"]
    done = tool(*command, seconds=90)
    shown = done.stdout.replace("\r", "\n")
    sums = [line for line in shown.split("\n") if "requests per second" in line]
    what = f"redis-benchmark, {where}"
    checks.equal(f"{what}: exit code", done.returncode, 0)
    checks.equal(f"{what}: no error", [l for l in (shown + done.stderr).split("\n") if "rror" in l], [])
    checks.equal(f"{what}: every test ran", len(sums), len(tests.split(",")))
    for line in sums:
        print(f"      {line.strip()}", flush=True)


def run(checks):
    for name in ("redis-cli", "redis-benchmark"):
        if not shutil.which(name):
            sys.exit(f"{name} is not here: apt-get install redis-tools")
    single = one_node()
    with checks.part("one node", [single]):
        cli(checks, "one node", single.redis)
        benchmark(checks, "one node", single.redis, TESTS, REQUESTS)
        # All requests on one key.
        hot = tool("redis-benchmark", "-p", single.redis, "-t", "incr,lpush,zadd", "-n", REQUESTS, "-P", PIPELINE, "-q")
        checks.that("redis-benchmark, one node: hot keys", hot.returncode == 0 and "rror" not in hot.stdout + hot.stderr, hot)
        checks.equal(
            "redis-benchmark, one node: the hot counter has every increment",
            tool("redis-cli", "-p", single.redis, "GET", "counter:__rand_int__").stdout.strip(),
            str(REQUESTS),
        )
    single.kill()
    nodes = three_nodes()
    with checks.part("three nodes", nodes):
        cli(checks, "three nodes", nodes[1].redis)
        benchmark(checks, "three nodes", nodes[2].redis, TESTS, REQUESTS // 2)


if __name__ == "__main__":
    main("redis-cli and redis-benchmark", 170, run)
