// Socket.IO with the Redis adapter, as its documentation sets it up, for speed where that says how.
const { createServer } = require("node:http");
const { inflateSync } = require("node:zlib");
const { createAdapter } = require("@socket.io/redis-adapter");
const { Pool } = require("pg");
const { createClient } = require("redis");
const { Server } = require("socket.io");

// Whose session it is, and whether the account may still come in: what Django's middleware asks, in as many queries.
// The session's signature is not checked.
async function userOfSession(database, cookie) {
  const key = /(?:^|; )sessionid=([^;]+)/.exec(cookie)?.[1];
  const sessions = await database.query({
    name: "session",
    text: "SELECT session_data FROM django_session WHERE session_key = $1 AND expire_date > now()",
    values: [key],
  });
  if (sessions.rowCount === 0) return null;
  const [payload] = sessions.rows[0].session_data.split(":");
  const bytes = Buffer.from(payload.replace(".", ""), "base64url");
  const session = JSON.parse(payload.startsWith(".") ? inflateSync(bytes) : bytes);
  const accounts = await database.query({
    name: "account",
    text: "SELECT id FROM auth_user WHERE id = $1 AND is_active",
    values: [session._auth_user_id],
  });
  return accounts.rowCount === 0 ? null : accounts.rows[0].id;
}

async function main() {
  const publisher = createClient({ url: process.env.REDIS_URL });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const database = process.env.PGHOST ? new Pool() : null; // without PostgreSQL nothing is looked up
  const http = createServer();
  const io = new Server(http, {
    adapter: createAdapter(publisher, subscriber),
    serveClient: false,
    transports: ["websocket"],
  });
  io.use(async (socket, next) => {
    const { headers, query } = socket.handshake;
    try {
      socket.data.user = database ? await userOfSession(database, headers.cookie) : query.user;
      next(socket.data.user ? undefined : new Error("not logged in"));
    } catch (error) {
      next(error);
    }
  });
  io.on("connection", async (socket) => {
    socket.conn.request = null; // saves memory: socket.io/docs/v4/memory-usage
    await socket.join([`user:${socket.data.user}`, `upload:${socket.handshake.query.upload}`]);
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
