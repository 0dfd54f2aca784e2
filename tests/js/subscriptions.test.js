// What is asked for, what arrives, and what is told when something cannot.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Tab, opened, settled } from "./browser.js";

const subscribe = (topic, since) => ({ action: "subscribe", topic, ...(since && { since }) });
const unsubscribe = (topic) => ({ action: "unsubscribe", topic });
const ids = (messages) => messages.map(({ _meta }) => _meta.id);

/** A list, and the function that fills it. */
function inbox() {
  const messages = [];
  return [messages, (message) => messages.push(message)];
}

test("what a page asks for before the connection is open is kept", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())();
  const [seen, see] = inbox();
  notifications.subscribe("upload:1", see);
  notifications.subscribe("order:1", see);
  notifications.subscribe("order:2", see)();
  await settled();
  tab.socket.accept();
  assert.deepEqual(tab.socket.heard(), []);
  tab.socket.welcome();
  assert.deepEqual(tab.socket.heard(), [subscribe("upload:1"), subscribe("order:1")]);

  tab.socket.subscribed("upload:1", "100-6").publish("upload:1", "100-7").subscribed("order:1").publish("order:1", "100-1");
  assert.deepEqual(seen, [
    { _meta: { topic: "upload:1", id: "100-7" }, action: "note" },
    { _meta: { topic: "order:1", id: "100-1" }, action: "note" },
  ]);
});

test("a page may say where to begin", async (t) => {
  const { tab, notifications } = await opened(t);
  notifications.subscribe("upload:1", () => {}, { since: "100-5" });
  notifications.subscribe("order:1", () => {}, { since: "last" });
  notifications.subscribe("order:2", () => {}, { since: null });
  notifications.subscribe("order:3", () => {}, { since: "nonsense" });

  assert.deepEqual(tab.socket.heard(), [
    subscribe("upload:1", "100-5"),
    subscribe("order:1", "last"),
    subscribe("order:2"),
    subscribe("order:3"),
  ]);
});

test("handlers of a topic share one subscription, which ends with the last of them", async (t) => {
  const { tab, notifications } = await opened(t);
  const [one, first] = inbox();
  const [two, second] = inbox();
  const offFirst = notifications.subscribe("order:1", first);
  const offSecond = notifications.subscribe("order:1", second);
  tab.socket.subscribed("order:1").publish("order:1", "100-1");
  offFirst();
  offFirst();
  tab.socket.publish("order:1", "100-2");
  assert.deepEqual(tab.socket.heard(), [subscribe("order:1")]);
  offSecond();
  offSecond();
  assert.deepEqual(tab.socket.heard(), [unsubscribe("order:1")]);
  tab.socket.publish("order:1", "100-3");

  assert.deepEqual([ids(one), ids(two)], [["100-1"], ["100-1", "100-2"]]);
});

test("the same function may be subscribed twice, and each time for itself", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  const off = notifications.subscribe("order:1", see);
  notifications.subscribe("order:1", see);
  tab.socket.subscribed("order:1").publish("order:1", "100-1");
  off();
  tab.socket.publish("order:1", "100-2");

  assert.deepEqual(ids(seen), ["100-1", "100-1", "100-2"]);
});

test("which topics are states says the server, and not their name", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  for (const [topic, state] of [["order:1", true], ["upload:1", false]]) {
    notifications.subscribe(topic, () => {});
    tab.socket.subscribed(topic, "100-0", null, state).publish(topic, "100-1");
    notifications.subscribe(topic, see);
  }
  await settled();

  assert.deepEqual(seen.map(({ _meta }) => _meta), [{ topic: "order:1", id: "100-1" }]);
});

test("a handler that joins an upload late gets its latest message; of other topics, what is new", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  for (const topic of ["upload:1", "order:1"]) {
    notifications.subscribe(topic, () => {});
    tab.socket.subscribed(topic).publish(topic, "100-1").publish(topic, "100-2");
    notifications.subscribe(topic, see);
  }
  notifications.subscribe("order:1", see, { since: "last" });
  notifications.subscribe("upload:1", see)(); // gone before it could be told
  assert.deepEqual(seen, []);
  await settled();

  assert.deepEqual(seen.map(({ _meta }) => _meta), [
    { topic: "upload:1", id: "100-2" },
    { topic: "order:1", id: "100-2" },
  ]);
});

test("a handler may add and remove handlers: those added begin with the next message", async (t) => {
  const { tab, notifications } = await opened(t);
  const heard = [];
  const off = {};
  off.a = notifications.subscribe("order:1", () => {
    heard.push("a");
    off.b();
    off.c ??= notifications.subscribe("order:1", () => heard.push("c"));
  });
  off.b = notifications.subscribe("order:1", () => heard.push("b"));
  tab.socket.subscribed("order:1").publish("order:1", "100-1").publish("order:1", "100-2");

  assert.deepEqual(heard, ["a", "a", "c"]);
});

test("errors of handlers are reported, and stop nothing", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  const fail = (what) => () => {
    throw new Error(what);
  };
  notifications.subscribe("order:1", fail("topic"), { gap: fail("gap") });
  notifications.subscribe("order:1", see);
  notifications.subscribe("order:1", "no function");
  notifications.on("note", fail("action"));
  notifications.on("note", see);
  tab.socket.subscribed("order:1").publish("order:1", "100-1").subscribed("order:1", "100-5", false).publish("order:1", "100-6");

  assert.deepEqual(ids(seen), ["100-1", "100-1", "100-6", "100-6"]);
  assert.equal(tab.reported.length, 7);
  assert.deepEqual(tab.reported.filter((message) => message.length < 9), ["topic", "action", "gap", "topic", "action"]);
});

test("without reportError, errors are written to the console", async (t) => {
  const { tab, notifications } = await opened(t);
  delete globalThis.reportError;
  const error = t.mock.method(console, "error", () => {});
  notifications.onUser(() => {
    throw new Error("mine");
  });
  tab.socket.publish("user:42", "100-1");

  assert.equal(error.mock.calls[0].arguments[0].message, "mine");
});

test("on() hears an action on every topic, onUser() the user's own topic", async (t) => {
  const { tab, notifications } = await opened(t);
  const [actions, onAction] = inbox();
  const [own, onOwn] = inbox();
  const offAction = notifications.on("note", onAction);
  const offOwn = notifications.onUser(onOwn);
  notifications.subscribe("order:1", () => {});
  tab.socket.subscribed("order:1").publish("order:1", "100-1").publish("user:42", "100-1").publish("user:42", "100-2", { action: "x" });
  tab.socket.publish("order:9", "100-1"); // never asked for
  offAction();
  offOwn();
  tab.socket.publish("user:42", "100-3");

  assert.deepEqual(actions.map(({ _meta }) => _meta.topic), ["order:1", "user:42"]);
  assert.deepEqual(ids(own), ["100-1", "100-2"]);
});

test("the user's own topic can be subscribed like any other, and is never asked for nor given up", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())();
  const [seen, see] = inbox();
  const offEarly = notifications.subscribe("user:42", see);
  await settled();
  tab.socket.welcome();
  const offLate = notifications.subscribe("user:42", see);
  const offUser = notifications.onUser(see);
  tab.socket.publish("user:42", "100-1");
  offLate();
  offUser();
  offEarly();
  tab.socket.publish("user:42", "100-2");
  notifications.subscribe("user:42", see);
  tab.socket.publish("user:42", "100-3");

  assert.deepEqual(ids(seen), ["100-1", "100-1", "100-1", "100-3"]);
  assert.deepEqual(tab.socket.heard(), []);
});

test("a message is shown once: ids are pairs of integers, and epochs have no order", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  notifications.subscribe("order:1", see);
  tab.socket.subscribed("order:1", "200-8");
  for (const id of ["200-8", "200-9", "200-10", "200-9", "200-10", "100-1", "100-1", "100-2"]) {
    tab.socket.publish("order:1", id);
  }
  tab.socket.publish("order:1", "100-9007199254740991").publish("order:1", "100-9007199254740990");
  tab.socket.publish("order:1", null).publish("order:1", "x-y");

  assert.deepEqual(ids(seen), ["200-9", "200-10", "100-1", "100-2", "100-9007199254740991"]);
});

test("after a loss everything is asked for again, from where it was", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  for (const topic of ["upload:1", "order:1", "order:2"]) notifications.subscribe(topic, see);
  notifications.subscribe("order:3", see)();
  tab.socket.subscribed("upload:1", "100-6").publish("upload:1", "100-7");
  tab.socket.subscribed("order:1", "100-4");
  tab.socket.publish("user:42", "100-3").heard();
  tab.socket.lose(); // before order:2 was answered
  await tab.pass(0.5);
  assert.match(tab.socket.url, /since=100-3$/);
  tab.socket.welcome({ id: "100-3", recovered: true });
  assert.deepEqual(tab.socket.heard(), [subscribe("upload:1", "100-7"), subscribe("order:1", "100-4"), subscribe("order:2")]);

  tab.socket.subscribed("upload:1", "100-7", true).subscribed("order:1", "100-4", true).subscribed("order:2");
  for (const topic of ["upload:1", "order:1"]) for (const n of [5, 6, 7, 8]) tab.socket.publish(topic, `100-${n}`);
  assert.deepEqual(seen.map(({ _meta: { topic, id } }) => `${topic} ${id}`), [
    "upload:1 100-7",
    "upload:1 100-8",
    "order:1 100-5",
    "order:1 100-6",
    "order:1 100-7",
    "order:1 100-8",
  ]);
});

test("a topic that was left and is asked for again begins anew", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  const off = notifications.subscribe("upload:1", see);
  tab.socket.subscribed("upload:1", "100-6").publish("upload:1", "100-7");
  off();
  notifications.subscribe("upload:1", see);
  tab.socket.publish("upload:1", "100-8"); // of the subscription that ends
  assert.deepEqual(tab.socket.heard(), [subscribe("upload:1"), unsubscribe("upload:1"), subscribe("upload:1")]);
  tab.socket.say({ action: "unsubscribed", topic: "upload:1" }).subscribed("upload:1", "100-7").publish("upload:1", "100-8");

  assert.deepEqual(ids(seen), ["100-7", "100-8"]);
});

test("leaving before the answer, and coming back, ends with one subscription", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  notifications.subscribe("order:A", see)();
  notifications.subscribe("order:A", see);
  tab.socket.subscribed("order:a").publish("order:a", "100-1").say({ action: "unsubscribed", topic: "order:a" });
  tab.socket.subscribed("order:a", "100-1").publish("order:a", "100-2");

  assert.deepEqual(ids(seen), ["100-2"]);
});

test("a topic that was left is not taken for one that the socket still has", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  notifications.subscribe("order:A", () => {})();
  tab.socket.subscribed("order:a").say({ action: "unsubscribed", topic: "order:a" });
  notifications.subscribe("order:A", () => {}, { since: "50-1" });
  notifications.subscribe("order:B", see);
  tab.socket.subscribed("order:a", "100-1", false).subscribed("order:b").publish("order:b", "100-1");

  assert.deepEqual(ids(seen), ["100-1"]);
});

// Gaps

/** A page with one topic, which counts what it is told. */
async function watching(t, topic, options, answer) {
  const page = await opened(t);
  const gaps = [];
  page.notifications.addEventListener("gap", ({ detail }) => gaps.push(`event ${detail.topic}`));
  page.notifications.subscribe(topic, () => {}, { ...options, gap: (name) => gaps.push(name) });
  page.tab.socket.subscribed(topic, ...answer);
  return { ...page, gaps };
}

for (const [what, topic, options, answer, told] of [
  ["an id that was found", "order:1", { since: "100-5" }, ["100-5", true], false],
  ["an id that was not found", "order:1", { since: "100-5" }, ["200-9", false], true],
  ["the latest message", "upload:1", {}, ["100-5", null], false],
  ["the latest message of a kind without history", "order:1", { since: "last" }, [null, false], false],
  ["a state that is not there any more", "upload:1", { since: "100-5" }, ["200-9", false], false],
  ["nothing of the past", "order:1", {}, ["100-5", null], false],
]) {
  test(`asking for ${what} ${told ? "tells" : "does not tell"} of a gap`, async (t) => {
    const { gaps } = await watching(t, topic, options, answer);
    assert.deepEqual(gaps, told ? [`event ${topic}`, topic] : []);
  });
}

for (const [what, topic, first, answer, told] of [
  ["and everything is there", "order:1", ["100-5", null], ["100-5", true], false],
  ["and something is missing", "order:1", ["100-5", null], ["200-9", false], true],
  ["to a kind without history", "order:1", [null, null], [null, null], true],
  ["to states without history", "upload:1", [null, null], [null, null], true],
]) {
  test(`coming back ${what} ${told ? "tells" : "does not tell"} of a gap`, async (t) => {
    const { tab, gaps } = await watching(t, topic, {}, first);
    tab.socket.lose();
    await tab.pass(0.5);
    tab.socket.welcome({ recovered: true }).subscribed(topic, ...answer);
    assert.deepEqual(gaps, told ? [`event ${topic}`, topic] : []);
  });
}

test("a gap on an open socket is told, and the topic goes on where the server says", async (t) => {
  const { tab, notifications, gaps } = await watching(t, "order:1", {}, ["100-5", null]);
  const [seen, see] = inbox();
  notifications.subscribe("order:1", see);
  notifications.subscribe("order:2", see); // unanswered yet: the gap is not its answer
  tab.socket.subscribed("order:1", "100-2", false).subscribed("order:2", "300-1").publish("order:2", "300-2");
  tab.socket.publish("order:1", "100-3");

  assert.deepEqual(gaps, ["event order:1", "order:1"]);
  assert.deepEqual(ids(seen), ["300-2", "100-3"]);
});

test("each handler is told when the server has subscribed its topic, at first and after a loss", async (t) => {
  const { tab, notifications } = await opened(t);
  const told = [];
  notifications.onUser(() => {}, { subscribed: (topic) => told.push(topic) });
  for (const topic of ["order:1", "order:2"]) {
    notifications.subscribe(topic, () => told.push("message"), { subscribed: (topic) => told.push(topic) });
  }
  tab.socket.subscribed("order:1", "100-1").publish("order:1", "100-2");
  assert.deepEqual(told.splice(0), ["order:1", "message"]);

  tab.socket.say({ action: "error", code: "unavailable", topic: "order:2", message: "" });
  tab.socket.lose();
  await tab.pass(0.5);
  tab.socket.welcome({ recovered: true });
  assert.deepEqual(told.splice(0), ["user:42"]);
  tab.socket.subscribed("order:1", "100-2", true).subscribed("order:2");
  assert.deepEqual(told, ["order:1", "order:2"]);
});

test("a gap of the user's own topic is told to onUser", async (t) => {
  const { tab, notifications } = await opened(t, { since: "100-5" }, { id: "200-1", recovered: true });
  const gaps = [];
  notifications.onUser(() => {}, { gap: (topic) => gaps.push(topic) });
  notifications.addEventListener("gap", ({ detail }) => gaps.push(`event ${detail.topic}`));
  tab.socket.lose();
  await tab.pass(0.5);
  tab.socket.welcome({ id: "300-1", recovered: false });

  assert.deepEqual(gaps, ["event user:42", "user:42"]);
});

test("a position at render time that is not known any more is told as a gap", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())({ since: "100-5" });
  const gaps = [];
  notifications.onUser(() => {}, { gap: (topic) => gaps.push(topic) });
  await settled();
  tab.socket.welcome({ id: "200-1", recovered: false });

  assert.deepEqual(gaps, ["user:42"]);
});

// Names, refusals and grants

test("topics that the server spells in its own way are recognised by the order of its answers", async (t) => {
  const { tab, notifications } = await opened(t);
  const boxes = ["order:A", "order:B", "order:C", "order:D"].map((topic) => {
    const [messages, see] = inbox();
    notifications.subscribe(topic, see);
    return messages;
  });
  const errors = [];
  notifications.addEventListener("error", ({ detail }) => errors.push(detail));
  tab.socket.subscribed("order:a").say({ action: "error", code: "forbidden", message: "no", topic: "order:b" });
  tab.socket.say({ action: "error", code: "invalid_message", message: "bad" }).subscribed("order:d");
  for (const name of ["a", "b", "c", "d"]) tab.socket.publish(`order:${name}`, "100-1");

  assert.deepEqual(boxes.map(ids), [["100-1"], [], [], ["100-1"]]);
  assert.deepEqual(errors, [
    { code: "forbidden", message: "no", topic: "order:B" },
    { code: "invalid_message", message: "bad", topic: "order:C" },
  ]);
});

test("two spellings of one topic share a subscription once the server has said so", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  const off = ["order:A", "order:a"].map((topic) => notifications.subscribe(topic, see));
  const [others, seeOther] = inbox();
  notifications.subscribe("order:B", seeOther);
  tab.socket.subscribed("order:a").subscribed("order:a").subscribed("order:b");
  tab.socket.publish("order:b", "100-7").publish("order:a", "100-1");
  off[0]();
  tab.socket.publish("order:a", "100-2");
  tab.socket.heard();
  off[1]();
  tab.socket.publish("order:a", "100-3");

  assert.deepEqual(ids(seen), ["100-1", "100-1", "100-2"]);
  assert.deepEqual(tab.socket.heard(), [unsubscribe("order:a")]);
  assert.deepEqual(ids(others), ["100-7"]);
});

test("what the server spells in its own way is asked for once when the page comes back, and recognised again", async (t) => {
  const { tab, notifications } = await opened(t);
  const boxes = ["order:A", "order:a", "order:B"].map((topic) => {
    const [messages, see] = inbox();
    notifications.subscribe(topic, see);
    return messages;
  });
  tab.socket.subscribed("order:a", "100-1").subscribed("order:a", "100-1").subscribed("order:b", "100-1").lose();
  await tab.pass(0.5);
  assert.deepEqual(tab.socket.welcome().heard(), [subscribe("order:A", "100-1"), subscribe("order:B", "100-1")]);
  tab.socket.subscribed("order:a", "200-1", false).subscribed("order:b", "200-1", false);
  const [late, seeLate] = inbox();
  notifications.subscribe("order:C", seeLate);
  tab.socket.subscribed("order:c", "100-1");
  tab.socket.publish("order:a", "200-2").publish("order:b", "200-3").publish("order:c", "100-2");

  assert.deepEqual([...boxes, late].map(ids), [["200-2"], ["200-2"], ["200-3"], ["100-2"]]);
});

test("what is asked while the socket closes is asked on the next", async (t) => {
  const { tab, notifications } = await opened(t);
  tab.socket.readyState = 2;
  notifications.subscribe("order:1", () => {});
  notifications.subscribe("order:2", () => {})();
  tab.socket.lose();
  await tab.pass(0.5);

  assert.deepEqual(tab.socket.welcome().heard(), [subscribe("order:1")]);
});

test("what was refused is asked for again with the next connection", async (t) => {
  const { tab, notifications } = await opened(t);
  notifications.subscribe("order:1", () => {});
  tab.socket.say({ action: "error", code: "forbidden", message: "no", topic: "order:1" }).lose();
  await tab.pass(0.5);

  assert.deepEqual(tab.socket.welcome().heard(), [subscribe("order:1")]);
});

test("of what nobody could say yet the answer follows", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  const errors = [];
  notifications.addEventListener("error", ({ detail }) => errors.push([detail.code, detail.topic]));
  for (const name of ["A", "B", "C"]) notifications.subscribe(`order:${name}`, see);
  const later = (topic) => ({ action: "error", code: "unavailable", message: "wait", topic });
  tab.socket.say(later("order:a"), later("order:b")).subscribed("order:c");
  assert.deepEqual(errors, []);

  tab.socket.subscribed("order:a", "100-5", false).publish("order:a", "100-6").publish("order:c", "100-1");
  tab.socket.say({ action: "unsubscribed", topic: "order:b" });

  assert.deepEqual(ids(seen), ["100-6", "100-1"]);
  assert.deepEqual(errors, [["unsubscribed", "order:B"]]); // as the page has spelt it
});

test("a permission that is withdrawn is told as an error", async (t) => {
  const { tab, notifications } = await opened(t);
  const errors = [];
  notifications.addEventListener("error", ({ detail }) => errors.push([detail.code, detail.topic]));
  notifications.subscribe("order:1", () => {});
  notifications.subscribe("order:2", () => {})();
  tab.socket.subscribed("order:1").subscribed("order:2").say({ action: "unsubscribed", topic: "order:2" });
  assert.deepEqual(errors, []);
  tab.socket.say({ action: "unsubscribed", topic: "order:1" });

  assert.deepEqual(errors, [["unsubscribed", "order:1"]]);
});

test("too much haste is made up for on a new connection, because nobody says what was dropped", async (t) => {
  const { tab, notifications, states } = await opened(t);
  const errors = [];
  notifications.addEventListener("error", ({ detail }) => errors.push(detail));
  notifications.subscribe("order:1", () => {});
  tab.socket.say({ action: "error", code: "rate_limited", message: "slow down" });
  assert.deepEqual(states.at(-1), { state: "waiting", code: 4100, reason: "slow down", seconds: 0.5 });
  await tab.pass(0.5);

  assert.deepEqual(errors, [{ code: "rate_limited", message: "slow down", topic: undefined }]);
  assert.deepEqual(tab.socket.welcome().heard(), [subscribe("order:1")]);
});

test("a grant is sent along, and a function brings a fresh one each time", async (t) => {
  const { tab, notifications } = await opened(t);
  let fetched = 0;
  notifications.subscribe("order:1", () => {}, { grant: "fixed" });
  notifications.subscribe("order:2", () => {}, { grant: async () => `fresh ${++fetched}` });
  await settled();
  assert.deepEqual(tab.socket.heard().map(({ grant }) => grant), ["fixed", "fresh 1"]);
  tab.socket.lose();
  await tab.pass(0.5);
  tab.socket.welcome();
  await settled();

  assert.deepEqual(tab.socket.heard().map(({ grant }) => grant), ["fixed", "fresh 2"]);
});

test("without its grant a topic is asked for all the same, and the error is reported", async (t) => {
  const { tab, notifications } = await opened(t);
  const grant = () => Promise.reject(new Error("no grant today"));
  notifications.subscribe("order:1", () => {}, { grant });
  await settled();

  assert.deepEqual(tab.socket.heard(), [subscribe("order:1")]);
  assert.deepEqual(tab.reported, ["no grant today"]);
});

test("a grant that comes too late for its connection, or its handler, is not sent", async (t) => {
  const { tab, notifications } = await opened(t);
  const bring = [];
  const grant = () => new Promise((resolve) => bring.push(resolve));
  notifications.subscribe("order:1", () => {}, { grant });
  tab.socket.lose();
  await tab.pass(0.5);
  tab.socket.welcome();
  notifications.subscribe("order:2", () => {}, { grant })();
  bring.forEach((resolve, i) => resolve(`grant ${i}`));
  await settled();

  const asked = tab.socket.heard().filter(({ action }) => action === "subscribe");
  assert.deepEqual(asked, [{ ...subscribe("order:1"), grant: "grant 1" }]);
});

test("handlers of the state may subscribe: it is asked for once", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())();
  notifications.addEventListener("state", ({ detail }) => {
    if (detail.state === "open") notifications.subscribe("order:1", () => {});
  });
  await settled();

  assert.deepEqual(tab.socket.welcome().heard(), [subscribe("order:1")]);
});

test("a message without an id reaches on(), and the upload that it names", async (t) => {
  const { tab, notifications } = await opened(t);
  const [seen, see] = inbox();
  notifications.on("upload_progress", (message) => see({ on: message.payload.upload_id }));
  notifications.subscribe("upload:1", ({ action }) => see(action));
  tab.socket.subscribed("upload:1");
  tab.socket.say(
    { action: "upload_progress", payload: { upload_id: 1 } },
    { action: "upload_completed", upload_id: "1" },
    { action: "file_progress", payload: { upload_id: "1" } },
    { action: "upload_failed", upload_id: "2" },
  );

  assert.deepEqual(seen, ["upload_progress", { on: 1 }, "upload_completed"]);
});

// Refusals

/** What is written to the console as a warning. */
function warnings(t) {
  const warn = t.mock.method(console, "warn", () => {});
  return () => warn.mock.calls.map(({ arguments: [text] }) => text);
}

test("a refusal that nobody listens for is one warning in the console, with its code and where to read on", async (t) => {
  const { tab, notifications } = await opened(t);
  const warned = warnings(t);
  for (const topic of ["order:1", "order:2"]) notifications.subscribe(topic, () => {});
  tab.socket.say({ action: "error", code: "forbidden", message: "not yours", topic: "order:1" }).subscribed("order:2");
  tab.socket.say({ action: "unsubscribed", topic: "order:2" });

  assert.equal(warned().length, 2);
  assert.match(warned()[0], /forbidden, not yours \(order:1\).*docs\/protocol\.md/);
  assert.match(warned()[1], /unsubscribed, .* \(order:2\)/);
});

test("whoever listens for errors, of all topics or of this one, is not warned", async (t) => {
  const { tab, notifications } = await opened(t);
  const warned = warnings(t);
  const no = (topic) => tab.socket.say({ action: "error", code: "forbidden", message: "no", topic });
  notifications.subscribe("order:1", () => {});
  notifications.subscribe("order:1", () => {}, { error: () => {} });
  no("order:1");
  notifications.addEventListener("error", () => {});
  notifications.subscribe("order:2", () => {});
  no("order:2");

  assert.deepEqual(warned(), []);
});

test("each handler is told that its topic was refused, and of no other", async (t) => {
  const { tab, notifications } = await opened(t);
  warnings(t);
  const told = [];
  const error = ({ code, topic }) => told.push([code, topic]);
  notifications.subscribe("order:A", () => {}, { error });
  notifications.subscribe("order:A", () => {}, { error });
  notifications.subscribe("order:B", () => {}, { error });
  notifications.subscribe("order:C", () => {}, { error: () => told.push("never") });
  tab.socket.say({ action: "error", code: "forbidden", message: "no", topic: "order:a" });
  tab.socket.subscribed("order:b").subscribed("order:c").say({ action: "unsubscribed", topic: "order:b" });

  assert.deepEqual(told, [["forbidden", "order:A"], ["forbidden", "order:A"], ["unsubscribed", "order:B"]]);
});

test("what nobody could answer is no refusal: the answer follows, unasked", async (t) => {
  const { tab, notifications } = await opened(t);
  const warned = warnings(t);
  const [seen, see] = inbox();
  const errors = [];
  const error = ({ code, topic }) => errors.push([code, topic]);
  for (const topic of ["order:A", "order:B", "order:C"]) notifications.subscribe(topic, see, { error });
  for (const topic of ["order:a", "order:b"]) tab.socket.say({ action: "error", code: "unavailable", message: "not yet", topic });
  assert.deepEqual([errors, warned()], [[], []]);
  tab.socket.subscribed("order:a", "100-1", false); // before the answer about C
  tab.socket.subscribed("order:c").say({ action: "unsubscribed", topic: "order:b" });
  for (const topic of ["order:a", "order:b", "order:c"]) tab.socket.publish(topic, "100-2");

  assert.deepEqual(seen.map(({ _meta }) => _meta.topic), ["order:a", "order:c"]);
  assert.deepEqual(errors, [["unsubscribed", "order:B"]]);
});

// Answers that cross each other

/** A page that has these topics, and what it was told of errors. */
async function having(t, ...topics) {
  const page = await opened(t);
  const errors = [];
  page.notifications.addEventListener("error", ({ detail }) => errors.push([detail.code, detail.topic]));
  const offs = topics.map((topic) => page.notifications.subscribe(topic, () => {}));
  for (const topic of topics) page.tab.socket.subscribed(topic.toLowerCase());
  page.tab.socket.heard();
  return { ...page, errors, offs };
}

test("a permission is withdrawn while another topic is being left", async (t) => {
  const { tab, errors, offs } = await having(t, "order:U", "order:T");
  offs[0]();
  tab.socket.say({ action: "unsubscribed", topic: "order:t" }, { action: "unsubscribed", topic: "order:u" });

  assert.deepEqual(errors, [["unsubscribed", "order:T"]]);
});

test("a permission is withdrawn from the very topic that is being left", async (t) => {
  const { tab, notifications, errors, offs } = await having(t, "order:U", "order:T", "order:V");
  offs[0]();
  offs[1]();
  const [seen, see] = inbox();
  notifications.subscribe("order:W", see);
  const gone = (topic) => ({ action: "unsubscribed", topic });
  tab.socket.say(gone("order:t"), gone("order:u"), gone("order:t")).subscribed("order:w").publish("order:w", "100-1");
  tab.socket.say(gone("order:v"));

  assert.deepEqual(ids(seen), ["100-1"]);
  assert.deepEqual(errors, [["unsubscribed", "order:V"]]);
});

test("a topic is left before it is answered, while a permission is withdrawn", async (t) => {
  const { tab, notifications, errors } = await having(t, "order:T");
  notifications.subscribe("order:U", () => {})();
  tab.socket.subscribed("order:u");
  tab.socket.say({ action: "unsubscribed", topic: "order:t" }, { action: "unsubscribed", topic: "order:u" });

  assert.deepEqual(errors, [["unsubscribed", "order:T"]]);
});

test("to leave another spelling before it is answered does not end the topic", async (t) => {
  const { tab, notifications, errors } = await having(t, "order:A");
  const [seen, see] = inbox();
  notifications.subscribe("order:A", see);
  notifications.subscribe("order:a", () => {})();
  assert.deepEqual(tab.socket.heard(), [subscribe("order:a"), unsubscribe("order:a")]);
  tab.socket.subscribed("order:a").publish("order:a", "100-1").say({ action: "unsubscribed", topic: "order:a" });
  assert.deepEqual(tab.socket.heard(), [subscribe("order:A", "100-1")]);
  tab.socket.subscribed("order:a", "100-1", true).publish("order:a", "100-2");

  assert.deepEqual(ids(seen), ["100-1", "100-2"]);
  assert.deepEqual(errors, []);
});

// Many

/** A server that has room for some topics, and answers what a page sends for as long as it is allowed to send. */
class Roomy {
  topics = new Set();
  most = 0;
  codes = [];
  #times = [];

  constructor(tab, room) {
    this.tab = tab;
    this.room = room;
  }

  answer() {
    for (const { action, topic } of this.tab.socket.heard()) {
      if (action === "ping") {
        this.tab.socket.say({ action: "pong" });
        continue;
      }
      // As notifications/connection/limits.py: 200 at once, and 20 a second.
      this.#times.push(Date.now());
      for (let from = 0; from < this.#times.length; from++) {
        const seconds = (Date.now() - this.#times[from]) / 1000;
        assert.ok(this.#times.length - from <= 200 + 20 * seconds, "too many frames");
      }
      if (action === "unsubscribe") {
        this.topics.delete(topic);
        this.tab.socket.say({ action: "unsubscribed", topic });
      } else if (this.topics.size >= this.room) {
        this.codes.push("too_many_subscriptions");
        this.tab.socket.say({ action: "error", code: "too_many_subscriptions", message: "no room", topic });
      } else {
        this.topics.add(topic);
        this.tab.socket.subscribed(topic);
      }
      this.most = Math.max(this.most, this.topics.size);
    }
  }

  /** Let time go by until the page asks for nothing any more. */
  async settle(seconds = 60) {
    for (let i = 0; i < seconds; i++) {
      this.answer();
      await this.tab.pass(1);
    }
  }
}

const many = Array.from({ length: 300 }, (_, n) => `upload:${n}`);

test("of more topics than there is room for, the rest is asked for when others are left, at the pace of the server", async (t) => {
  const { tab, notifications, states } = await opened(t);
  const warned = warnings(t);
  const errors = [];
  notifications.addEventListener("error", ({ detail }) => errors.push(detail));
  const server = new Roomy(tab, 100);
  const told = new Set();
  const offs = new Map(many.map((topic) => [topic, notifications.subscribe(topic, () => told.add(topic))]));
  await server.settle();
  assert.equal(server.topics.size, 100);
  assert.ok(server.codes.length <= 50, `${server.codes.length} asked for in vain`);
  server.codes = [];
  const asked = new Set();
  for (let round = 0; round < 60 && asked.size < 300; round++) {
    for (const topic of server.topics) {
      if (asked.has(topic)) continue;
      asked.add(topic);
      tab.socket.publish(topic, "100-1");
      offs.get(topic)(); // as a bar does that has come to its end
    }
    await server.settle(2);
  }

  assert.equal(told.size, 300);
  assert.equal(server.most, 100);
  assert.deepEqual([server.codes, errors], [[], []]);
  assert.deepEqual(warned(), ["notifications: too_many_subscriptions, no room (300 topics): docs/protocol.md#errors"]);
  assert.deepEqual(states.map(({ state }) => state), ["connecting", "open"]);
});

test("after a loss the topics that wait go on waiting, and each has its turn", async (t) => {
  const { tab, notifications } = await opened(t);
  let server = new Roomy(tab, 100);
  const offs = new Map(many.slice(0, 150).map((topic) => [topic, notifications.subscribe(topic, () => {})]));
  await server.settle();
  tab.socket.lose(1012);
  await tab.pass(5);
  tab.socket.welcome({ recovered: true });
  server = new Roomy(tab, 100);
  await server.settle();
  assert.equal(server.topics.size, 100);
  assert.deepEqual(server.codes, []); // it is known how much room there is
  for (const topic of [...server.topics].slice(0, 50)) offs.get(topic)();
  await server.settle();

  assert.equal(server.topics.size, 100);
  for (const topic of many.slice(100, 150)) assert.ok(server.topics.has(topic), topic);
});

test("a site with more room gets all topics of a page, one burst after the other", async (t) => {
  const { tab, notifications } = await opened(t);
  const server = new Roomy(tab, 1000);
  for (const topic of many) notifications.subscribe(topic, () => {});
  server.answer();
  assert.equal(server.topics.size, 150);
  await server.settle(20);

  assert.equal(server.topics.size, 300);
});

test("to leave and come back again and again, as a list does that is scrolled, keeps the pace as well", async (t) => {
  const { tab, notifications, states } = await opened(t);
  const server = new Roomy(tab, 100);
  let offs = [];
  for (let round = 0; round < 40; round++) {
    for (const off of offs) off();
    offs = many.slice(round * 5, round * 5 + 50).map((topic) => notifications.subscribe(topic, () => {}));
    server.answer();
    await tab.pass(0.1);
  }
  await server.settle(60);

  assert.deepEqual([...server.topics].sort(), many.slice(195, 245).sort());
  assert.equal(states.length, 2);
});

test("a topic that was left before its turn is never asked for", async (t) => {
  const { tab, notifications } = await opened(t);
  for (const topic of many.slice(0, 150)) notifications.subscribe(topic, () => {});
  notifications.subscribe("order:1", () => {})();
  const server = new Roomy(tab, 200);
  await server.settle();

  assert.equal(server.topics.size, 150);
});

test("grants are fetched for those topics alone that have their turn", async (t) => {
  const { tab, notifications } = await opened(t);
  const server = new Roomy(tab, 10);
  let fetched = 0;
  const offs = many.slice(0, 200).map((topic) =>
    notifications.subscribe(topic, () => {}, { grant: async () => `grant ${++fetched}` }),
  );
  await settled();
  assert.equal(fetched, 150);
  await server.settle();
  fetched = 0;
  offs[0]();
  await server.settle();

  assert.equal(fetched, 1);
  assert.equal(server.topics.size, 10);
});
