// Publishes as a worker does: reads jobs, one JSON a line.
const { Emitter } = require("@socket.io/redis-emitter");
const { createClient } = require("redis");
const { createInterface } = require("node:readline");

async function main() {
  const client = createClient({ url: process.env.REDIS_URL });
  await client.connect();
  const emitter = new Emitter(client);
  console.log("ready");
  for await (const line of createInterface({ input: process.stdin })) {
    const job = JSON.parse(line);
    for (const [index, [topic, seq]] of job.messages.entries()) {
      // The emitter gives no promise; a PING every 50 is what waits for Redis, as the other publishers do.
      emitter.to(topic).emit("message", {
        action: job.action,
        seq,
        at: Number(process.hrtime.bigint()),
        text: job.text,
      });
      if (index % 50 === 49) await client.ping();
    }
    await client.ping();
  }
  await client.close();
}

main();
