// The same frames over HTTP, where no WebSocket gets through: docs/browser.md#transports
//
// client.js fetches this module when it needs it, and from then on takes its sockets from here: WebSockets, and objects
// that behave like one and ask `POST <mount>/stream/` underneath. client.js asks for all topics again when it opens a
// socket; what is lost between two requests of one socket is asked for here, and the page does not notice.

const NAMES = ["websocket", "stream", "poll"];
const MEMORY = "notifications transport"; // in sessionStorage; client.js looks whether it is there

// Milliseconds
const BLOCKED = 5_000; // until a WebSocket that has said nothing is given up
const BUFFERED = 3_000; // until a stream that has said nothing is given up
const RETRY = 300_000; // between two attempts to do better
const SPREAD = 10_000; // at most, before such an attempt: tabs that fell back together do not come back together
const RECENT = 30_000; // after an attempt, changes of the network lead to no other: browsers tell each change of speed
const QUIET = 35_000; // the server says something every 15 seconds
const GRACE = 10_000; // for an answer, beyond the time for which the server was told to wait
const WELCOME = 15_000; // until what has not said whose it is is given up; client.js waits for no more than 20 seconds
const BRIEF = 10_000; // what is lost so soon, twice in a row, is worse than the next transport
const HIDDEN = 10_000; // until a tab that was left rests
const RESTING = 15_000; // between two requests of a tab that rests
const FRESH = 30_000; // what was heard so recently need not be proved
const STEADY = 5_000; // a response that lived for so long and breaks is asked for again, before anybody is told
const GATHER = 20; // for subscriptions that come together
const SPACING = 1_000; // between two requests because of other topics
const LEAVE = 5_000; // until the server is told of topics that were left
const PACE = 500; // between two polls, however much is published
const LONGEST_HOLD = 60_000; // whatever a Retry-After says
const TOKEN_AGE = 60_000; // tokens and grants are valid for minutes

const WAIT = 25; // seconds that the server keeps a poll
const LONGEST = 2 ** 20; // characters of an event, or of a poll's answer; the server sends a quarter of it
const WEBSOCKET_FAILURES = 5; // in a row, of one that had worked

// Why a request was ended here
const RESTART = Symbol("there is something else to ask for");
const STALLED = Symbol("no event came");

/** Whether browsers open only six connections to the host, for all tabs together: as far as is known, over HTTP/1.1. */
function isScarce() {
  const [page] = globalThis.performance?.getEntriesByType?.("navigation") ?? [];
  return !/^h[23]/.test(page?.nextHopProtocol);
}

const spread = (delay) => delay * (0.75 + Math.random() / 2);

/** Whether a message comes after a position; positions of other epochs are not compared. */
function follows(id, position) {
  const [[epoch, n], [lastEpoch, lastN]] = [id, position].map((each) => String(each).split("-").map(Number));
  return epoch !== lastEpoch || n > lastN;
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The end of a connection, with the code that the page is told. */
class Lost extends Error {
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

/** Wait for a token, but not for ever. */
async function within(delay, promise) {
  let timer;
  const late = new Promise((_, fail) => (timer = setTimeout(() => fail(new Lost(1006, "no token")), delay)));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A parser of text/event-stream: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream */
class Events {
  #rest = "";
  #event = "";
  #data = [];
  #size = 0;

  /** Return the events that this text ends. Throws when one becomes too long. */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/); // "\r" at the end may be half of "\r\n"
    this.#rest = lines.pop();
    if (this.#rest.length + this.#size > LONGEST) throw new Lost(1009, "an event is too long");
    return lines.flatMap((line) => this.#line(line) ?? []);
  }

  #line(line) {
    if (line === "") {
      const ended = { event: this.#event || "message", data: this.#data.join("\n") };
      const any = this.#data.length > 0;
      this.#event = "";
      this.#data = [];
      this.#size = 0;
      return any ? ended : undefined;
    }
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "event") this.#event = value;
    if (name === "data") {
      this.#data.push(value);
      this.#size += value.length;
    }
    return undefined;
  }
}

const NO_HOOKS = { failed() {}, lost() {} };

/** A WebSocket that says whether it worked. */
class Socket {
  transport = "websocket";
  #socket;
  #timer;
  #welcomed;
  #began = Date.now();
  #hooks;
  #seen;

  /** `seen`, where it replaces another: the user's topic and the last message of it that the page has. */
  constructor(socket, hooks, seen) {
    this.#socket = socket;
    this.#hooks = hooks;
    this.#seen = seen;
    this.#welcomed = seen !== undefined;
    socket.onopen = (event) => this.onopen?.(event);
    socket.onmessage = ({ data }) => this.#hear(data);
    socket.onclose = ({ code, reason }) => this.#end(code, reason);
    socket.onerror = () => {};
    // As client.js: one that had worked gets all the time that it gives to an attempt.
    if (!seen && !hooks.hadWebSocket()) this.#timer = setTimeout(() => this.#silent(), BLOCKED);
  }

  get readyState() {
    return this.#socket.readyState;
  }

  send(text) {
    this.#socket.send(text);
  }

  close() {
    clearTimeout(this.#timer);
    this.#socket.close();
  }

  #hear(text) {
    const frame = !this.#welcomed || this.#seen ? parse(text) : undefined;
    if (!this.#welcomed && frame?.action === "auth_success") {
      this.#welcomed = true;
      this.#began = Date.now();
      clearTimeout(this.#timer);
      this.#hooks.worked(this);
    }
    if (this.#seen && frame?._meta?.topic === this.#seen.topic) {
      if (!follows(frame._meta.id, this.#seen.position)) return;
      this.#seen = undefined;
    }
    this.onmessage?.({ data: text });
  }

  #silent() {
    this.#socket.close();
    this.#end(1006, "no answer");
  }

  #end(code, reason) {
    clearTimeout(this.#timer);
    if (this.#welcomed) this.#hooks.lost(code, Date.now() - this.#began);
    else this.#hooks.failed(code);
    this.#hooks = NO_HOOKS; // counted once
    this.onclose?.({ code, reason });
  }
}

/** What behaves like a WebSocket, and is one request after the other: never two at a time. */
class Requests {
  readyState = 1;
  user; // once it is known
  position; // in the user's own topic
  guest; // whether it connects without a user
  rival; // a WebSocket that is tried
  improving = false;

  #hooks;
  #streamed = false; // as opposed to buffered
  #secret;
  #secretAt;
  #entries = []; // the topics, in the order in which they were asked for
  #waiting = []; // frames of the page that wait for earlier answers
  #request; // the one under way
  #stale = false; // it does not name the topics that there are
  #due = Infinity;
  #timer;
  #deadline;
  #began; // when it was welcomed
  #wake;
  #heard = 0;
  #proving = false;
  #cuts = 0;
  #dull = 0;
  #unknown = new Set(); // topics without a history
  #wait = WAIT;

  constructor(address, transport, hooks) {
    this.address = address;
    this.transport = transport;
    this.position = address.searchParams.get("since");
    this.#hooks = hooks;
    queueMicrotask(() => {
      if (this.readyState !== 1) return;
      this.onopen?.({});
      this.#run();
    });
  }

  // What client.js calls

  send(text) {
    const frame = JSON.parse(text);
    if (frame.guest) {
      this.guest = true;
    } else if (frame.type === "auth") {
      this.#secret = frame.token;
      this.#secretAt = Date.now();
      this.position = frame.since ?? null;
    } else if (frame.action === "ping") {
      this.#answerPing();
    } else if (frame.action !== "pong") {
      this.#waiting.push(frame);
      this.#change();
    }
  }

  close() {
    this.readyState = 3;
    clearTimeout(this.#timer);
    clearTimeout(this.#deadline);
    this.#stop(RESTART);
    this.rival?.close();
  }

  // What the choice of a transport calls

  /** The network may be another: ask again on it. */
  prove() {
    this.#heard = 0;
    this.#stop(RESTART);
  }

  /** Try whether a stream gets through by now. */
  tryStream() {
    this.transport = "stream";
    this.#streamed = false;
    this.#stop(RESTART);
  }

  get topic() {
    return `user:${this.user}`;
  }

  /** The tab is hidden, or seen again: ask in the other way. */
  turn() {
    this.#stop(RESTART);
  }

  // Topics

  #find(topic) {
    return this.#entries.find((entry) => entry.topic === topic || entry.names.has(topic));
  }

  #remove(entry) {
    this.#entries = this.#entries.filter((each) => each !== entry);
  }

  /** Do what the page says, in its order: a topic is left only when what was asked before is answered. */
  #change() {
    for (let frame; (frame = this.#waiting[0]); this.#waiting.shift()) {
      const { action, topic, since = null, grant = null } = frame;
      const known = this.#find(topic);
      if (action === "subscribe") {
        // What the site has joined begins anew where the page says.
        if (known?.given) this.#remove(known);
        this.#entries.push({ names: new Set([topic]), since: since ?? (known?.given ? known.since : null), grant });
        this.#renew(GATHER);
      } else if (this.#entries.some(({ answered }) => !answered)) {
        return;
      } else {
        this.#remove(known);
        this.#say({ action: "unsubscribed", topic: known?.topic ?? topic });
        if (this.transport === "stream") this.#renew(LEAVE);
      }
    }
  }

  /** Ask again, because the topics are others, but not at once: others may follow. */
  #renew(delay) {
    this.#stale = true;
    const now = Date.now();
    const due = Math.max(now + delay, this.#request?.topics ? this.#request.began + SPACING : 0);
    if (this.#due <= due) return;
    this.#due = due;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#due = Infinity;
      if (!this.#stale) return;
      const answering = this.#request?.expected.length && Date.now() - this.#request.began < GRACE;
      if (answering) this.#renew(SPACING);
      else this.#stop(RESTART);
    }, due - now);
  }

  // Requests

  async #run() {
    await this.#pause(this.#hooks.held());
    this.#deadline = setTimeout(() => this.#end(1006, "no answer"), WELCOME);
    while (this.readyState === 1) {
      try {
        await this.#ask();
      } catch (error) {
        if (this.readyState !== 1) return;
        const why = this.#request?.why ?? error;
        if (why === RESTART) continue;
        // A stream that never got through; where polls did before, whatever became of it.
        const isNone = this.#request?.mode === "stream" && !this.#streamed;
        const isTrial = isNone && this.user !== undefined && !(why.code >= 4000);
        if ((why === STALLED || isTrial) && this.#hooks.mayPoll) this.#poll();
        else if (why === STALLED) return this.#end(1006, why.description);
        else if (why instanceof Lost) return this.#end(why.code, why.message);
        else if (!this.#isCut()) return this.#end(1006, String(why));
        else await this.#pause(Math.random() * SPACING);
      }
    }
  }

  #poll() {
    this.transport = "poll";
    if (this.user !== undefined) this.#hooks.worked(this);
  }

  /** Whether a response that had lived for a while broke off: once in a row, that is not told. */
  #isCut() {
    const lived = Date.now() - this.#request.began;
    if (this.user === undefined || lived < STEADY || this.#cuts++) return false;
    // Something between here and there does not wait for so long.
    if (this.transport === "poll") this.#wait = Math.max(1, Math.min(this.#wait, Math.floor(lived / 1000) - 5));
    return true;
  }

  async #ask() {
    const entries = this.#entries;
    const quick = this.user === undefined || this.#proving || entries.some(({ answered }) => !answered);
    const rests = this.#hooks.rests();
    const mode = rests ? "poll" : this.transport;
    const request = {
      mode,
      rests,
      controller: new AbortController(),
      began: Date.now(),
      expected: [...entries],
      topics: entries.length,
      answered: new Set(), // topics
      told: false, // the page, of anything
    };
    this.#request = request;
    this.#stale = false;
    const wait = quick || rests || mode === "stream" ? 0 : this.#wait;
    try {
      if (this.#hooks.token && Date.now() - this.#secretAt > TOKEN_AGE) {
        this.#secret = await within(GRACE, this.#hooks.token());
        this.#secretAt = Date.now();
        if (request.why) throw request.why;
      }
      if (mode === "stream" && !this.#streamed) this.#limit(BUFFERED, STALLED);
      else this.#limit(wait * 1000 + GRACE, new Lost(1006, "no answer"));
      const response = await fetch(this.#hooks.streamUrl, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({
          mode,
          token: this.#secret ?? null,
          guest: this.guest,
          since: this.position ?? null,
          topics: entries.map(({ topic, names: [name], since, grant }) => ({ topic: topic ?? name, since, grant })),
          wait,
        }),
        credentials: "same-origin",
        cache: "no-store",
        redirect: "error", // to a login page, for example
        signal: request.controller.signal,
      });
      await this.#read(response, request);
      // What a poll had no time for has its turn first, or it would never have one.
      const late = new Set(request.expected.filter((entry) => this.#entries.includes(entry)));
      if (late.size) this.#entries = [...late, ...this.#entries.filter((entry) => !late.has(entry))];
    } finally {
      clearTimeout(request.timer);
      request.over = true;
      request.controller.abort(); // whatever is left of it
    }
    await this.#rest(request, quick);
  }

  #limit(delay, why) {
    clearTimeout(this.#request.timer);
    this.#request.timer = setTimeout(() => this.#stop(why), delay);
  }

  /** End the request under way, or the pause before the next. */
  #stop(why) {
    this.#wake?.();
    const request = this.#request;
    if (!request || request.over) return;
    request.why ??= why;
    request.controller.abort();
  }

  async #pause(delay) {
    if (delay <= 0) return;
    let timer;
    await new Promise((wake) => {
      this.#wake = wake;
      timer = setTimeout(wake, delay);
    });
    clearTimeout(timer);
    this.#wake = undefined;
  }

  async #read(response, request) {
    if (!response.ok) throw await this.#refusal(response, request);
    const type = response.headers.get("Content-Type") ?? "";
    const isStream = type.startsWith("text/event-stream");
    if (!isStream && !type.startsWith("application/json")) throw new Lost(1006, `an answer of type ${type}`);
    // Servers that have no stream answer as if they were polled.
    if (!isStream && !this.#hooks.mayPoll) throw new Lost(1006, "no stream");
    if (!isStream && !request.rests) this.transport = "poll";
    const events = new Events();
    let all = "";
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (request.why) throw request.why;
      this.#heard = Date.now();
      if (done) break;
      const text = decoder.decode(value, { stream: true });
      if (isStream) {
        if (!this.#streamed) {
          this.#streamed = true;
          if (this.user !== undefined) this.#hooks.worked(this);
        }
        // Of which nothing came but the beginning may be held up on the way, however well it began.
        this.#limit(QUIET, Date.now() - request.began < GRACE ? STALLED : new Lost(1006, "no answer"));
        for (const { event, data } of events.push(text)) {
          if (event === "close") this.#closed(parse(data));
          else this.#take(parse(data), data);
        }
      } else {
        all += text;
        if (all.length > LONGEST) throw new Lost(1009, "an answer is too long");
      }
    }
    if (isStream) return;
    const frames = parse(all);
    if (!Array.isArray(frames)) throw new Lost(1006, "an answer that is no list of frames");
    this.#cuts = 0;
    request.hold = retryAfter(response);
    for (const frame of frames) {
      if (frame?.action === "close") this.#closed(frame);
      else this.#take(frame, JSON.stringify(frame));
      if (request.why) throw request.why;
    }
    this.#proved();
  }

  async #refusal(response, { began }) {
    const { status } = response;
    // Of a proxy that does not wait for so long.
    if ([502, 504].includes(status) && Date.now() - began > STEADY) return new Error(`HTTP ${status}`);
    const hold = retryAfter(response);
    if (hold !== undefined) this.#hooks.hold(hold);
    if (status === 429) return new Lost(4102, "HTTP 429");
    if (status === 503 && hold !== undefined) return new Lost(4101, "HTTP 503");
    if ([400, 405, 413, 415].includes(status)) {
      this.#hooks.warn(`${status}, ${parse((await response.text()).slice(0, 500))?.error ?? response.statusText}`);
    }
    return new Lost(1006, `HTTP ${status}`);
  }

  /** Wait before the next request, if there is a reason. */
  async #rest(request, quick) {
    const lived = Date.now() - request.began;
    if (request.rests) {
      if (this.#hooks.rests()) await this.#pause(quick && this.#stale ? 0 : Math.max(request.hold ?? 0, RESTING));
    } else if (this.transport === "stream") {
      // It has ended, at its full length or because of its age.
      if (!request.told && lived < SPACING) throw new Lost(1006, "a stream that ends at once");
    } else if (request.hold !== undefined) {
      await this.#pause(quick && this.#stale ? 0 : spread(request.hold));
    } else if (request.told) {
      this.#dull = 0;
      if (!quick) await this.#pause(PACE - lived);
    } else if (lived < SPACING && !this.#stale) {
      // Such as a topic of which nobody knows yet who may read it.
      await this.#pause(Math.min(spread(PACE * 2 ** this.#dull++), SPREAD));
    }
  }

  #end(code, reason) {
    if (this.readyState !== 1) return;
    this.close();
    if (this.user === undefined) this.#hooks.failed(code);
    else this.#hooks.lost(code, Date.now() - this.#began);
    this.onclose?.({ code, reason });
  }

  // What the server says

  #closed({ code = 1006, reason = "" } = {}) {
    throw new Lost(code, reason);
  }

  #pass(text) {
    if (this.readyState !== 1) throw RESTART; // the page has closed it meanwhile
    this.#request.told = true;
    this.onmessage?.({ data: text });
  }

  /** Answer the page, after what it is doing. */
  #say(frame) {
    queueMicrotask(() => this.readyState === 1 && this.onmessage?.({ data: JSON.stringify(frame) }));
  }

  #take(frame, text) {
    const { action, _meta: meta } = frame ?? {};
    if (meta) this.#message(meta, text);
    else if (action === "auth_success") this.#welcome(frame, text);
    else if (action === "subscribed") this.#subscribed(frame, text);
    else if (action === "unsubscribed") this.#unsubscribed(frame, text);
    else if (action === "error" && frame.code !== "rate_limited") this.#refused(frame, text);
    else if (action !== "ping") this.#pass(text); // which nobody could answer
  }

  #welcome(frame, text) {
    const user = String(frame.user_id);
    const isFirst = this.user === undefined;
    if (!isFirst && user !== this.user) throw new Lost(1006, "another user has logged in");
    this.user = user;
    this.#cuts = 0;
    this.#request.answered.add(this.topic);
    if (isFirst || frame.recovered !== true) this.position = frame.id;
    if (isFirst) {
      clearTimeout(this.#deadline);
      this.#began = Date.now();
      this.#pass(text);
      this.#hooks.worked(this);
    } else if (frame.user_id !== null && this.#isGap(frame, this.topic)) {
      this.#pass(JSON.stringify({ ...frame, action: "subscribed", topic: this.topic, recovered: false }));
    }
    this.#proved();
  }

  /**
   * Whether an answer to a repeated request says that something is missing.
   *
   * Without a history nobody knows. A page that loads its state after each poll would be as good as one that polls it
   * itself, so of polls it is said once.
   */
  #isGap({ recovered }, topic) {
    if (recovered !== null) return !recovered;
    const isNew = !this.#unknown.has(topic);
    this.#unknown.add(topic);
    return isNew || this.#request.mode === "stream";
  }

  #message({ topic, id }, text) {
    if (!this.#request.answered.has(topic)) return;
    const entry = topic === this.topic ? undefined : this.#find(topic);
    if (topic === this.topic) {
      if (!follows(id, this.position)) return;
      this.position = id;
    } else {
      if (!entry?.answered || !follows(id, entry.since)) return;
      entry.since = id;
    }
    this.#pass(text);
  }

  #subscribed(frame, text) {
    const { topic, id, recovered } = frame;
    const { expected, answered } = this.#request;
    const known = this.#find(topic);
    if (frame.joined) {
      if (known) return; // the answer follows, with this request or the next
      this.#entries.push({ topic, names: new Set(), since: id, grant: null, answered: true, given: true });
      answered.add(topic);
      this.#pass(text);
      return;
    }
    if (recovered === false && answered.has(topic)) {
      if (!known) return;
      Object.assign(known, { since: id, answered: true, unavailable: false });
      this.#pass(text);
      return;
    }
    const entry = expected.shift();
    if (!this.#entries.includes(entry)) return; // it was left meanwhile
    answered.add(topic);
    const before = { ...entry };
    Object.assign(entry, { topic, answered: true, unavailable: false });
    if (!before.answered || recovered !== true) entry.since = id;
    // Two names of one topic are one from now on.
    const other = this.#entries.find((each) => each !== entry && each.topic === topic);
    if (other) {
      for (const name of entry.names) other.names.add(name);
      this.#remove(entry);
    }
    if (!before.answered) this.#pass(text);
    else if (before.unavailable || this.#isGap(frame, topic)) this.#pass(JSON.stringify({ ...frame, recovered: false }));
    this.#change();
  }

  #refused(frame, text) {
    const { code, topic, message } = frame;
    const entry = this.#request.expected.shift();
    if (!entry) return this.#pass(text);
    if (!this.#entries.includes(entry)) return; // it was left meanwhile
    const isFirst = !entry.answered;
    if (code === "unavailable") {
      this.#request.answered.add(topic);
      Object.assign(entry, { topic, answered: true });
      entry.unavailable ||= isFirst;
    } else {
      this.#remove(entry);
      // The page asks again, for grants that have not expired.
      if (!isFirst && (entry.grant || code === "too_many_subscriptions")) throw new Lost(1006, message);
    }
    if (isFirst) this.#pass(text);
    else if (code !== "unavailable") this.#pass(JSON.stringify({ action: "unsubscribed", topic: entry.topic }));
    this.#change();
  }

  #unsubscribed({ topic }, text) {
    const entry = this.#find(topic);
    if (!entry?.answered) return;
    this.#remove(entry);
    this.#pass(text);
  }

  // Whether it is alive

  #answerPing() {
    const isFresh = Date.now() - this.#heard < FRESH && globalThis.navigator?.onLine !== false;
    if (isFresh) return this.#say({ action: "pong" });
    this.#proving = true;
    this.#stop(RESTART);
  }

  #proved() {
    if (this.#proving) this.#say({ action: "pong" });
    this.#proving = false;
  }
}

/** Milliseconds, of seconds or a date. */
function retryAfter(response) {
  const value = response.headers.get("Retry-After");
  if (!value) return undefined;
  const delay = /^\d+$/.test(value) ? value * 1000 : Date.parse(value) - Date.now();
  return Math.min(Math.max(delay || 0, SPACING), LONGEST_HOLD);
}

/**
 * Return a function that opens a socket: `(address) => socket`.
 *
 * It is called when a WebSocket did not work, or when this tab remembers that none did. `options` are those of
 * `connect`. `dial(socket)` makes client.js go on with another socket, whose first frame follows at once.
 */
export function choose(options, dial) {
  const { token, streamUrl = "/notifications/stream/", transports = NAMES } = options;
  const usable = transports.filter((name) => NAMES.includes(name));
  const warned = new Set();
  const remembered = recall();
  const isKnown = usable.includes(remembered.transport);
  let at = isKnown ? usable.indexOf(remembered.transport) : usable[0] === "websocket" ? 1 % usable.length : 0;
  let tried = isKnown ? remembered.tried : 0;
  let patience = 1; // failures until the next transport has its turn
  let brief = 0; // connections in a row
  let holdUntil = 0;
  let current;
  let timer;
  let leaving; // the tab, for another
  let isResting = Boolean(globalThis.document?.hidden);

  const hooks = {
    token,
    streamUrl,
    mayPoll: usable.includes("poll"),
    hadWebSocket: () => patience > 1,
    /** A hidden tab keeps no request open where another, or the site's next page, may need its connection. */
    rests: () => isResting && hooks.mayPoll && isScarce(),
    held: () => holdUntil - Date.now(),
    hold: (delay) => (holdUntil = Date.now() + spread(delay)),
    warn(text) {
      if (!warned.has(text)) console.warn(`notifications: ${streamUrl} says ${text}: docs/browser.md#transports`);
      warned.add(text);
    },
    /** The server has said who is there, or a stream has got through that did not before. */
    worked({ transport }) {
      at = usable.indexOf(transport);
      patience = transport === "websocket" ? WEBSOCKET_FAILURES : 1;
      store();
      plan();
    },
    /** Nobody has said anything. A code of the server's own is an answer. */
    failed(code) {
      if (code >= 4000 || --patience > 0) return;
      goToNext();
    },
    /** What had worked is lost. A proxy may cut each connection of one kind after seconds. */
    lost(code, lived) {
      if (code >= 4000) return;
      brief = lived < BRIEF ? brief + 1 : 0;
      if (brief > 1) goToNext();
    },
  };

  function goToNext() {
    at = (at + 1) % usable.length;
    patience = 1;
    brief = 0;
  }

  function store() {
    try {
      if (at) sessionStorage.setItem(MEMORY, JSON.stringify({ transport: usable[at], tried }));
      else sessionStorage.removeItem(MEMORY);
    } catch {} // it may be full, or forbidden
  }

  /** Try the better transports again: soon if that was not done yet, as the server may only have been away. */
  function plan(delay = tried + RETRY - Date.now()) {
    clearTimeout(timer);
    if (at) timer = setTimeout(improve, Math.min(Math.max(delay, 0), RETRY) + Math.random() * SPREAD);
  }

  async function improve() {
    const socket = current;
    if (socket?.readyState !== 1 || socket.user === undefined || socket.improving) return;
    socket.improving = true;
    tried = Date.now();
    store();
    const better = usable.slice(0, at);
    if (better.includes("websocket") && (await upgrade(socket))) return;
    if (socket.readyState !== 1) return;
    if (better.includes("stream")) socket.tryStream();
    socket.improving = false;
    plan();
  }

  /** Open a WebSocket beside the requests, and go on with it once it has been welcomed. */
  async function upgrade(from) {
    const { guest } = from;
    let secret, since, socket;
    try {
      secret = !guest && token && (await within(GRACE, token()));
      if (from.readyState !== 1) return false;
      since = from.position;
      const address = new URL(from.address);
      address.searchParams.delete("since");
      if (since && !token) address.searchParams.set("since", since);
      socket = new WebSocket(address);
    } catch {
      return false;
    }
    from.rival = socket;
    const isOpen = await new Promise((done) => {
      const limit = setTimeout(done, BLOCKED, false);
      const end = (isWelcome) => {
        clearTimeout(limit);
        done(isWelcome);
      };
      const auth = guest ? { guest } : token && { token: secret, since };
      socket.onopen = () => auth && socket.send(JSON.stringify({ type: "auth", ...auth }));
      socket.onclose = socket.onerror = () => end(false);
      // In the turn in which it arrives: the next frame may follow in the same.
      socket.onmessage = ({ data }) => {
        const frame = parse(data);
        const isWelcome = frame?.action === "auth_success" && String(frame.user_id) === from.user;
        if (isWelcome && from.readyState === 1) goOn(from, socket, frame);
        end(isWelcome);
      };
    });
    from.rival = undefined;
    if (!isOpen) socket.close();
    return isOpen;
  }

  function goOn(from, socket, frame) {
    from.rival = undefined;
    const { topic, position } = from;
    current = new Socket(socket, hooks, { topic, position });
    dial(current);
    // What the requests brought meanwhile is not shown again.
    const id = frame.recovered === true ? position : frame.id;
    current.onmessage({ data: JSON.stringify({ ...frame, id }) });
    hooks.worked(current);
  }

  function networkChanged({ type }) {
    if (type === "online") patience = 1;
    if (current?.readyState !== 1 || current.transport === "websocket") return;
    if (type === "online") current.prove();
    if (type === "online" || Date.now() - tried > RECENT) plan(0);
  }

  function visibilityChanged() {
    clearTimeout(leaving);
    if (document.hidden) leaving = setTimeout(rest, HIDDEN, true);
    else rest(false);
  }

  function rest(now) {
    const rested = hooks.rests();
    isResting = now;
    if (hooks.rests() !== rested) current?.turn?.();
  }

  globalThis.addEventListener?.("visibilitychange", visibilityChanged);
  globalThis.addEventListener?.("online", networkChanged);
  globalThis.navigator?.connection?.addEventListener?.("change", networkChanged);

  return (address) => {
    clearTimeout(timer);
    if (usable.length === 0) return undefined;
    const transport = usable[at];
    if (transport !== "websocket") return (current = new Requests(address, transport, hooks));
    try {
      return (current = new Socket(new WebSocket(address), hooks));
    } catch (error) {
      hooks.failed(1006); // there is none, or a policy forbids it
      throw error;
    }
  };
}

/** Return what this tab remembers: `{ transport, tried }`, when the better ones were tried. */
function recall() {
  try {
    const { transport, tried } = JSON.parse(sessionStorage.getItem(MEMORY)) ?? {};
    return { transport, tried: Number.isFinite(tried) ? tried : 0 };
  } catch {
    return {};
  }
}
