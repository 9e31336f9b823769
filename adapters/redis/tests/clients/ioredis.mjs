// Talks to a running server through ioredis: node ioredis.mjs HOST PORT
//
// Needs `npm install ioredis`. Uses database 9 and empties it. Exits with 1 at the first difference.

import assert from "node:assert/strict";
import Redis from "ioredis";

const [host, port] = process.argv.slice(2);
const options = { host, port: Number(port), db: 9, maxRetriesPerRequest: 1 };
const client = new Redis(options);

await client.flushdb();
assert.equal(await client.ping(), "PONG");
assert.equal(await client.set("k", "v", "EX", 100), "OK");
assert.equal(await client.get("k"), "v");
assert.deepEqual(await client.getBuffer("k"), Buffer.from("v"));
assert.equal(await client.incr("n"), 1);
await assert.rejects(client.lpush("k", "x"), /WRONGTYPE/);
await assert.rejects(client.call("NOSUCH", "a"), /unknown command/);

const pipeline = client.pipeline();
for (let number = 0; number < 1000; number++) {
  pipeline.set(`p${number}`, number).get(`p${number}`);
}
const replies = await pipeline.exec();
assert.equal(replies.length, 2000);
assert.deepEqual(replies[1999], [null, "999"]);

// Many callers, one connection.
const sums = await Promise.all(Array.from({ length: 500 }, () => client.incr("hot")));
assert.deepEqual(sums, Array.from({ length: 500 }, (_, index) => index + 1));

const waiter = new Redis(options);
const waited = waiter.blpop("queue", 5);
await new Promise((resolve) => setTimeout(resolve, 100));
await client.rpush("queue", "job");
assert.deepEqual(await waited, ["queue", "job"]);
assert.equal(await waiter.blpop("queue", 0.1), null);

const found = new Set();
for await (const keys of client.scanStream({ match: "p*", count: 100 })) {
  for (const key of keys) found.add(key);
}
assert.equal(found.size, 1000);
assert.match(await client.info(), /loading:0/);
assert.equal(await client.call("DEADLINE", "1000", "GET", "k"), "v");

await client.flushdb();
await Promise.all([client.quit(), waiter.quit()]);
console.log("ioredis ok");
