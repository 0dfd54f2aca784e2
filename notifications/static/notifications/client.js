// docs/browser.md

// Milliseconds
const FIRST = 500;
const LONGEST = 20_000;
const RESTART = 5_000;
const STABLE = 10_000;
const ATTEMPT = 20_000;
const BLOCKED = 5_000;
const SILENCE = 40_000;
const PROBE = 5_000;
const PACE = 8_000;
const SAVE = 200;

const ID = /^\d{1,19}-\d{1,19}$/;
const memories = new Set();

const pair = (id) => String(id).split("-").map(Number);

function follows(id, last) {
  const [[epoch, n], [lastEpoch, lastN]] = [id, last].map(pair);
  return epoch !== lastEpoch || n > lastN;
}

const start = (since, left) => (since === "last" ? since : [since, left].find((id) => ID.test(id)));

const report = (error) => (globalThis.reportError ?? console.error)(error);

function tell(listeners = new Set(), message, key = "handler") {
  for (const listener of [...listeners]) {
    try {
      if (listeners.has(listener)) listener[key]?.(message);
    } catch (error) {
      report(error);
    }
  }
}

export function connect(options = {}) {
  const { url = "/ws/notifications/", token, fallback, transports: [first] = ["websocket"] } = options;
  const target = new EventTarget();
  const { addEventListener } = target;
  const listened = new Set(); // to types of events
  let state = "connecting";

  let socket;
  let attempt; // which of them
  let timer;
  let failures = 0;
  let asking = false;
  let refused = false;
  let reason; // of an auth_error
  let other; // than a WebSocket
  let blocked = first === "websocket" ? 0 : 2; // attempts

  const topics = new Map(); // by the page's names
  const actions = new Map();
  let joined = new Map(); // by the server's
  let asked = []; // unanswered, in order
  let leaving; // not sent yet
  let fetching; // grants
  let free; // frames that may be sent now
  let room = Infinity; // for topics

  let memory, saving, user, left, guest;
  const own = { listeners: new Set(), given: true };

  const emit = (type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }));

  function enter(next, detail) {
    state = next;
    emit("state", { state, ...detail });
  }

  function after(delay, action) {
    clearTimeout(timer);
    timer = setTimeout(action, delay);
  }

  const later = (delay, act, mine = attempt) => setTimeout(() => mine === attempt && act(), delay);

  // The connection

  async function dial(ready /* and welcomed */) {
    drop();
    const mine = (attempt = {});
    after(ATTEMPT, unanswered);
    if (ready) state = "connecting";
    else enter("connecting");
    try {
      const secret = ready || (guest ? undefined : await token?.());
      if (blocked > 1) {
        blocked = 0;
        other ??= (await fallback?.())?.choose(options, dial);
      }
      if (mine !== attempt) return;
      const since = own.last ?? own.since;
      const address = new URL(url, globalThis.location);
      address.protocol = address.protocol.replace("http", "ws");
      if (since && !token) address.searchParams.set("since", since);
      socket = ready ?? other?.(address) ?? new WebSocket(address);
      socket.onopen = () => (guest || token) && send({ type: "auth", token: secret, since, guest });
      socket.onmessage = ({ data }) => mine === attempt && receive(data);
      socket.onclose = (event) => mine === attempt && lost(event.code, reason ?? event.reason);
      socket.onerror = () => {}; // Node's
      if (fallback && !other && blocked >= 0) after(BLOCKED, unanswered);
    } catch (error) {
      if (mine === attempt) lost(1006, String(error));
    }
  }

  function unanswered() {
    blocked++;
    socket?.close(); // browsers open one by one
    lost(1006, "no answer");
  }

  function drop() {
    clearTimeout(timer);
    const dropped = socket;
    socket = attempt = reason = undefined;
    joined = new Map();
    asked = [];
    if (dropped?.readyState === 0) dropped.onopen = () => dropped.close(); // or browsers complain
    else dropped?.close();
  }

  function lost(code, reason) {
    blocked += code < 4000;
    drop();
    // A fresh token, once.
    const again = token && !refused && /400[13]/.test(code);
    if (/^40/.test(code) && !again) return end(code, reason);
    refused ||= again;
    const delay = Math.random() * Math.max(Math.min(FIRST * 2 ** failures++, LONGEST), /1001|1012|4101/.test(code) && RESTART);
    after(delay, dial);
    enter("waiting", { code, reason, seconds: delay / 1000 });
  }

  function end(code, reason, forget = code === 4005) {
    drop();
    remember(forget);
    memories.delete(memory);
    enter("closed", { code, reason });
    if (/^4/.test(code) && !listened.has("state")) console.warn(`notifications: ${code}, ${reason}: docs/browser.md#states`);
  }

  const another = () => state !== "closed" && end(4003, "another user has logged in", true);

  const wake = () => (state === "waiting" ? dial() : probe());

  function sleep() {
    if (state === "closed") return;
    drop(); // or browsers keep no page
    remember();
    enter("waiting");
  }

  function probe() {
    if (state !== "open" || asking) return;
    asking = true;
    send({ action: "ping" });
    after(PROBE, unanswered);
  }

  function send(frame) {
    if (socket?.readyState !== 1) return;
    socket.send(JSON.stringify(frame));
    if (!listened.has("frame")) return;
    const text = JSON.stringify(frame, (key, value) => (value && /token|grant/.test(key) ? "…" : value));
    emit("frame", { direction: "out", text });
  }

  function receive(text) {
    asking = false;
    if (listened.has("frame")) emit("frame", { direction: "in", text });
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {}
    if (frame?._meta) published(frame, frame._meta);
    else if (frame) answered(frame);
    if (state === "open") after(SILENCE, probe);
  }

  // What the server says

  function published(message, { topic, id }) {
    const subscription = joined.get(topic);
    if (!subscription || !ID.test(id) || !follows(id, subscription.last)) return;
    subscription.last = id;
    save();
    deliver(message, subscription);
  }

  function deliver(message, subscription) {
    if (subscription) subscription.message = message;
    tell(subscription?.listeners, message);
    tell(actions.get(message.action), message);
  }

  function answered(frame) {
    const { action, code, message, topic } = frame;
    if (action === "ping") send({ action: "pong", n: frame.n });
    else if (action === "auth_success") welcome(frame);
    else if (action === "auth_error") reason = message;
    else if (action === "subscribed") {
      const missing = frame.recovered === false && joined.get(topic); // unasked
      settle(missing || join(frame.joined ? give(topic) : answer(), topic), frame);
    } else if (action === "unsubscribed") {
      const known = joined.get(topic);
      joined.delete(topic);
      if (known && (known.given || known.listeners.size) && !known.again) refuse(known, action, "the permission was withdrawn");
      else if (asked[0]?.leaves) {
        answer();
        if (known) known.asked = known.again = undefined;
      }
      advance();
    } else if (action === "error") {
      const hasty = code === "rate_limited";
      const subscription = (!hasty && answer()) || { topic };
      if (code === "unavailable") join(subscription, topic); // answered later
      else if (code === "too_many_subscriptions") {
        if (room > joined.size) console.warn(`notifications: ${code}, ${message} (${topics.size - 1} topics): docs/protocol.md#errors`);
        room = joined.size;
        subscription.asked = undefined;
      } else refuse(subscription, code, message);
      if (hasty && state === "open") lost(4100, message); // what was dropped?
    } else if (action !== "pong") {
      const id = frame.upload_id ?? frame.payload?.upload_id;
      deliver(frame, /^upload_/.test(action) && topics.get(`upload:${id}`)); // it has no id
    }
  }

  function welcome(frame) {
    if (state !== "connecting") return;
    const topic = frame.user_id && `user:${frame.user_id}`;
    if (own.topic && own.topic !== topic) return another();
    if (topic && user && user !== topic) {
      own.since = "last"; // another's: nothing is missing
      left = {};
    }
    own.topic = user = topic;
    merge(topic, own);
    joined.set(topic, own);
    own.asked = attempt;
    leaving = [];
    fetching = 0;
    free = 150; // of 200, and 20 a second
    refused = false;
    later(STABLE, () => {
      failures = 0;
      blocked = -4;
    });
    state = "open";
    advance();
    enter("open", { transport: target.transport });
    settle(topic && own, frame);
  }

  function join(subscription, topic) {
    if (!subscription) return;
    const known = joined.get(topic) ?? subscription; // two names are one
    joined.set(topic, known);
    if (topics.get(subscription.topic) !== subscription) return void (known.again = true); // left
    merge(subscription.topic, known);
    return known;
  }

  function give(topic) {
    const subscription = topics.get(topic) ?? { topic, listeners: new Set() };
    topics.set(topic, subscription);
    subscription.given = true;
    const since = origin(subscription);
    subscription.asked = (!since || asked.includes(subscription)) && attempt;
    if (!since) return subscription;
    advance();
  }

  function merge(name, subscription) {
    for (const listener of topics.get(name)?.listeners ?? []) subscription.listeners.add(listener);
    topics.set(name, subscription);
  }

  function settle(subscription, { id, recovered, state }) {
    if (!subscription) return;
    const { topic, since, known, last, listeners } = subscription;
    Object.assign(subscription, { last: id, known: attempt, state });
    save();
    // A state misses nothing; without an id, everything.
    if (recovered === false ? known || !(state || since === "last") : known && known !== attempt && !last) {
      emit("gap", { topic });
      tell(listeners, topic, "gap");
    }
    tell(listeners, topic, "subscribed");
  }

  function refuse(subscription, code, message) {
    const { topic, listeners = [], given, last } = subscription;
    subscription.given = 0;
    if (given && !listeners.size) {
      left[topic] = last;
      return void topics.delete(topic);
    }
    const detail = { code, message, topic };
    emit("error", detail);
    tell(listeners, detail, "error");
    if (listened.has("error") || [...listeners].some(({ error }) => error)) return;
    console.warn(`notifications: ${code}, ${message} (${topic}): docs/protocol.md#errors`);
  }

  // What we say

  function answer() {
    if (asked.length) later(PACE, () => advance(free++));
    return asked.shift();
  }

  function advance() {
    if (state !== "open") return;
    for (const each of leaving.splice(0, free)) request(each, "unsubscribe");
    for (const each of topics.values()) {
      if (free <= fetching || joined.size + asked.length + fetching >= room) return;
      if (each.asked !== attempt) ask(each);
    }
  }

  const origin = ({ topic, last, since }) => last ?? start(since, left[topic]);

  async function ask(subscription) {
    const mine = (subscription.asked = attempt);
    let { topic, listeners, grant } = subscription;
    const since = origin(subscription);
    if (typeof grant === "function") {
      fetching++;
      try {
        grant = await grant();
      } catch (error) {
        report(error);
        grant = undefined;
      }
      if (mine !== attempt) return;
      fetching--;
      if (!listeners.size) return advance();
    }
    request(subscription, "subscribe", { since, grant });
  }

  function request(what, action, options) {
    free--;
    asked.push(what);
    send({ action, topic: what.topic, ...options });
  }

  function leave(topic, listener) {
    const subscription = topics.get(topic);
    if (!subscription?.listeners.delete(listener) || subscription.listeners.size || subscription.given) return;
    for (const [name, each] of topics) if (each === subscription) topics.delete(name);
    delete left[topic];
    if (state !== "open" || subscription.asked !== attempt) return;
    leaving.push({ topic, leaves: true });
    save();
    advance();
  }

  function add(listeners, listener) {
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }

  // From page to page

  const save = () => (saving ??= setTimeout(remember, SAVE));

  function remember(forget) {
    const positions = [...topics].map(([topic, { last, state }]) => {
      const [epoch, n] = pair(last);
      return [topic, state && n ? `${epoch}-${n - 1}` : (last ?? left[topic])]; // shown again
    });
    try {
      if (forget || saving) sessionStorage.removeItem(memory); // it may be full
      if (!forget && saving) sessionStorage.setItem(memory, JSON.stringify({ user, left: Object.fromEntries(positions) }));
    } catch {}
    saving = clearTimeout(saving);
  }

  function begin({ since, userTopic, positions, ...options }) {
    guest = options.guest;
    memories.delete(memory);
    for (memory = `notifications ${url}`; memories.has(memory); ) memory += " +";
    memories.add(memory);
    let stored;
    try {
      if (sessionStorage.getItem("notifications transport")) blocked = 2;
      stored = JSON.parse(sessionStorage.getItem(memory));
    } catch {}
    ({ user, left } = stored?.left && (!userTopic || userTopic === stored.user) ? stored : {});
    left = { ...positions, ...left };
    topics.delete(own.topic);
    // Pages may be cached.
    const [[epoch], [lastEpoch, n]] = [since, left[user]].map(pair);
    own.since = start(n && epoch > lastEpoch ? since : left[user], since);
    own.topic = userTopic;
    own.last = own.known = undefined;
  }

  begin(options);
  const events = {
    online() {
      blocked = 0;
      wake();
    },
    offline: probe,
    pageshow: ({ persisted }) => persisted && wake(),
    pagehide: sleep,
    visibilitychange: () => (document.hidden ? remember() : wake()),
  };
  for (const type in events) globalThis.addEventListener?.(type, events[type]);
  queueMicrotask(() => state === "connecting" && (attempt ?? dial())); // after the page's script

  Object.assign(target, {
    subscribe(topic, handler, { since, grant, ...options } = {}) {
      const listener = { ...options, handler };
      const subscription = topics.get(topic);
      if (subscription) {
        const { listeners, message, state } = subscription;
        listeners.add(listener);
        // Sent once.
        if (message && (state || since === "last")) {
          queueMicrotask(() => listeners.has(listener) && tell(new Set([listener]), message));
        }
      } else {
        topics.set(topic, { topic, since, grant, listeners: new Set([listener]) });
        advance();
      }
      return () => leave(topic, listener);
    },
    on(action, handler) {
      if (!actions.has(action)) actions.set(action, new Set());
      return add(actions.get(action), { handler });
    },
    onUser: (handler, options) => add(own.listeners, { ...options, handler }),
    open(options = {}) {
      if (options.userTopic != own.topic) {
        another();
        for (const each of topics.values()) each.message = undefined;
      } else if (state === "open") return;
      remember();
      begin(options);
      dial();
    },
    retry: wake,
    close: () => state !== "closed" && end(1000, ""),
    addEventListener(type, ...rest) {
      listened.add(type);
      addEventListener.call(target, type, ...rest);
    },
  });
  return Object.defineProperties(target, {
    state: { get: () => state },
    transport: { get: () => (state === "open" ? (socket.transport ?? "websocket") : null) },
  });
}
