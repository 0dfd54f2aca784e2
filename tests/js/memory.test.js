// From one page of a tab to the next.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Tab, settled } from "./browser.js";

/** Open the next page, with these topics, and return what its socket asked. */
async function next(tab, { options, topics = [], welcome } = {}) {
  const connect = await tab.visit();
  const notifications = connect(options);
  const gaps = [];
  const seen = [];
  notifications.addEventListener("gap", ({ detail }) => gaps.push(detail.topic));
  notifications.onUser(({ _meta }) => seen.push(_meta.id));
  for (const topic of topics) notifications.subscribe(topic, ({ _meta }) => seen.push(_meta.id));
  await settled();
  const url = tab.socket.url;
  tab.socket.welcome(welcome);
  const sinces = Object.fromEntries(tab.socket.heard().map(({ topic, since }) => [topic, since]));
  return { notifications, since: new URL(url).searchParams.get("since"), sinces, gaps, seen };
}

test("the next page goes on where the one before was left; an upload shows its latest message again", async (t) => {
  const tab = new Tab(t);
  const topics = ["upload:1", "upload:2", "order:1"];
  await next(tab, { topics });
  for (const topic of topics) tab.socket.subscribed(topic, topic === "upload:2" ? "100-0" : "100-4");
  tab.socket.publish("user:42", "100-3").publish("upload:1", "100-5").publish("order:1", "100-5");

  const { since, sinces, seen } = await next(tab, { topics, welcome: { id: "100-3", recovered: true } });
  assert.equal(since, "100-3");
  assert.deepEqual(sinces, { "upload:1": "100-4", "upload:2": "100-0", "order:1": "100-5" });
  tab.socket.subscribed("upload:1", "100-4", true).publish("upload:1", "100-5").publish("user:42", "100-4");
  assert.deepEqual(seen, ["100-5", "100-4"]);
});

test("a page that is left before it was answered passes on what it had inherited", async (t) => {
  const tab = new Tab(t);
  await next(tab, { topics: ["order:1"] });
  tab.socket.subscribed("order:1", "100-4");
  await next(tab, { topics: ["order:1"], welcome: { recovered: true } });
  assert.deepEqual((await next(tab, { topics: ["order:1"] })).sinces, { "order:1": "100-4" });

  tab.leave();
  await (await tab.visit())();
  await settled(); // never connected
  assert.deepEqual((await next(tab, { topics: ["order:1"] })).sinces, { "order:1": "100-4" });
});

for (const [what, since, asked] of [
  ["after the page before was left: nothing between the two is lost", "100-9", "100-7"],
  ["before, because the browser had kept the page: what came since is new to it", "100-5", "100-5"],
  ["and the count began anew since: the old position says nothing any more", "200-1", "200-1"],
]) {
  test(`a page was rendered ${what}`, async (t) => {
    const tab = new Tab(t);
    await next(tab, { welcome: { id: "100-7" } });

    assert.equal((await next(tab, { options: { since } })).since, asked);
  });
}

test("only what a page has shown is remembered after it", async (t) => {
  const tab = new Tab(t);
  const { notifications } = await next(tab, { topics: ["order:1"] });
  tab.socket.subscribed("order:1", "100-4");
  notifications.subscribe("order:2", () => {})();
  await next(tab, { topics: ["order:3"] });
  tab.socket.subscribed("order:3", "100-1");
  tab.leave();

  assert.deepEqual(tab.remembered, {
    "notifications /ws/notifications/": { user: "user:42", left: { "user:42": "100-0", "order:3": "100-1" } },
  });
});

test("what another user had in this tab is not asked for, and nothing of his is missing", async (t) => {
  const tab = new Tab(t);
  await next(tab, { topics: ["order:1"] });
  tab.socket.subscribed("order:1", "100-4");
  // The session has changed, and the page does not say whose it is.
  const { since, sinces, gaps } = await next(tab, {
    topics: ["order:1"],
    welcome: { user_id: "43", id: "200-1", recovered: false },
  });
  assert.equal(since, "100-0");
  assert.deepEqual(sinces, { "order:1": undefined });
  assert.deepEqual(gaps, []);
  tab.leave();
  assert.equal(Object.values(tab.remembered)[0].user, "user:43");

  assert.equal((await next(tab, { options: { userTopic: "user:42" } })).since, null);
});

test("a page that says whose it is uses what the same user had", async (t) => {
  const tab = new Tab(t);
  await next(tab, { options: { userTopic: "user:42" }, welcome: { id: "100-7" } });

  assert.equal((await next(tab, { options: { userTopic: "user:42" } })).since, "100-7");
});

for (const [what, end] of [
  ["access was revoked", (tab) => tab.socket.lose(4005)],
  ["another user has come", async (tab) => (tab.socket.lose(), await tab.pass(0.5), tab.socket.welcome({ user_id: "43" }))],
]) {
  test(`when ${what} everything is forgotten`, async (t) => {
    const tab = new Tab(t);
    await next(tab);
    tab.hide();
    assert.equal(Object.keys(tab.remembered).length, 1);
    await end(tab);
    tab.leave();

    assert.deepEqual(tab.remembered, {});
  });
}

test("a tab that is hidden may be discarded, so it remembers", async (t) => {
  const tab = new Tab(t);
  await next(tab, { welcome: { id: "100-7" } });
  tab.hide();

  assert.equal(Object.values(tab.remembered)[0].left["user:42"], "100-7");
});

test("close() remembers, for the next connect() on the page", async (t) => {
  const tab = new Tab(t);
  const { notifications } = await next(tab, { welcome: { id: "100-7" } });
  notifications.close();

  assert.equal(Object.values(tab.remembered)[0].left["user:42"], "100-7");
});

test("two connections of one page are independent", async (t) => {
  const tab = new Tab(t);
  const connect = await tab.visit();
  const [one, two] = [connect(), connect()];
  await settled();
  tab.sockets[0].welcome({ id: "100-1" });
  tab.sockets[1].welcome({ id: "100-2" });
  one.close();
  assert.equal(two.state, "open");
  two.close();

  assert.deepEqual(Object.values(tab.remembered).map(({ left }) => left["user:42"]), ["100-1", "100-2"]);
  connect();
  await settled();
  assert.match(tab.socket.url, /since=100-1$/); // the first name is free again
});

for (const [what, storage] of [
  ["no storage", undefined],
  ["a storage that refuses", { getItem: refuse, setItem: refuse, removeItem: refuse }],
  ["nonsense in the storage", { getItem: () => '{"user":5,"left":{"user:42":7,"order:1":"x"}}', setItem() {}, removeItem() {} }],
  ["somebody else's value in the storage", { getItem: () => "[]", setItem() {}, removeItem() {} }],
]) {
  test(`with ${what} it works, and remembers nothing`, async (t) => {
    const tab = new Tab(t);
    globalThis.sessionStorage = storage;
    const { since, sinces } = await next(tab, { topics: ["order:1"] });
    tab.leave();

    assert.equal(since, null);
    assert.deepEqual(sinces, { "order:1": undefined });
    assert.deepEqual(tab.reported, []);
  });
}

function refuse() {
  throw new Error("SecurityError");
}
