"""64 clients send large bodies at once, slowly and steadily: bounded memory, each is stored or told to slow down."""

import concurrent.futures
import http.client
import os
import select
import threading
import time

from harness import main, one_node
from s3_access import client, new_key

# The whole bar is LEADLINE_S3_FULL=1: bodies of 256 MiB, each sent over a minute.
FULL = os.environ.get("LEADLINE_S3_FULL") == "1"
SENDERS = 64
CHUNKS, SECONDS = (256, 60) if FULL else (16, 10)
CHUNK = 1 << 20
# What a sender gives its socket at a time.
STEP = 128 << 10
SIZE = CHUNKS * CHUNK
BOUND = 512 * 10**6
RANDOM = os.urandom(CHUNK)


def chunk(sender, number):
    """A chunk like no other, so that none is kept once for two."""
    return b"%15d\n%15d\n" % (sender, number) + RANDOM[32:]


def answer_to(connection):
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode(errors="replace")


def is_told_to_slow_down(status, headers, text):
    """With a time to come back at, and without a promise to read on after a body that was not read."""
    wait, then = headers.get("Retry-After", "0"), headers.get("Connection", "")
    return status == 503 and int(wait) >= 1 and then == "close" and "<Code>SlowDown<" in text


def put(port, path, sender):
    """Status, headers and body of the answer; looks for it while it sends, as HTTP asks of clients."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest("PUT", path)
        connection.putheader("Content-Length", str(SIZE))
        connection.endheaders()
        began, sent = time.monotonic(), 0
        for number in range(CHUNKS):
            data = memoryview(chunk(sender, number))
            for at in range(0, CHUNK, STEP):
                if select.select([connection.sock], [], [], 0)[0]:
                    return answer_to(connection)
                try:
                    connection.send(data[at : at + STEP])
                except (BrokenPipeError, ConnectionResetError):
                    return answer_to(connection)
                sent += STEP
                time.sleep(max(0, began + SECONDS * sent / SIZE - time.monotonic()))
        return answer_to(connection)
    finally:
        connection.close()


def is_whole(s3, sender):
    """Whether every byte of what was stored reads as it was sent."""
    stream = s3.get_object(Bucket="slow", Key=str(sender))["Body"]
    same = all(stream.read(CHUNK) == chunk(sender, number) for number in range(CHUNKS))
    return same and stream.read(1) == b""


class Small(threading.Thread):
    """Puts and gets small objects, one request at a time, until it is told to stop."""

    def __init__(self, s3):
        super().__init__()
        self.s3, self.stop = s3, threading.Event()
        self.answered, self.wrong, self.longest = 0, [], 0.0

    def run(self):
        turn = 0
        while not self.stop.wait(0.05):
            key, data = f"small/{turn % 100}", b"%d" % turn
            began = time.monotonic()
            try:
                self.s3.put_object(Bucket="slow", Key=key, Body=data)
                if self.s3.get_object(Bucket="slow", Key=key)["Body"].read() != data:
                    self.wrong.append(f"{key} reads as something else")
                self.answered += 1
            except Exception as error:  # noqa: BLE001: an error, and no answer, are failed checks
                self.wrong.append(f"{type(error).__name__}: {error}")
            self.longest = max(self.longest, time.monotonic() - began)
            turn += 1


def run(checks):
    node = one_node()
    s3 = client(node, new_key(node, "--admin"))
    s3.create_bucket(Bucket="slow")
    paths = []
    for sender in range(SENDERS):
        named = {"Bucket": "slow", "Key": str(sender)}
        url = s3.generate_presigned_url("put_object", Params=named, ExpiresIn=600)
        paths.append(url.split(f":{node.s3}", 1)[1])
    small = Small(client(node, new_key(node, "--grant", "slow=write"), retries=0))
    small.start()
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(SENDERS) as pool:
        outcomes = list(pool.map(lambda sender: put(node.s3, paths[sender], sender), range(SENDERS)))
    took = time.monotonic() - began
    small.stop.set()
    small.join()
    held, highest = node.memory("VmRSS"), node.memory("VmHWM")
    stored = [sender for sender, (status, _, _) in enumerate(outcomes) if status == 200]
    strange = [
        (sender, status, headers.items(), text[:300])
        for sender, (status, headers, text) in enumerate(outcomes)
        if status != 200 and not is_told_to_slow_down(status, headers, text)
    ]
    checks.equal(f"{len(stored)} of {SENDERS} are stored in {took:.0f} s, the rest told to slow down", strange, [])
    checks.that("most are stored", len(stored) >= SENDERS // 2, len(stored))
    shown = f"at most {highest / 1e6:.0f} MB, {held / 1e6:.0f} MB at the end"
    checks.that(f"memory is bounded: {shown}", highest < BOUND)
    shown = f"{small.answered} pairs of PUT and GET, the longest {small.longest:.2f} s"
    checks.equal(f"small objects are stored and read meanwhile: {shown}", small.wrong[:5], [])
    checks.that("in time", small.answered >= SECONDS and small.longest < 5, shown)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        damaged = [sender for sender, whole in zip(stored, pool.map(lambda sender: is_whole(s3, sender), stored)) if not whole]
    checks.equal("what was stored is whole", damaged, [])
    listed = [int(item["Key"]) for item in s3.list_objects_v2(Bucket="slow").get("Contents", []) if item["Key"].isdigit()]
    checks.equal("and nothing else is there", sorted(listed), stored)
    status, _, text = node.get("/metrics")
    running = [line for line in text.splitlines() if line.startswith("leadline_s3_requests_running")]
    checks.that("nobody is left running", status == 200 and running[0].endswith(" 0"), running)


main("s3_slow", 600 if FULL else 120, run)
