// When the client connects, when it comes back, and when it does not.

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { CLIENT, Tab, opened, settled } from "./browser.js";

const last = (states) => states.at(-1);

test("a connection goes from connecting to open, and says so to who listened at once", async (t) => {
  const { tab, notifications, states } = await opened(t);

  assert.deepEqual(states, [{ state: "connecting" }, { state: "open", transport: "websocket" }]);
  assert.deepEqual([notifications.state, notifications.transport], ["open", "websocket"]);
  assert.equal(tab.socket.url, "wss://site.example/ws/notifications/");
});

test("the module can be imported and used where there is no browser", async () => {
  const { connect } = await import(`${CLIENT}?nowhere`);
  const notifications = connect();
  notifications.subscribe("upload:1", () => {})();
  await settled();

  assert.equal(notifications.state, "waiting"); // there is no WebSocket
  notifications.close();
  assert.equal(notifications.state, "closed");
});

for (const [given, opens] of [
  ["/live/", "wss://site.example/live/"],
  ["live/?x=1", "wss://site.example/page/live/?x=1"],
  ["http://other.example/ws/", "ws://other.example/ws/"],
  ["wss://other.example/ws/", "wss://other.example/ws/"],
]) {
  test(`the address ${given} opens ${opens}`, async (t) => {
    const { tab } = await opened(t, { url: given });
    assert.equal(tab.socket.url, opens);
  });
}

test("an address that is none throws nothing into the page", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())({ url: "https://:bad" });
  const states = [];
  notifications.addEventListener("state", ({ detail }) => states.push(detail));
  await settled();

  assert.equal(last(states).state, "waiting");
  assert.match(last(states).reason, /Invalid URL/);
});

test("a session socket says in its URL where the page was when it was rendered", async (t) => {
  const { tab } = await opened(t, { since: "100-7" });

  assert.equal(tab.socket.url, "wss://site.example/ws/notifications/?since=100-7");
  assert.deepEqual(tab.socket.heard(), []);
});

test("a malformed position is not sent", async (t) => {
  const { tab } = await opened(t, { since: "yesterday" });

  assert.equal(tab.socket.url, "wss://site.example/ws/notifications/");
});

test("each attempt gets a token of its own, in its first frame and nowhere else", async (t) => {
  let fetched = 0;
  const { tab } = await opened(t, { token: async () => `token ${++fetched}`, since: "100-7" });
  assert.deepEqual(tab.socket.heard(), [{ type: "auth", token: "token 1", since: "100-7" }]);

  tab.socket.lose();
  await tab.pass(1);
  tab.socket.accept();

  assert.deepEqual(tab.socket.heard(), [{ type: "auth", token: "token 2", since: "100-0" }]);
  assert.equal(tab.socket.url, "wss://site.example/ws/notifications/");
});

test("a token that cannot be had is a failed attempt", async (t) => {
  const tab = new Tab(t);
  const fetches = [() => Promise.reject(new Error("offline")), () => new Promise(() => {}), () => "third"];
  const notifications = (await tab.visit())({ token: () => fetches.shift()() });
  const states = [];
  notifications.addEventListener("state", ({ detail }) => states.push(detail));
  await settled();
  assert.deepEqual(last(states), { state: "waiting", code: 1006, reason: "Error: offline", seconds: 0.5 });

  await tab.pass(0.5);
  assert.equal(notifications.state, "connecting");
  await tab.pass(20);
  assert.equal(last(states).reason, "no answer");

  await tab.pass(1);
  assert.equal(tab.sockets.length, 1);
  tab.socket.welcome();
  assert.equal(notifications.state, "open");
});

test("a token that comes too late is not used, nor its failure noticed", async (t) => {
  const tab = new Tab(t);
  const late = [];
  const fetches = [0, 1].map(() => new Promise((...settle) => late.push(settle)));
  (await tab.visit())({ token: () => fetches.shift() ?? "second" });
  for (const wait of [0.5, 1]) {
    await tab.pass(20); // the attempt ends
    await tab.pass(wait); // and another begins
  }
  late[0][0]("first");
  late[1][1](new Error("offline"));
  await settled();

  assert.equal(tab.sockets.length, 1);
  assert.equal(tab.socket.accept().heard()[0].token, "second");
});

test("waits double from half a second to twenty, at most, and are random", async (t) => {
  const { tab, states } = await opened(t);
  const waits = [];
  for (let i = 0; i < 8; i++) {
    tab.socket.lose();
    waits.push(last(states).seconds);
    await tab.pass(waits.at(-1));
  }
  assert.deepEqual(waits, [0.5, 1, 2, 4, 8, 16, 20, 20]);

  t.mock.method(Math, "random", () => 0.25);
  tab.socket.lose();
  assert.equal(last(states).seconds, 5);
  tab.socket.lose(1012); // already closed: nothing happens
  assert.equal(states.filter(({ state }) => state === "waiting").length, 9);
});

test("a restart does not shorten the waits", async (t) => {
  const { tab, states } = await opened(t);
  for (let i = 0; i < 5; i++) {
    tab.socket.lose();
    await tab.pass(20);
  }
  tab.socket.lose(1012);

  assert.equal(last(states).seconds, 16);
});

test("only a connection that held for ten seconds makes the waits short again", async (t) => {
  const { tab, states } = await opened(t);
  tab.socket.lose();
  await tab.pass(0.5);
  tab.socket.welcome();
  await tab.pass(9);
  tab.socket.lose();
  assert.equal(last(states).seconds, 1);

  await tab.pass(1);
  tab.socket.welcome();
  await tab.pass(10);
  tab.socket.lose();
  assert.equal(last(states).seconds, 0.5);
});

for (const code of [4001, 4002, 4003, 4004, 4005, 4099]) {
  test(`after ${code} it does not come back`, async (t) => {
    const { tab, states } = await opened(t);
    tab.socket.say({ action: "auth_error", message: "why" }).lose(code);
    tab.online();
    tab.back();
    await tab.pass(3600);

    assert.deepEqual(last(states), { state: "closed", code, reason: "why" });
    assert.equal(tab.sockets.length, 1);
  });
}

for (const [code, seconds] of [
  [1000, 0.5],
  [1006, 0.5],
  [1011, 0.5],
  [4100, 0.5],
  [4199, 0.5],
  [1001, 5],
  [1012, 5],
  [4101, 5],
]) {
  test(`after ${code} it comes back within ${seconds} s`, async (t) => {
    const { tab, states } = await opened(t);
    tab.socket.lose(code, "why");
    assert.deepEqual(last(states), { state: "waiting", code, reason: "why", seconds });

    await tab.pass(seconds);
    tab.socket.welcome();
    assert.equal(last(states).state, "open");
  });
}

for (const code of [4001, 4003]) {
  test(`after ${code} a fresh token is tried, once`, async (t) => {
    const { tab, notifications } = await opened(t, { token: async () => "token" });
    for (let round = 0; round < 2; round++) {
      tab.socket.lose(1006);
      await tab.pass(2);
      tab.socket.accept().lose(code);
      assert.equal(notifications.state, "waiting");
      await tab.pass(8);
      tab.socket.welcome(); // which makes up for it
    }
    tab.socket.lose(code);
    await tab.pass(20);
    tab.socket.accept().lose(code);

    assert.equal(notifications.state, "closed");
  });
}

for (const [what, happens] of [
  ["the network is back", (tab) => tab.online()],
  ["the tab is seen", (tab) => tab.hide(false)],
  ["the page comes out of the cache", (tab) => tab.back()],
  ["the page says so", (tab, notifications) => notifications.retry()],
]) {
  test(`it connects at once when ${what}`, async (t) => {
    const { tab, notifications } = await opened(t);
    for (let i = 0; i < 6; i++) {
      tab.socket.lose();
      await tab.pass(20);
    }
    tab.socket.lose();
    assert.equal(notifications.state, "waiting");
    const before = tab.sockets.length;
    happens(tab, notifications);
    await settled();

    assert.equal(notifications.state, "connecting");
    assert.equal(tab.sockets.length, before + 1);
    await tab.pass(19.9); // and the wait that was cut short does not begin another
    assert.equal(tab.sockets.length, before + 1);
  });
}

test("a tab that is hidden keeps waiting", async (t) => {
  const { tab, notifications } = await opened(t);
  tab.socket.lose();
  tab.hide();

  assert.equal(notifications.state, "waiting");
});

test("an attempt that nobody answers is given up after twenty seconds", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())();
  await settled();
  tab.socket.accept(); // but no auth_success
  await tab.pass(19.9);
  assert.equal(notifications.state, "connecting");
  await tab.pass(0.1);

  assert.equal(notifications.state, "waiting");
  assert.equal(tab.socket.readyState, 3);
});

test("the server's ping is answered at once, with its number", async (t) => {
  const { tab } = await opened(t);
  tab.socket.say({ action: "ping", n: 7340912 }, { action: "ping", n: 7340999 });

  assert.deepEqual(tab.socket.heard(), [
    { action: "pong", n: 7340912 },
    { action: "pong", n: 7340999 },
  ]);
});

test("a connection that is pinged is never asked, nor given up", async (t) => {
  const { tab, notifications } = await opened(t);
  for (let i = 0; i < 10; i++) {
    await tab.pass(30);
    tab.socket.say({ action: "ping", n: i });
  }

  assert.equal(tab.socket.heard().filter(({ action }) => action === "ping").length, 0);
  assert.equal(notifications.state, "open");
  assert.equal(tab.sockets.length, 1);
});

test("a connection that has gone silent is asked, and given up without an answer", async (t) => {
  const { tab, notifications, states } = await opened(t);
  await tab.pass(40);
  assert.deepEqual(tab.socket.heard(), [{ action: "ping" }]);
  tab.socket.say({ action: "pong" });
  await tab.pass(40);
  assert.deepEqual(tab.socket.heard(), [{ action: "ping" }]);
  assert.equal(notifications.state, "open");

  await tab.pass(5);
  assert.deepEqual(last(states), { state: "waiting", code: 1006, reason: "no answer", seconds: 0.5 });
  const dead = tab.socket;
  await tab.pass(0.5);
  tab.socket.welcome();
  dead.publish("user:42", "100-1"); // what still comes out of the old one is nothing
  dead.lose(4003);
  assert.equal(notifications.state, "open");
});

test("after a laptop's sleep, a connection is asked at once and replaced within five seconds", async (t) => {
  const { tab, notifications } = await opened(t);
  await tab.sleepFor(3600);
  tab.hide(false);
  assert.deepEqual(tab.socket.heard(), [{ action: "ping" }]);
  tab.online(); // asks no second time
  assert.deepEqual(tab.socket.heard(), []);
  await tab.pass(5);
  assert.equal(notifications.state, "waiting");
  await tab.pass(0.5);
  tab.socket.welcome();

  assert.equal(notifications.state, "open");
});

test("a clock that is set back does not hide that a connection is dead", async (t) => {
  const { tab, notifications } = await opened(t);
  await tab.pass(20);
  tab.socket.say({ action: "ping", n: 1 });
  mock.method(Date, "now", () => 1_600_000_000_000); // the wrong time was set right
  await tab.pass(40);
  assert.deepEqual(last(tab.socket.heard()), { action: "ping" });
  await tab.pass(5);

  assert.equal(notifications.state, "waiting");
});

test("when the network goes, a connection is asked, and a wait goes on", async (t) => {
  const { tab, notifications } = await opened(t);
  tab.offline();
  assert.deepEqual(tab.socket.heard(), [{ action: "ping" }]);
  await tab.pass(5);
  assert.equal(notifications.state, "waiting");
  await tab.pass(0.5);
  tab.socket.welcome().lose();
  tab.offline();
  assert.equal(notifications.state, "waiting");
  await tab.pass(1);

  assert.equal(notifications.state, "connecting");
});

test("a page that is shown for the first time is not one that comes back", async (t) => {
  const { tab } = await opened(t);
  tab.window.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: false }));

  assert.deepEqual(tab.socket.heard(), []);
});

test("a page that is put away has no socket, and one again when it is taken out", async (t) => {
  const { tab, notifications, states } = await opened(t);
  tab.socket.publish("user:42", "100-3");
  tab.leave();
  assert.equal(tab.socket.readyState, 3);
  assert.deepEqual(last(states), { state: "waiting" });
  await tab.pass(3600);
  assert.equal(tab.sockets.length, 1);

  tab.back();
  await settled();
  assert.match(tab.socket.url, /since=100-3$/);
  tab.socket.welcome();
  assert.equal(notifications.state, "open");
});

for (const [what, end] of [
  ["a page is left", (tab) => tab.leave()],
  ["a connection is closed", (tab, notifications) => notifications.close()],
]) {
  test(`when ${what} while it connects, the socket is closed once it is open: browsers complain otherwise`, async (t) => {
    const tab = new Tab(t);
    const notifications = (await tab.visit())();
    await settled();
    end(tab, notifications);
    assert.equal(tab.socket.readyState, 0);
    tab.socket.accept();

    assert.equal(tab.socket.readyState, 3);
  });
}

test("a socket that does not open in time is closed, because browsers open the next only after it", async (t) => {
  const tab = new Tab(t);
  (await tab.visit())();
  await tab.pass(20);

  assert.equal(tab.socket.readyState, 3);
});

test("close() is for good", async (t) => {
  const { tab, notifications, states } = await opened(t);
  notifications.close();
  notifications.close();
  tab.online();
  tab.back();
  tab.leave();
  notifications.subscribe("upload:1", () => {})();
  await tab.pass(3600);

  assert.equal(tab.socket.readyState, 3);
  assert.deepEqual(states.slice(2), [{ state: "closed", code: 1000, reason: "" }]);
  assert.equal(tab.sockets.length, 1);
});

test("close() also ends a connection that has not begun, or waits", async (t) => {
  const tab = new Tab(t);
  const connect = await tab.visit();
  connect().close();
  await tab.pass(1);
  assert.equal(tab.sockets.length, 0);

  const waiting = connect();
  await settled();
  tab.socket.lose();
  waiting.close();
  await tab.pass(60);
  assert.equal(tab.sockets.length, 1);

  const listening = connect();
  listening.addEventListener("state", () => listening.close());
  await tab.pass(60);
  assert.equal(tab.sockets.length, 1);
});

test("another user's messages do not reach the page of the one before", async (t) => {
  const { tab, notifications, states } = await opened(t);
  const seen = [];
  notifications.onUser((message) => seen.push(message));
  tab.socket.lose();
  await tab.pass(0.5);
  tab.socket.welcome({ user_id: "43" });
  assert.equal(tab.socket.readyState, 3);
  await tab.pass(60);

  assert.deepEqual(last(states), { state: "closed", code: 4003, reason: "another user has logged in" });
  assert.equal(tab.sockets.length, 2);
  assert.deepEqual(seen, []);
});

test("a page that says whose it is closes on another user from the beginning", async (t) => {
  const { states } = await opened(t, { userTopic: "user:41" });

  assert.equal(last(states).state, "closed");
});

test("a close for good that nobody listens for is one warning in the console, with its code and where to read on", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  const tab = new Tab(t);
  const connect = await tab.visit();
  const warned = () => warn.mock.calls.map(({ arguments: [text] }) => text);
  const opening = async (options) => {
    connect(options);
    await settled();
    return tab.socket;
  };

  (await opening()).lose(4003, "nobody is logged in");
  (await opening({ userTopic: "user:41" })).welcome();
  (await opening()).lose(1006); // it comes back

  assert.equal(warned().length, 2);
  assert.match(warned()[0], /4003, nobody is logged in.*docs\/browser\.md#states/);
  assert.match(warned()[1], /4003, another user has logged in/);
});

test("whoever listens for the state, or has closed the connection, is not warned", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  const { tab, states } = await opened(t);
  tab.socket.lose(4005, "logged out");
  assert.equal(last(states).state, "closed");
  const connect = await tab.visit();
  connect().close();

  assert.equal(warn.mock.callCount(), 0);
});

test("what is no frame of ours is no concern of ours", async (t) => {
  const { tab, notifications } = await opened(t);
  tab.socket.say("", "{", "null", "5", '"text"', "[]", "{}", '{"_meta":5}', '{"_meta":{"topic":7}}', '{"action":[]}');
  tab.socket.say({ action: "subscribed", topic: "order:1", recovered: null, id: null });
  tab.socket.say({ action: "unsubscribed", topic: "order:1" }, { action: "error" }, { action: "auth_success" });

  assert.equal(notifications.state, "open");
  assert.deepEqual(tab.reported, []);
});

test("frames are shown to who asks, without tokens and grants", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())({ token: () => "secret" });
  const frames = [];
  notifications.addEventListener("frame", ({ detail }) => frames.push(detail));
  notifications.subscribe("order:1", () => {}, { grant: "secret" });
  await settled();
  tab.socket.welcome().say("not JSON");

  assert.deepEqual(frames, [
    { direction: "out", text: '{"type":"auth","token":"…"}' },
    { direction: "in", text: '{"action":"auth_success","user_id":"42","id":"100-0","recovered":null}' },
    { direction: "out", text: '{"action":"subscribe","topic":"order:1","grant":"…"}' },
    { direction: "in", text: "not JSON" },
  ]);
});

// Begun again

test("a connection that was closed by a logout goes on when the page is somebody's again", async (t) => {
  const { tab, notifications, states } = await opened(t, { userTopic: "user:42" });
  const seen = [];
  notifications.onUser(({ _meta }) => seen.push(_meta.id));
  notifications.subscribe("order:1", () => {});
  tab.socket.lose(4005);
  notifications.open({ userTopic: "user:42", since: "100-7" });
  await settled();
  assert.match(tab.socket.url, /since=100-7$/);
  tab.socket.welcome({ id: "100-7", recovered: true }).publish("user:42", "100-8");

  assert.deepEqual(states.map(({ state }) => state), ["connecting", "open", "closed", "connecting", "open"]);
  assert.deepEqual(tab.socket.heard(), [{ action: "subscribe", topic: "order:1" }]);
  assert.deepEqual(seen, ["100-8"]);
  tab.hide();
  assert.equal(Object.values(tab.remembered)[0].left["user:42"], "100-8");
});

test("it goes on for another user, who sees nothing of the one before, and misses nothing", async (t) => {
  const { tab, notifications, states } = await opened(t, { userTopic: "user:42" });
  const seen = [];
  notifications.onUser(({ _meta }) => seen.push(_meta.id), { gap: () => seen.push("gap") });
  tab.socket.publish("user:42", "100-5");
  notifications.open({ userTopic: "user:43", since: "200-1" });
  assert.deepEqual(states.slice(2), [
    { state: "closed", code: 4003, reason: "another user has logged in" },
    { state: "connecting" },
  ]);
  await settled();
  assert.match(tab.socket.url, /since=200-1$/);
  tab.socket.welcome({ user_id: "43", id: "200-1", recovered: true }).publish("user:43", "200-2");
  tab.socket.publish("user:42", "100-6");
  tab.leave();

  assert.deepEqual(seen, ["100-5", "200-2"]);
  assert.deepEqual(Object.values(tab.remembered), [{ user: "user:43", left: { "user:43": "200-2" } }]);
});

test("the next user is shown nothing that a topic said to the one before", async (t) => {
  const { tab, notifications } = await opened(t, { userTopic: "user:42" });
  notifications.subscribe("order:7", () => {}, { since: "last", error: () => {} });
  tab.socket.subscribed("order:7").publish("order:7", "100-1");

  notifications.open({ userTopic: "user:43" });
  await settled();
  tab.socket.welcome({ user_id: "43", id: "200-0" });
  tab.socket.say({ action: "error", code: "forbidden", message: "no", topic: "order:7" });
  const seen = [];
  notifications.subscribe("order:7", (message) => seen.push(message), { since: "last" });
  await settled();

  assert.deepEqual(seen, []);
});

test("a connection that is open as this user stays as it is; one that waits does not wait any longer", async (t) => {
  const { tab, notifications } = await opened(t, { userTopic: "user:42" });
  tab.socket.publish("user:42", "100-5");
  notifications.open({ userTopic: "user:42", since: "100-9" });
  assert.equal(tab.sockets.length, 1);
  tab.socket.lose(1012);
  notifications.open({ userTopic: "user:42", since: "100-9" });
  await settled();

  assert.equal(tab.sockets.length, 2);
  assert.match(tab.socket.url, /since=100-5$/);
});

test("after close() a connection may be opened again, for whoever has logged in", async (t) => {
  const { tab, notifications } = await opened(t);
  notifications.close();
  notifications.open();
  await settled();
  tab.socket.welcome({ user_id: "43" });
  assert.equal(notifications.state, "open");
  tab.leave();

  assert.equal(notifications.state, "waiting"); // it knows the page as before
});

test("opened at once, it opens once", async (t) => {
  const tab = new Tab(t);
  const notifications = (await tab.visit())();
  notifications.open();
  await settled();

  assert.equal(tab.sockets.length, 1);
});
