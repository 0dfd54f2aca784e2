// Over real sockets, against a server that does what the test says.

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { WebSocket, WebSocketServer } from "ws";

import { CLIENT } from "./browser.js";

globalThis.WebSocket = WebSocket;
const { connect } = await import(CLIENT);

/** A site with one topic, which keeps what it published, and forgets nothing. */
class Site {
  history = [];
  #sockets = new Set();

  async open(port = 0) {
    this.server = new WebSocketServer({ port, host: "127.0.0.1" });
    this.server.on("connection", (socket, { url }) => this.#welcome(socket, url));
    await once(this.server, "listening");
    this.port = this.server.address().port;
    return this;
  }

  get url() {
    return `ws://127.0.0.1:${this.port}/ws/`;
  }

  #welcome(socket, url) {
    const say = (frame) => socket.send(JSON.stringify(frame));
    const since = new URL(url, "ws://x").searchParams.get("since");
    say({ action: "auth_success", user_id: "1", id: since ?? "100-0", recovered: since && true });
    socket.on("message", (text) => {
      const { action, topic, since } = JSON.parse(text);
      if (action !== "subscribe") return;
      const n = since ? Number(since.split("-")[1]) : this.history.length;
      say({ action: "subscribed", topic, recovered: since ? true : null, id: `100-${n}` });
      this.history.slice(n).forEach((frame) => socket.send(frame));
      this.#sockets.add(socket);
    });
    socket.on("close", () => this.#sockets.delete(socket));
  }

  publish() {
    const id = `100-${this.history.length + 1}`;
    this.history.push(JSON.stringify({ _meta: { topic: "order:1", id }, action: "note" }));
    for (const socket of this.#sockets) socket.send(this.history.at(-1));
  }

  /** Close all connections in one of the ways there are, and the port. */
  async close(how) {
    this.server.clients.forEach(how);
    this.server.close();
    await once(this.server, "close");
  }
}

const becomes = (notifications, state) =>
  new Promise((resolve) => {
    const look = () => notifications.state === state && resolve();
    notifications.addEventListener("state", look);
    look();
  });

test("while the server restarts again and again, each message is shown once and in order", { timeout: 60_000 }, async (t) => {
  t.mock.method(Math, "random", () => 0.01);
  const site = await new Site().open();
  const notifications = connect({ url: site.url });
  const seen = [];
  notifications.subscribe("order:1", ({ _meta }) => seen.push(_meta.id));
  notifications.subscribe("order:1", () => {}, { gap: () => seen.push("gap") });
  const publishing = setInterval(() => site.publish(), 1);
  await becomes(notifications, "open");
  for (const how of [(socket) => socket.close(1012), (socket) => socket.terminate(), (socket) => socket.close(4101)]) {
    while (site.server.clients.size === 0 || seen.length < 5) await new Promise((next) => setTimeout(next, 5));
    await site.close(how);
    await becomes(notifications, "waiting");
    await site.open(site.port);
    await becomes(notifications, "open");
  }
  clearInterval(publishing);
  while (seen.at(-1) !== `100-${site.history.length}`) await new Promise((next) => setTimeout(next, 5));
  notifications.close();
  await site.close((socket) => socket.terminate());

  const first = Number(seen[0].split("-")[1]);
  assert.deepEqual(seen, Array.from(seen, (_, i) => `100-${first + i}`));
  assert.ok(seen.length > 20);
});

test("a server that refuses is asked no more, and its reason is told", { timeout: 60_000 }, async () => {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  let attempts = 0;
  server.on("connection", (socket) => {
    attempts++;
    socket.once("message", (text) => {
      assert.deepEqual(JSON.parse(text), { type: "auth", token: `token ${attempts}` });
      socket.send('{"action":"auth_error","message":"expired"}');
      socket.close(4003);
    });
  });
  await once(server, "listening");
  let fetched = 0;
  const notifications = connect({ url: `http://127.0.0.1:${server.address().port}/`, token: async () => `token ${++fetched}` });
  const details = [];
  notifications.addEventListener("state", ({ detail }) => details.push(detail));
  await becomes(notifications, "closed");
  server.close();

  assert.equal(attempts, 2);
  assert.deepEqual(details.at(-1), { state: "closed", code: 4003, reason: "expired" });
});

test("closing while the connection opens disturbs nobody", { timeout: 60_000 }, async () => {
  const site = await new Site().open();
  const notifications = connect({ url: site.url });
  await new Promise((next) => setImmediate(next));
  assert.equal(notifications.state, "connecting");
  notifications.close();
  await site.close((socket) => socket.terminate());

  assert.equal(notifications.state, "closed");
});
