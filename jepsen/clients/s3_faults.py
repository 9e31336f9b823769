"""S3 on three nodes while leaders are killed: locks, registers, listings, uploads in parts."""

import hashlib
import os
import random
import threading
import time

from botocore.exceptions import BotoCoreError, ClientError

from harness import main, three_nodes
from s3_access import client, new_key

SECONDS = float(os.environ.get("LEADLINE_S3_FAULT_SECONDS", "40"))


def leader_of_buckets(node):
    """The node that leads the most groups without slots: those of the buckets."""
    overview = node.overview() or {"groups": []}
    leaders = [group["leader"] for group in overview["groups"] if group["group"] > 4 and group["leader"]]
    return max(set(leaders), key=leaders.count) if leaders else 1


class Killer(threading.Thread):
    """Kills the leader of the buckets again and again, and starts it again."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes, self.stop, self.kills = nodes, threading.Event(), 0

    def run(self):
        while not self.stop.wait(random.uniform(2, 4)):
            alive = next(node for node in self.nodes if node.process.poll() is None)
            victim = self.nodes[leader_of_buckets(alive) - 1]
            victim.kill()
            self.kills += 1
            if self.stop.wait(random.uniform(0.5, 2)):
                victim.start()
                break
            victim.start().ready(60)

    def finish(self):
        self.stop.set()
        self.join()
        for node in self.nodes:
            node.ready(60)


def outcome(call):
    """`ok`, `no` (the store says that nothing was done), or `unknown`."""
    try:
        call()
        return "ok"
    except ClientError as error:
        code = error.response["Error"]["Code"]
        refusals = ("PreconditionFailed", "SlowDown", "ServiceUnavailable", "RequestTimeout", "NoSuchUpload")
        return "no" if code in refusals else "unknown"
    except BotoCoreError:
        return "unknown"


def filled(data):
    """The smallest part, made of `data`."""
    return (data * (1 + (5 << 20) // len(data)))[: 5 << 20]


class Lock(threading.Thread):
    """Contends for lock after lock: at most one may hear that it has it, and if one does it is read."""

    def __init__(self, s3, number, locks, won, maybe):
        super().__init__()
        self.s3, self.number, self.locks, self.won, self.maybe = s3, number, locks, won, maybe

    def run(self):
        began = time.monotonic()
        for lock in range(self.locks):
            # All want each lock at once, and the locks are spread over the kills.
            time.sleep(max(0, began + lock * SECONDS / self.locks - time.monotonic()))
            name = f"locks/{lock}"
            put = lambda: self.s3.put_object(Bucket="faults", Key=name, Body=str(self.number).encode(), IfNoneMatch="*")
            heard = outcome(put)
            if heard == "ok":
                self.won[lock].append(self.number)
            elif heard == "unknown":
                self.maybe[lock].append(self.number)


class Writer(threading.Thread):
    """Puts objects of its own, large and small ones, and reads and lists what was acknowledged."""

    def __init__(self, clients, number, end):
        super().__init__()
        self.clients, self.number, self.end = clients, number, end
        self.kept, self.wrong = {}, []

    def run(self):
        turn = 0
        while time.monotonic() < self.end:
            turn += 1
            s3 = random.choice(self.clients)
            key = f"w{self.number}/{turn:05}"
            data = os.urandom(random.choice((10, 5000, 300_000, 2_500_000)))
            upload = self.in_parts if turn % 5 == 0 else self.whole
            if upload(s3, key, data) == "ok":
                self.kept[key] = hashlib.md5(data).hexdigest()
                self.look(key)

    def whole(self, s3, key, data):
        return outcome(lambda: s3.put_object(Bucket="faults", Key=key, Body=data))

    def in_parts(self, s3, key, data):
        def upload():
            name = s3.create_multipart_upload(Bucket="faults", Key=key)["UploadId"]
            parts = []
            pieces = [filled(data), data]
            for number, piece in enumerate(pieces, 1):
                etag = random.choice(self.clients).upload_part(
                    Bucket="faults", Key=key, UploadId=name, PartNumber=number, Body=piece
                )["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
            s3.complete_multipart_upload(Bucket="faults", Key=key, UploadId=name, MultipartUpload={"Parts": parts})

        heard = outcome(upload)
        if heard == "ok":
            self.kept[key] = hashlib.md5(filled(data) + data).hexdigest()
            self.look(key)
        return "counted"

    def look(self, key):
        """What was acknowledged is listed and whole, at any node, at once."""
        s3 = random.choice(self.clients)
        try:
            listed = [item["Key"] for item in s3.list_objects_v2(Bucket="faults", Prefix=key).get("Contents", [])]
            if listed != [key]:
                self.wrong.append(f"{key} is not listed")
            read = s3.get_object(Bucket="faults", Key=key)["Body"].read()
            if hashlib.md5(read).hexdigest() != self.kept[key]:
                self.wrong.append(f"{key} reads as something else")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket"):
                self.wrong.append(f"{key} is gone: {error}")
        except BotoCoreError:
            pass  # No answer is no wrong answer.


def run(checks):
    nodes = three_nodes()
    key = new_key(nodes[0], "--admin")
    clients = [client(node, key, retries=4) for node in nodes]
    clients[0].create_bucket(Bucket="faults")
    end = time.monotonic() + SECONDS
    locks = 12
    won, maybe = [[] for _ in range(locks)], [[] for _ in range(locks)]
    killer = Killer(nodes)
    killer.start()
    # One that sends again by itself would be told of its own lock.
    once = [client(node, key, retries=0) for node in nodes]
    contenders = [Lock(once[number % 3], number, locks, won, maybe) for number in range(100)]
    writers = [Writer(clients, number, end) for number in range(4)]
    for thread in contenders + writers:
        thread.start()
    for thread in contenders + writers:
        thread.join()
    killer.finish()
    checks.that(f"leaders were killed ({killer.kills} times)", killer.kills >= 3)
    s3 = client(nodes[0], key)
    for lock in range(locks):
        holder = int(s3.get_object(Bucket="faults", Key=f"locks/{lock}")["Body"].read())
        winners = won[lock]
        exact = len(winners) <= 1 and (winners == [holder] if winners else holder in maybe[lock])
        if not exact:
            checks.that(f"lock {lock} has one holder", False, f"holder {holder}, won {winners}, maybe {maybe[lock]}")
    heard = sum(map(len, won))
    checks.that(f"100 contenders, {locks} locks: none was given twice ({heard} heard so)", heard >= locks // 2)
    wrong = [line for writer in writers for line in writer.wrong]
    checks.equal("what was acknowledged was listed and whole at once", wrong, [])
    kept = {key: md5 for writer in writers for key, md5 in writer.kept.items()}
    listed = set()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="faults", Prefix="w"):
        listed.update(item["Key"] for item in page.get("Contents", []))
    checks.equal(f"all {len(kept)} acknowledged objects are listed in the end", sorted(set(kept) - listed), [])
    damaged = [
        name for name, md5 in kept.items() if hashlib.md5(s3.get_object(Bucket="faults", Key=name)["Body"].read()).hexdigest() != md5
    ]
    checks.equal("and whole", damaged, [])
    checks.that("there were some", len(kept) >= 20, len(kept))


main("s3_faults", 230, run)
