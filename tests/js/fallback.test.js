// Where no WebSocket gets through: streams and polls, and the way back.

import assert from "node:assert/strict";
import { test } from "node:test";

import { FALLBACK, Tab, settled } from "./browser.js";

const fallback = () => import(FALLBACK);
await fallback(); // so that no test waits for the file

const hello = ({ user_id = "42", id = "100-0", recovered = null } = {}) => ({ action: "auth_success", user_id, id, recovered });
const back = (id) => hello({ id, recovered: true });
const subscribed = (topic, id = "100-0", recovered = null, more = {}) => ({
  action: "subscribed",
  topic,
  recovered,
  id,
  state: topic.startsWith("upload:"),
  joined: false,
  ...more,
});
const message = (topic, id, fields = {}) => ({ _meta: { topic, id }, action: "note", ...fields });
const refused = (topic, code = "forbidden") => ({ action: "error", code, message: "no", topic });
const asked = ({ body }) => Object.fromEntries(body.topics.map(({ topic, since }) => [topic, since]));

/** A page, and everything that it is told. */
async function visit(tab, options, topics = []) {
  const connect = await tab.visit();
  let loads = 0;
  const page = { tab, states: [], seen: [], gaps: [], errors: [], loads: () => loads };
  page.notifications = connect({ fallback: () => (loads++, fallback()), streamUrl: "/live/stream/", ...options });
  page.notifications.addEventListener("state", ({ detail }) => page.states.push(detail));
  page.notifications.addEventListener("gap", ({ detail }) => page.gaps.push(detail.topic));
  page.notifications.addEventListener("error", ({ detail }) => page.errors.push([detail.code, detail.topic]));
  page.see = ({ _meta: { topic, id } }) => page.seen.push(`${topic} ${id}`);
  page.notifications.onUser(page.see);
  for (const topic of topics) page.notifications.subscribe(topic, page.see);
  await settled();
  return page;
}

/** A page to which two WebSockets were refused: its first request is under way. */
async function blocked(test, options, topics) {
  const page = await visit(new Tab(test), options, topics);
  for (const seconds of [0.5, 1]) {
    page.tab.socket.lose();
    await page.tab.pass(seconds);
  }
  return page;
}

/** A page with a stream, or with polls, that has been welcomed. */
async function streaming(test, options, topics) {
  const page = await blocked(test, options, topics);
  page.tab.request.stream(hello());
  await page.tab.pass(0.02);
  return page;
}

const polls = { transports: ["websocket", "poll"] };

async function polling(test, options, topics) {
  const page = await blocked(test, { ...polls, ...options }, topics);
  page.tab.request.poll([hello()]);
  await page.tab.pass(0.02);
  return page;
}

/** Let time go by on a stream that is quiet: the server sends comments. */
async function alive({ tab }, seconds) {
  for (let left = seconds; left > 0; left -= 10) {
    tab.request.write(":\n\n");
    await tab.pass(Math.min(left, 10));
  }
  tab.request.write(":\n\n");
  await settled();
}

const names = ({ states }) => states.map(({ state }) => state);

// Which transport

test("where a WebSocket works, nothing is fetched", async (t) => {
  const page = await visit(new Tab(t));
  page.tab.socket.welcome();
  await page.tab.pass(10);
  for (const seconds of [1, 2, 4, 8]) {
    page.tab.socket.lose();
    await page.tab.pass(seconds);
  }
  page.tab.socket.welcome();

  assert.equal(page.loads(), 0);
  assert.equal(page.tab.requests.length, 0);
  assert.equal(page.notifications.transport, "websocket");
  assert.deepEqual(page.states[1], { state: "open", transport: "websocket" });
});

test("after two failures before anybody was welcomed, a stream is asked for", async (t) => {
  const { tab, notifications, states, loads } = await blocked(t, { since: "100-7" });

  assert.equal(loads(), 1);
  assert.equal(tab.sockets.length, 2);
  assert.equal(tab.request.url, "/live/stream/");
  assert.deepEqual(tab.request.body, { mode: "stream", token: null, since: "100-7", topics: [], wait: 0 });
  const { method, headers, credentials, cache, redirect } = tab.request.options;
  assert.deepEqual({ method, headers, credentials, cache, redirect }, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    credentials: "same-origin",
    cache: "no-store",
    redirect: "error",
  });
  assert.equal(notifications.transport, null);
  tab.request.stream(back("100-7"));
  await settled();
  assert.deepEqual(states.at(-1), { state: "open", transport: "stream" });
  assert.equal(notifications.transport, "stream");
});

test("a WebSocket that says nothing for five seconds is given up", async (t) => {
  const page = await visit(new Tab(t));
  page.tab.socket.accept();
  await page.tab.pass(4.9);
  assert.equal(page.notifications.state, "connecting");
  await page.tab.pass(0.1);
  await page.tab.pass(0.5);

  assert.equal(page.tab.request.body.mode, "stream");
  assert.equal(page.tab.socket.readyState, 3);
});

test("a WebSocket that had worked is not given up for a restart of the server", async (t) => {
  const page = await visit(new Tab(t));
  page.tab.socket.welcome();
  await page.tab.pass(10);
  page.tab.socket.lose();
  for (const seconds of [0.5, 1, 2, 4]) {
    await page.tab.pass(seconds);
    page.tab.socket.lose();
  }
  await page.tab.pass(8);
  assert.equal(page.loads(), 0);
  page.tab.socket.lose();
  await page.tab.pass(16);

  assert.equal(page.loads(), 1);
});

test("on another network nothing is known of WebSockets", async (t) => {
  const page = await visit(new Tab(t));
  page.tab.socket.welcome().lose();
  page.tab.online();
  await settled();
  await page.tab.pass(5); // and it says nothing
  await page.tab.pass(1);

  assert.equal(page.tab.request.body.mode, "stream");
});

for (const code of [4101, 4102, 4100]) {
  test(`${code} is the answer of a server: the WebSocket works`, async (t) => {
    const page = await visit(new Tab(t));
    for (let i = 0; i < 4; i++) {
      page.tab.socket.accept().lose(code);
      await page.tab.pass(20);
    }

    assert.equal(page.loads(), 0);
    assert.equal(page.tab.sockets.length, 5);
  });
}

test("a module that cannot be had does not end the attempts", async (t) => {
  const tab = new Tab(t);
  const loads = [() => Promise.reject(new Error("404")), fallback];
  const page = await visit(tab, { fallback: () => loads.shift()() });
  for (const seconds of [0.5, 1]) {
    tab.socket.lose();
    await tab.pass(seconds);
  }
  assert.deepEqual(page.states.at(-1), { state: "waiting", code: 1006, reason: "Error: 404", seconds: 2 });
  await tab.pass(2);
  assert.equal(tab.sockets.length, 3);
  tab.socket.lose();
  await tab.pass(4);

  assert.equal(tab.requests.length, 1);
});

test("a stream of which nothing comes for three seconds is buffered: it is polled", async (t) => {
  const { tab, notifications, states } = await blocked(t);
  const before = states.length;
  await tab.pass(2.9);
  assert.equal(tab.requests.length, 1);
  await tab.pass(0.1);

  assert.equal(tab.requests[0].open, false);
  assert.deepEqual(tab.request.body, { mode: "poll", token: null, since: null, topics: [], wait: 0 });
  tab.request.poll([hello()]);
  await settled();
  assert.equal(notifications.transport, "poll");
  assert.deepEqual(states.slice(before), [{ state: "open", transport: "poll" }]);
  assert.deepEqual([tab.request.body.since, tab.request.body.wait], ["100-0", 25]);
});

test("a stream that has begun, and takes its time to say whose it is, is not buffered", async (t) => {
  const { tab, notifications } = await blocked(t);
  tab.request.stream();
  await tab.pass(5);
  tab.request.say(hello());
  await settled();

  assert.equal(notifications.transport, "stream");
  assert.equal(tab.requests.length, 1);
});

test("when nothing answers, each transport has its turn again", async (t) => {
  const page = await blocked(t);
  const { tab } = page;
  const turns = [];
  for (let i = 0; i < 5; i++) {
    const [sockets, requests] = [tab.sockets.length, tab.requests.length];
    if (page.notifications.state === "connecting" && tab.request.open) {
      turns.push(tab.request.body.mode);
      tab.request.lose();
    } else {
      turns.push("websocket");
      tab.socket.lose();
    }
    await settled();
    assert.equal(page.notifications.state, "waiting");
    assert.deepEqual([tab.sockets.length, tab.requests.length], [sockets, requests]);
    await tab.pass(20);
  }

  assert.deepEqual(turns, ["stream", "poll", "websocket", "stream", "poll"]);
});

test("a browser in which no WebSocket can be made uses the others, and goes on with its attempts", async (t) => {
  const tab = new Tab(t);
  globalThis.WebSocket = class {
    constructor() {
      throw new Error("forbidden");
    }
  };
  const { notifications } = await visit(tab, { transports: ["websocket", "stream"] });
  await tab.wait(2);
  tab.request.lose();
  for (let i = 0; i < 20 && tab.requests.length < 2; i++) await tab.pass(0.5); // a WebSocket has its turn
  tab.request.stream(hello());
  await alive({ tab }, 20);

  assert.equal(notifications.transport, "stream");
});

for (const [transports, first] of [
  [["stream"], "stream"],
  [["poll", "websocket"], "poll"],
  [["stream", "poll"], "stream"],
]) {
  test(`transports ${transports} begin with ${first}`, async (t) => {
    const { tab } = await visit(new Tab(t), { transports });

    assert.equal(tab.request.body.mode, first);
    assert.equal(tab.sockets.length, 0);
    tab.request.lose();
    await tab.pass(1);
    assert.equal(tab.sockets.length, transports[1] === "websocket" ? 1 : 0);
  });
}

for (const [what, options] of [["WebSockets alone", { transports: ["websocket"] }], ["no fallback", { fallback: undefined }]]) {
  test(`a page with ${what} gets nothing else`, async (t) => {
    const { tab, notifications } = await visit(new Tab(t), options);
    for (let i = 0; i < 8; i++) {
      tab.socket.lose();
      await tab.pass(20);
    }

    assert.equal(tab.requests.length, 0);
    assert.equal(notifications.state, "connecting");
  });
}

test("a WebSocket that is cut within seconds, twice in a row, is replaced by a stream; the page does not flap", async (t) => {
  const page = await visit(new Tab(t));
  for (const seconds of [0.5, 1]) {
    page.tab.socket.welcome({ recovered: true });
    await page.tab.pass(3);
    page.tab.socket.lose();
    await page.tab.pass(seconds);
  }
  page.tab.request.stream(back("100-0"));
  await page.tab.pass(10);
  for (const seconds of [2, 4]) {
    page.tab.socket.welcome({ recovered: true });
    await page.tab.pass(3);
    page.tab.socket.lose();
    await page.tab.pass(seconds);
  }
  page.tab.request.stream(back("100-0"));
  const before = page.tab.sockets.length;
  await alive(page, 280);

  assert.equal(page.notifications.transport, "stream");
  assert.equal(page.tab.sockets.length, before);
});

test("a stream that is cut within seconds, twice in a row, is replaced by polls", async (t) => {
  const { tab } = await streaming(t);
  tab.request.lose();
  await tab.pass(2);
  tab.request.stream(hello());
  await tab.pass(3);
  tab.request.lose();
  await tab.pass(4);

  assert.equal(tab.request.body.mode, "poll");
});

test("a stream of which only the beginning gets through is replaced by polls", async (t) => {
  const { tab } = await blocked(t);
  tab.request.stream();
  await tab.pass(15);
  await tab.pass(4);

  assert.equal(tab.request.body.mode, "poll");
});

test("a stream that is held up after its beginning is replaced by polls before anybody is told", async (t) => {
  const { tab, states, notifications } = await streaming(t);
  const before = states.length;
  await tab.pass(35);
  assert.equal(tab.request.body.mode, "poll");
  tab.request.poll([back("100-0"), message("user:42", "100-1")]);
  await settled();

  assert.equal(notifications.transport, "poll");
  assert.equal(tab.remembered[MEMORY].transport, "poll");
  assert.deepEqual(states.slice(before).filter(({ state }) => state !== "open"), []);
});

test("a page that does not want to poll does not", async (t) => {
  const { tab, notifications } = await visit(new Tab(t), { transports: ["stream"] });
  tab.request.poll([hello()], { "Retry-After": "5" });
  await settled();

  assert.equal(notifications.state, "waiting");
});

// Answers that are none

for (const [what, answer] of [
  ["an HTML page", (request) => request.answer(200, { "Content-Type": "text/html" }, "<h1>Log in</h1>")],
  ["a refusal", (request) => request.answer(403)],
  ["an error of a proxy", (request) => request.answer(502, { "Content-Type": "text/html" }, "Bad Gateway")],
  ["no such page", (request) => request.answer(404)],
  ["JSON that is no list", (request) => request.poll({ detail: "log in" })],
  ["a redirect", (request) => request.lose()],
]) {
  test(`${what} is no connection`, async (t) => {
    const { tab, notifications, states } = await blocked(t);
    answer(tab.request);
    await settled();

    assert.equal(notifications.state, "waiting");
    assert.equal(states.at(-1).code, 1006);
  });
}

test("a body that the server does not take is one warning, with what it says", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  const { tab } = await visit(new Tab(t), { transports: ["stream"] });
  for (let i = 0; i < 3; i++) {
    tab.request.answer(413, { "Content-Type": "application/json" }, '{"error":"65536 bytes at most"}');
    await tab.pass(20);
  }

  assert.equal(tab.requests.length, 4);
  assert.equal(warn.mock.callCount(), 1);
  assert.match(warn.mock.calls[0].arguments[0], /413, 65536 bytes at most/);
});

for (const [status, code] of [[429, 4102], [503, 4101]]) {
  test(`${status} with Retry-After is waited for`, async (t) => {
    const { tab, states } = await visit(new Tab(t), { transports: ["stream"] });
    tab.request.answer(status, { "Retry-After": "12" });
    await settled();
    assert.equal(states.at(-1).code, code);
    await tab.wait(14);
    assert.equal(tab.requests.length, 1);
    await tab.wait(2);
    assert.equal(tab.requests.length, 2);
  });
}

test("another user's answer closes the page's connection", async (t) => {
  const { tab, states } = await streaming(t, { userTopic: "user:42" });
  await alive({ tab }, 5);
  tab.request.end();
  await settled();
  tab.request.stream(hello({ user_id: "43" }));
  await tab.pass(2);
  tab.request.stream(hello({ user_id: "43" }));
  await settled();

  assert.deepEqual(states.at(-1), { state: "closed", code: 4003, reason: "another user has logged in" });
});

// A stream

test("topics are asked for together, answered once, and their messages arrive", async (t) => {
  const { tab, seen, states, errors } = await streaming(t, {}, ["order:1", "order:2", "upload:1"]);
  assert.equal(tab.requests.length, 2);
  assert.deepEqual(tab.request.body, {
    mode: "stream",
    token: null,
    since: "100-0",
    topics: ["order:1", "order:2", "upload:1"].map((topic) => ({ topic, since: null, grant: null })),
    wait: 0,
  });
  tab.request.stream(back("100-0"), subscribed("order:1", "100-4"), refused("order:2"), subscribed("upload:1", "100-1"));
  tab.request.say(message("upload:1", "100-2"), message("order:1", "100-5"), message("user:42", "100-1"));
  await settled();

  assert.deepEqual(seen, ["upload:1 100-2", "order:1 100-5", "user:42 100-1"]);
  assert.deepEqual(errors, [["forbidden", "order:2"]]);
  assert.deepEqual(names({ states }).slice(-2), ["connecting", "open"]);
});

test("a response that ends is followed by the next, from where it was: the page notices nothing", async (t) => {
  const { tab, seen, states, gaps } = await streaming(t, {}, ["order:1", "order:2"]);
  tab.request.stream(back("100-0"), subscribed("order:1", "100-4"), subscribed("order:2", "200-0"));
  tab.request.say(message("order:1", "100-5"), message("user:42", "100-1"));
  await alive({ tab }, 60);
  tab.request.say(message("order:1", "100-6"));
  await settled();
  const before = states.length;
  tab.request.end();
  await settled();
  assert.deepEqual([tab.request.body.since, asked(tab.request)], ["100-1", { "order:1": "100-6", "order:2": "200-0" }]);
  tab.request.stream(back("100-1"), subscribed("order:1", "100-6", true), message("order:1", "100-7"));
  tab.request.say(subscribed("order:2", "200-0", true), message("order:1", "100-8"));
  await settled();

  assert.deepEqual(seen.filter((each) => each.startsWith("order:1")).map((each) => each.slice(-1)), ["5", "6", "7", "8"]);
  assert.equal(states.length, before);
  assert.deepEqual(gaps, []);
});

test("what is missing after a response is told, of each topic that misses something", async (t) => {
  const { tab, gaps } = await streaming(t, {}, ["order:1", "order:2"]);
  tab.request.stream(back("100-0"), subscribed("order:1", "100-4"), subscribed("order:2", "200-0")).say(message("order:1", "100-5"));
  await settled();
  tab.request.end();
  await settled();
  tab.request.stream(hello({ id: "300-0", recovered: false }), subscribed("order:1", "100-5", true), subscribed("order:2", "300-0", false));
  await settled();
  assert.deepEqual(gaps, ["user:42", "order:2"]);
  tab.request.say(subscribed("order:1", "300-9", false), message("order:1", "300-10")); // nobody asked
  await settled();
  assert.deepEqual(gaps, ["user:42", "order:2", "order:1"]);
  tab.request.end();
  await settled();

  assert.deepEqual(asked(tab.request), { "order:1": "300-10", "order:2": "300-0" });
});

test("a response that breaks after a while is asked for again before anybody is told; at once, it is a loss", async (t) => {
  const { tab, states, notifications } = await streaming(t);
  const before = states.length;
  await tab.pass(6);
  tab.request.lose();
  await tab.pass(1);
  assert.equal(tab.requests.length, 2);
  tab.request.stream(back("100-0"));
  await tab.pass(6);
  assert.equal(states.length, before);
  tab.request.lose();
  await tab.pass(1);
  tab.request.lose();
  await settled();

  assert.equal(notifications.state, "waiting");
  assert.equal(states.at(-1).code, 1006);
});

test("a response that breaks soon is a loss, as is one that breaks in its place before anybody was welcomed", async (t) => {
  const { tab, notifications } = await streaming(t);
  await tab.pass(4);
  tab.request.lose();
  await settled();
  assert.equal(notifications.state, "waiting");
  await tab.pass(2);
  tab.request.stream(back("100-0"));
  await tab.pass(6);
  tab.request.lose();
  await tab.pass(1);
  await tab.pass(6);
  tab.request.lose();
  await settled();

  assert.equal(notifications.state, "waiting");
});

test("a stream that ends at once, again and again, is no connection", async (t) => {
  const { tab, notifications } = await streaming(t);
  tab.request.end();
  await settled();
  tab.request.stream(back("100-0")).end();
  await settled();

  assert.equal(notifications.state, "waiting");
});

test("a stream is lost when it has been silent for 35 seconds; its comments are a sign of life", async (t) => {
  const { tab, states } = await streaming(t);
  const before = states.length;
  for (let i = 0; i < 10; i++) {
    await tab.pass(15);
    tab.request.write(":\n\n");
    await settled();
  }
  assert.equal(states.length, before);
  await tab.wait(34.5);
  assert.equal(states.length, before);
  await tab.pass(0.5);

  assert.deepEqual(states.at(-1), { state: "waiting", code: 1006, reason: "no answer", seconds: states.at(-1).seconds });
});

test("events arrive in whatever pieces the network makes of them", async (t) => {
  const { tab, seen } = await blocked(t);
  const text = [
    ": a comment\r\nretry: 5\r\n",
    `data: ${JSON.stringify(hello())}\r\n\r\n`,
    'event: message\r\ndata: {"_meta":{"topic":"user:42",\r\ndata: "id":"100-1"},\r\ndata:"action":"é€𝄞"}\r\n\r\n',
    `data: ${JSON.stringify(message("user:42", "100-2"))}\r\r`,
    "data: not JSON\n\nevent: other\n\ndata\n\n",
    `data: ${JSON.stringify(message("user:42", "100-3"))}\n\n`,
  ].join("");
  tab.request.answer(200, { "Content-Type": "text/event-stream" });
  for (const byte of new TextEncoder().encode(text)) tab.request.writeBytes([byte]);
  await settled();

  assert.deepEqual(seen, ["user:42 100-1", "user:42 100-2", "user:42 100-3"]);
});

test("an event that does not end is given up", async (t) => {
  const { tab, notifications } = await streaming(t);
  tab.request.write("data: ");
  for (let i = 0; i < 17; i++) tab.request.write("x".repeat(2 ** 16));
  await settled();

  assert.equal(notifications.state, "waiting");
});

test("a server that restarts says so, and its tabs come back spread out", async (t) => {
  const { tab, states } = await streaming(t);
  tab.request.close(1012, "restart");
  await settled();

  assert.deepEqual(states.at(-1), { state: "waiting", code: 1012, reason: "restart", seconds: 5 });
});

test("a server that refuses for now is asked for the same again", async (t) => {
  const { tab } = await visit(new Tab(t), { transports: ["stream", "poll"] });
  for (let i = 0; i < 3; i++) {
    assert.equal(tab.request.body.mode, "stream");
    tab.request.stream().close(4101);
    await tab.pass(20);
  }

  assert.equal(tab.requests.length, 4);
});

test("access that has ended is the end", async (t) => {
  const { tab, states } = await streaming(t);
  tab.request.say({ action: "auth_error", message: "logged out" }).close(4005);
  await settled();
  await tab.pass(3600);

  assert.deepEqual(states.at(-1), { state: "closed", code: 4005, reason: "logged out" });
  assert.equal(tab.requests.length, 1);
});

// Topics

test("a topic that is added later is asked for with all others, and those that have been answered are not told again", async (t) => {
  const { tab, notifications, seen } = await streaming(t, {}, ["order:1"]);
  const told = [];
  notifications.subscribe("order:1", () => {}, { subscribed: (topic) => told.push(topic) });
  tab.request.stream(back("100-0"), subscribed("order:1", "100-4")).say(message("order:1", "100-5"));
  await tab.pass(3);
  for (const topic of ["order:2", "order:3"]) notifications.subscribe(topic, () => {}, { since: "50-1", subscribed: (topic) => told.push(topic) });
  await tab.pass(0.02);
  assert.deepEqual(asked(tab.request), { "order:1": "100-5", "order:2": "50-1", "order:3": "50-1" });
  assert.equal(tab.requests.length, 3);
  tab.request.stream(back("100-0"), subscribed("order:1", "100-5", true), message("order:1", "100-6"));
  tab.request.say(subscribed("order:2", "50-1", true), subscribed("order:3", "50-1", true));
  await settled();

  assert.deepEqual(told, ["order:1", "order:2", "order:3"]);
  assert.deepEqual(seen, ["order:1 100-5", "order:1 100-6"]);
});

test("topics that come one by one do not lead to one request each", async (t) => {
  const { tab, notifications } = await streaming(t, {}, ["order:0"]);
  const before = tab.requests.length;
  for (let n = 1; n <= 20; n++) {
    notifications.subscribe(`order:${n}`, () => {});
    if (tab.request.open && !tab.request.begun) {
      tab.request.begun = true;
      tab.request.stream(back("100-0"), ...tab.request.topics.map((topic) => subscribed(topic)));
    }
    await tab.pass(0.1);
  }
  await tab.pass(1);

  assert.ok(tab.requests.length - before <= 3, `${tab.requests.length - before} requests`);
  assert.equal(tab.request.topics.length, 21);
});

test("a topic that was left is not shown any more, nor asked for", async (t) => {
  const { tab, notifications, seen } = await streaming(t, {}, ["order:1"]);
  const off = notifications.subscribe("order:2", (message) => seen.push(message._meta.topic));
  tab.request.stream(back("100-0"), subscribed("order:1"));
  await tab.pass(1);
  tab.request.stream(back("100-0"), subscribed("order:1", "100-0", true), subscribed("order:2"));
  await settled();
  off();
  await settled();
  tab.request.say(message("order:2", "100-1"));
  await tab.pass(5);

  assert.deepEqual(seen, []);
  assert.deepEqual(tab.request.topics, ["order:1"]);
});

test("a topic that is left while it is asked for again confuses no other", async (t) => {
  const { tab, notifications, seen } = await streaming(t);
  const off = notifications.subscribe("order:1", () => {});
  notifications.subscribe("order:2", ({ _meta }) => seen.push(_meta.id));
  await tab.pass(0.02);
  tab.request.stream(back("100-0"), subscribed("order:1"), subscribed("order:2", "100-4"), message("order:2", "100-5"));
  await tab.pass(2);
  tab.request.say(message("order:2", "100-3")).end(); // which it has had
  await settled();
  assert.equal(asked(tab.request)["order:2"], "100-5");
  off();
  notifications.subscribe("order:3", ({ _meta }) => seen.push(_meta.id));
  await settled();
  tab.request.stream(back("100-0"), subscribed("order:1", "200-0", false), subscribed("order:2", "100-5", true));
  await tab.pass(2);
  tab.request.stream(back("100-0"), subscribed("order:2", "100-5", true), subscribed("order:3"), message("order:3", "100-1"));
  await settled();

  assert.deepEqual(tab.request.topics, ["order:2", "order:3"]);
  assert.deepEqual(seen, ["100-5", "100-1"]);
});

test("answers that are on their way are waited for", async (t) => {
  const { tab, notifications } = await streaming(t, {}, ["order:1"]);
  const before = tab.requests.length;
  tab.request.stream(back("100-0"));
  notifications.subscribe("order:2", () => {});
  await tab.wait(5);
  assert.equal(tab.requests.length, before);
  tab.request.say(subscribed("order:1"));
  await tab.wait(2);

  assert.deepEqual(tab.request.topics, ["order:1", "order:2"]);
});

test("leaving before the answer, and coming back, ends with one subscription", async (t) => {
  const { tab, notifications, seen } = await streaming(t);
  notifications.subscribe("order:A", () => {})();
  notifications.subscribe("order:A", ({ _meta }) => seen.push(_meta.id));
  await tab.pass(0.02);
  assert.deepEqual(tab.request.topics, ["order:A"]);
  tab.request.stream(back("100-0"), subscribed("order:a"), message("order:a", "100-1"));
  await tab.pass(1);
  tab.request.stream(back("100-0"), subscribed("order:a", "100-1"), message("order:a", "100-2"));
  await settled();

  assert.deepEqual(tab.request.topics, ["order:A"]);
  assert.deepEqual(seen, ["100-2"]);
});

test("two names of a topic are one, and left by either", async (t) => {
  const { tab, notifications, seen } = await streaming(t);
  const offs = ["order:A", "order:a"].map((topic) => notifications.subscribe(topic, ({ _meta }) => seen.push(_meta.id)));
  await tab.pass(0.02);
  tab.request.stream(back("100-0"), subscribed("order:a"), subscribed("order:a"), message("order:a", "100-1"));
  await settled();
  tab.request.end();
  await settled();
  assert.deepEqual(asked(tab.request), { "order:a": "100-1" });
  tab.request.stream(back("100-0"), subscribed("order:a", "100-1", true), message("order:a", "100-2"));
  await settled();
  for (const off of offs) off();
  await settled();
  tab.request.say(message("order:a", "100-3"));
  await tab.pass(5);

  assert.deepEqual(seen, ["100-1", "100-1", "100-2", "100-2"]);
  assert.deepEqual(tab.request.topics, []);
});

test("of what nobody could say yet the answer follows, in the same response or another", async (t) => {
  const { tab, notifications, seen, errors, gaps } = await blocked(t, {}, ["order:A", "order:B", "order:C"]);
  const told = [];
  notifications.subscribe("order:D", () => {}, { since: "50-1", subscribed: (topic) => told.push(topic) });
  tab.request.stream(hello());
  await tab.pass(0.02);
  const unknown = ["order:a", "order:b", "order:c", "order:d"].map((topic) => refused(topic, "unavailable"));
  tab.request.stream(back("100-0"), ...unknown);
  tab.request.say(subscribed("order:a", "100-5", false), message("order:a", "100-6"));
  await settled();
  tab.request.end();
  await settled();
  assert.deepEqual(asked(tab.request), { "order:a": "100-6", "order:b": null, "order:c": null, "order:d": "50-1" });
  tab.request.stream(back("100-0"), subscribed("order:a", "100-6", true), subscribed("order:b", "100-1"), refused("order:c"));
  tab.request.say(subscribed("order:d", "50-1", true), message("order:b", "100-2"));
  await settled();

  assert.deepEqual(seen, ["order:a 100-6", "order:b 100-2"]);
  assert.deepEqual(errors, [["unsubscribed", "order:C"]]);
  assert.deepEqual(gaps, ["order:A", "order:B", "order:D"]); // as over a WebSocket
  assert.deepEqual(told, ["order:D"]);
});

test("a permission that is withdrawn is told, during a response or between two", async (t) => {
  const { tab, errors } = await streaming(t, {}, ["order:1", "order:2"]);
  tab.request.stream(back("100-0"), subscribed("order:1"), subscribed("order:2"), { action: "unsubscribed", topic: "order:1" });
  await settled();
  tab.request.end();
  await settled();
  assert.deepEqual(tab.request.topics, ["order:2"]);
  tab.request.stream(back("100-0"), refused("order:2"));
  await settled();

  assert.deepEqual(errors, [["unsubscribed", "order:1"], ["unsubscribed", "order:2"]]);
});

test("a grant that has expired meanwhile is replaced by a fresh one", async (t) => {
  let fetched = 0;
  const { tab, notifications, errors, seen } = await streaming(t);
  notifications.subscribe("order:1", ({ _meta }) => seen.push(_meta.id), { grant: () => `grant ${++fetched}` });
  await tab.pass(0.02);
  assert.equal(tab.request.body.topics[0].grant, "grant 1");
  tab.request.stream(back("100-0"), subscribed("order:1"), message("order:1", "100-1"));
  await alive({ tab }, 300);
  tab.request.end();
  await settled();
  tab.request.stream(back("100-0"), refused("order:1"));
  await tab.pass(0.5);
  tab.request.stream(back("100-0"));
  await tab.pass(0.02);
  assert.deepEqual(tab.request.body.topics, [{ topic: "order:1", since: "100-1", grant: "grant 2" }]);
  tab.request.stream(back("100-0"), subscribed("order:1", "100-1", true), message("order:1", "100-2"));
  await settled();

  assert.deepEqual([seen, errors], [["100-1", "100-2"], []]);
});

test("what the site has joined is announced once, and goes on after a response", async (t) => {
  const { tab, notifications } = await blocked(t);
  const heard = [];
  const told = [];
  notifications.on("note", ({ _meta }) => heard.push(_meta.id));
  const given = (id) => subscribed("team:7", id, null, { joined: true });
  tab.request.stream(hello(), given("100-0"), message("team:7", "100-1"));
  await settled();
  tab.request.end();
  await settled();
  assert.deepEqual(asked(tab.request), { "team:7": "100-1" });
  // What comes before the answer comes again after it.
  tab.request.stream(back("100-0"), given("100-2"), message("team:7", "100-3"), subscribed("team:7", "100-1", true));
  for (const n of [2, 3, 4]) tab.request.say(message("team:7", `100-${n}`));
  await settled();
  notifications.subscribe("team:7", () => {}, { subscribed: (topic) => told.push(topic) });
  await tab.pass(2);

  assert.deepEqual(heard, ["100-1", "100-2", "100-3", "100-4"]);
  assert.equal(tab.requests.length, 2);
});

test("a page that knows where it was in what the site joins begins there", async (t) => {
  const tab = new Tab(t);
  const given = (id) => subscribed("team:7", id, null, { joined: true });
  const first = await visit(tab, { transports: ["stream"] });
  const heard = [];
  tab.request.stream(hello(), given("100-0"), message("team:7", "100-1"));
  await settled();
  const { notifications } = await visit(tab, { transports: ["stream"] });
  notifications.on("note", ({ _meta }) => heard.push(_meta.id));
  tab.request.stream(back("100-0"), given("100-2"), message("team:7", "100-3"));
  await tab.pass(0.02);
  assert.deepEqual(asked(tab.request), { "team:7": "100-1" });
  tab.request.stream(back("100-0"), given("100-3"), subscribed("team:7", "100-1", true));
  for (const n of [2, 3]) tab.request.say(message("team:7", `100-${n}`));
  await settled();

  assert.deepEqual(heard, ["100-2", "100-3"]);
  assert.deepEqual(first.errors, []);
});

test("messages without an id, and topics without a history: what may be missing is told", async (t) => {
  const { tab, notifications, gaps } = await streaming(t, {}, ["cheer:1"]);
  const cheers = [];
  notifications.on("cheer", () => cheers.push("cheer"));
  tab.request.stream(back("100-0"), subscribed("cheer:1", null), { action: "cheer" });
  await settled();
  tab.request.end();
  await settled();
  tab.request.stream(back("100-0"), subscribed("cheer:1", null), { action: "cheer" });
  await settled();

  assert.deepEqual(cheers, ["cheer", "cheer"]);
  assert.deepEqual(gaps, ["cheer:1"]);
});

// Polls

test("a poll follows the other, from where it was, and no faster than twice a second", async (t) => {
  const { tab, seen, states } = await polling(t, {}, ["order:1"]);
  assert.deepEqual([tab.request.body.mode, tab.request.body.wait], ["poll", 0]); // the answer is waited for
  tab.request.poll([back("100-0"), subscribed("order:1", "100-4")]);
  await settled();
  const before = states.length;
  assert.equal(tab.request.body.wait, 25);
  await tab.pass(25);
  tab.request.poll([]);
  await settled();
  const requests = tab.requests.length;
  tab.request.poll([back("100-0"), message("user:42", "100-1"), subscribed("order:1", "100-4", true), message("order:1", "100-5")]);
  await tab.pass(0.4);
  assert.equal(tab.requests.length, requests);
  await tab.pass(0.1);
  assert.deepEqual([tab.request.body.since, asked(tab.request)], ["100-1", { "order:1": "100-5" }]);

  assert.deepEqual(seen, ["user:42 100-1", "order:1 100-5"]);
  assert.equal(states.length, before);
});

test("topics for which a poll had no time are asked for first", async (t) => {
  const { tab, seen } = await polling(t, {}, ["order:1", "order:2", "order:3"]);
  tab.request.poll([back("100-0"), subscribed("order:1", "100-4")]);
  await tab.pass(1);
  assert.deepEqual(Object.keys(asked(tab.request)), ["order:2", "order:3", "order:1"]);
  tab.request.poll([back("100-0"), subscribed("order:2", "100-0"), message("order:2", "100-1")]);
  await tab.pass(1);
  assert.deepEqual(Object.keys(asked(tab.request)), ["order:3", "order:1", "order:2"]);
  tab.request.poll([back("100-0"), subscribed("order:3", "100-0"), subscribed("order:1", "100-4", true), message("order:1", "100-5")]);
  await tab.pass(1);

  assert.deepEqual(asked(tab.request), { "order:2": "100-1", "order:3": "100-0", "order:1": "100-5" });
  assert.deepEqual(seen, ["order:2 100-1", "order:1 100-5"]);
});

test("a poll that is not answered within its time and ten seconds is a lost connection", async (t) => {
  const { tab, notifications } = await polling(t);
  await tab.pass(34.9);
  assert.equal(notifications.state, "open");
  await tab.pass(0.1);

  assert.equal(notifications.state, "waiting");
});

for (const [what, cut] of [
  ["cuts it", (request) => request.lose()],
  ["answers in its place", (request) => request.answer(504, { "Content-Type": "text/html" }, "Gateway Time-out")],
]) {
  test(`where something ${what} after twenty seconds, a poll waits for less`, async (t) => {
    const { tab, states } = await polling(t);
    const before = states.length;
    await tab.pass(20);
    cut(tab.request);
    await tab.pass(1);
    assert.equal(tab.request.body.wait, 15);
    tab.request.poll([]);
    await settled();

    assert.equal(states.length, before);
  });
}

test("a server that cannot wait says when to come again", async (t) => {
  const { tab, notifications, seen } = await blocked(t);
  tab.request.poll([hello()], { "Retry-After": "5" }); // asked for a stream
  await settled();
  assert.equal(notifications.transport, "poll");
  await tab.wait(6);
  assert.equal(tab.requests.length, 1);
  await tab.wait(1);
  assert.equal(tab.request.body.mode, "poll");
  tab.request.poll([back("100-0"), message("user:42", "100-1")], { "Retry-After": "5" });
  await settled();
  notifications.subscribe("order:1", () => {});
  await tab.pass(0.02);

  assert.deepEqual(seen, ["user:42 100-1"]);
  assert.deepEqual(tab.request.topics, ["order:1"]); // which does not wait
});

test("answers that bring nothing new are not asked for as fast as they come", async (t) => {
  const { tab } = await polling(t, {}, ["order:1"]);
  tab.request.poll([back("100-0"), refused("order:1", "unavailable")]);
  await settled();
  const before = tab.requests.length;
  for (let second = 0; second < 60; second++) {
    if (tab.request.open) tab.request.poll([back("100-0"), refused("order:1", "unavailable")]);
    await tab.pass(1);
  }

  assert.ok(tab.requests.length - before < 15, `${tab.requests.length - before} requests`);
});

test("a close is the last word of a poll", async (t) => {
  const { tab, states, seen } = await polling(t);
  tab.request.poll([back("100-0"), message("user:42", "100-1"), { action: "close", code: 4101, reason: "later" }]);
  await settled();

  assert.deepEqual(seen, ["user:42 100-1"]);
  assert.deepEqual(states.at(-1), { state: "waiting", code: 4101, reason: "later", seconds: 5 });
});

test("of topics without a history a page that is polled is told once that something may be missing", async (t) => {
  const { tab, gaps } = await polling(t, {}, ["cheer:1"]);
  for (let i = 0; i < 4; i++) {
    tab.request.poll([back("100-0"), subscribed("cheer:1", null)]);
    await tab.pass(2);
  }

  assert.deepEqual(gaps, ["cheer:1"]);
});

// Tokens

test("each request has a fresh token, in its body and nowhere else", async (t) => {
  let fetched = 0;
  const { tab, notifications } = await blocked(t, { token: async () => `token ${++fetched}`, since: "100-7" });
  const frames = [];
  notifications.addEventListener("frame", ({ detail }) => frames.push(detail.text));
  assert.deepEqual([tab.request.body.token, tab.request.body.since, tab.request.url], ["token 3", "100-7", "/live/stream/"]);
  tab.request.stream(back("100-7"));
  await alive({ tab }, 300);
  fetched = 10; // attempts with WebSockets had some as well
  tab.request.end();
  await settled();

  assert.equal(tab.request.body.token, "token 11");
  assert.doesNotMatch(frames.join(), /token \d/);
});

test("a token that does not come is a loss; where a WebSocket is tried, it is not", async (t) => {
  let hangs = false;
  const token = () => (hangs ? new Promise(() => {}) : "token");
  const { tab, notifications, states } = await streaming(t, { token });
  hangs = true;
  await alive({ tab }, 60); // a WebSocket would have been tried
  assert.equal(notifications.state, "open");
  await alive({ tab }, 30);
  tab.request.end();
  await tab.pass(10);

  assert.equal(states.at(-1).reason, "no token");
});

test("a token that the server refuses is replaced, once", async (t) => {
  let fetched = 0;
  const { tab, notifications } = await visit(new Tab(t), { transports: ["stream"], token: async () => `token ${++fetched}` });
  for (let i = 0; i < 2; i++) {
    tab.request.stream({ action: "auth_error", message: "expired" }).close(4003, "expired");
    await tab.pass(5);
  }

  assert.equal(notifications.state, "closed");
  assert.equal(fetched, 2);
});

// Whether it is alive

test("a quiet stream is not asked for anew; after a laptop's sleep it is, at once", async (t) => {
  const { tab, notifications } = await streaming(t);
  for (let i = 0; i < 12; i++) {
    await tab.pass(15);
    tab.request.write(":\n\n");
  }
  await settled();
  assert.equal(tab.requests.length, 1);
  await tab.sleepFor(3600);
  tab.hide(false);
  await settled();
  assert.equal(tab.requests.length, 2);
  tab.request.stream(back("100-0"));
  await tab.pass(6);
  assert.equal(notifications.state, "open");
  await tab.sleepFor(3600);
  tab.hide(false);
  await tab.pass(5);

  assert.equal(notifications.state, "waiting");
});

test("without a network a stream is proved at once", async (t) => {
  const { tab, notifications } = await streaming(t);
  Object.defineProperty(globalThis, "navigator", { value: { onLine: false }, configurable: true });
  t.after(() => delete globalThis.navigator);
  tab.offline();
  await settled();
  assert.equal(tab.requests.length, 2);
  tab.request.lose();
  await settled();

  assert.equal(notifications.state, "waiting");
});

test("a tab that is hidden keeps no request open, because browsers have six connections over HTTP/1.1", async (t) => {
  const { tab, states, seen, notifications } = await streaming(t, {}, ["order:1"]);
  tab.request.stream(back("100-0"), subscribed("order:1"));
  await settled();
  const before = states.length;
  tab.hide();
  await tab.pass(9);
  assert.equal(tab.request.open, true); // it may be for a moment
  await tab.pass(1);
  assert.deepEqual([tab.request.body.mode, tab.request.body.wait], ["poll", 0]);
  for (let n = 1; n < 9; n++) {
    tab.request.poll([back(`100-${n - 1}`), subscribed("order:1", "100-0", true), message("user:42", `100-${n}`)]);
    const asked = tab.requests.length;
    await tab.pass(14);
    assert.equal(tab.requests.length, asked);
    await tab.pass(1);
    assert.equal(tab.requests.length, asked + 1);
  }
  tab.request.poll([]);
  await settled();
  assert.equal(notifications.transport, "stream");
  tab.hide(false);
  await settled();

  assert.equal(tab.request.body.mode, "stream");
  tab.request.stream(back("100-8"), subscribed("order:1", "100-0", true));
  await tab.pass(5);
  assert.equal(seen.length, 8);
  assert.equal(states.length, before);
});

test("a tab that is opened in the background asks, and streams when it is seen", async (t) => {
  const tab = new Tab(t);
  sessionStorage.setItem(MEMORY, '{"transport":"stream"}');
  const connect = await tab.visit();
  document.hidden = true;
  const notifications = connect({ fallback, streamUrl: "/live/stream/" });
  await settled();
  assert.equal(tab.request.body.mode, "poll");
  tab.request.poll([hello()]);
  await settled();
  assert.equal(notifications.state, "open");
  await tab.pass(5);
  tab.hide(false);
  await settled();
  assert.equal(tab.request.body.mode, "stream");
  await tab.pass(3); // of which nothing comes

  assert.equal(tab.request.body.mode, "poll");
  assert.equal(tab.remembered[MEMORY].transport, "poll");
});

test("over HTTP/2 a hidden tab keeps its stream", async (t) => {
  t.mock.method(performance, "getEntriesByType", () => [{ nextHopProtocol: "h2" }]);
  const page = await streaming(t);
  page.tab.hide();
  await alive(page, 60);

  assert.equal(page.tab.requests.length, 1);
});

test("a page that is put away has no request, and one again when it is taken out", async (t) => {
  const { tab, notifications } = await streaming(t);
  tab.request.say(message("user:42", "100-3"));
  await settled();
  tab.leave();
  await tab.pass(3600);
  assert.equal(tab.requests.length, 1);
  assert.equal(tab.request.open, false);
  tab.back();
  await settled();
  assert.equal(tab.request.body.since, "100-3");
  tab.request.stream(back("100-3"));
  await settled();

  assert.equal(notifications.state, "open");
});

test("close() is for good", async (t) => {
  const { tab, notifications } = await streaming(t);
  notifications.close();
  tab.online();
  tab.back();
  await tab.wait(400, 20);

  assert.equal(tab.request.open, false);
  assert.deepEqual([tab.requests.length, tab.sockets.length], [1, 2]);
});

test("frames are shown without tokens and grants", async (t) => {
  const { tab, notifications } = await streaming(t, { token: () => "secret" });
  const frames = [];
  notifications.addEventListener("frame", ({ detail }) => frames.push(detail));
  notifications.subscribe("order:1", () => {}, { grant: "secret" });
  await tab.pass(0.02);
  tab.request.stream(back("100-0"), subscribed("order:1"));
  await settled();

  assert.deepEqual(frames.map(({ direction }) => direction), ["out", "in"]);
  assert.doesNotMatch(JSON.stringify(frames), /secret/);
});

// The way back

const MEMORY = "notifications transport";

test("the next page of the tab begins with what worked", async (t) => {
  const { tab } = await streaming(t);
  assert.equal(tab.remembered[MEMORY].transport, "stream");
  const page = await visit(tab);
  assert.equal(tab.sockets.length, 2);
  assert.equal(tab.request.body.mode, "stream");
  assert.equal(page.loads(), 1);
  tab.request.stream(back("100-0"));
  await settled();

  assert.deepEqual(page.states, [{ state: "connecting" }, { state: "open", transport: "stream" }]);
});

test("soon, and then every five minutes, a WebSocket is tried; the stream goes on meanwhile", async (t) => {
  const { tab, states, seen } = await streaming(t);
  const before = states.length;
  await alive({ tab }, 10);
  assert.equal(tab.sockets.length, 3);
  tab.request.say(message("user:42", "100-1"));
  await settled();
  tab.socket.lose();
  await alive({ tab }, 290);
  assert.equal(tab.sockets.length, 3);
  for (let i = 0; i < 3 && tab.sockets.length < 4; i++) await alive({ tab }, 10);
  tab.socket.accept(); // and nothing more
  await alive({ tab }, 10);
  assert.equal(tab.socket.readyState, 3);

  assert.deepEqual(seen, ["user:42 100-1"]);
  assert.equal(tab.requests.length, 1);
  assert.equal(states.length, before);
  assert.equal(tab.remembered[MEMORY].transport, "stream");
});

test("a WebSocket that works again takes over: nothing is lost, nothing comes twice, nothing flickers", async (t) => {
  const { tab, states, seen, gaps, notifications } = await streaming(t, {}, ["order:1"]);
  const given = (id) => subscribed("team:7", id, null, { joined: true });
  notifications.on("note", ({ _meta: { topic, id } }) => topic === "team:7" && seen.push(`${topic} ${id}`));
  tab.request.stream(back("100-0"), given("100-0"), subscribed("order:1", "100-4"), message("team:7", "100-1"));
  await tab.pass(10);
  tab.request.say(message("user:42", "100-1"), message("order:1", "100-5"));
  await settled();
  const before = states.length;
  const frames = [];
  notifications.addEventListener("frame", ({ detail }) => frames.push(detail.text));
  assert.equal(tab.socket.url, "wss://site.example/ws/notifications/?since=100-0");
  const request = tab.request;
  // The answer repeats what the stream has brought since the WebSocket was opened.
  tab.socket.welcome({ id: "100-0", recovered: true });
  tab.socket.publish("user:42", "100-1");
  tab.hide();
  assert.equal(tab.remembered["notifications /ws/notifications/"].left["user:42"], "100-1");
  assert.equal(frames.filter((text) => text.includes('"user:42","id"')).length, 0);
  tab.hide(false);
  assert.deepEqual(tab.socket.heard(), [
    { action: "subscribe", topic: "order:1", since: "100-5" },
    { action: "subscribe", topic: "team:7", since: "100-1" },
    { action: "ping" },
  ]);
  tab.socket.say({ action: "pong" }).publish("user:42", "100-2").say(given("100-2")).publish("team:7", "100-3");
  assert.equal(request.open, false);
  tab.socket.subscribed("order:1", "100-5", true).publish("order:1", "100-6");
  tab.socket.subscribed("team:7", "100-1", true);
  for (const n of [2, 3]) tab.socket.publish("team:7", `100-${n}`);
  await tab.pass(400);

  assert.deepEqual(seen, [
    "team:7 100-1",
    "user:42 100-1",
    "order:1 100-5",
    "user:42 100-2",
    "order:1 100-6",
    "team:7 100-2",
    "team:7 100-3",
  ]);
  assert.deepEqual(states.slice(before, before + 1), [{ state: "open", transport: "websocket" }]);
  assert.equal(notifications.transport, "websocket");
  assert.equal(tab.remembered[MEMORY], undefined);
  assert.deepEqual(gaps, []);
});

test("a WebSocket with a token takes over as well", async (t) => {
  const { tab, notifications } = await streaming(t, { token: async () => "secret" });
  await tab.pass(10);
  tab.socket.accept();
  assert.deepEqual(tab.socket.heard(), [{ type: "auth", token: "secret", since: "100-0" }]);
  tab.socket.say(back("100-0"));

  assert.equal(notifications.transport, "websocket");
});

test("another user's WebSocket does not take over", async (t) => {
  const { tab, notifications } = await streaming(t);
  await tab.pass(10);
  tab.socket.welcome({ user_id: "43" });
  await settled();

  assert.equal(notifications.transport, "stream");
  assert.equal(tab.socket.readyState, 3);
});

test("a page that closes while a WebSocket is tried leaves none open", async (t) => {
  const { tab, notifications } = await streaming(t);
  await tab.pass(10);
  notifications.close();
  assert.equal(tab.socket.readyState, 3);
});

test("when the network is another, the stream is proved and a WebSocket tried", async (t) => {
  const { tab, notifications } = await streaming(t);
  await tab.pass(10);
  tab.socket.lose();
  await tab.pass(10);
  assert.equal(tab.sockets.length, 3);
  tab.online();
  await settled();
  assert.equal(tab.requests.length, 2);
  tab.request.stream(back("100-0"));
  await tab.pass(10);
  assert.equal(tab.sockets.length, 4);
  tab.socket.welcome({ recovered: true });

  assert.equal(notifications.transport, "websocket");
});

test("a server that was away leads to no lasting poll", async (t) => {
  const tab = new Tab(t);
  const page = await visit(tab);
  tab.socket.welcome();
  // The server is down: each transport is tried.
  for (let i = 0; i < 30 && tab.request?.body.mode !== "poll"; i++) {
    if (tab.request?.open) tab.request.lose();
    else tab.socket.lose();
    await tab.pass(20);
  }
  // It is back.
  tab.request.poll([back("100-0")]);
  await tab.pass(10);
  assert.equal(page.notifications.transport, "poll");
  tab.socket.welcome({ recovered: true });

  assert.equal(page.notifications.transport, "websocket");
  assert.equal(tab.remembered[MEMORY], undefined);
});

test("where polls work and WebSockets do not, a stream is tried as well, and polls go on if it is buffered", async (t) => {
  const { tab, notifications, states } = await blocked(t);
  await tab.pass(3);
  tab.request.poll([hello()]);
  await settled();
  const before = states.length;
  await tab.pass(10);
  tab.socket.lose();
  await settled();
  assert.equal(tab.request.body.mode, "stream");
  await tab.pass(3);
  assert.equal(tab.request.body.mode, "poll");
  tab.request.poll([]);
  for (let i = 0; i < 16; i++) {
    await tab.pass(20);
    if (tab.request.open && tab.request.body.mode === "poll") tab.request.poll([]);
    if (tab.socket.readyState === 0) tab.socket.lose();
    await settled();
    if (tab.request.body.mode === "stream") break;
  }
  tab.request.stream(back("100-0"));
  await settled();

  assert.equal(notifications.transport, "stream");
  assert.equal(tab.remembered[MEMORY].transport, "stream");
  assert.equal(states.length, before);
});

test("a stream that is refused where polls work changes nothing", async (t) => {
  const { tab, notifications, states } = await blocked(t);
  await tab.pass(3);
  tab.request.poll([hello()]);
  await settled();
  const before = states.length;
  await tab.pass(10);
  tab.socket.lose();
  await settled();
  tab.request.answer(502, { "Content-Type": "text/html" }, "Bad Gateway");
  await settled();
  tab.request.poll([back("100-0"), message("user:42", "100-1")]);
  await settled();

  assert.equal(notifications.transport, "poll");
  assert.equal(states.length, before);
});

test("a WebSocket that took over has as much time as any that had worked, until the network is another", async (t) => {
  const { tab, notifications } = await streaming(t);
  await tab.pass(10);
  tab.socket.welcome({ recovered: true });
  tab.socket.lose();
  await tab.pass(0.5);
  await tab.pass(6);
  assert.equal(notifications.state, "connecting");
  tab.socket.lose();
  tab.online();
  await settled();
  await tab.pass(5);
  assert.equal(notifications.state, "waiting");
  await tab.pass(2);

  assert.equal(tab.request.body.mode, "stream");
});

for (const [what, value] of [
  ["nonsense", "{"],
  ["a transport that there is not", '{"transport":"pigeon"}'],
  ["a time in the future", `{"transport":"stream","tried":${10 ** 15}}`],
]) {
  test(`${what} in the memory of the tab does no harm`, async (t) => {
    const tab = new Tab(t);
    sessionStorage.setItem(MEMORY, value);
    const { notifications } = await visit(tab);
    tab.request.stream(hello());
    for (let i = 0; i < 32; i++) {
      await tab.pass(10);
      tab.request.write(":\n\n");
    }

    assert.equal(notifications.transport, "stream");
    assert.equal(tab.sockets.length >= 1, true);
  });
}

// Many topics

/** A site that has room for some topics of one connection, and serves it in whatever way it is asked. */
class Hall {
  most = 0;
  told = new Map(); // the last id of each topic
  #topics = new Set(); // of the connection that there is

  constructor(tab, room = 100) {
    this.tab = tab;
    this.room = room;
  }

  #position(topic) {
    return `100-${this.told.get(topic) ?? 0}`;
  }

  /** Answer as the server does: states begin with their latest message, and with what came after a position. */
  #answer({ topic, since }) {
    if (!this.#topics.has(topic) && this.#topics.size >= this.room) return [refused(topic, "too_many_subscriptions")];
    this.#topics.add(topic);
    this.most = Math.max(this.most, this.#topics.size);
    const n = since ? Number(since.split("-")[1]) : Math.max(0, (this.told.get(topic) ?? 0) - 1);
    const frames = [subscribed(topic, `100-${n}`, since ? true : null)];
    for (let i = n + 1; i <= (this.told.get(topic) ?? 0); i++) frames.push(message(topic, `100-${i}`));
    return frames;
  }

  #serve() {
    const { socket, request } = this.tab;
    if (socket?.readyState === 1) {
      for (const frame of socket.heard()) {
        if (frame.action === "subscribe") socket.say(...this.#answer(frame));
        if (frame.action === "unsubscribe") {
          this.#topics.delete(frame.topic);
          socket.say({ action: "unsubscribed", topic: frame.topic });
        }
      }
    } else if (request?.open && !request.served) {
      request.served = true;
      this.#topics.clear();
      assert.ok(JSON.stringify(request.body).length < 65536);
      const welcome = request.body.since ? back(request.body.since) : hello();
      const frames = [welcome, ...request.body.topics.flatMap((each) => this.#answer(each))];
      if (request.body.mode === "stream") request.stream(...frames);
      else if (!request.body.wait || frames.some(({ _meta }) => _meta)) request.poll(frames);
    }
  }

  async settle(seconds = 60) {
    for (let i = 0; i < seconds * 2; i++) {
      this.#serve();
      if (this.tab.request?.open && this.tab.request.body.mode === "stream") this.tab.request.write(":\n\n");
      await this.tab.pass(0.5);
    }
  }

  /** Publish on a topic; who has it is told at once, or with the next poll. */
  publish(topic) {
    this.told.set(topic, (this.told.get(topic) ?? 0) + 1);
    const { socket, request } = this.tab;
    const frame = message(topic, this.#position(topic));
    if (!this.#topics.has(topic)) return;
    if (socket?.readyState === 1) socket.say(frame);
    else if (request.open && request.body.mode === "stream") request.say(frame);
    else if (request.open) request.poll([back(request.body.since), frame]);
  }
}

const uploads = Array.from({ length: 1000 }, (_, n) => `upload:${n}`);

for (const transport of ["websocket", "stream", "poll"]) {
  test(`300 bars work over a ${transport}, also after a reconnect: each shows its end`, async (t) => {
    const warn = t.mock.method(console, "warn", () => {});
    const tab = new Tab(t);
    const page = await visit(tab, transport === "websocket" ? {} : { transports: [transport] });
    const reopen = async () => {
      const frame = hello({ recovered: null });
      if (transport === "websocket") tab.socket.welcome();
      if (transport === "stream") tab.request.stream(frame);
      if (transport === "poll") tab.request.poll([frame]);
      await settled();
    };
    await reopen();
    const hall = new Hall(tab);
    const ended = new Set();
    const offs = new Map();
    for (const topic of uploads.slice(0, 300)) {
      const end = () => {
        ended.add(topic);
        offs.get(topic)();
      };
      offs.set(topic, page.notifications.subscribe(topic, end));
    }
    await hall.settle(20);
    assert.equal(ended.size, 0);
    for (const topic of uploads.slice(0, 50)) hall.publish(topic);
    await hall.settle(20);
    assert.equal(ended.size, 50);
    if (transport === "websocket") tab.socket.lose(1012);
    else if (transport === "stream") tab.request.close(1012);
    else tab.request.poll([{ action: "close", code: 1012, reason: "" }]);
    await tab.pass(6);
    await reopen();
    for (const topic of uploads.slice(50, 300)) hall.publish(topic);
    for (let i = 0; i < 10 && ended.size < 300; i++) await hall.settle(20);

    assert.equal(ended.size, 300);
    assert.ok(hall.most <= 100);
    assert.deepEqual(page.errors, []);
    assert.deepEqual(warn.mock.calls.map(({ arguments: [text] }) => text), [
      "notifications: too_many_subscriptions, no (300 topics): docs/protocol.md#errors",
    ]);
  });
}

test("a thousand bars say once how much room there is", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  const page = await visit(new Tab(t));
  page.tab.socket.welcome();
  for (const topic of uploads) page.notifications.subscribe(topic, () => {});
  const hall = new Hall(page.tab);
  await hall.settle(60);
  page.tab.socket.lose();
  await page.tab.pass(0.5);
  page.tab.socket.welcome();
  await new Hall(page.tab).settle(60);

  assert.equal(hall.most, 100);
  assert.equal(warn.mock.callCount(), 1);
  assert.match(warn.mock.calls[0].arguments[0], /1000 topics/);
});
