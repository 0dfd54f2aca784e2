// A browser that does what the test says: its clock, its sockets, its pages and what a tab remembers.

import { mock } from "node:test";

export const CLIENT = new URL("../../notifications/static/notifications/client.js", import.meta.url);

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

/** A tab of a browser, with a page that has just been opened. Every wait of the client is as long as it may be. */
export class Tab {
  reported = [];
  #store = new Map();

  constructor(test) {
    mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_700_000_000_000 });
    mock.method(Math, "random", () => 1);
    Socket.opened = [];
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
    document.dispatchEvent(new Event("visibilitychange"));
  }

  /** Let time go by: timers, and what waits for them. */
  async pass(seconds) {
    await settled();
    mock.timers.tick(seconds * 1000);
    await settled();
  }

  /** A laptop sleeps: the clock goes on, timers do not. */
  async sleepFor(seconds) {
    mock.timers.setTime(Date.now() + seconds * 1000);
    await settled();
  }
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
