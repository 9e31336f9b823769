// ioredis against running nodes: node ioredis.mjs HOST:PORT ...
//
// Needs `npm install ioredis`. Uses database 9 and empties it. ioredis.py starts the nodes.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

// From where it was installed, which need not be beside this file.
const require = createRequire(`${process.env.LEADLINE_NODE_MODULES ?? process.cwd()}/`);
const Redis = require("ioredis");

let passed = 0;
let failed = 0;

async function check(what, body) {
  try {
    await body();
    passed += 1;
    console.log(`ok    ${what}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${what}: ${String(error.message).slice(0, 500).replaceAll("\n", " ")}`);
  }
}

async function exercise(where, host, port) {
  const options = { host, port, db: 9, maxRetriesPerRequest: 1, connectTimeout: 10000 };
  const client = new Redis(options);
  await check(`${where}: ready, by INFO`, async () => {
    await new Promise((resolve, reject) => client.once("ready", resolve).once("error", reject));
    assert.match(await client.info(), /loading:0/);
  });
  await client.flushdb();
  await check(`${where}: strings`, async () => {
    assert.equal(await client.ping(), "PONG");
    assert.equal(await client.set("k", "v", "EX", 100), "OK");
    assert.equal(await client.get("k"), "v");
    assert.deepEqual(await client.getBuffer("k"), Buffer.from("v"));
    assert.equal(await client.set("k", "w", "NX"), null);
    assert.equal(await client.incr("n"), 1);
  });
  await check(`${where}: binary values of 1 MiB`, async () => {
    const value = Buffer.alloc(1 << 20, Buffer.from([0, 255, 13, 10, 128]));
    await client.set(Buffer.from([0, 1, 255]), value);
    assert.ok(value.equals(await client.getBuffer(Buffer.from([0, 1, 255]))));
  });
  await check(`${where}: errors`, async () => {
    await assert.rejects(client.lpush("k", "x"), /WRONGTYPE/);
    await assert.rejects(client.call("NOSUCH", "a"), /unknown command/);
    assert.equal(await client.get("k"), "v");
  });
  await check(`${where}: MULTI, EXEC and WATCH over keys of several shards`, async () => {
    const keys = Array.from({ length: 12 }, (_, number) => `spread${number}`);
    const multi = client.multi();
    for (const key of keys) multi.set(key, "0").incr(key);
    const replies = await multi.exec();
    assert.equal(replies.length, 24);
    for (let at = 0; at < 24; at += 2) assert.deepEqual(replies.slice(at, at + 2), [[null, "OK"], [null, 1]]);
    assert.deepEqual(await client.mget(...keys), keys.map(() => "1"));
    const other = new Redis(options);
    await client.watch(keys[0], keys[1]);
    await other.incr(keys[1]);
    assert.equal(await client.multi().set(keys[0], "never").exec(), null);
    await client.watch(keys[0], keys[1]);
    assert.deepEqual(await client.multi().incr(keys[0]).incr(keys[1]).exec(), [[null, 2], [null, 3]]);
    const failing = await client.multi().set(keys[2], "text").lpush(keys[2], "x").incr(keys[3]).exec();
    assert.match(failing[1][0].message, /WRONGTYPE/);
    assert.deepEqual(failing[2], [null, 2]);
    await assert.rejects(client.multi().call("NOSUCH").set(keys[4], "never").exec(), /EXECABORT/);
    assert.equal(await client.get(keys[4]), "1");
    other.disconnect();
  });
  await check(`${where}: a pipeline of 2 000`, async () => {
    const pipeline = client.pipeline();
    for (let number = 0; number < 1000; number++) pipeline.set(`p${number}`, number).get(`p${number}`);
    const replies = await pipeline.exec();
    assert.equal(replies.length, 2000);
    for (let number = 0; number < 1000; number++) assert.deepEqual(replies[2 * number + 1], [null, String(number)]);
  });
  await check(`${where}: 500 callers on one connection, in order`, async () => {
    const sums = await Promise.all(Array.from({ length: 500 }, () => client.incr("hot")));
    assert.deepEqual(sums, Array.from({ length: 500 }, (_, index) => index + 1));
  });
  await check(`${where}: hashes, sets, sorted sets`, async () => {
    await client.hset("h", { a: 1, b: "two" });
    assert.deepEqual(await client.hgetall("h"), { a: "1", b: "two" });
    await client.sadd("s", "x", "y");
    assert.deepEqual((await client.smembers("s")).sort(), ["x", "y"]);
    await client.zadd("z", 1, "one", 2.5, "two");
    assert.deepEqual(await client.zrange("z", 0, -1, "WITHSCORES"), ["one", "1", "two", "2.5"]);
  });
  const waiter = new Redis(options);
  await check(`${where}: BLPOP is woken, and gives null after its time`, async () => {
    const waited = waiter.blpop("queue", 10);
    await new Promise((resolve) => setTimeout(resolve, 100));
    await client.rpush("queue", "job");
    assert.deepEqual(await waited, ["queue", "job"]);
    assert.equal(await waiter.blpop("queue", 0.1), null);
  });
  await check(`${where}: scanStream`, async () => {
    const found = new Set();
    for await (const keys of client.scanStream({ match: "p*", count: 100 })) keys.forEach((key) => found.add(key));
    assert.equal(found.size, 1000);
  });
  await check(`${where}: DEADLINE`, async () => {
    assert.equal(await client.call("DEADLINE", "1000", "GET", "k"), "v");
    assert.equal(await client.call("CLIENT", "DEADLINE", "2000"), "OK");
    assert.equal(await client.get("k"), "v");
  });
  await check(`${where}: databases`, async () => {
    await client.select(8);
    assert.equal(await client.get("k"), null);
    await client.select(9);
  });
  await client.flushdb();
  await Promise.all([client.quit(), waiter.quit()]);
}

const addresses = process.argv.slice(2);
for (const [index, address] of addresses.entries()) {
  const [host, port] = address.split(":");
  const where = addresses.length === 1 ? "one node" : `node ${index + 1} of ${addresses.length}`;
  await check(where, () => exercise(where, host, Number(port)));
}
console.log(`ioredis ${require("ioredis/package.json").version}: ${passed} passed, ${failed} failed`);
process.exit(failed || !passed ? 1 : 0);
