#!/usr/bin/env python3
"""Talks to a running server through redis-py, in RESP2 and RESP3: redis_py.py HOST PORT.

Needs `pip install redis`. Uses database 9 and empties it. Exits with 1 at the first difference.
"""

import sys
import threading
import time

import redis


def check(what, got, expected):
    if got != expected:
        sys.exit(f"{what}: got {got!r}, expected {expected!r}")


def refused(what, call, text):
    try:
        got = call()
    except redis.RedisError as error:
        if text not in str(error):
            sys.exit(f"{what}: {error} does not say {text!r}")
        return
    sys.exit(f"{what}: got {got!r}, expected an error with {text!r}")


def exercise(host, port, protocol):
    client = redis.Redis(host=host, port=port, db=9, protocol=protocol, client_name="check")
    client.flushdb()
    check("ping", client.ping(), True)
    check("name", client.client_getname() in ("check", b"check"), True)
    check("set", client.set("k", b"\x00\xffv", ex=100), True)
    check("get", client.get("k"), b"\x00\xffv")
    check("ttl", 98 <= client.ttl("k") <= 100, True)
    check("set nx", client.set("k", "other", nx=True), None)
    check("incr", [client.incr("n") for _ in range(3)], [1, 2, 3])
    check("mget", client.mget("k", "n", "none"), [b"\x00\xffv", b"3", None])
    check("exists", client.exists("k", "n", "none"), 2)
    refused("wrong type", lambda: client.lpush("k", "x"), "WRONGTYPE")

    pipe = client.pipeline(transaction=False)
    for number in range(1000):
        pipe.set(f"p{number}", number)
        pipe.get(f"p{number}")
    replies = pipe.execute()
    check("pipeline", replies, [x for n in range(1000) for x in (True, str(n).encode())])
    check("scan", len(set(client.scan_iter(match="p*", count=100))), 1000)
    check("dbsize", client.dbsize(), 1002)

    client.rpush("l", "a", "b", "c")
    check("lrange", client.lrange("l", 0, -1), [b"a", b"b", b"c"])
    check("blpop", client.blpop(["none", "l"], timeout=1), (b"l", b"a") if protocol == 2 else [b"l", b"a"])
    check("blpop nil", client.blpop("none", timeout=0.1), None)
    later = threading.Thread(
        target=lambda: (time.sleep(0.2), redis.Redis(host=host, port=port, db=9).rpush("late", "x"))
    )
    later.start()
    check("blpop woken", list(client.blpop("late", timeout=5)), [b"late", b"x"])
    later.join()
    client.sadd("s", "a", "b")
    check("smembers", set(client.smembers("s")), {b"a", b"b"})
    client.zadd("z", {"one": 1, "two": 2.5})
    check("zscore", client.zscore("z", "two"), 2.5)
    check("zrange", [member for member, _ in client.zrange("z", 0, -1, withscores=True)], [b"one", b"two"])

    check("info", client.info()["redis_version"].startswith("7."), True)
    check("info loading", client.info("persistence")["loading"], 0)
    check("config", client.config_get("maxmemory-policy"), {"maxmemory-policy": "noeviction"})
    check("command", "get" in {str(name).lower() for name in client.command()}, True)
    check("client list", any(line["name"] == "check" for line in client.client_list()), True)
    refused("unknown", lambda: client.execute_command("NOSUCH", "a"), "unknown command")
    check("deadline", client.execute_command("DEADLINE", 1000, "GET", "n"), b"3")
    client.flushdb()
    client.close()


if __name__ == "__main__":
    for version in (2, 3):
        exercise(sys.argv[1], int(sys.argv[2]), version)
    print("redis-py", redis.__version__, "ok")
