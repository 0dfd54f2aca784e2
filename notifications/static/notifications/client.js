// A WebSocket that comes back by itself, each message once and in order: docs/browser.md. Types: client.d.ts.

// Milliseconds
const FIRST_DELAY = 500; // the longest first wait for a new attempt; doubles with each
const LONGEST_DELAY = 20_000; // up to this
const RESTART_DELAY = 5_000; // for all tabs of a server that restarts, spread over it
const STABLE = 10_000; // a connection that held this long ends the doubling
const ATTEMPT = 20_000; // for one attempt, its token included
const SILENCE = 40_000; // without a frame, before we ask; the server pings every 30 s
const PROBE = 5_000; // for the answer

const RESTARTS = [1001, 1012, 4101];
const ID = /^\d{1,19}-\d{1,19}$/;
const memories = new Set(); // names in sessionStorage, one for each connection of the page

const pair = (id) => id.split("-").map(Number);

/** Whether an id is news after `last`. Epochs are the same or not: they have no order. */
function follows(id, last) {
  if (!last) return true;
  const [[epoch, n], [lastEpoch, lastN]] = [pair(id), pair(last)];
  return epoch !== lastEpoch || n > lastN;
}

/**
 * Where a page begins: at `since`, or where the page before it in this tab `left`, if that is earlier.
 * "last" asks for a state: the new page needs the message that the old one had last, too.
 */
function earlier(since, left) {
  if (since !== "last" && !ID.test(since)) since = undefined;
  if (!ID.test(left)) return since;
  const [epoch, n] = pair(left);
  if (since === "last") return `${epoch}-${Math.max(n - 1, 0)}`;
  return since && (pair(since)[0] !== epoch || !follows(since, left)) ? since : left;
}

const begin = (topic, since) => since ?? (topic.startsWith("upload:") ? "last" : undefined);

const report = (error) => (globalThis.reportError ?? console.error)(error);

/** Call the page's functions. What they throw stops nothing here. */
function tell(listeners = new Set(), message, key = "handler") {
  for (const listener of [...listeners]) {
    try {
      if (listeners.has(listener)) listener[key]?.(message);
    } catch (error) {
      report(error);
    }
  }
}

export function connect({ url = "/ws/notifications/", token, since, userTopic } = {}) {
  const target = new EventTarget();
  const page = new AbortController(); // ends the listening to the page
  let state = "connecting";
  let watched = false; // whether anybody wants "frame" events

  let socket;
  let attempt; // what an earlier one still waits for is ignored
  let timer;
  let failures = 0;
  let openedAt;
  let heardAt; // undefined while we ask whether anybody is there
  let refused = false;
  let reason; // of an auth_error; the close that follows has none

  const topics = new Map(); // subscriptions, by every name they have
  const actions = new Map();
  let joined = new Map(); // those that this socket has, by the server's name
  let asked = []; // what the server has not answered; it answers all, in order

  let memory = `notifications ${url}`;
  while (memories.has(memory)) memory += " +";
  memories.add(memory);
  let { user, left } = recall();
  const own = { topic: userTopic, since: earlier(since, left[user]), listeners: new Set() };

  const emit = (type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }));

  function enter(next, detail) {
    state = next;
    emit("state", { state, ...detail });
  }

  function after(delay, action) {
    clearTimeout(timer);
    timer = setTimeout(action, delay);
  }

  // The connection

  async function open() {
    const mine = (attempt = {});
    after(ATTEMPT, () => {
      socket?.close(); // browsers open one after the other
      lost(1006, "no answer");
    });
    enter("connecting");
    try {
      const secret = await token?.();
      if (mine !== attempt) return;
      own.sent = own.last ?? own.since;
      const address = new URL(url, globalThis.location?.href);
      address.protocol = address.protocol.replace("http", "ws");
      if (own.sent && !token) address.searchParams.set("since", own.sent);
      socket = new WebSocket(address);
      const current = (act) => (event) => mine === attempt && act(event);
      socket.onopen = current(() => token && send({ type: "auth", token: secret, since: own.sent }));
      socket.onmessage = current(({ data }) => receive(data));
      socket.onclose = current((event) => lost(event.code, reason ?? event.reason));
      socket.onerror = () => {}; // "close" follows; Node's ws would throw
    } catch (error) {
      if (mine === attempt) lost(1006, String(error));
    }
  }

  function drop() {
    clearTimeout(timer);
    const dropped = socket;
    socket = attempt = reason = undefined;
    joined = new Map();
    asked = [];
    // To close what is not open yet is a warning in the console.
    if (dropped?.readyState === 0) dropped.onopen = () => dropped.close();
    else dropped?.close();
  }

  function lost(code, reason) {
    drop();
    if (Date.now() - openedAt >= STABLE) failures = 0;
    openedAt = undefined;
    // A token may expire on its way, say while a laptop sleeps: a fresh one is tried, once.
    const again = token && !refused && (code === 4001 || code === 4003);
    if (code >= 4000 && code < 4100 && !again) return end(code, reason);
    refused ||= again;
    const longest = Math.min(FIRST_DELAY * 2 ** failures++, LONGEST_DELAY);
    const delay = Math.random() * (RESTARTS.includes(code) ? Math.max(longest, RESTART_DELAY) : longest);
    after(delay, open);
    enter("waiting", { code, reason, seconds: delay / 1000 });
  }

  function end(code, reason, forget = code === 4005) {
    drop();
    page.abort();
    remember(forget);
    memories.delete(memory);
    enter("closed", { code, reason });
  }

  /** The page is seen again, or the network is back. */
  const wake = () => (state === "waiting" ? open() : probe());

  /** The page is left. Browsers keep it for their back button only without a socket. */
  function sleep() {
    drop();
    remember();
    enter("waiting");
  }

  /** Wait for silence, by the clock: timers stand still while a laptop sleeps. It may be set back, too. */
  function watch() {
    const silent = () => Math.abs(Date.now() - heardAt);
    after(SILENCE - silent(), () => (silent() < SILENCE ? watch() : probe()));
  }

  function probe() {
    if (state !== "open" || !heardAt) return;
    heardAt = undefined;
    send({ action: "ping" });
    after(PROBE, () => (heardAt ? watch() : lost(1006, "no answer")));
  }

  function send(frame) {
    if (socket?.readyState !== 1) return;
    socket.send(JSON.stringify(frame));
    const hide = (key, value) => (value && (key === "token" || key === "grant") ? "…" : value);
    if (watched) emit("frame", { direction: "out", text: JSON.stringify(frame, hide) });
  }

  function receive(text) {
    heardAt = Date.now();
    if (watched) emit("frame", { direction: "in", text });
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      // Not ours.
    }
    if (frame?._meta) published(frame, frame._meta);
    else if (frame) answered(frame);
  }

  // What the server says

  function published(message, { topic, id }) {
    const subscription = joined.get(topic);
    if (!subscription || !ID.test(id) || !follows(id, subscription.last)) return;
    subscription.last = id;
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
      // What we have was not asked for: something is missing.
      settle((frame.recovered === false && joined.get(topic)) || join(asked.shift(), topic), frame);
    } else if (action === "unsubscribed") {
      joined.delete(topic);
      if (asked[0]?.leaves) asked.shift();
      else emit("error", { code: action, message: "no longer yours to read", topic });
    } else if (action === "error") {
      const hasty = code === "rate_limited";
      const wanted = !hasty && asked.shift();
      if (code === "unavailable") join(wanted, topic); // answered later
      else emit("error", { code, message, topic: wanted?.topic || topic });
      // Frames were dropped, nobody says which: a new socket asks for everything.
      if (hasty && state === "open") lost(4100, message);
    } else if (action !== "pong") {
      // A message without an id has no topic either; those of uploads name theirs.
      const id = frame.upload_id ?? frame.payload?.upload_id;
      deliver(frame, /^upload_/.test(action) && topics.get(`upload:${id}`));
    }
  }

  function welcome(frame) {
    if (state !== "connecting") return;
    const topic = `user:${frame.user_id}`;
    // The page is its user's, not that of whoever has logged in since.
    if (own.topic && own.topic !== topic) return end(4003, "another user has logged in", true);
    if (user !== topic) {
      if (own.sent === left[user]) own.since = "last"; // another's: nothing is missing
      left = {};
    }
    own.topic = user = topic;
    merge(topic, own);
    joined.set(topic, own);
    refused = false;
    openedAt = Date.now();
    watch();
    state = "open";
    for (const each of new Set(topics.values())) ask(each);
    enter("open");
    settle(own, frame);
  }

  /** Note the server's name of a topic. Two subscriptions that turn out to be of one are made one. */
  function join(subscription, topic) {
    if (!subscription) return;
    const known = joined.get(topic) ?? subscription;
    joined.set(topic, known);
    if (topics.get(subscription.topic) !== subscription) return; // left meanwhile
    merge(subscription.topic, known);
    return known;
  }

  function merge(name, subscription) {
    for (const listener of topics.get(name)?.listeners ?? []) subscription.listeners.add(listener);
    topics.set(name, subscription);
  }

  /** Go on where the server says; tell the page of a gap. */
  function settle(subscription, { id, recovered }) {
    if (!subscription) return;
    const { topic, since, known, last } = subscription;
    // Who begins with "last" has missed nothing; who comes back without an id, everything.
    const gap = recovered === false ? known || begin(topic, since) !== "last" : known && !last;
    subscription.last = id;
    subscription.known = true;
    if (!gap) return;
    emit("gap", { topic });
    tell(subscription.listeners, topic, "gap");
  }

  // What we say

  async function ask(subscription) {
    if (state !== "open" || subscription === own) return;
    const { topic, listeners } = subscription;
    let { grant } = subscription;
    if (typeof grant === "function") {
      const mine = attempt;
      try {
        grant = await grant();
      } catch (error) {
        report(error);
        grant = undefined; // AUTHORIZE may say yes
      }
      if (mine !== attempt || !listeners.size) return;
    }
    subscription.left ??= left[topic];
    delete left[topic];
    subscription.sent = subscription.last ?? earlier(begin(topic, subscription.since), subscription.left);
    asked.push(subscription);
    send({ action: "subscribe", topic, since: subscription.sent, grant });
  }

  function leave(topic, listener) {
    const subscription = topics.get(topic);
    if (!subscription?.listeners.delete(listener) || subscription.listeners.size || subscription === own) return;
    for (const [name, each] of topics) if (each === subscription) topics.delete(name);
    if (state !== "open") return;
    asked.push({ topic, leaves: true });
    send({ action: "unsubscribe", topic });
  }

  function add(listeners, listener) {
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }

  // From one page of a tab to the next

  function recall() {
    let stored;
    try {
      stored = JSON.parse(sessionStorage.getItem(memory));
    } catch {
      // None, or not allowed.
    }
    return stored?.left && (!userTopic || userTopic === stored.user) ? stored : { left: {} };
  }

  function remember(forget) {
    try {
      if (forget) sessionStorage.removeItem(memory);
      if (forget || !own.known) return;
      const positions = [...topics].map(([topic, { last, sent }]) => [topic, last ?? sent]);
      sessionStorage.setItem(memory, JSON.stringify({ user, left: Object.fromEntries(positions) }));
    } catch {
      // Or full.
    }
  }

  const listen = (type, listener, where = globalThis) =>
    where.addEventListener?.(type, listener, { signal: page.signal });
  listen("online", wake);
  listen("offline", probe);
  listen("pageshow", (event) => event.persisted && wake());
  listen("pagehide", sleep);
  listen("visibilitychange", () => (document.hidden ? remember() : wake()), globalThis.document);
  queueMicrotask(() => state === "connecting" && open()); // the page first adds its listeners

  const api = {
    get state() {
      return state;
    },
    subscribe(topic, handler, { since, grant, gap } = {}) {
      const listener = { handler, gap };
      const subscription = topics.get(topic);
      if (subscription) {
        const { listeners, message } = subscription;
        listeners.add(listener);
        // The server sends the latest message once.
        const show = () => listeners.has(listener) && tell(new Set([listener]), message);
        if (message && begin(topic, since) === "last") queueMicrotask(show);
      } else {
        topics.set(topic, { topic, since, grant, listeners: new Set([listener]) });
        ask(topics.get(topic));
      }
      return () => leave(topic, listener);
    },
    on(action, handler) {
      if (!actions.has(action)) actions.set(action, new Set());
      return add(actions.get(action), { handler });
    },
    onUser: (handler, { gap } = {}) => add(own.listeners, { handler, gap }),
    close: () => state !== "closed" && end(1000, ""),
    addEventListener(type, ...rest) {
      watched ||= type === "frame";
      EventTarget.prototype.addEventListener.call(target, type, ...rest);
    },
  };
  return Object.defineProperties(target, Object.getOwnPropertyDescriptors(api));
}
