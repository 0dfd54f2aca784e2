// Visitors who have not logged in, and what everybody receives.

import assert from "node:assert/strict";
import { test } from "node:test";

import { FALLBACK, Tab, settled } from "./browser.js";

const fallback = () => import(FALLBACK);
await fallback(); // so that no test waits for the file

const ALL = "site:all";
const GUEST = { type: "auth", guest: true };
const welcome = { user_id: null, id: null };
const given = (id, topic = ALL) => ({ action: "subscribed", topic, recovered: null, id, state: false, joined: true });
const hello = { action: "auth_success", user_id: null, id: null, recovered: null };

/** Open a page, and return what it heard and was told. */
async function visit(tab, options) {
  const connect = await tab.visit();
  const notifications = connect(options);
  const page = { notifications, heard: [], gaps: [], states: [] };
  notifications.on("note", ({ _meta }) => page.heard.push(`${_meta.topic} ${_meta.id}`));
  notifications.addEventListener("gap", ({ detail }) => page.gaps.push(detail.topic));
  notifications.addEventListener("state", ({ detail }) => page.states.push([detail.state, detail.code]));
  await settled();
  return page;
}

test("a guest says so, fetches no token, and hears what everybody has", async (t) => {
  const tab = new Tab(t);
  const token = () => assert.fail("a guest has no token");
  const { notifications, heard } = await visit(tab, { guest: true, token });
  tab.socket.welcome(welcome);
  assert.deepEqual(tab.socket.heard(), [GUEST]);
  assert.equal(new URL(tab.socket.url).search, "");

  tab.socket.say(given("100-0")).publish(ALL, "100-1");
  assert.equal(notifications.state, "open");
  assert.deepEqual(heard, [`${ALL} 100-1`]);
});

test("a guest who comes back has what was missed, and no gap of a topic that is nobody's", async (t) => {
  const tab = new Tab(t);
  const { heard, gaps } = await visit(tab, { guest: true });
  tab.socket.welcome(welcome).say(given("100-0")).publish(ALL, "100-1");
  tab.socket.lose();
  await tab.pass(2);
  tab.socket.welcome(welcome).say(given("100-2"));

  assert.deepEqual(tab.socket.heard().slice(1), [{ action: "subscribe", topic: ALL, since: "100-1" }]);
  tab.socket.subscribed(ALL, "100-1", true).publish(ALL, "100-2");
  assert.deepEqual(heard, [`${ALL} 100-1`, `${ALL} 100-2`]);
  assert.deepEqual(gaps, []);
});

test("what is published between rendering and joining is asked for, once in a tab", async (t) => {
  const tab = new Tab(t);
  for (const [options, user_id] of [[{ guest: true }, null], [{ userTopic: "user:42", since: "100-0" }, "42"]]) {
    const positions = { [ALL]: "100-3" };
    await visit(tab, { ...options, positions });
    tab.socket.welcome({ user_id, id: user_id && "100-0" }).heard();
    tab.socket.say(given("100-5"));
    assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: ALL, since: "100-3" }]);
    tab.socket.subscribed(ALL, "100-3", true).publish(ALL, "100-4").publish(ALL, "100-5");

    await visit(tab, { ...options, positions }); // a page from a cache
    tab.socket.welcome({ user_id, id: user_id && "100-0", recovered: user_id && true }).heard();
    tab.socket.say(given("100-6"));
    assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: ALL, since: "100-5" }]);
  }
});

test("a visitor who logs in without a new page leaves the guest connection", async (t) => {
  const tab = new Tab(t);
  const { notifications, states } = await visit(tab, { guest: true });
  tab.socket.welcome(welcome);
  const before = tab.socket;
  notifications.open({ userTopic: "user:42", since: "100-1" });
  await settled();

  assert.equal(before.readyState, 3);
  assert.equal(new URL(tab.socket.url).searchParams.get("since"), "100-1");
  tab.socket.welcome({ id: "100-1" });
  assert.deepEqual(tab.socket.heard(), []); // the session says who it is
  assert.deepEqual(states.at(-1), ["open", undefined]);

  notifications.open({ guest: true });
  await settled();
  tab.socket.welcome(welcome);
  assert.deepEqual(tab.socket.heard(), [GUEST]);
  assert.deepEqual(states.at(-1), ["open", undefined]);
  notifications.open({ guest: true });
  assert.equal(tab.sockets.length, 3); // it is open as that already
});

test("what a user of the tab had is not asked for by a guest, nor shown", async (t) => {
  const tab = new Tab(t);
  await visit(tab, { userTopic: "user:42" });
  tab.socket.welcome({ id: "100-1" }).say(given("100-0", "team:7")).publish("team:7", "100-1").publish(ALL, "100-7");
  const { heard, notifications } = await visit(tab, { guest: true, positions: { [ALL]: "100-9" } });
  tab.socket.welcome(welcome).heard();
  tab.socket.say(given("100-9")).publish("user:42", "100-2");

  assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: ALL, since: "100-9" }]);
  assert.deepEqual(heard, []);
  notifications.close();
});

test("a site that admits no guests is not asked again", async (t) => {
  const tab = new Tab(t);
  const { states } = await visit(tab, { guest: true });
  tab.socket.accept().say({ action: "auth_error", message: "no" }).lose(4003);
  await tab.pass(60);

  assert.deepEqual(states.at(-1), ["closed", 4003]);
  assert.equal(tab.sockets.length, 1);
});

/** A page of a guest to which no WebSocket gets through: its first request is under way. */
async function blocked(tab) {
  const page = await visit(tab, { guest: true, fallback, transports: ["websocket", "poll"] });
  for (const seconds of [0.5, 1]) {
    tab.socket.lose();
    await tab.pass(seconds);
  }
  return page;
}

test("over HTTP a guest says so with each request, and is told of no gap", async (t) => {
  const tab = new Tab(t);
  const { heard, gaps, notifications } = await blocked(tab);
  assert.deepEqual(tab.request.body, { mode: "poll", token: null, guest: true, since: null, topics: [], wait: 0 });
  tab.request.poll([hello, given("100-0"), { _meta: { topic: ALL, id: "100-1" }, action: "note" }]);
  await tab.pass(1);
  assert.equal(notifications.state, "open");
  assert.equal(tab.request.body.guest, true);
  tab.request.poll([hello, { ...given("100-1"), joined: false, recovered: true }]);
  await tab.pass(1);

  assert.deepEqual(heard, [`${ALL} 100-1`]);
  assert.deepEqual(gaps, []);
});

test("a WebSocket that is tried beside the requests is a guest's as well", async (t) => {
  const tab = new Tab(t);
  const { notifications } = await blocked(tab);
  tab.request.poll([hello]);
  await tab.pass(10); // the first attempt
  tab.socket.welcome(welcome);
  await settled();

  assert.deepEqual(tab.socket.heard()[0], GUEST);
  assert.equal(notifications.transport, "websocket");
});
