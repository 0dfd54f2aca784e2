// Socket.IO with the Redis adapter, as its documentation sets it up.
const { createServer } = require("node:http");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

async function main() {
  const publisher = createClient({ url: process.env.REDIS_URL });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const http = createServer();
  const io = new Server(http, {
    adapter: createAdapter(publisher, subscriber),
    serveClient: false,
  });
  io.on("connection", async (socket) => {
    const { user, upload } = socket.handshake.query;
    await socket.join([`user:${user}`, `upload:${upload}`]);
    socket.emit("joined");
  });
  process.on("SIGUSR2", () => {
    global.gc();
    console.log("collected");
  });
  http.listen(0, "127.0.0.1", () => {
    console.log(`serving on ${http.address().port}`);
  });
}

main();
