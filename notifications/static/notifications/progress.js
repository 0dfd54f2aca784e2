// <task-progress> and <upload-progress>: bars that follow a job or an upload on the page's connection; <batch-progress>:
// how far all of those in it are.
//
// Like elements.js this module imports nothing; `defineBars` gets from there what the elements of a page share.
// The contents of messages become text, never HTML, and an address becomes a link only if it is that of a web page.

const ASK = { first: 5000, longest: 60_000, timeout: 10_000, together: 4 }; // a status-url: milliseconds, requests at once
const CANCEL = { timeout: 15_000 }; // milliseconds
const SCARCE = 2000; // milliseconds after which a bar that waits for a topic gets that of one that has ended
const KEPT = 50; // bars that have ended and keep their topics: half of a connection's, unless the site says otherwise
const TICK = 1000;
const GATHER = 100; // milliseconds in which a batch gathers what its bars have to say
const ASLEEP = 5000; // milliseconds by which a tick is late when the page was frozen, or its computer slept
const ENDS = ["succeeded", "failed", "cancelled"];
const STATES = ["waiting", "running", ...ENDS];
const NUMBERS = ["percent", "done", "total"];
const TEXTS = ["unit", "stage", "message", "error", "url"];

// What elements.js shares: see its `define`.
let connection, labels, standing, BARS, Steady, textOf, wordFor, wordForCondition, webAddress, make, written, shadowOf;
let stale; // milliseconds

/**
 * Make the bars work; call it once per page.
 *
 * @param shared what `define` of elements.js has returned
 * @param {{stale?: number}} [options] seconds after which a running job of which nothing was heard is called stalled, the
 *   site's `PROGRESS_STALE`
 */
export function defineBars(shared, options = {}) {
  ({ connection, labels, standing, BARS, Steady, textOf, wordFor, wordForCondition, webAddress, make, written, shadowOf } = shared);
  stale = (options.stale ?? 60) * 1000;
  customElements.define("task-progress", TaskProgress);
  customElements.define("upload-progress", UploadProgress);
  customElements.define("batch-progress", BatchProgress);
}

/**
 * Which bars have a topic after their end. A job may begin again, so a bar that has ended keeps listening; but a connection
 * has a limited number of topics, so it stops when another bar of the page has been waiting for one.
 */
class Places {
  #ended = new Set(); // feeds, the oldest first
  #waiting = new Set(); // feeds that the server has not answered on this connection
  #heard = new Set(); // topics for which it has answered: another handler may have asked
  #scarce = false;
  #timer;

  look(feed, topic) {
    if (connection.state !== "open") this.#heard.clear();
    if (connection.state !== "open" || this.#heard.has(topic) || !feed.running) return this.#done(feed);
    this.#waiting.add(feed);
    this.#timer ??= setTimeout(() => this.#makeRoom(), SCARCE);
  }

  answered(feed, topic) {
    this.#heard.add(topic);
    this.#done(feed);
  }

  keep(feed) {
    if (this.#scarce) return feed.stop();
    this.#ended.add(feed);
    if (this.#ended.size > KEPT) this.#ended.values().next().value.stop();
  }

  resume(feed) {
    this.#ended.delete(feed);
  }

  leave(feed) {
    this.#ended.delete(feed);
    this.#done(feed);
  }

  #done(feed) {
    this.#waiting.delete(feed);
    if (this.#waiting.size) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#scarce = false;
  }

  #makeRoom() {
    this.#scarce = true;
    for (const feed of [...this.#ended]) feed.stop();
  }
}

const places = new Places();

let turns = ASK.together;
const waiting = []; // for their turn

/** Run a request when few others are under way: a page may have hundreds of bars, and browsers six connections. */
async function inTurn(request) {
  if (turns > 0) turns--;
  else await new Promise((go) => waiting.push(go));
  try {
    return await request();
  } finally {
    if (waiting.length) waiting.shift()();
    else turns++;
  }
}

/** Return what the site answers at a URL of its own; undefined if it does not, or with something else. */
async function fetchState(url, signal) {
  const options = { mode: "same-origin", credentials: "same-origin", redirect: "error", cache: "no-store", signal };
  try {
    const answer = await fetch(url, { headers: { Accept: "application/json" }, ...options });
    if (!answer.ok) return undefined;
    return Object(await answer.json());
  } catch {
    return undefined; // away, too late, or no JSON
  }
}

/**
 * Asks the site how far something is, until an answer is not needed any more: at growing intervals, up to a minute, each
 * of a random length, so that the tabs of a site that is down do not ask at the same moment. A hidden tab does not ask.
 */
class Inquiry {
  #url;
  #tell;
  #away = false;
  #missing = false;
  #delay;
  #timer;
  #request;

  constructor(url, tell) {
    this.#url = url; // a function that returns it, or null
    this.#tell = tell;
  }

  /** The connection is away, or it is back. */
  set away(away) {
    if (this.#away === away) return;
    this.#away = away;
    if (away && !this.#missing) this.#begin(ASK.first);
    else if (!away && !this.#missing) this.#end();
  }

  /** Messages are missing for good. */
  miss() {
    if (!this.#url()) return;
    this.#missing = true;
    this.#end();
    this.#begin(ASK.first / 5);
  }

  /** A message has come: an answer that is under way is older. */
  overtake() {
    if (!this.#request) return;
    this.#missing = false;
    if (this.#away) this.#again();
    else this.#end();
  }

  stop() {
    this.#away = this.#missing = false;
    this.#end();
  }

  #begin(delay) {
    this.#delay = ASK.first;
    this.#schedule(delay);
  }

  #end() {
    clearTimeout(this.#timer);
    this.#request?.abort();
    this.#request = undefined;
  }

  #again() {
    this.#end();
    this.#schedule(this.#delay);
    this.#delay = Math.min(2 * this.#delay, ASK.longest);
  }

  #schedule(delay) {
    this.#timer = setTimeout(() => this.#ask(), delay * (0.5 + Math.random() / 2));
  }

  async #ask() {
    const url = document.hidden ? null : this.#url();
    if (!url) return this.#again();
    const request = (this.#request = new AbortController());
    const answer = await inTurn(() => {
      const timer = setTimeout(() => request.abort(), ASK.timeout);
      return fetchState(url, request.signal).finally(() => clearTimeout(timer));
    });
    if (request !== this.#request) return; // overtaken, or not needed any more
    if (answer) this.#missing = false;
    if (this.#away || this.#missing) this.#again();
    else this.#end();
    if (answer) this.#tell(answer);
  }
}

/**
 * What an element shows that follows one topic: its messages, how the connection to it is, and while it is away, or after
 * messages were missed, the answers of the element's `status-url`.
 */
class Feed {
  #on;
  #stop;
  #topic;
  #live; // whether the server has answered, on this connection
  #known; // whether it ever has
  #steady;
  #inquiry;

  /**
   * `on` has functions: `message`, `gap` and `error` as in `subscribe`, `live` when the server has answered, `url` that
   * returns the `status-url` to ask, or null, `state` with its answer, `condition` when something else is to be said of the
   * connection, `announce` when this element has to say it aloud.
   */
  constructor(on) {
    this.#on = on;
    this.#steady = new Steady(on.condition);
    this.#inquiry = new Inquiry(on.url, on.state);
  }

  /** In words; empty while it is live. */
  get words() {
    return this.condition === "live" ? "" : wordForCondition(this.condition);
  }

  get condition() {
    return this.#steady.shown;
  }

  get running() {
    return Boolean(this.#stop);
  }

  /** Whether messages come as soon as they are published. */
  get live() {
    return this.running && this.#live;
  }

  start(topic, options) {
    this.stop();
    this.#topic = topic;
    // On an open connection another handler may have been answered for all, of which we are not told.
    this.#live = this.#known = connection.state === "open";
    const off = connection.subscribe(topic, (message) => this.#receive(message), {
      ...options,
      gap: () => {
        this.#inquiry.miss();
        this.#on.gap();
      },
      subscribed: () => {
        this.#answered();
        this.#on.live();
      },
      error: (detail) => {
        this.#answered(); // nothing more will come
        this.#on.error(detail);
      },
    });
    const look = () => this.#look();
    const leave = standing.enrol(BARS, this.#on.announce);
    standing.addEventListener("network", look);
    this.#stop = () => {
      off();
      leave();
      standing.removeEventListener("network", look);
    };
    look();
  }

  stop() {
    this.#stop?.();
    this.#stop = undefined;
    this.#inquiry.stop();
    this.#steady.set("live");
    standing.note(this, false);
    places.leave(this);
  }

  /** Nothing has come for too long: the site may know why. */
  doubt() {
    this.#inquiry.miss();
  }

  /** Whether what it follows has ended; it may begin again. */
  set resting(resting) {
    if (resting && this.running) places.keep(this);
    else places.resume(this);
  }

  #receive(message) {
    places.answered(this, this.#topic);
    this.#inquiry.overtake();
    this.#on.message(message);
  }

  #answered() {
    this.#live = this.#known = true;
    places.answered(this, this.#topic);
    this.#look();
  }

  #look() {
    if (connection.state !== "open") this.#live = false;
    const { network } = standing;
    const behind = network === "live" && connection.state === "open" && !this.#live;
    standing.note(this, behind && this.#known);
    this.#inquiry.away = behind || network === "offline" || network === "connecting";
    this.#steady.set(behind ? "catching-up" : network === "closed" ? "offline" : network);
    places.look(this, this.#topic);
  }
}

/**
 * The page's only timer of bars: each of them has `_tick` called once a second for as long as it wants that, and `_wake`
 * instead if the page was frozen in the meantime.
 */
const clock = {
  bars: new Set(),
  timer: undefined,
  last: 0,

  add(bar) {
    this.bars.add(bar);
    if (this.timer !== undefined) return;
    this.last = performance.now();
    this.timer = setInterval(() => this.tick(), TICK);
  },

  delete(bar) {
    this.bars.delete(bar);
    if (this.bars.size) return;
    clearInterval(this.timer);
    this.timer = undefined;
  },

  tick() {
    const now = performance.now();
    const slept = now - this.last > TICK + ASLEEP;
    this.last = now;
    for (const bar of [...this.bars]) slept ? bar._wake(now) : bar._tick(now);
  },
};

const formats = new Map();

/** A number format in the language of an element; these take long to make, and a page may have hundreds of bars. */
function formatOf(element, options) {
  const language = element.closest("[lang]")?.lang || undefined;
  const name = JSON.stringify([language, options]);
  if (!formats.has(name)) {
    let format;
    try {
      format = new Intl.NumberFormat(language, options);
    } catch {
      format = new Intl.NumberFormat(undefined, options); // a lang that is not a language
    }
    formats.set(name, format);
  }
  return formats.get(name);
}

/** A label with its `{names}` replaced by values, and without the space of an empty one. */
const filled = (label, values) => label.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all).trim();

const UNITS = [
  // seconds that it lasts at least, of the step in which it is told, and of the unit
  { from: 79_200, step: 86_400, seconds: 86_400, unit: "day" },
  { from: 3300, step: 1800, seconds: 3600, unit: "hour" },
  { from: 55, step: 60, seconds: 60, unit: "minute" },
  { from: -Infinity, step: 10, seconds: 1, unit: "second" },
];
const unitOf = (seconds) => UNITS.find(({ from }) => seconds >= from);

/**
 * Round seconds that are left to what one would say: 0, 10, 20 … 50 seconds, minutes, half hours, days. What was said
 * `before` is said again until it is clearly wrong, because estimates go up and down.
 */
export function roughly(seconds, before) {
  const { step } = unitOf(seconds);
  if (before !== undefined && unitOf(before).step === step && Math.abs(seconds - before) < 0.75 * step) return before;
  return Math.max(step > 10 ? step : 0, Math.round(seconds / step) * step);
}

/** What is said of a job of which nothing is known. */
const UNKNOWN = {
  state: "waiting", percent: null, done: null, total: null, unit: "", stage: "", message: "", error: "", url: "", eta: null,
};

/** A number from 0 that one can count to, or null: attributes are texts, and a message may come from any program. */
function numberOf(value) {
  const number = Number.parseFloat(textOf(value));
  return number >= 0 && number <= Number.MAX_SAFE_INTEGER ? number : null;
}

/** A job with what is given of it; what is missing, or no value, stays as it is. */
export function changed(job, given) {
  const next = { ...job };
  if (STATES.includes(given.state)) next.state = given.state;
  for (const name of TEXTS) if (typeof given[name] === "string") next[name] = given[name];
  for (const name of [...NUMBERS, "eta"]) next[name] = numberOf(given[name]) ?? next[name];
  if (next.state === "succeeded") return { ...next, percent: 100, done: next.total ?? next.done };
  const counted = numberOf(given.percent) === null && (numberOf(given.done) ?? numberOf(given.total)) !== null;
  if (counted && next.total > 0 && next.done !== null) next.percent = (100 * next.done) / next.total;
  if (next.percent !== null) next.percent = Math.min(100, next.percent);
  return next;
}

/**
 * A job as a `progress` message says it is, which is all that there is to say; but whoever tells how it ended, because it
 * cannot do so itself, does not know how far it was.
 */
export function told(payload, before) {
  const next = changed({ ...UNKNOWN, state: before.state }, payload);
  if (!ENDS.includes(next.state) || NUMBERS.some((name) => numberOf(payload[name]) !== null)) return next;
  const { percent, done, total, unit, stage } = before;
  const kept = { percent, done, total, unit: next.unit || unit, stage: next.stage || stage };
  return changed({ ...next, ...kept }, {});
}

/** The percentage that one sees: 100 is kept for the end. */
const whole = (percent) => Math.floor(percent + 1e-6);

/** What every bar is drawn with, in a shadow root of the element. */
class Bar {
  #label = written("span", "label");
  #percent = make("span", "percent");
  #fill = make("div", "fill");
  #line = make("div", "bar", this.#fill);
  #connection = make("span", "connection");
  #state = make("span", "state");
  #stage = written("span", "stage");
  #message = written("span", "message");
  #count = written("span", "count");
  #left = make("span", "left");
  #error = written("p", "error");
  #link = make("a", "link");
  #outcome = make("p", "outcome");
  #head = make("div", "head", this.#label, this.#percent);

  constructor(element, ...more) {
    this.#line.role = "progressbar";
    this.#line.ariaValueMin = "0";
    this.#line.ariaValueMax = "100";
    this.#percent.ariaHidden = "true"; // the bar has it
    this.#outcome.role = "status"; // only what matters is announced: twenty talking bars help nobody
    this.#link.rel = "noopener noreferrer";
    this.#left.hidden = true;
    const detail = make("div", "detail", this.#connection, this.#state, this.#stage, this.#message);
    detail.append(this.#link, make("span", "numbers", this.#count, this.#left));
    shadowOf(element, BAR_CSS, this.#head, this.#line, detail, this.#error, this.#outcome, ...more);
  }

  /** Put a button at the end of the first line, and what there is to say of it below. */
  append(button, below) {
    this.#head.append(button);
    this.#error.after(below);
  }

  /** Take the focus, from something that goes. */
  focus() {
    if (this.#link.hidden) this.#line.tabIndex = -1;
    (this.#link.hidden ? this.#line : this.#link).focus({ preventScroll: true });
  }

  /** Say something aloud, politely. */
  announce(words) {
    this.#outcome.textContent = words;
  }

  /** Show how much time is left, in words. */
  showLeft(words) {
    this.#say(this.#left, words);
  }

  /** Show texts, all but `name` may be empty; `percent`, a number or null; `how`, what the parts are called in addition. */
  draw({ name, percent, inWords, how = "", moves = false, condition = "live", connection = "", state = "", ...more }) {
    const { stage = "", stageHow = "", message = "", error = "", count = "", url = null } = more;
    const parts = [how, condition === "live" ? "" : condition, moves ? "unknown" : ""].filter(Boolean);
    this.#part(this.#line, "bar", ...parts);
    this.#part(this.#fill, "fill", ...parts);
    this.#part(this.#connection, "connection", condition);
    this.#part(this.#state, "state", how);
    this.#part(this.#stage, "stage", stageHow);
    this.#say(this.#label, name);
    this.#say(this.#percent, inWords);
    this.#say(this.#connection, connection);
    this.#say(this.#state, state);
    this.#say(this.#stage, stage);
    this.#say(this.#message, message);
    this.#say(this.#count, count);
    this.#say(this.#error, error);
    this.#say(this.#link, url ? labels.open_result : "");
    if (url && this.#link.href !== url) this.#link.href = url;
    this.#link.ariaLabel = `${labels.open_result}: ${name}`;
    this.#fill.style.inlineSize = moves ? "" : `${percent ?? 0}%`;
    this.#line.ariaLabel = name;
    this.#line.ariaValueNow = percent === null ? null : String(whole(percent)); // null: not known yet
    this.#line.ariaValueText = [inWords || count, state, stage, connection].filter(Boolean).join(", ");
  }

  #say(element, text) {
    if (element.textContent !== text) element.textContent = text;
    element.hidden = !text;
  }

  #part(element, ...parts) {
    const all = parts.filter(Boolean).join(" ");
    if (element.getAttribute("part") !== all) element.setAttribute("part", all);
  }
}

/**
 * A button that asks the site to cancel a job: it posts `topic`, `grant` and Django's CSRF token to the element's
 * `cancel-url`. That it was asked does not mean that the job has ended, or will: what becomes of it, the bar shows.
 */
class CancelButton {
  #element;
  #bar;
  #button = make("button", "cancel");
  #answer = make("p", "answer");
  #asked = false;
  #request;

  constructor(element, bar) {
    this.#element = element;
    this.#bar = bar;
    this.#button.type = "button";
    this.#button.addEventListener("click", () => this.#asked || this.#ask());
    bar.append(this.#button, this.#answer);
  }

  show(possible, name) {
    possible &&= Boolean(this.#element.getAttribute("cancel-url")); // empty, it would be the page itself
    if (!possible) {
      if (this.#button.matches(":focus")) this.#bar.focus(); // or the next Tab would begin at the top of the page
      this.#request?.abort();
      this.#request = undefined;
      this.#asked = false;
      this.#say("");
    }
    this.#button.hidden = !possible;
    const word = this.#asked ? labels.cancelling : labels.cancel;
    if (this.#button.textContent !== word) this.#button.textContent = word;
    this.#button.ariaLabel = `${word}: ${name}`;
    // Not disabled: browsers take the focus from what is disabled.
    this.#button.ariaDisabled = String(this.#asked);
    this.#button.setAttribute("part", this.#asked ? "cancel asked" : "cancel");
  }

  async #ask() {
    const value = (name) => this.#element.getAttribute(name) ?? "";
    const form = { topic: value("topic"), grant: value("grant"), csrfmiddlewaretoken: value("csrf-token") };
    const request = (this.#request = new AbortController());
    const timer = setTimeout(() => request.abort(), CANCEL.timeout);
    this.#asked = true;
    this.#say("");
    this.#bar.announce("");
    this.#element._show();
    const status = await fetch(value("cancel-url"), {
      method: "POST",
      body: new URLSearchParams(form),
      mode: "same-origin",
      credentials: "same-origin",
      referrerPolicy: "same-origin", // Django wants to know from where
      redirect: "manual", // to a login page: status 0
      signal: request.signal,
    }).then(
      (answer) => (answer.ok ? "asked" : answer.status < 500 && answer.status !== 429 ? "cancel_refused" : "cancel_failed"),
      () => "cancel_failed", // unreachable, or too late
    );
    clearTimeout(timer);
    if (request !== this.#request || status === "asked") return;
    this.#asked = false;
    this.#say(labels[status]);
    this.#bar.announce(labels[status]);
    this.#element._show();
  }

  #say(words) {
    if (this.#answer.textContent !== words) this.#answer.textContent = words;
  }
}

/** What the bars have in common: a job that is known from attributes, messages and the `status-url`, and how it is shown. */
class JobElement extends HTMLElement {
  static own = ["state", ...NUMBERS, ...TEXTS]; // attributes that say how the job is

  #job; // what is shown
  #topic;
  #told; // whether anything is known about it
  #heard; // when the last message came, or the connection, as performance.now() counts
  #stalled = false;
  #due; // when it will have ended, by the last message
  #left; // seconds, as they were last told
  #refused = false;
  _bar = new Bar(this);
  #feed = new Feed({
    message: (message) => this.#receive(message),
    gap: () => this._tellGap(),
    error: () => this.#refuse(),
    live: () => this.#listen(),
    url: () => (ENDS.includes(this.#job.state) ? null : this.getAttribute("status-url")),
    state: (answer) => this.#become(this._changed(this.#job, answer), true, numberOf(answer.eta)),
    condition: () => this._show(),
    announce: (words) => this._bar.announce(words),
  });

  // For the elements below: `_topic()`, `_read(message, job)` with the next job or undefined, `_changed(job, given)`,
  // `_over(job)`, whether nothing more will come; `_words(job)`, `_tellChange(before)`, `_tellGap()`.

  /** Whether the job says every now and then that it is alive. */
  _beats = true;

  connectedCallback() {
    this.#watch();
  }

  disconnectedCallback() {
    this.#feed.stop();
    clock.delete(this);
    tellBatches();
  }

  attributeChangedCallback(name, before, now) {
    if (!this.#job || before === now) return; // not on the page yet
    if (name === "topic" || name === "upload" || name === "grant") this.#watch();
    else if (name === "label" || name === "cancel-url") this._show();
    else this.#become(this._changed(this.#job, { [name]: now }));
  }

  get _job() {
    return this.#job;
  }

  get _known() {
    return this.#told;
  }

  /** Whether there is nothing to see here, for this user. */
  get _refused() {
    return this.#refused;
  }

  get _stalled() {
    return this.#stalled;
  }

  get _name() {
    return this.getAttribute("label") || this._word;
  }

  _tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { bubbles: true, composed: true, detail }));
  }

  #watch() {
    this.#feed.stop();
    const topic = this._topic();
    if (!this.#job || this.#topic !== topic) this.#begin(topic); // the same one continues when it is moved
    this.#follow();
    this.#keepTime();
  }

  #begin(topic) {
    this.#topic = topic;
    this.#told = this.#refused = this.#stalled = false;
    this._bar.announce("");
    const known = this.constructor.own.filter((name) => this.hasAttribute(name));
    this._begin?.();
    this._cancel?.show(false, "");
    const job = this._changed(UNKNOWN, Object.fromEntries(known.map((name) => [name, this.getAttribute(name)])));
    this.#become(job, known.length > 0);
  }

  #follow() {
    if (!this.isConnected || !this.#topic || this._over(this.#job) || this.#feed.running) return;
    this.#heard = performance.now();
    this.#feed.start(this.#topic, { grant: this.getAttribute("grant"), since: this._since });
  }

  #receive(message) {
    const next = this._read(message, this.#job);
    if (!next) return;
    this.#refused = false;
    this.#heard = performance.now();
    if (this.#stalled) this._bar.announce("");
    this.#stalled = false;
    this.#become(next, true, next.eta);
  }

  /** Nothing is heard of the job from now on, however well it runs. */
  #refuse() {
    this.#refused = true;
    if (this.#stalled) this.#stall(false);
    this._show();
    this.#keepTime();
  }

  /** From now on it can be heard: time begins anew. What has stalled did nothing by that. */
  #listen() {
    this.#heard = performance.now();
    if (!this.#refused) return;
    this.#refused = false;
    this._show();
    this.#keepTime();
  }

  #become(next, told = true, eta = null) {
    const before = this.#told ? this.#job.state : null;
    const [was, is] = [this.#job?.state, next.state].map((state) => ENDS.includes(state));
    this.#told ||= told;
    this.#job = next;
    if (eta !== null || is) this.#due = is ? undefined : performance.now() + eta * 1000;
    else if (next.eta === null) this.#due = undefined;
    if (this.#due === undefined) this.#left = undefined;
    if (next.state !== "running") this.#stalled = false;
    if (was && !is) this._bar.announce(""); // it begins again
    this._show();
    const counted = next.state === "succeeded" && this.closest("batch-progress"); // which announces the end of all
    if (before !== null && before !== next.state && is && !counted) {
      this._bar.announce(`${this._name} – ${this._words(next).outcome}`);
    }
    if (!is) this.#follow();
    if (this._over(next)) this.#feed.stop();
    else this.#feed.resting = is && this._beats;
    this.#keepTime();
    this._tellChange(before);
  }

  // Time

  #keepTime() {
    const runs = this.isConnected && this.#job.state === "running" && this.#feed.running && !this.#refused;
    if (runs && (this.#due !== undefined || (this._beats && stale > 0))) clock.add(this);
    else clock.delete(this);
  }

  /** The page was frozen: nothing could be heard. */
  _wake(now) {
    this.#heard = now;
    this.#showLeft();
  }

  _tick(now) {
    const silent = this._beats && stale > 0 && this.#feed.live && now - this.#heard >= stale;
    if (silent && !this.#stalled) {
      this.#stall(true);
      this.#feed.doubt();
    }
    this.#showLeft();
  }

  #stall(stalled) {
    this.#stalled = stalled;
    this._bar.announce(stalled ? `${this._name} – ${labels.stalled}` : "");
    this._show();
    this._tellChange(this.#job.state);
  }

  #showLeft() {
    const runs = this.#job.state === "running" && !this.#stalled && !this.#refused && !this.#feed.words;
    const known = runs && this.#due !== undefined;
    if (!known) return this._bar.showLeft("");
    this.#left = roughly(Math.max(0, (this.#due - performance.now()) / 1000), this.#left);
    if (this.#left === 0) return this._bar.showLeft(labels.nearly_done);
    const { seconds, unit } = unitOf(this.#left);
    const time = formatOf(this, { style: "unit", unit, unitDisplay: "short" }).format(this.#left / seconds);
    this._bar.showLeft(filled(labels.time_left, { time }));
  }

  _show() {
    tellBatches();
    const job = this.#job;
    const { state, percent, done, total, unit } = job;
    const ended = ENDS.includes(state);
    const connection = ended ? "" : this.#feed.words;
    const condition = connection ? this.#feed.condition : "live";
    const stalled = this.#stalled && !connection;
    const how = stalled ? "stalled" : state === "running" ? "" : this._how(state);
    const words = this._words(job, stalled);
    const amounts = { unit, done: this.#inWords(done), total: this.#inWords(total) };
    const count = done === null ? "" : filled(total === null ? labels.count_only : labels.count_of, amounts);
    this._bar.draw({
      name: this._name,
      percent,
      inWords: percent === null ? "" : this.#inWords(whole(percent) / 100, { style: "percent", maximumFractionDigits: 0 }),
      how,
      moves: state === "running" && percent === null && !stalled && !connection && !this.#refused,
      condition,
      connection,
      ...words,
      ...(this.#refused && !ended && { state: "", stage: labels.forbidden }),
      message: job.message,
      error: ended ? job.error : "",
      count,
      url: ended ? webAddress(job.url) : null,
    });
    this._cancel?.show(!ended && !this.#refused, this._name);
    this.#showLeft();
  }

  #inWords(number, options = { maximumFractionDigits: 2 }) {
    return number === null ? "" : formatOf(this, options).format(number);
  }
}

/**
 * The progress of one job.
 *
 * Attributes: `topic`, such as `job:7`, `grant`, `label` (its name), and what the site knew when it rendered the page:
 * `state`, `percent`, `done`, `total`, `unit`, `stage`, `message`, `error`, `url`. They may be set later as well.
 * `status-url`: where the site answers with these, as JSON, while there is no connection. `cancel-url` and `csrf-token`:
 * where to post that the job is to be cancelled, and Django's token for that.
 *
 * Events, which bubble: `progress-change` with the state that is now shown, `progress-gap` when messages were missed for
 * good.
 */
export class TaskProgress extends JobElement {
  static observedAttributes = ["topic", "grant", "label", "cancel-url", ...JobElement.own];

  _since = "last"; // also of a kind that is no state
  _cancel = new CancelButton(this, this._bar);

  /** What is shown: `topic`, `stalled`, and what a message has; null and "" for what is not known. */
  get state() {
    return { topic: this._topic(), ...(this._job ?? UNKNOWN), stalled: this._stalled };
  }

  /** The attribute: frameworks set a property instead of an attribute where there is one of its name. */
  set state(word) {
    if (word === null || word === undefined) this.removeAttribute("state");
    else this.setAttribute("state", word);
  }

  get _word() {
    return labels.job;
  }

  _topic() {
    return this.getAttribute("topic");
  }

  _read({ action, payload }, job) {
    return action === "progress" ? told(Object(payload), job) : undefined;
  }

  _changed(job, given) {
    return changed(job, given);
  }

  /** What has succeeded when the page is rendered is over; what ends later may begin again. */
  _over() {
    return this.getAttribute("state") === "succeeded" && this._job.state === "succeeded";
  }

  _how(state) {
    return state;
  }

  _words({ state, stage }, stalled) {
    const word = stalled ? labels.stalled : labels[state];
    // What a job was doing is of interest unless it has done it.
    const shown = state === "succeeded" ? "" : stage;
    return { outcome: word, state: state === "running" && !stalled && stage ? "" : word, stage: shown };
  }

  _tellChange(before) {
    this._tell("progress-change", { ...this.state, label: this._name, before });
  }

  _tellGap() {
    this._tell("progress-gap", this.state);
  }
}

const STATE_OF = { pending: "waiting", completed: "succeeded", failed: "failed" };
const STATUS_OF = { waiting: "pending", succeeded: "completed" };

/**
 * The progress of one upload.
 *
 * Attributes: `upload` (its id), `grant`, `label` (its name), and what the site knew when it rendered the page: `status`,
 * `stage`, `percent`, `message`. They may be set later as well, for instance after an `upload-gap`. `status-url`: where
 * the site answers with these four, as JSON, while there is no connection.
 *
 * Events, which bubble: `upload-change` with the state that is now shown, `upload-gap` when messages were missed for
 * good, so that the page can ask its site.
 */
export class UploadProgress extends JobElement {
  static own = ["status", "stage", "percent", "message"];
  static observedAttributes = ["upload", "grant", "label", ...UploadProgress.own];

  _beats = false; // until there is a message that is not one about uploads
  #status = "pending";
  #over = false; // whether nothing more will come
  #before; // the status that was told last

  /** What is shown: `upload`, `status`, `stage`, `percent` (null while unknown) and `message`. */
  get state() {
    const { stage, percent, message } = this._job ?? UNKNOWN; // not on a page yet
    return { upload: this.getAttribute("upload"), status: this.#status, stage, percent, message };
  }

  get _word() {
    return labels.upload;
  }

  _topic() {
    const upload = this.getAttribute("upload");
    return upload && `upload:${upload}`;
  }

  _begin() {
    this._beats = false;
    this.#status = "pending";
    this.#over = false;
  }

  _read({ action, ...message }, job) {
    const { payload } = message;
    if (/^upload_/.test(action)) this._beats = false;
    switch (action) {
      case "progress": {
        this._beats = true;
        const next = told(Object(payload), job);
        this.#status = STATUS_OF[next.state] ?? next.state;
        this.#over = false; // it may begin again, as any job
        return next;
      }
      case "upload_progress": {
        const { status, stage, progress_percent, message: text, error_message } = payload ?? {};
        const next = this._changed(job, { status, stage, percent: progress_percent, message: error_message || text });
        this.#over = false; // the message that says so is still to come
        return next;
      }
      case "upload_completed":
        return this._changed(job, { status: "completed", stage: "completed", message: message.description });
      case "upload_failed":
        return this._changed(job, { status: "failed", stage: "failed", message: message.error_message });
    }
  }

  /** A newer state. Its texts replace the old ones; the percentage only grows. */
  _changed(job, { status, stage, percent, message }) {
    if (job === UNKNOWN) job = { ...job, stage: "queued" };
    if (typeof status === "string") this.#status = status;
    const state = Object.hasOwn(STATE_OF, this.#status) ? STATE_OF[this.#status] : "running";
    this.#over = ENDS.includes(state);
    const next = changed(job, { stage, percent, message, state });
    return { ...next, percent: next.percent === null ? null : Math.max(job.percent ?? 0, next.percent) };
  }

  /** Nothing more arrives after the `upload_` messages of an end, and a connection has a limited number of topics. */
  _over() {
    return this.#over;
  }

  _how(state) {
    return { succeeded: "completed", waiting: "" }[state] ?? state;
  }

  _words({ state, stage }, stalled) {
    const outcome = labels[this._how(state)];
    if (stalled) return { outcome, state: labels.stalled, stage: wordFor(stage) };
    return { outcome, stage: ENDS.includes(state) ? outcome : wordFor(stage) || labels[state], stageHow: state === "failed" ? "failed" : "" };
  }

  _tellChange(before) {
    const was = this.#before;
    this.#before = this.#status;
    this._tell("upload-change", { ...this.state, label: this._name, before: before === null ? null : was });
  }

  _tellGap() {
    this._tell("upload-gap", this.state);
  }
}

const batches = new Set(); // those on the page

function tellBatches() {
  for (const batch of batches) batch._look();
}

/** How many of many have ended, and how far all of them are. */
function summary(jobs) {
  const number = (state) => jobs.filter((job) => job.state === state).length;
  const [failed, cancelled] = [number("failed"), number("cancelled")];
  const known = jobs.map(({ state, percent }) => (ENDS.includes(state) ? 100 : percent));
  const percent = known.some((each) => each !== null) ? known.reduce((sum, each) => sum + each, 0) / jobs.length : null;
  return { total: jobs.length, done: number("succeeded") + failed + cancelled, failed, cancelled, percent, runs: number("running") > 0 };
}

/**
 * The progress of all bars in it, which may come and go at any time.
 *
 * Attributes: `label`, and `batch`, the id of a batch whose `batch_progress` messages it shows instead of its bars.
 */
export class BatchProgress extends HTMLElement {
  static observedAttributes = ["label", "batch"];

  #bar = new Bar(this, make("slot"));
  #sum = summary([]);
  #timer;
  #off;
  #open = false; // whether it was known before its end

  connectedCallback() {
    this.#off = connection.on("batch_progress", ({ payload }) => this.#receive(Object(payload)));
    batches.add(this);
    this.#show();
    this._look();
  }

  disconnectedCallback() {
    this.#off();
    batches.delete(this);
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  attributeChangedCallback(name, before) {
    if (!this.isConnected || !this.#off) return;
    if (name === "batch" && before !== this.getAttribute("batch")) {
      this.#sum = summary([]);
      this.#open = false;
    }
    this.#show();
    this._look();
  }

  /** Something has changed in one of the bars of the page. */
  _look() {
    if (!this.hasAttribute("batch")) this.#timer ??= setTimeout(() => this.#gather(), GATHER);
  }

  #gather() {
    this.#timer = undefined;
    const bars = [...this.querySelectorAll("task-progress, upload-progress")];
    const seen = bars.filter((bar) => bar._job && !bar._refused);
    const open = seen.some((bar) => bar._known && !ENDS.includes(bar._job.state));
    this.#sum = { ...summary(seen.map((bar) => bar._job)), open };
    this.#show();
  }

  #receive({ batch_id, status, total, processed, failed, progress_percentage }) {
    if (textOf(batch_id) !== this.getAttribute("batch")) return;
    const [all, done] = [numberOf(total) ?? 0, numberOf(processed) ?? 0];
    const over = ["completed", "failed", "cancelled"].includes(status);
    const percent = status === "completed" ? 100 : numberOf(progress_percentage);
    const cancelled = status === "cancelled" ? Math.max(0, all - done) : 0;
    this.#sum = { total: all, done, failed: numberOf(failed) ?? 0, cancelled, percent, runs: !over, over, open: !over };
    this.#show();
  }

  #show() {
    const { total, done, failed, cancelled, percent, runs, open, over = total > 0 && done === total } = this.#sum;
    const name = this.getAttribute("label") || labels.batch;
    const number = (n) => formatOf(this, { maximumFractionDigits: 2 }).format(n);
    const words = [filled(labels.batch_finished, { done: number(done), total: number(total) })];
    if (failed) words.push(filled(labels.batch_failed, { n: number(failed) }));
    if (cancelled) words.push(filled(labels.batch_cancelled, { n: number(cancelled) }));
    const state = total ? words.join(", ") : labels.waiting;
    const ended = failed ? "failed" : cancelled ? "cancelled" : "succeeded";
    const shown = percent === null ? null : Math.min(100, percent);
    this.#bar.draw({
      name,
      percent: shown,
      inWords: shown === null ? "" : formatOf(this, { style: "percent", maximumFractionDigits: 0 }).format(whole(shown) / 100),
      how: over ? ended : total ? "" : "waiting",
      moves: runs && shown === null,
      state,
    });
    if (over && this.#open) this.#bar.announce(`${name} – ${state}`);
    else if (!over) this.#bar.announce("");
    this.#open = !over && (this.#open || Boolean(open));
  }
}

const BAR_CSS = `
:host { display: block; position: relative; margin-block: 0.75em; font-variant-numeric: tabular-nums; }
[part="head"], [part="detail"] { display: flex; gap: 0 0.75em; }
[part="head"] { align-items: baseline; flex-wrap: wrap; } /* before the name is too narrow to be read */
[part="label"] { flex: 1 1 5.5rem; }
[part="detail"] { font-size: 0.875em; flex-wrap: wrap; }
[part="label"], [part="message"], [part~="stage"], [part="count"], [part="error"] {
  min-inline-size: 0; overflow-wrap: anywhere; text-align: -webkit-match-parent; text-align: match-parent;
}
[part~="state"], [part~="stage"], [part~="connection"] { font-weight: 600; }
[part~="connection"] { color: var(--warning); }
[part="numbers"] { display: flex; flex-wrap: wrap; gap: 0 0.75em; margin-inline-start: auto; }
[part="error"] { margin: 0; font-size: 0.875em; color: var(--error); }
[part="link"] { color: var(--accent); }
[part="answer"] { margin: 0; font-size: 0.875em; }
[part~="cancel"] {
  flex: none; min-block-size: 1.5rem; padding: 0 0.6em; border: 1px solid var(--line); border-radius: var(--radius);
  background: none; color: inherit; font: inherit; font-size: 0.875em; cursor: pointer;
}
[part~="cancel"]:hover { background: var(--line); }
[part~="cancel"][part~="asked"] { border-style: dashed; background: none; cursor: default; }
@media print { [part~="cancel"] { display: none; } }
[part~="bar"] {
  box-sizing: border-box;
  block-size: var(--notifications-bar-size, 0.5em);
  margin-block: 0.25em;
  border: 1px solid transparent;
  border-radius: var(--radius);
  background: var(--line);
  overflow: hidden;
  print-color-adjust: exact;
  -webkit-print-color-adjust: exact;
}
[part~="fill"] { block-size: 100%; border-radius: inherit; background: var(--color); transition: inline-size 0.25s; }
[part~="fill"], [part~="state"] { --color: var(--accent); }
[part~="completed"], [part~="succeeded"] { --color: var(--success); }
[part~="failed"] { --color: var(--error); }
[part~="stalled"] { --color: var(--warning); }
[part~="cancelled"], [part~="waiting"] { --color: color-mix(in srgb, currentColor 60%, transparent); }
[part~="fill"]:is([part~="connecting"], [part~="offline"], [part~="catching-up"]) { opacity: 0.5; }
[part~="fill"][part~="unknown"] { inline-size: 30%; margin-inline: auto; animation: move 1.2s ease-in-out infinite alternate; }
@keyframes move { from { transform: translateX(-117%); } to { transform: translateX(117%); } }
[part~="stage"][part~="failed"] { color: var(--error); }
/* A shape beside each word, so that nobody needs the colours. */
[part~="state"]:not([part="state"])::before {
  content: ""; display: inline-block; inline-size: 0.7em; block-size: 0.7em; margin-inline-end: 0.4em;
  background: var(--color); clip-path: var(--shape);
}
[part~="state"]:is([part~="failed"], [part~="stalled"], [part~="succeeded"]) { color: var(--color); }
[part~="state"] { --shape: circle(35%); }
[part~="succeeded"] { --shape: polygon(0 55%, 15% 40%, 38% 62%, 84% 12%, 100% 27%, 39% 92%); }
[part~="failed"] { --shape: polygon(20% 0, 50% 30%, 80% 0, 100% 20%, 70% 50%, 100% 80%, 80% 100%, 50% 70%, 20% 100%, 0 80%, 30% 50%, 0 20%); }
[part~="cancelled"] { --shape: inset(10%); }
[part~="stalled"] { --shape: polygon(50% 0, 100% 95%, 0 95%); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
[hidden] { display: none; }
@media (prefers-reduced-motion: reduce) { [part~="fill"] { transition: none; } }
@media print, (prefers-reduced-motion: reduce) {
  [part~="fill"][part~="unknown"] {
    inline-size: 100%; animation: none;
    background: repeating-linear-gradient(135deg, var(--color) 0 0.4em, transparent 0 0.8em);
  }
}
@media (forced-colors: active) {
  [part~="bar"] { border-color: CanvasText; background: Canvas; }
  [part~="fill"] { forced-color-adjust: none; --color: Highlight; }
  [part~="state"]:not([part="state"])::before { forced-color-adjust: none; background: CanvasText; }
}
`;
