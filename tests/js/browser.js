// A browser that does what the test says: its clock, its sockets and requests, its pages and what a tab remembers.

import assert from "node:assert/strict";
import { mock } from "node:test";

export const CLIENT = new URL("../../notifications/static/notifications/client.js", import.meta.url);
export const FALLBACK = new URL("fallback.js", CLIENT);

class Socket {
  sent = [];
  readyState = 0;

  constructor(url) {
    this.url = String(url);
    Socket.opened.push(this);
  }

  send(text) {
    if (this.readyState !== 1) throw new Error("not open");
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  // The server's side

  accept() {
    this.readyState = 1;
    this.onopen({});
    return this;
  }

  /** Accept it, as the socket of a user. */
  welcome({ user_id = "42", id = "100-0", recovered = null } = {}) {
    return this.accept().say({ action: "auth_success", user_id, id, recovered });
  }

  say(...frames) {
    for (const frame of frames) this.onmessage({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
    return this;
  }

  /** Say what the site says whose uploads are states, and its orders are not. */
  subscribed(topic, id = "100-0", recovered = null, state = topic.startsWith("upload:")) {
    return this.say({ action: "subscribed", topic, recovered, id, state });
  }

  publish(topic, id, fields = {}) {
    return this.say({ _meta: { topic, id }, action: "note", ...fields });
  }

  lose(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  /** Return and forget what it was sent. */
  heard() {
    return this.sent.splice(0);
  }
}

/** A request for a stream or a poll, and what the server does with it. */
class Request {
  #chunks = [];
  #wake = () => {};
  #began;

  constructor(url, { body, signal, ...options }) {
    Object.assign(this, { url: String(url), body: JSON.parse(body), options, open: true });
    this.answered = new Promise((...settle) => (this.#began = settle));
    signal.addEventListener("abort", () => {
      this.open = false;
      this.#began[1](signal.reason);
      this.#push({ error: signal.reason });
    });
  }

  get topics() {
    return this.body.topics.map(({ topic }) => topic);
  }

  #push(chunk) {
    this.#chunks.push(chunk);
    this.#wake();
  }

  async #read() {
    while (!this.#chunks.length) await new Promise((wake) => (this.#wake = wake));
    const { error, ...result } = this.#chunks.shift();
    if (error) throw error;
    return result;
  }

  /** Begin an answer. */
  answer(status, headers = {}, text = "") {
    const body = { getReader: () => ({ read: () => this.#read() }) };
    const ok = status >= 200 && status < 300;
    this.#began[0]({ ok, status, statusText: "", headers: new Headers(headers), body, text: async () => text });
    if (text) this.write(text).end();
    return this;
  }

  write(text) {
    return this.writeBytes(new TextEncoder().encode(text));
  }

  writeBytes(bytes) {
    this.#push({ done: false, value: Uint8Array.from(bytes) });
    return this;
  }

  /** Begin a stream, with these frames. */
  stream(...frames) {
    return this.answer(200, { "Content-Type": "text/event-stream; charset=utf-8" }).write(":\n\n").say(...frames);
  }

  say(...frames) {
    for (const frame of frames) this.write(`data: ${JSON.stringify(frame)}\n\n`);
    return this;
  }

  close(code, reason = "") {
    return this.write(`event: close\ndata: ${JSON.stringify({ code, reason })}\n\n`).end();
  }

  /** Answer a poll. */
  poll(frames = [], headers = {}) {
    return this.answer(200, { "Content-Type": "application/json", ...headers }, JSON.stringify(frames));
  }

  end() {
    this.open = false;
    this.#push({ done: true });
    return this;
  }

  /** Break it, as a network does. */
  lose() {
    this.open = false;
    this.#began[1](new TypeError("network error"));
    this.#push({ error: new TypeError("network error") });
    return this;
  }
}

/** A tab of a browser, with a page that has just been opened. Every wait of the client is as long as it may be. */
export class Tab {
  reported = [];
  #store = new Map();

  constructor(test) {
    mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_700_000_000_000 });
    forgiveClears();
    mock.method(Math, "random", () => 1);
    Socket.opened = [];
    this.requests = [];
    mock.method(globalThis, "fetch", async (url, options) => {
      this.requests.push(new Request(url, options));
      assert.ok(this.requests.filter(({ open }) => open).length <= 1, "one request at a time");
      return await this.request.answered;
    });
    Object.assign(globalThis, {
      WebSocket: Socket,
      location: new URL("https://site.example/page/"),
      addEventListener: (...event) => this.window.addEventListener(...event),
      reportError: (error) => this.reported.push(error.message),
      sessionStorage: {
        getItem: (key) => this.#store.get(key) ?? null,
        setItem: (key, value) => this.#store.set(key, value),
        removeItem: (key) => this.#store.delete(key),
      },
    });
    test.after(() => {
      mock.reset();
      for (const name of ["WebSocket", "location", "addEventListener", "reportError", "sessionStorage", "document"]) {
        delete globalThis[name];
      }
    });
  }

  get socket() {
    return Socket.opened.at(-1);
  }

  get sockets() {
    return Socket.opened;
  }

  get request() {
    return this.requests.at(-1);
  }

  get remembered() {
    return Object.fromEntries([...this.#store].map(([key, value]) => [key, JSON.parse(value)]));
  }

  /** Open a page, with a module of its own, and return the module's `connect`. */
  async visit() {
    this.leave();
    this.window = new EventTarget();
    globalThis.document = Object.assign(new EventTarget(), { hidden: false });
    const { connect } = await import(`${CLIENT}?page=${++pages}`);
    return connect;
  }

  leave() {
    this.window?.dispatchEvent(new Event("pagehide"));
  }

  /** Come back to the page by the browser's back button, from its cache. */
  back() {
    this.window.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  }

  online() {
    this.window.dispatchEvent(new Event("online"));
  }

  offline() {
    this.window.dispatchEvent(new Event("offline"));
  }

  hide(hidden = true) {
    document.hidden = hidden;
    this.window.dispatchEvent(new Event("visibilitychange"));
  }

  /** Let time go by: timers, and what waits for them. */
  async pass(seconds) {
    await settled();
    mock.timers.tick(seconds * 1000);
    await settled();
  }

  /** Let time go by in small steps, for what sets one timer after the other. */
  async wait(seconds, step = 0.5) {
    for (let left = seconds; left > 0; left -= step) await this.pass(Math.min(step, left));
  }

  /** A laptop sleeps: the clock goes on, timers do not. */
  async sleepFor(seconds) {
    mock.timers.setTime(Date.now() + seconds * 1000);
    await settled();
  }
}

/** Node 20's mock removes another timer when one is cleared that has fired. */
function forgiveClears() {
  const { setTimeout, clearTimeout } = globalThis;
  const live = new Set();
  globalThis.setTimeout = (act, delay, ...rest) => {
    const timer = setTimeout(() => live.delete(timer) && act(...rest), delay);
    live.add(timer);
    return timer;
  };
  globalThis.clearTimeout = (timer) => void (live.delete(timer) && clearTimeout(timer));
}

let pages = 0;

/** Everything that waits for nothing has been done. */
export const settled = () => new Promise(setImmediate);

/** A page with a connection that is open, and the states it goes through. */
export async function opened(test, options, welcome) {
  const tab = new Tab(test);
  const connect = await tab.visit();
  const notifications = connect(options);
  const states = [];
  notifications.addEventListener("state", ({ detail }) => states.push(detail));
  await settled();
  tab.socket.welcome(welcome);
  await settled();
  return { tab, notifications, states };
}
