// Topics that the site joins without being asked.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Tab, opened, settled } from "./browser.js";

const TEAM = "team:7";
const given = (id = "100-0", more) => ({ action: "subscribed", topic: TEAM, recovered: null, id, state: false, joined: true, ...more });

/** A page that hears of its team by the action of its messages. */
async function listening(t) {
  const page = await opened(t);
  const heard = [];
  page.notifications.on("note", ({ _meta }) => heard.push(_meta.id));
  return { ...page, heard };
}

async function again(tab) {
  tab.socket.lose();
  await tab.pass(2);
  return tab.socket.welcome({ recovered: true });
}

test("what the site has joined is heard without a subscription", async (t) => {
  const { tab, heard } = await listening(t);
  tab.socket.say(given()).publish(TEAM, "100-1");

  assert.deepEqual(heard, ["100-1"]);
  assert.deepEqual(tab.socket.heard(), []);
});

test("a handler is added to it, and asks for nothing; when it goes, nothing is left", async (t) => {
  const { tab, notifications, heard } = await listening(t);
  const seen = [];
  tab.socket.say(given()).publish(TEAM, "100-1");
  const off = notifications.subscribe(TEAM, ({ _meta }) => seen.push(_meta.id));
  tab.socket.publish(TEAM, "100-2");
  off();
  tab.socket.publish(TEAM, "100-3");

  assert.deepEqual(seen, ["100-2"]);
  assert.deepEqual(heard, ["100-1", "100-2", "100-3"]);
  assert.deepEqual(tab.socket.heard(), []);
});

test("what comes between the joining and the answer to the page's own question is shown", async (t) => {
  const { tab, notifications, heard } = await listening(t);
  notifications.subscribe("order:1", () => {});
  notifications.subscribe(TEAM, () => {});
  tab.socket.say(given()).publish(TEAM, "100-1").subscribed("order:1", "300-1").subscribed(TEAM, "100-1");
  tab.socket.publish(TEAM, "100-2").publish("order:1", "300-2");

  assert.deepEqual(heard, ["100-1", "100-2", "300-2"]);
});

test("a page that comes back gets what it missed, once and in order", async (t) => {
  const { tab, heard } = await listening(t);
  tab.socket.say(given()).publish(TEAM, "100-1");
  (await again(tab)).say(given("100-3")).publish(TEAM, "100-4");
  assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: TEAM, since: "100-1" }]);
  assert.deepEqual(heard, ["100-1"]);
  tab.socket.subscribed(TEAM, "100-1", true);
  for (const n of [2, 3, 4, 5]) tab.socket.publish(TEAM, `100-${n}`);

  assert.deepEqual(heard, ["100-1", "100-2", "100-3", "100-4", "100-5"]);
});

test("a page that comes back is told of a gap", async (t) => {
  const { tab, notifications } = await listening(t);
  const gaps = [];
  notifications.addEventListener("gap", ({ detail }) => gaps.push(detail.topic));
  tab.socket.say(given()).publish(TEAM, "100-1");
  (await again(tab)).say(given("200-3")).subscribed(TEAM, "200-3", false);

  assert.deepEqual(gaps, [TEAM]);
});

test("a page says where to begin, and gets nothing twice", async (t) => {
  const { tab, notifications, heard } = await listening(t);
  notifications.subscribe(TEAM, () => {}, { since: "100-5" });
  tab.socket.say(given("100-7")).publish(TEAM, "100-8").subscribed(TEAM, "100-5", true);
  for (const n of [6, 7, 8]) tab.socket.publish(TEAM, `100-${n}`);

  assert.deepEqual(heard, ["100-6", "100-7", "100-8"]);
  assert.equal(tab.socket.heard().length, 1);
});

test("the next page goes on where the one before was left", async (t) => {
  const tab = new Tab(t);
  (await tab.visit())();
  await settled();
  tab.socket.welcome().say(given()).publish(TEAM, "100-1");
  const notifications = (await tab.visit())();
  const heard = [];
  notifications.on("note", ({ _meta }) => heard.push(_meta.id));
  await settled();
  tab.socket.welcome({ recovered: true }).say(given("100-2"));
  assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: TEAM, since: "100-1" }]);
  tab.socket.subscribed(TEAM, "100-1", true).publish(TEAM, "100-2");

  assert.deepEqual(heard, ["100-2"]);
});

test("a team that is left and joined again goes on; nobody is warned", async (t) => {
  const { tab, heard } = await listening(t);
  const warn = t.mock.method(console, "warn", () => {});
  tab.socket.say(given()).publish(TEAM, "100-1").say({ action: "unsubscribed", topic: TEAM }).publish(TEAM, "100-2");
  tab.socket.say(given("100-3"));
  assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: TEAM, since: "100-1" }]);
  tab.socket.subscribed(TEAM, "100-1", true);
  for (const n of [2, 3, 4]) tab.socket.publish(TEAM, `100-${n}`);

  assert.deepEqual(heard, ["100-1", "100-2", "100-3", "100-4"]);
  assert.equal(warn.mock.callCount(), 0);
});

test("a team that was left while the page was away is an error for its handlers alone", async (t) => {
  const { tab, notifications } = await listening(t);
  const warn = t.mock.method(console, "warn", () => {});
  const errors = [];
  tab.socket.say(given());
  (await again(tab)).say({ action: "error", code: "forbidden", message: "no", topic: TEAM });
  assert.equal(warn.mock.callCount(), 0);
  notifications.subscribe(TEAM, () => {}, { error: ({ code }) => errors.push(code) });
  (await again(tab)).say({ action: "error", code: "forbidden", message: "no", topic: TEAM });

  assert.deepEqual(errors, ["forbidden"]);
});

test("a withdrawal is told to handlers, and not taken for the answer to another", async (t) => {
  const { tab, notifications } = await listening(t);
  const errors = [];
  const off = notifications.subscribe("order:1", () => {});
  notifications.subscribe(TEAM, () => {}, { error: ({ code }) => errors.push(code) });
  tab.socket.subscribed("order:1").say(given()).subscribed(TEAM);
  off();
  tab.socket.say({ action: "unsubscribed", topic: TEAM }, { action: "unsubscribed", topic: "order:1" });
  notifications.subscribe("order:1", () => {});
  tab.socket.heard();
  tab.socket.subscribed("order:1", "100-5");
  notifications.subscribe("order:2", () => {});

  assert.deepEqual(errors, ["unsubscribed"]);
  assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: "order:2" }]);
});

test("a team without a history is heard as well", async (t) => {
  const { tab, notifications } = await listening(t);
  const seen = [];
  notifications.on("cheer", () => seen.push("cheer"));
  tab.socket.say(given(null), { action: "cheer" });
  (await again(tab)).say(given(null), { action: "cheer" });

  assert.deepEqual(seen, ["cheer", "cheer"]);
});

test("a page that asks for a team that was left is answered as for any other topic", async (t) => {
  const { tab, notifications } = await listening(t);
  const errors = [];
  const options = { grant: "signed", error: ({ code }) => errors.push(code) };
  tab.socket.say(given()).publish(TEAM, "100-1").say({ action: "unsubscribed", topic: TEAM });
  notifications.subscribe(TEAM, () => {}, options);
  assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: TEAM, since: "100-1", grant: "signed" }]);
  tab.socket.say({ action: "error", code: "forbidden", message: "no", topic: TEAM });

  assert.deepEqual(errors, ["forbidden"]);
});

test("handlers of a team that was left may go, and others ask again", async (t) => {
  const { tab, notifications, heard } = await listening(t);
  tab.socket.say(given());
  const off = notifications.subscribe(TEAM, () => {}, { error: () => off() });
  tab.socket.say({ action: "unsubscribed", topic: TEAM });
  notifications.subscribe(TEAM, () => {});
  assert.deepEqual(tab.socket.heard().at(-1), { action: "subscribe", topic: TEAM });
  tab.socket.say({ action: "unsubscribed", topic: TEAM }).subscribed(TEAM).publish(TEAM, "100-1");

  assert.deepEqual(heard, ["100-1"]);
});

test("a team without a history has a gap when the page comes back, and none before", async (t) => {
  const { tab, notifications } = await listening(t);
  const gaps = [];
  notifications.subscribe(TEAM, () => {}, { gap: (topic) => gaps.push(topic) });
  tab.socket.say(given(null)).subscribed(TEAM, null);
  assert.deepEqual(gaps, []);
  (await again(tab)).say(given(null)).subscribed(TEAM, null);

  assert.deepEqual(gaps, [TEAM]);
});
