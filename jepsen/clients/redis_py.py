#!/usr/bin/env python3
"""redis-py in RESP2 and RESP3, against one node and through each of three.

redis_py.py                  starts the nodes itself
redis_py.py HOST:PORT ...    uses these; empties databases 0 to 15
Needs `pip install redis`.
"""

import random
import sys
import threading
import time

import redis

from harness import main, one_node, three_nodes

REFUSED = redis.RedisError


class Suite:
    """One client, one protocol, one address; `name` begins each line."""

    def __init__(self, checks, name, address, protocol):
        self.checks, self.name, self.address, self.protocol = checks, name, address, protocol
        self.client = self.connect()

    def connect(self, **options):
        host, port = self.address
        return redis.Redis(host=host, port=port, protocol=self.protocol, socket_timeout=15, **{"db": 9, **options})

    def equal(self, what, got, expected):
        self.checks.equal(f"{self.name}: {what}", got, expected)

    def that(self, what, holds, detail=""):
        self.checks.that(f"{self.name}: {what}", holds, detail)

    def raises(self, what, call, text):
        self.checks.raises(f"{self.name}: {what}", call, text, REFUSED)

    def run(self):
        parts = [
            self.connection, self.strings, self.counters, self.expiry, self.keys, self.binary, self.big_values,
            self.hashes, self.lists, self.blocking, self.sets, self.sorted_sets, self.scans, self.pipelines,
            self.databases, self.deadlines, self.errors, self.transactions, self.server,
        ]
        for part in parts:
            with self.checks.part(f"{self.name}: {part.__name__}"):
                self.client.flushdb()
                part()
        self.client.flushdb()
        self.client.close()

    def connection(self):
        c = self.connect(client_name="check")
        self.equal("PING", c.ping(), True)
        self.equal("ECHO", c.echo("hello"), b"hello")
        self.that("CLIENT GETNAME", c.client_getname() in ("check", b"check"))
        self.that("CLIENT LIST names us", any(line["name"] == "check" for line in c.client_list()))
        self.that("CLIENT ID", isinstance(c.client_id(), int))
        self.equal("CLIENT INFO db", str(c.client_info()["db"]), "9")
        self.that("TIME is now", abs(c.time()[0] - time.time()) < 60)
        c.close()

    def strings(self):
        c = self.client
        self.equal("SET and GET", (c.set("k", "v"), c.get("k")), (True, b"v"))
        self.equal("GET of nothing", c.get("none"), None)
        self.equal("SET NX refuses", c.set("k", "w", nx=True), None)
        self.equal("SET XX", c.set("k", "w", xx=True), True)
        self.equal("SET GET", c.set("k", "x", get=True), b"w")
        self.equal("SETNX", [c.setnx("nx", 1), c.setnx("nx", 2)], [True, False])
        self.equal("GETDEL", (c.getdel("nx"), c.exists("nx")), (b"1", 0))
        self.equal("APPEND and STRLEN", (c.append("k", "yz"), c.strlen("k")), (3, 3))
        self.equal("SETRANGE", (c.setrange("r", 3, "abc"), c.get("r")), (6, b"\0\0\0abc"))
        self.equal("GETRANGE", c.getrange("r", -3, -1), b"abc")
        self.equal("MSET in one slot", c.mset({"{m}1": 1, "{m}2": 2}), True)
        self.equal("MGET over slots", c.mget("{m}1", "k", "none", "{m}2"), [b"1", b"xyz", None, b"2"])
        self.equal("MSETNX", c.msetnx({"{m}2": 0, "{m}3": 3}), False)
        self.equal("EXISTS counts", c.exists("{m}1", "{m}1", "k", "none"), 3)
        self.equal("LCS", c.execute_command("LCS", "{m}1", "{m}2", "LEN"), 0)
        self.equal("GETEX", (c.getex("k", ex=100), c.ttl("k") > 90), (b"xyz", True))

    def counters(self):
        c = self.client
        self.equal("INCR", [c.incr("n") for _ in range(3)], [1, 2, 3])
        self.equal("INCRBY, DECR, DECRBY", [c.incrby("n", 40), c.decr("n"), c.decrby("n", 2)], [43, 42, 40])
        self.equal("INCRBYFLOAT", c.incrbyfloat("f", 0.1) + c.incrbyfloat("f", 0.2), 0.1 + 0.3)
        c.set("n", 2**63 - 1)
        self.raises("INCR overflows", lambda: c.incr("n"), "overflow")
        c.set("n", "x")
        self.raises("INCR of no number", lambda: c.incr("n"), "not an integer")
        self.concurrent_increments()

    def concurrent_increments(self):
        """Eight connections on one key: no increment is lost, none is given twice."""
        seen, errors, lock = [], [], threading.Lock()

        def add():
            own = self.connect()
            try:
                mine = [own.incr("hot") for _ in range(50)]
                with lock:
                    seen.extend(mine)
            except REFUSED as error:
                errors.append(error)
            finally:
                own.close()

        threads = [threading.Thread(target=add) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.equal("INCR from 8 connections", (sorted(seen), errors), (list(range(1, 401)), []))

    def expiry(self):
        c = self.client
        c.set("k", "v", ex=100)
        self.that("TTL", 95 <= c.ttl("k") <= 100)
        self.equal("PERSIST", (c.persist("k"), c.ttl("k")), (True, -1))
        self.equal("TTL of nothing", c.ttl("none"), -2)
        self.equal("EXPIRE GT of a key without expiry", c.expire("k", 10, gt=True), False)
        self.equal("EXPIRE NX", c.expire("k", 10, nx=True), True)
        at = int(time.time()) + 50
        self.equal("EXPIREAT", (c.expireat("k", at), c.expiretime("k")), (True, at))
        c.set("soon", "v", px=120)
        c.hset("soonhash", "f", 1)
        c.pexpire("soonhash", 120)
        self.equal("there before its time", c.get("soon"), b"v")
        time.sleep(0.3)
        self.equal("gone after its time", (c.get("soon"), c.exists("soonhash"), c.ttl("soon")), (None, 0, -2))
        self.equal("SET drops the expiry", (c.set("k", 1), c.ttl("k")), (True, -1))
        c.expire("k", 50)
        self.that("SET KEEPTTL keeps it", c.set("k", 2, keepttl=True) and c.ttl("k") > 40)

    def keys(self):
        c = self.client
        c.mset({"{a}1": 1, "{a}2": 2})
        c.lpush("{a}l", 1)
        self.equal("TYPE", [c.type(k) for k in ("{a}1", "{a}l", "none")], [b"string", b"list", b"none"])
        self.equal("RENAME", (c.rename("{a}1", "{a}3"), c.get("{a}3"), c.get("{a}1")), (True, b"1", None))
        self.equal("RENAMENX", c.renamenx("{a}3", "{a}2"), False)
        self.equal("COPY", (c.copy("{a}3", "{a}4"), c.get("{a}4")), (True, b"1"))
        self.equal("TOUCH", c.touch("{a}2", "{a}3", "{a}none"), 2)
        self.equal("DEL, UNLINK", (c.delete("{a}2", "{a}none"), c.unlink("{a}l")), (1, 1))
        self.equal("KEYS", sorted(c.keys("*")), [b"{a}3", b"{a}4"])
        self.equal("DBSIZE", c.dbsize(), 2)
        self.that("RANDOMKEY", c.randomkey() in (b"{a}3", b"{a}4"))
        self.equal("OBJECT ENCODING", c.object("encoding", "{a}3"), b"int")

    def binary(self):
        c = self.client
        every = bytes(range(256))
        keys = [b"\0", b"\xff\xfe", every, b"a\0b", b"a\0", b"a", b"\r\n", b"{\0}x"]
        for number, key in enumerate(keys):
            c.set(key, every + bytes([number]))
        self.equal("binary keys and values", [c.get(k) for k in keys], [every + bytes([n]) for n in range(len(keys))])
        self.equal("KEYS gives them back", sorted(c.keys()), sorted(keys))
        c.hset("h", every, every)
        c.sadd("s", every)
        c.zadd("z", {every: 1})
        self.equal("binary fields and members", (c.hgetall("h"), c.smembers("s"), c.zscore("z", every)), ({every: every}, {every}, 1.0))
        self.equal("an empty value is a value", (c.set("e", ""), c.get("e"), c.exists("e")), (True, b"", 1))

    def big_values(self):
        c = self.client
        value = random.Random(7).randbytes(1 << 20)
        self.equal("SET 1 MiB", c.set("big", value), True)
        self.that("GET 1 MiB", c.get("big") == value)
        self.equal("STRLEN 1 MiB", c.strlen("big"), 1 << 20)
        c.rpush("{big}l", value, value)
        self.that("LRANGE 2 MiB", c.lrange("{big}l", 0, -1) == [value, value])
        pipe = c.pipeline(transaction=False)
        for number in range(8):
            pipe.set(f"big{number}", value)
            pipe.get(f"big{number}")
        self.that("8 MiB each way in a pipeline", pipe.execute() == [True, value] * 8)

    def hashes(self):
        c = self.client
        self.equal("HSET", c.hset("h", mapping={"a": 1, "b": 2, "c": 3}), 3)
        self.equal("HGET", (c.hget("h", "a"), c.hget("h", "none")), (b"1", None))
        self.equal("HGETALL", c.hgetall("h"), {b"a": b"1", b"b": b"2", b"c": b"3"})
        self.equal("HMGET", c.hmget("h", "c", "x", "a"), [b"3", None, b"1"])
        self.equal("HINCRBY, HINCRBYFLOAT", (c.hincrby("h", "a", 4), c.hincrbyfloat("h", "b", 0.5)), (5, 2.5))
        self.equal("HEXISTS, HLEN, HSTRLEN", (c.hexists("h", "a"), c.hlen("h"), c.hstrlen("h", "b")), (True, 3, 3))
        self.equal("HSETNX", (c.hsetnx("h", "a", 0), c.hsetnx("h", "d", 0)), (False, True))
        self.equal("HKEYS", sorted(c.hkeys("h")), [b"a", b"b", b"c", b"d"])
        self.that("HRANDFIELD", set(c.hrandfield("h", 2)) <= {b"a", b"b", b"c", b"d"})
        self.equal("HDEL to the last", (c.hdel("h", "a", "b", "c", "d", "e"), c.exists("h")), (4, 0))

    def lists(self):
        c = self.client
        self.equal("RPUSH, LPUSH", (c.rpush("{l}", "b", "c"), c.lpush("{l}", "a")), (2, 3))
        self.equal("LRANGE", c.lrange("{l}", 0, -1), [b"a", b"b", b"c"])
        self.equal("LINDEX", (c.lindex("{l}", -1), c.lindex("{l}", 9)), (b"c", None))
        self.equal("LINSERT", (c.linsert("{l}", "before", "c", "bb"), c.lset("{l}", 0, "A")), (4, True))
        self.equal("LPOS", c.lpos("{l}", "bb"), 2)
        self.equal("LREM", (c.lrem("{l}", 0, "b"), c.llen("{l}")), (1, 3))
        self.equal("LPOP, RPOP", (c.lpop("{l}"), c.rpop("{l}", 2), c.exists("{l}")), (b"A", [b"c", b"bb"], 0))
        c.rpush("{l}", *range(10))
        self.equal("LTRIM", (c.ltrim("{l}", 2, 4), c.lrange("{l}", 0, -1)), (True, [b"2", b"3", b"4"]))
        self.equal("LMOVE", (c.lmove("{l}", "{l}2", "LEFT", "RIGHT"), c.lrange("{l}2", 0, -1)), (b"2", [b"2"]))
        self.equal("RPOPLPUSH", c.rpoplpush("{l}", "{l}2"), b"4")
        self.equal("LMPOP", c.lmpop(2, "{l}none", "{l}2", direction="LEFT", count=5), [b"{l}2", [b"4", b"2"]])

    def blocking(self):
        c = self.client
        c.rpush("{q}", "x")
        self.equal("BLPOP of what is there", list(c.blpop(["{q}none", "{q}"], timeout=1)), [b"{q}", b"x"])
        began = time.monotonic()
        self.equal("BLPOP of nothing", c.blpop("{q}", timeout=0.3), None)
        self.that("BLPOP waits its time", 0.25 < time.monotonic() - began < 3, time.monotonic() - began)
        self.equal("BLPOP is woken", self.woken(lambda own: own.blpop("{q}", 10), lambda: c.rpush("{q}", "job")), [b"{q}", b"job"])
        self.equal("BRPOP is woken", self.woken(lambda own: own.brpop("{q}", 10), lambda: c.rpush("{q}", "1", "2")), [b"{q}", b"2"])
        c.delete("{q}")
        self.equal(
            "BLMOVE is woken",
            self.woken(lambda own: [own.blmove("{q}", "{q}to", 10)], lambda: c.rpush("{q}", "m")),
            [b"m"],
        )
        self.equal(
            "BLMPOP is woken",
            self.woken(lambda own: own.blmpop(10, 2, "{q}", "{q}b", direction="LEFT"), lambda: c.rpush("{q}b", "z")),
            [b"{q}b", [b"z"]],
        )
        self.equal(
            "BZPOPMIN is woken",
            [x for x in self.woken(lambda own: own.bzpopmin("{q}z", 10), lambda: c.zadd("{q}z", {"m": 2}))],
            [b"{q}z", b"m", 2.0],
        )
        self.each_job_once()

    def woken(self, wait, act):
        """What `wait` gives on its own connection, `act` having been done while it waited."""
        result = []

        def waiter():
            own = self.connect(client_name="waiter")
            try:
                result.extend(wait(own) or ["nil"])
            except REFUSED as error:
                result.append(str(error))
            finally:
                own.close()

        thread = threading.Thread(target=waiter)
        thread.start()
        # The client list shows the command once the server has it.
        end = time.monotonic() + 5
        while time.monotonic() < end:
            lines = [line for line in self.client.client_list() if line.get("name") == "waiter"]
            if any("b" in line.get("flags", "") or line.get("cmd", "").startswith("b") for line in lines):
                break
            time.sleep(0.02)
        act()
        thread.join(12)
        return result

    def each_job_once(self):
        """Four waiters, forty jobs: each job goes to exactly one of them."""
        taken, errors, lock = [], [], threading.Lock()

        def worker():
            own = self.connect()
            try:
                while True:
                    job = own.blpop("{q}jobs", timeout=10)
                    if job is None or job[1] == b"end":
                        return
                    with lock:
                        taken.append(int(job[1]))
            except REFUSED as error:
                errors.append(error)
            finally:
                own.close()

        threads = [threading.Thread(target=worker) for _ in range(4)]
        [thread.start() for thread in threads]
        for number in range(40):
            self.client.rpush("{q}jobs", number)
        self.client.rpush("{q}jobs", *["end"] * 4)
        [thread.join(15) for thread in threads]
        self.equal("each job goes to one waiter", (sorted(taken), errors), (list(range(40)), []))

    def sets(self):
        c = self.client
        self.equal("SADD", (c.sadd("{s}a", 1, 2, 3), c.sadd("{s}a", 3), c.sadd("{s}b", 2, 3, 4)), (3, 0, 3))
        self.equal("SMEMBERS", c.smembers("{s}a"), {b"1", b"2", b"3"})
        self.equal("SISMEMBER, SMISMEMBER", (c.sismember("{s}a", 1), list(c.smismember("{s}a", [1, 9]))), (1, [1, 0]))
        self.equal("SINTER", c.sinter("{s}a", "{s}b"), {b"2", b"3"})
        self.equal("SUNION", c.sunion("{s}a", "{s}b"), {b"1", b"2", b"3", b"4"})
        self.equal("SDIFFSTORE", (c.sdiffstore("{s}d", "{s}a", "{s}b"), c.smembers("{s}d")), (1, {b"1"}))
        self.equal("SINTERCARD", c.sintercard(2, ["{s}a", "{s}b"]), 2)
        self.equal("SMOVE", (c.smove("{s}a", "{s}b", 1), c.scard("{s}a"), c.scard("{s}b")), (True, 2, 4))
        self.that("SRANDMEMBER", c.srandmember("{s}b") in {b"1", b"2", b"3", b"4"})
        self.that("SPOP", set(c.spop("{s}b", 9)) == {b"1", b"2", b"3", b"4"} and not c.exists("{s}b"))
        self.equal("SREM to the last", (c.srem("{s}a", 2, 3), c.exists("{s}a")), (2, 0))

    def sorted_sets(self):
        c = self.client
        self.equal("ZADD", c.zadd("{z}", {"one": 1, "two": 2, "three": 3}), 3)
        self.equal("ZSCORE, ZCARD", (c.zscore("{z}", "two"), c.zcard("{z}"), c.zscore("{z}", "x")), (2.0, 3, None))
        self.equal("ZRANGE", c.zrange("{z}", 0, -1), [b"one", b"two", b"three"])
        pairs = [list(pair) for pair in c.zrange("{z}", 0, 1, withscores=True)]
        self.equal("ZRANGE WITHSCORES", pairs, [[b"one", 1.0], [b"two", 2.0]])
        self.equal("ZRANGEBYSCORE", c.zrangebyscore("{z}", "(1", "+inf"), [b"two", b"three"])
        self.equal("ZREVRANGE", c.zrevrange("{z}", 0, 0), [b"three"])
        self.equal("ZRANK, ZREVRANK", (c.zrank("{z}", "two"), c.zrevrank("{z}", "one")), (1, 2))
        self.equal("ZINCRBY", c.zincrby("{z}", 2.5, "one"), 3.5)
        self.equal("ZADD GT CH", c.zadd("{z}", {"two": 1, "three": 9}, gt=True, ch=True), 1)
        self.equal("ZCOUNT", c.zcount("{z}", 2, 4), 2)
        c.zadd("{z}b", {"two": 10, "four": 4})
        self.equal("ZUNIONSTORE", (c.zunionstore("{z}u", ["{z}", "{z}b"]), c.zscore("{z}u", "two")), (4, 12.0))
        self.equal("ZINTER", c.zinter(["{z}", "{z}b"]), [b"two"])
        c.zadd("{z}lex", {m: 0 for m in "abcd"})
        self.equal("ZRANGEBYLEX", c.zrangebylex("{z}lex", "[b", "(d"), [b"b", b"c"])
        self.equal("ZPOPMIN", [list(pair) for pair in c.zpopmin("{z}lex", 1)], [[b"a", 0.0]])
        self.equal("ZREMRANGEBYRANK", (c.zremrangebyrank("{z}lex", 0, -1), c.exists("{z}lex")), (3, 0))
        c.zadd("{z}inf", {"low": float("-inf"), "high": float("inf")})
        self.equal("infinite scores", c.zrange("{z}inf", 0, -1), [b"low", b"high"])

    def scans(self):
        c = self.client
        pipe = c.pipeline(transaction=False)
        for number in range(500):
            pipe.set(f"key:{number}", number)
            pipe.hset("h", f"f{number}", number)
            pipe.sadd("s", number)
            pipe.zadd("z", {f"m{number}": number})
        pipe.execute()
        names = {f"key:{number}".encode() for number in range(500)}
        self.equal("SCAN MATCH gives each key", set(c.scan_iter(match="key:*", count=50)), names)
        self.equal("SCAN gives no key twice", len(list(c.scan_iter(count=37))), 503)
        self.equal("SCAN TYPE", set(c.scan_iter(_type="hash")), {b"h"})
        self.equal("HSCAN", len(dict(c.hscan_iter("h", count=20))), 500)
        self.equal("SSCAN", {int(m) for m in c.sscan_iter("s")}, set(range(500)))
        self.equal("ZSCAN", dict(c.zscan_iter("z")), {f"m{n}".encode(): float(n) for n in range(500)})

    def pipelines(self):
        c = self.client
        pipe = c.pipeline(transaction=False)
        for number in range(2000):
            pipe.set(f"p{number}", number)
            pipe.get(f"p{number}")
        self.equal("4 000 commands in order", pipe.execute(), [x for n in range(2000) for x in (True, str(n).encode())])
        pipe = c.pipeline(transaction=False)
        pipe.set("a", "text")
        pipe.incr("a")
        pipe.lpush("a", 1)
        pipe.get("a")
        replies = pipe.execute(raise_on_error=False)
        self.that(
            "an error in a pipeline is that command's only",
            replies[0] is True and "integer" in str(replies[1]) and "WRONGTYPE" in str(replies[2]) and replies[3] == b"text",
            replies,
        )

    def databases(self):
        clients = [self.connect(db=number) for number in range(16)]
        for number, c in enumerate(clients):
            c.flushdb()
            c.set("same", number)
            c.rpush("list", *range(number + 1))
        self.equal("16 databases hold 16 values", [c.get("same") for c in clients], [str(n).encode() for n in range(16)])
        self.equal("and 16 lists", [c.llen("list") for c in clients], list(range(1, 17)))
        self.equal("DBSIZE is of one", [c.dbsize() for c in clients], [2] * 16)
        clients[3].flushdb()
        self.equal("FLUSHDB empties one", [c.dbsize() for c in clients], [0 if n == 3 else 2 for n in range(16)])
        self.equal("MOVE", (clients[4].move("same", 3), clients[3].get("same"), clients[4].get("same")), (True, b"4", None))
        self.raises("SELECT 16", lambda: self.connect(db=16).ping(), "out of range")
        for c in clients:
            c.flushdb()
            c.close()

    def deadlines(self):
        c = self.client
        c.set("k", "v")
        self.equal("DEADLINE ms GET", c.execute_command("DEADLINE", 1000, "GET", "k"), b"v")
        self.equal("DEADLINE ms SET", c.execute_command("DEADLINE", 1000, "SET", "k", "w"), b"OK")
        self.raises("DEADLINE without a command", lambda: c.execute_command("DEADLINE", 1000), "wrong number of arguments")
        self.raises("DEADLINE that is no number", lambda: c.execute_command("DEADLINE", "x", "GET", "k"), "not an integer")
        own = self.connect(single_connection_client=True)
        self.equal("CLIENT DEADLINE sets", own.execute_command("CLIENT", "DEADLINE", 1500), b"OK")
        self.equal("CLIENT DEADLINE shows", own.execute_command("CLIENT", "DEADLINE"), 1500)
        self.equal("and it serves", own.get("k"), b"w")
        own.close()

    def errors(self):
        c = self.client
        c.set("k", "v")
        self.raises("WRONGTYPE", lambda: c.lpush("k", 1), "WRONGTYPE")
        self.raises("an unknown command", lambda: c.execute_command("NOSUCH", "a"), "unknown command")
        self.raises("too few arguments", lambda: c.execute_command("GET"), "wrong number of arguments")
        self.raises("a syntax error", lambda: c.execute_command("SET", "k", "v", "BOGUS"), "syntax error")
        self.raises("a bad expiry", lambda: c.execute_command("SET", "k", "v", "EX", "0"), "invalid expire")
        self.equal("the connection goes on", c.get("k"), b"v")

    def transactions(self):
        """MULTI, EXEC, WATCH over keys that lie in several shards."""
        c = self.client
        keys = [f"spread{number}" for number in range(24)]
        c.delete(*keys)
        self.equal("MSET over shards", c.mset({key: number for number, key in enumerate(keys)}), True)
        self.equal("MGET over shards", c.mget(keys), [str(number).encode() for number in range(24)])
        pipe = c.pipeline(transaction=True)
        for key in keys:
            pipe.incr(key)
        self.equal("EXEC over shards", pipe.execute(), list(range(1, 25)))
        pipe = c.pipeline(transaction=True)
        pipe.set(keys[0], "text").lpush(keys[0], "x").incr(keys[1])
        got = pipe.execute(raise_on_error=False)
        self.that("an error inside EXEC takes nothing back", got[0] is True and isinstance(got[1], REFUSED) and got[2] == 3, got)
        with c.pipeline() as pipe:
            pipe.watch(keys[2], keys[3])
            c.set(keys[3], "changed")
            pipe.multi()
            pipe.set(keys[2], "never")
            self.raises("a WATCH over shards that failed", pipe.execute, "Watched variable changed")
        self.equal("and then nothing was done", c.get(keys[2]), b"3")
        with c.pipeline() as pipe:
            pipe.watch(keys[2], keys[4])
            pipe.multi()
            pipe.set(keys[2], "a").set(keys[4], "b")
            self.equal("a WATCH over shards that held", pipe.execute(), [True, True])
        c.sadd("left set", 1, 2, 3)
        c.sadd("right set", 2, 3, 4)
        self.equal("SINTERSTORE over shards", c.sinterstore("both sets", "left set", "right set"), 2)
        self.equal("SMOVE over shards", c.smove("left set", "right set", 1), True)
        c.rpush("from list", "a", "b")
        self.equal("LMOVE over shards", c.lmove("from list", "to list", "LEFT", "RIGHT"), b"a")
        self.equal("RENAME over shards", (c.rename("to list", "other list"), c.lrange("other list", 0, -1)), (True, [b"a"]))
        self.equal("DEL over shards", c.delete(*keys), 24)
        # Two that take turns at moving between accounts: the sum stays.
        c.mset({"account a": 100, "account b": 100})
        other = self.connect()

        def move(client):
            for _ in range(25):
                def body(pipe):
                    a, b = int(pipe.get("account a")), int(pipe.get("account b"))
                    pipe.multi()
                    pipe.set("account a", a - 1).set("account b", b + 1)
                client.transaction(body, "account a", "account b")

        threads = [threading.Thread(target=move, args=(client,)) for client in (c, other)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.equal("moves between accounts, each once", c.mget("account a", "account b"), [b"50", b"150"])

    def server(self):
        c = self.client
        self.that("INFO redis_version", c.info()["redis_version"].startswith("7."))
        self.equal("INFO loading", c.info("persistence")["loading"], 0)
        self.equal("CONFIG GET", c.config_get("maxmemory-policy"), {"maxmemory-policy": "noeviction"})
        self.that("COMMAND COUNT", c.command_count() > 150)
        self.that("COMMAND lists GET", "get" in {str(name).lower() for name in c.command()})
        self.that("MEMORY USAGE", c.set("k", "v") and c.memory_usage("k") > 0)
        self.that("WAIT answers at once", c.wait(0, 100) >= 0)


def across(checks, addresses):
    """What one node acknowledged, every other shows at once."""
    clients = [redis.Redis(host=h, port=p, db=9, socket_timeout=15) for h, p in addresses]
    clients[0].flushdb()
    stale = []
    for number in range(150):
        writer, reader = clients[number % 3], clients[(number + 1 + number % 2) % 3]
        writer.set(f"x{number % 20}", number)
        got = reader.get(f"x{number % 20}")
        if got != str(number).encode():
            stale.append((number, got))
    checks.equal("three nodes: written through one, read through another", stale, [])
    result = []
    waiter = threading.Thread(target=lambda: result.append(clients[1].blpop("queue", 10)))
    waiter.start()
    time.sleep(0.3)
    clients[2].rpush("queue", "job")
    waiter.join(12)
    checks.equal("three nodes: BLPOP at one is woken by RPUSH at another", [list(r) for r in result], [[b"queue", b"job"]])
    pipes = [c.pipeline(transaction=False) for c in clients]
    for pipe in pipes:
        for number in range(500):
            pipe.incr(f"sum{number % 7}")
    threads = [threading.Thread(target=pipe.execute) for pipe in pipes]
    [t.start() for t in threads]
    [t.join() for t in threads]
    total = sum(int(clients[0].get(f"sum{n}")) for n in range(7))
    checks.equal("three nodes: INCR through all, each counted once", total, 1500)
    clients[0].flushdb()


def passwords(checks, node):
    at = {"host": "127.0.0.1", "port": node.redis, "socket_timeout": 10}
    checks.raises("AUTH: without a password", lambda: redis.Redis(**at).get("k"), "AuthenticationError", REFUSED)
    checks.raises("AUTH: a wrong password", lambda: redis.Redis(**at, password="no").get("k"), "invalid username-password pair", REFUSED)
    for protocol in (2, 3):
        c = redis.Redis(**at, password="secret", protocol=protocol)
        checks.equal(f"AUTH: the right one, RESP{protocol}", (c.set("k", "v"), c.get("k")), (True, b"v"))
        c = redis.Redis(**at, username="default", password="secret", protocol=protocol)
        checks.equal(f"AUTH: with the user's name, RESP{protocol}", c.get("k"), b"v")


def run(checks):
    if len(sys.argv) > 1:
        groups = [[(host, int(port)) for host, port in (a.rsplit(":", 1) for a in sys.argv[1:])]]
    else:
        locked = one_node("--requirepass", "secret")
        with checks.part("AUTH", [locked]):
            passwords(checks, locked)
        locked.kill()
        single = one_node()
        nodes = three_nodes()
        groups = [[("127.0.0.1", single.redis)], [("127.0.0.1", node.redis) for node in nodes]]
    for addresses in groups:
        if len(addresses) == 3:
            with checks.part("across the nodes"):
                across(checks, addresses)
        for number, address in enumerate(addresses, 1):
            where = "one node" if len(addresses) == 1 else f"node {number} of {len(addresses)}"
            for protocol in (2, 3):
                Suite(checks, f"RESP{protocol}, {where}", address, protocol).run()


if __name__ == "__main__":
    main(f"redis-py {redis.__version__}", 170, run)
