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

test("which topics a new page shows again says the server, and not their name", async (t) => {
  const tab = new Tab(t);
  const topics = ["order:1", "upload:1"];
  await next(tab, { topics });
  tab.socket.subscribed("order:1", "100-4", null, true).subscribed("upload:1", "100-4", null, false);

  assert.deepEqual((await next(tab, { topics })).sinces, { "order:1": "100-3", "upload:1": "100-4" });
  tab.leave(); // before it is answered
  assert.deepEqual((await next(tab, { topics })).sinces, { "order:1": "100-3", "upload:1": "100-4" });
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

test("an upload whose history has gone is no gap for a new page; another topic, and a page that stays, miss something", async (t) => {
  const tab = new Tab(t);
  const topics = ["upload:1", "order:1"];
  await next(tab, { topics });
  for (const topic of topics) tab.socket.subscribed(topic, "100-4");
  const { gaps } = await next(tab, { topics, welcome: { recovered: true } });
  tab.socket.lose(); // before the answers
  await tab.pass(0.5);
  tab.socket.welcome({ recovered: true });
  assert.deepEqual(tab.socket.heard().map(({ since }) => since), ["100-3", "100-4"]);
  for (const topic of topics) tab.socket.subscribed(topic, "200-0", false);
  assert.deepEqual(gaps, ["order:1"]);
  tab.socket.subscribed("upload:1", "300-0", false);

  assert.deepEqual(gaps, ["order:1", "upload:1"]);
});

test("what a page inherits is used once", async (t) => {
  const tab = new Tab(t);
  await next(tab, { topics: ["order:1"] });
  tab.socket.subscribed("order:1", "100-4");
  const { notifications } = await next(tab);
  notifications.subscribe("order:1", () => {})();
  notifications.subscribe("order:1", () => {});

  assert.deepEqual(tab.socket.heard().map(({ since }) => since), ["100-4", undefined, undefined]);
});

for (const [what, left, since, asked] of [
  ["after the page before was left: nothing between the two is lost", "100-7", "100-9", "100-7"],
  ["before that, as it came from a cache: what the tab has had does not come again", "100-7", "100-5", "100-7"],
  ["when the count had begun anew: the old position says nothing any more", "100-7", "200-1", "200-1"],
  ["in a cache, before the count began anew", "200-1", "100-7", "200-1"],
  ["after the first message of all, which came between the two", "100-0", "200-1", "100-0"],
  ["while Redis was away", "100-7", null, "100-7"],
]) {
  test(`a page was rendered ${what}`, async (t) => {
    const tab = new Tab(t);
    await next(tab, { welcome: { id: left } });

    assert.equal((await next(tab, { options: { since } })).since, asked);
  });
}

test("a page that says where a topic begins is right, wherever the page before was", async (t) => {
  const tab = new Tab(t);
  const { notifications } = await next(tab);
  notifications.subscribe("order:1", () => {});
  tab.socket.subscribed("order:1", "100-7");
  for (const since of ["100-5", "100-9"]) {
    const { notifications } = await next(tab);
    notifications.subscribe("order:1", () => {}, { since });
    assert.equal(tab.socket.heard()[0].since, since);
  }
});

test("what arrives is written down soon: not every browser writes while a page is left", async (t) => {
  const tab = new Tab(t);
  await next(tab, { topics: ["order:1"] });
  tab.socket.subscribed("order:1", "100-4");
  await tab.pass(0.2);
  for (let n = 1; n <= 10; n++) {
    tab.socket.publish("user:42", `100-${n}`).publish("order:1", `100-${n + 4}`);
    await tab.pass(0.05); // written although there is no pause
  }

  const { left } = Object.values(tab.remembered)[0];
  assert.ok(Number(left["user:42"].split("-")[1]) >= 6, left["user:42"]);
  await tab.pass(0.2);
  assert.deepEqual(Object.values(tab.remembered)[0].left, { "user:42": "100-10", "order:1": "100-14" });
});

test("nothing is written down any more when access has ended", async (t) => {
  const tab = new Tab(t);
  await next(tab);
  tab.socket.publish("user:42", "100-1").lose(4005);
  await tab.pass(1);

  assert.deepEqual(tab.remembered, {});
});

test("a page out of the cache that does not connect again leaves what another page has written", async (t) => {
  const tab = new Tab(t);
  await next(tab, { welcome: { id: "100-1" } });
  const first = tab.window;
  await next(tab, { welcome: { id: "100-1", recovered: true } });
  tab.socket.publish("user:42", "100-5");
  tab.leave();
  tab.window = first;
  tab.back(); // and away again before anybody answers
  tab.leave();

  assert.equal(Object.values(tab.remembered)[0].left["user:42"], "100-5");
});

test("a topic that waits for room keeps the position that it has inherited", async (t) => {
  const tab = new Tab(t);
  const topics = ["order:1", "order:2"];
  await next(tab, { topics });
  for (const topic of topics) tab.socket.subscribed(topic, "100-4");
  await next(tab, { topics, welcome: { recovered: true } });
  tab.socket.subscribed("order:1", "100-6");
  tab.socket.say({ action: "error", code: "too_many_subscriptions", message: "1 at most", topic: "order:2" });

  assert.deepEqual((await next(tab, { topics })).sinces, { "order:1": "100-6", "order:2": "100-4" });
});

test("a storage that is full keeps no old position, which would show everything since once more", async (t) => {
  const tab = new Tab(t);
  await next(tab, { welcome: { id: "100-1" } });
  await tab.pass(1);
  sessionStorage.setItem = refuse;
  tab.socket.publish("user:42", "100-2");
  await tab.pass(1);

  assert.deepEqual(tab.remembered, {});
});

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

test("what another user had in this tab is not asked for, and nothing of theirs is missing", async (t) => {
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
  ["nonsense in the storage", { getItem: () => '{"user":"user:42","left":{"user:42":7,"order:1":"x"}}', setItem() {}, removeItem() {} }],
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
