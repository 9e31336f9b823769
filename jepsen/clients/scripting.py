#!/usr/bin/env python3
"""Scripts and functions through redis-py, against one node and through each of three.

Needs `pip install redis`.
"""

import hashlib
import threading
import time

import redis

from harness import main, one_node, three_nodes


def client(node, **options):
    return redis.Redis(host="127.0.0.1", port=node.redis, socket_timeout=15, **options)


def retried(call, seconds=10):
    """While leaderships settle, what was not applied is sent again."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except redis.RedisError as error:
            if "not applied" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.1)


TRANSFER = """
local from, to, amount = KEYS[1], KEYS[2], tonumber(ARGV[1])
local balance = tonumber(redis.call('GET', from) or '0')
if balance < amount then return redis.error_reply('POOR not enough') end
redis.call('DECRBY', from, amount)
redis.call('INCRBY', to, amount)
return {redis.call('GET', from), redis.call('GET', to)}
"""

LIBRARY = """#!lua name=shop
local call = redis.call
redis.register_function('add', function(keys, args) return call('INCRBY', keys[1], args[1]) end)
redis.register_function{function_name='look', flags={'no-writes'}, callback=function(keys) return call('GET', keys[1]) end}
"""


def scripts(checks, name, first, second):
    a, b = client(first), client(second)
    with checks.part(f"{name}: register_script"):
        a.flushall()
        a.script_flush()
        script = a.register_script("return {KEYS[1], ARGV[1], redis.call('incr', KEYS[1])}")
        checks.equal(f"{name}: NOSCRIPT, then loaded", retried(lambda: script(keys=["n"], args=["x"])), [b"n", b"x", 1])
        checks.equal(f"{name}: known through another node", retried(lambda: b.evalsha(script.sha, 1, "n", "y")), [b"n", b"y", 2])
        checks.equal(f"{name}: SCRIPT EXISTS", b.script_exists(script.sha, "0" * 40), [True, False])
        checks.raises(f"{name}: NOSCRIPT", lambda: b.evalsha("0" * 40, 0), "No matching script", redis.RedisError)
        body = "return 'evaluated'"
        a.eval(body, 0)
        digest = hashlib.sha1(body.encode()).hexdigest()
        checks.equal(f"{name}: what EVAL brought is known elsewhere", retried(lambda: b.evalsha(digest, 0)), b"evaluated")
    with checks.part(f"{name}: pipelines and MULTI"):
        pipe = a.pipeline(transaction=True)
        pipe.set("k", 1)
        script(keys=["k"], args=["p"], client=pipe)
        pipe.eval("return redis.call('append', KEYS[1], 'x')", 1, "k")
        pipe.get("k")
        checks.equal(f"{name}: in MULTI", retried(pipe.execute), [True, [b"k", b"p", 2], 2, b"2x"])
        pipe = a.pipeline(transaction=False)
        for n in range(200):
            pipe.evalsha(script.sha, 1, "count", n)
        checks.equal(f"{name}: 200 in a pipeline", [reply[2] for reply in pipe.execute()], list(range(1, 201)))
    with checks.part(f"{name}: over several shards"):
        move = a.register_script(TRANSFER)
        a.mset({f"account{i}": 100 for i in range(8)})
        checks.equal(f"{name}: declared keys", retried(lambda: move(keys=["account0", "account1"], args=[30])), [b"70", b"130"])
        checks.raises(f"{name}: an error of the script", lambda: move(keys=["account0", "account1"], args=[3000]), "not enough", redis.RedisError)
        undeclared = "for i=0,7 do redis.call('incrby', 'account'..i, 1) end return redis.call('get', 'account7')"
        checks.equal(f"{name}: undeclared keys", retried(lambda: b.eval(undeclared, 0)), b"101")

        def move_some(own):
            for n in range(25):
                retried(lambda: move(keys=[f"account{(n + own) % 8}", f"account{(n * 3 + own + 1) % 8}"], args=[1], client=clients[own]))

        clients = [client(first), client(second), client(first), client(second)]
        threads = [threading.Thread(target=move_some, args=(own,)) for own in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = sum(int(value) for value in a.mget([f"account{i}" for i in range(8)]))
        checks.equal(f"{name}: the total after concurrent transfers", total, 808)
    with checks.part(f"{name}: an endless script"):
        began = time.monotonic()
        endless = "redis.call('set', KEYS[1], 'half') while true do pcall(function() while true do end end) end"
        checks.raises(f"{name}: ends", lambda: a.execute_command("DEADLINE", 300, "EVAL", endless, 1, "half"), "not applied", redis.RedisError)
        checks.that(f"{name}: at its deadline", time.monotonic() - began < 3, f"{time.monotonic() - began:.1f} s")
        checks.equal(f"{name}: leaves nothing", retried(lambda: a.get("half")), None)
        runner = threading.Thread(target=lambda: checks.raises(
            f"{name}: killed", lambda: client(first).eval(endless, 1, "half"), "", redis.RedisError))
        runner.start()
        killed = False
        end = time.monotonic() + 4
        while not killed and time.monotonic() < end:
            for node in {first, second}:
                try:
                    killed |= bool(client(node).script_kill())
                except redis.RedisError:
                    time.sleep(0.02)
        runner.join()
        checks.equal(f"{name}: nothing of it either", retried(lambda: a.get("half")), None)
    with checks.part(f"{name}: functions"):
        a.function_flush()
        checks.equal(f"{name}: FUNCTION LOAD", a.function_load(LIBRARY), b"shop")
        checks.equal(f"{name}: FCALL through another node", retried(lambda: b.fcall("add", 1, "f", 5)), 5)
        checks.equal(f"{name}: FCALL_RO", retried(lambda: b.fcall_ro("look", 1, "f")), b"5")
        a.function_load(LIBRARY.replace("'INCRBY'", "'DECRBY'"), replace=True)
        checks.equal(f"{name}: replaced, at once", retried(lambda: b.fcall("add", 1, "f", 5)), 0)
        payload = a.function_dump()
        a.function_delete("shop")
        checks.raises(f"{name}: deleted", lambda: b.fcall("add", 1, "f", 5), "Function not found", redis.RedisError)
        b.function_restore(payload)
        checks.equal(f"{name}: restored", retried(lambda: a.fcall("add", 1, "f", 5)), -5)
        a.function_flush()


def run(checks):
    node = one_node()
    scripts(checks, "one node", node, node)
    sha = client(node).script_load("return 'kept'")
    node.kill()
    node.start().ready()
    checks.equal("a loaded script survives a kill", retried(lambda: client(node).evalsha(sha, 0)), b"kept")
    node.kill()
    nodes = three_nodes()
    scripts(checks, "three nodes", nodes[0], nodes[1])


if __name__ == "__main__":
    main("scripting", 240, run)
