// <notification-toasts> and <connection-status>: elements that show what arrives on the page's connection, and how the
// connection is; and what they share with those of progress.js.
//
// This module imports nothing and gets the connection from `define`: static file storages with hashed names would not
// find a file name written in here, and a second copy of the client would be a second connection.
// The contents of messages become text, never HTML, and an address becomes a link only if it is that of a web page.

/** The words on the page; `define` replaces them. */
const labels = {
  job: "Job",
  waiting: "Waiting",
  running: "Running",
  stalled: "Stalled",
  succeeded: "Completed",
  cancelled: "Cancelled",
  count_of: "{done} of {total} {unit}",
  count_only: "{done} {unit}",
  time_left: "about {time} left",
  nearly_done: "a few seconds left",
  open_result: "Open",
  batch: "All together",
  batch_finished: "{done} of {total} finished",
  batch_failed: "{n} failed",
  batch_cancelled: "{n} cancelled",
  cancel: "Cancel",
  cancelling: "Cancelling…",
  cancel_refused: "The site refused: reload the page and try again",
  cancel_failed: "The site did not answer: try again",
  upload: "Upload",
  queued: "Waiting",
  extracting_frames: "Extracting frames",
  vision_analysis: "Analysing the images",
  description_audit: "Checking the description",
  embedding_generation: "Preparing the search",
  indexing: "Indexing",
  completed: "Completed",
  failed: "Failed",
  forbidden: "Not available",
  notices: "Notices",
  close: "Close",
  more: "{n} more",
  fewer: "Show fewer",
  info: "Information",
  success: "Success",
  warning: "Warning",
  error: "Error",
  connection: "Connection",
  connecting: "Connecting",
  offline: "Offline",
  catching_up: "Catching up",
  connected: "Connected",
  next_attempt: "Next attempt in {n} s",
  try_now: "Try now",
  reload_page: "Reload the page",
  over_stream: "Connected over HTTP",
  over_poll: "Connected over HTTP, with some delay",
  session_ended: "Your session has ended",
  other_user: "Another user has logged in",
  connection_refused: "The site has refused the connection",
  disconnected: "Disconnected",
};
const LEVELS = ["info", "success", "warning", "error"];
const MOMENT = 2000; // minimum time of a notice after a pause, in milliseconds
const CHECK = 1000;
const NARROW = "(max-width: 34rem), (max-height: 30rem)"; // a window so small that notices would cover too much
const FEW = [3, 2]; // notices shown there: up to the first number, or if there are more, the newest of them
const SEEN = 4000; // milliseconds on the screen after which a notice is not owed to the next page
const SHOWN = 100; // ids that a browser remembers: as many as a topic's history has, unless the site says otherwise
const LEAVING = 1000; // milliseconds for which a page may still exist after the next one has begun
const WAITING = 60_000; // milliseconds for which a notice that came to a page without the element waits for one with it
const CARRIED = { notices: 20, characters: 2000, topics: 100 }; // maximum that is kept for the next page
const LASTING = 2000; // milliseconds for which trouble lasts before it is shown
const READABLE = 1000; // minimum time for which it is shown then
const AGAIN = { within: 60_000, longest: 30_000 }; // milliseconds: trouble that comes back has to last twice as long
const FINISHED = ["completed", "failed"];
const MET = ["seen", "read", "archived"]; // changes of a kept notice after which nobody needs to be shown it

let connection;
let memory; // of the tab; none without a user
let browser; // what this browser has shown; none without a user
let began; // when this page was asked for, seen if it had been prerendered, or taken out of the browser's cache
let carrier; // the <notification-toasts> whose notices are kept for the next page
const connected = new Set(); // all of them
let owner; // the page's user
const owners = new EventTarget(); // dispatches "change" when the user changes

/**
 * Make the elements work on this connection; call it once per page.
 *
 * @param {import("./client.js").Notifications} given
 * @param {Record<string, string>} [texts] words in the language of the page, instead of the English ones
 * @param {{user?: string, url?: string}} [whose] topic of the page's user, and URL of the connection: notices that are
 *   shown when the page is left move on to the next page of the same tab and user
 * @returns what the elements of progress.js and inbox.js share with these
 */
export function define(given, texts = {}, { user, url = "/ws/notifications/" } = {}) {
  connection = given;
  began = performance.timeOrigin + (performance.getEntriesByType("navigation")[0]?.activationStart ?? 0);
  Object.assign(labels, texts);
  keepFor({ user, url });
  connection.on("notice", (message) => connected.size || memory?.keep(message));
  connection.on("inbox", ({ payload }) => MET.includes(payload?.change) && memory?.dismiss(payload));
  connection.addEventListener("state", ({ detail: { state, code } }) => {
    if (state === "closed" && code !== 1000) memory?.forget(); // logged out, or another user has logged in
  });
  standing.enter({ state: connection.state, seconds: 0 });
  connection.addEventListener("state", ({ detail }) => standing.enter(detail));
  customElements.define("notification-toasts", NotificationToasts);
  customElements.define("connection-status", ConnectionStatus);
  const about = { connection, labels, standing, owners, ownerOf: () => owner };
  const values = { BARS, Steady, LEVELS, textOf, wordFor, wordForCondition, webAddress, follows, concerns };
  const drawing = { make, written, shadowOf, whenFollowed, LEVEL_CSS };
  return { ...about, ...values, ...drawing, hasToasts: () => connected.size > 0, dismissToasts };
}

/** Set the user whose notices are kept for the next page of the tab: another user has logged in, without a new page. */
export function keepFor({ user, url = "/ws/notifications/" }) {
  if (owner === user) return;
  owner = user;
  memory?.leave();
  const keeps = user && window.top === window; // frames share the storage of the tab
  memory = keeps ? new TabMemory(user, url) : undefined;
  browser = keeps ? new BrowserMemory(user, url) : undefined;
  owners.dispatchEvent(new Event("change"));
}

/** Only text and numbers are shown: a message may come from any program. */
const textOf = (value) => (typeof value === "string" || Number.isFinite(value) ? String(value) : "");

/** The label for a stage or status of a message, or the value itself: sites have stages of their own. */
const wordFor = (name) => (Object.hasOwn(labels, name) ? labels[name] : textOf(name));

/** The address to use in a link, or null if it is not that of a web page. */
function webAddress(url) {
  if (typeof url !== "string" || url === "") return null;
  try {
    const { protocol, href } = new URL(url, document.baseURI);
    return protocol === "https:" || protocol === "http:" ? href : null;
  } catch {
    return null;
  }
}

/** A node and all its ancestors on the screen, including slots and shadow hosts. */
function around(node) {
  const nodes = [];
  for (; node; node = node.assignedSlot ?? node.parentNode ?? node.host) nodes.push(node);
  return nodes;
}

/** The element that has the focus, in any shadow root. */
function focusedElement() {
  let element = document.activeElement;
  while (element?.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
  return element;
}

function make(name, part, ...children) {
  const element = document.createElement(name);
  if (part) element.setAttribute("part", part);
  element.append(...children);
  return element;
}

/** An element for text written by others, in any script: its full stop stays at its own end. */
const written = (name, part, text = "") => Object.assign(make(name, part, text), { dir: "auto" });

/** Have a function called when a link is followed, here or in another tab. */
function whenFollowed(link, act) {
  link.addEventListener("click", act);
  link.addEventListener("auxclick", ({ button }) => button === 1 && act());
}

/** Say that the link of a kept notice is followed: the list marks it as read. */
function tellFollowed(element, id) {
  element.dispatchEvent(new CustomEvent("notice-follow", { bubbles: true, composed: true, detail: { id } }));
}

/** A shadow root styled by a constructed sheet, because a strict CSP allows no <style>. */
function shadowOf(element, css, ...children) {
  const root = element.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(COMMON_CSS + css);
  root.adoptedStyleSheets = [sheet];
  root.append(...children);
}

/** Whether an id is newer than `last`. Epochs are equal or not: they have no order. */
function follows(id, last) {
  const [[epoch, n], [lastEpoch, lastN]] = [id, last].map((each) => String(each).split("-"));
  return epoch !== lastEpoch || Number(n) > Number(lastN);
}

/** Whether a change of kept notices, which names some of them or all up to one, is about this one. */
const concerns = ({ ids, until }, id) =>
  Boolean(id) && (Array.isArray(ids) ? ids.map(String).includes(id) : Number(id) <= Number(until ?? NaN));

/** What is shown of a notice. Its address is resolved, because the next page may be elsewhere. */
function noticeOf({ level, title, body, url }, kept) {
  level = LEVELS.includes(level) ? level : "info";
  return { level, title: textOf(title), body: textOf(body), url: webAddress(url), kept: textOf(kept) };
}

/** A notice as it is stored. */
function stored(notice) {
  const short = (text) => text.slice(0, CARRIED.characters);
  return { ...notice, title: short(notice.title), body: short(notice.body) };
}

/** Remove notices that the site keeps, because their user has met them elsewhere: of these ids, or up to one. */
function dismissToasts(which) {
  memory?.dismiss(which);
  for (const each of connected) each._dismissKept(which);
}

/**
 * What is kept for the next page of this tab: the notices that are shown, and the id of the last notice of each topic.
 * A page without the element keeps those that come, with the time `at` which they did, and not for long.
 *
 * It is in sessionStorage and written on each change, because Firefox loses what a page writes while it is being left. A
 * window that a page opens, and a duplicated tab, begin with a copy: a page that finds something there asks the other
 * pages whether one of them still has it. The previous page may answer just before it is left; then it takes that back.
 */
class TabMemory {
  user; // whose notices they are
  #name;
  #page = Math.random().toString(36).slice(2);
  #tab; // identifies the owner of the notices, which is one page after the other
  #channel; // while the page is shown
  #asked; // the page that was told that this one has them

  constructor(user, url) {
    this.user = user;
    this.#name = `notifications toasts ${url}`;
    this.#expire();
  }

  /** What is stored for this user: what is another's is overwritten by the first change. */
  #read() {
    let found;
    try {
      found = JSON.parse(sessionStorage.getItem(this.#name));
    } catch {
      // None, or not allowed.
    }
    const { tab = this.#page, at, last, notices } = found?.user === this.user ? found : {};
    const ids = Object.entries(Object(last)).filter(([, id]) => typeof id === "string");
    return { tab, at, last: ids, notices: Array.isArray(notices) ? notices : [] };
  }

  #write(tab, last, notices) {
    const newest = Object.fromEntries([...last].slice(-CARRIED.topics));
    const all = { user: this.user, tab, at: Date.now(), last: newest, notices: notices.slice(-CARRIED.notices) };
    try {
      sessionStorage.setItem(this.#name, JSON.stringify(all));
    } catch {
      // Not allowed, or full.
    }
  }

  /** Keep a notice that this page has no element for, unless it is one that has come back, and another has shown it. */
  keep({ _meta: { topic, id } = {}, inbox, ...message }) {
    const { tab, last, notices } = this.#read();
    const ids = new Map(last);
    if (id && ids.has(topic) && !follows(id, ids.get(topic))) return;
    if (id) ids.set(topic, id);
    const waits = { id: id && `${topic} ${id}`, left: null, shown: 0, at: Date.now() };
    this.#write(tab, ids, [...notices, { ...stored(noticeOf(message, inbox?.id)), ...waits }]);
    this.#expire();
  }

  /** Forget notices that wait, because their user has met them elsewhere: of these ids, or up to one. */
  dismiss(which) {
    this.#drop(({ kept }) => concerns(which, kept));
  }

  #expire() {
    const drop = () => this.#drop(({ at }) => Date.now() - at >= WAITING);
    drop();
    setTimeout(drop, WAITING + CHECK);
  }

  #drop(which) {
    const { tab, last, notices } = this.#read();
    const rest = notices.filter((notice) => !(notice?.at && which(notice)));
    if (rest.length < notices.length) this.#write(tab, last, rest);
  }

  /** Read what the previous page has left. `show` is called with whether it may be shown, if that changes. */
  recall(show) {
    const { tab, at, last, notices } = this.#read();
    this.leave(); // if this page has had another element
    this.#tab = tab;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data: { ask, page, to, has } }) => {
      if (ask === this.#tab) {
        this.#asked = { page, at: performance.now() };
        this.#channel.postMessage({ to: page, has: true });
      } else if (to === this.#page) {
        this.#tab = has ? this.#page : tab;
        show(!has);
      }
    };
    if (notices.length) this.#channel.postMessage({ ask: this.#tab, page: this.#page });
    const gone = Math.max(0, Date.now() - at) || 0;
    // One that was hardly seen waits for the next page, however long that takes. The time of the others goes on meanwhile,
    // and they do not come for less than a moment.
    const passed = (notice) => (notice?.runs || notice?.shown >= SEEN ? gone : 0);
    const left = (notice) => (notice?.left === null ? Infinity : notice?.left - passed(notice));
    const there = notices
      .map((notice) => ({ ...notice, left: left(notice) }))
      .filter((notice) => notice.left > (notice.shown >= SEEN ? MOMENT : 0));
    return { notices: there.slice(-CARRIED.notices), last };
  }

  remember(toasts, last) {
    if (!this.#channel) return;
    const notices = toasts.map(({ notice, id, left, since, shown }) => {
      const gone = since === undefined ? 0 : performance.now() - since;
      return { ...stored(notice), id, left: left - gone, shown: shown + gone, runs: since !== undefined };
    });
    this.#write(this.#tab, last, notices);
  }

  /** The page is being left: nothing that happens from here on is for the next one. */
  leave() {
    const { page, at } = this.#asked ?? {};
    if (performance.now() - at < LEAVING) this.#channel?.postMessage({ to: page, has: false });
    this.#channel?.close();
    this.#channel = undefined;
  }

  forget() {
    this.leave();
    try {
      sessionStorage.removeItem(this.#name);
    } catch {
      // Not allowed.
    }
  }
}

// How the connection is: "live", "connecting" for the first time, "offline", "catching-up" (it is open again, and the
// server has not answered for the topic yet), or "closed" for good.

/**
 * A condition without flicker: trouble is told when it has lasted, and whatever is told stays long enough to be read. On a
 * line that comes and goes it has to last longer each time, so that nobody is told of it every few seconds.
 */
class Steady {
  shown = "live";
  #now = "live";
  #began; // the trouble
  #told; // what is shown
  #lasting = LASTING;
  #timer;
  #tell;

  constructor(tell) {
    this.#tell = tell;
  }

  set(condition) {
    if (condition === this.#now) return;
    if (this.#now === "live") this.#begin();
    this.#now = condition;
    this.#settle();
  }

  #begin() {
    this.#began = performance.now();
    if (!(this.#began - this.#told < AGAIN.within)) this.#lasting = LASTING;
  }

  #settle() {
    clearTimeout(this.#timer);
    if (this.#now === this.shown) return;
    const lasting = this.#now === "closed" ? LASTING : this.#lasting;
    const at = this.shown === "live" ? this.#began + lasting : this.#told + READABLE;
    const wait = at - performance.now();
    if (wait > 0) return void (this.#timer = setTimeout(() => this.#settle(), wait));
    this.#told = performance.now();
    this.shown = this.#now;
    if (this.shown === "live") this.#lasting = Math.min(2 * this.#lasting, AGAIN.longest);
    this.#tell(this.shown);
  }
}

const BARS = 2;

/**
 * How the page's connection is, for all elements; "network" is dispatched when it changes.
 *
 * One element tells the page's users: the first <connection-status>, or else the first <notification-toasts>, or else a
 * bar, which only has it announced. A screen reader with twenty bars hears one word.
 */
class Standing extends EventTarget {
  network = "connecting";
  closed; // why, as a label
  nextAttempt; // when, as performance.now() counts; undefined during an attempt
  #behind = new Set(); // the feeds that were live before the connection was lost, and are not yet again
  #steady = new Steady(() => this.#tell(true));
  #troubled = false; // whether there was anything to tell
  #tellers = [new Set(), new Set(), new Set()];

  enter({ state, code, reason, seconds }) {
    const before = this.network;
    this.nextAttempt = seconds === undefined ? undefined : performance.now() + seconds * 1000;
    // A page that the browser puts away is seen by nobody.
    if (state === "open" || (state === "waiting" && seconds === undefined)) this.network = "live";
    else if (state === "closed") this.network = "closed";
    else this.network = state === "connecting" && /closed|connecting/.test(before) ? "connecting" : "offline";
    if (state === "closed") this.closed = wordForClose(code, reason);
    this.dispatchEvent(new Event("network"));
    this.#look();
  }

  /** Note whether a feed has to catch up. */
  note(feed, behind) {
    if (this.#behind.has(feed) === behind) return;
    if (behind) this.#behind.add(feed);
    else this.#behind.delete(feed);
    this.#look();
  }

  get shown() {
    return this.#steady.shown;
  }

  /** In words; empty as long as there was nothing to tell. */
  get words() {
    if (this.shown === "closed") return labels[this.closed];
    if (this.shown === "live") return this.#troubled ? labels.connected : "";
    return wordForCondition(this.shown);
  }

  /**
   * Have `tell` called with the words if this is the one that tells them, and with none if it is another: of 0, a
   * <connection-status>, 1, <notification-toasts>, or BARS. Returns a function that ends it.
   */
  enrol(rank, tell) {
    this.#tellers[rank].add(tell);
    if (rank < BARS) this.#tell();
    return () => {
      this.#tellers[rank].delete(tell);
      if (rank < BARS) this.#tell();
    };
  }

  #look() {
    this.#steady.set(this.network === "live" && this.#behind.size ? "catching-up" : this.network);
  }

  #tell(changed = false) {
    this.#troubled ||= this.shown !== "live";
    const [statuses, toasts, bars] = this.#tellers;
    const [first] = [...statuses, ...toasts];
    for (const tell of [...statuses, ...toasts]) tell(tell === first ? this.words : "");
    const [bar] = bars;
    if (changed && !first) bar?.(this.words); // which is not told again when the first bar leaves
  }
}

const standing = new Standing();

const wordForCondition = (condition) => labels[condition.replace("-", "_")];

/** The label for a close that is for good. */
function wordForClose(code, reason) {
  if (code === 1000 || code === undefined) return "disconnected"; // by the page
  if (code === 4001 || code === 4005) return "session_ended";
  return /another user/.test(reason) ? "other_user" : "connection_refused";
}

/**
 * Which notices this browser has shown to its user, in whatever tab.
 *
 * A page or fragment that comes from a cache begins at an old position, and receives again what was published since. What
 * was on the screen before the page was asked for is old. What another tab shows from then on is new here, too.
 */
class BrowserMemory {
  #user;
  #name;

  constructor(user, url) {
    this.#user = user;
    this.#name = `notifications shown ${url}`;
  }

  /** Return the ids of what was shown before a time, in milliseconds since 1970. */
  before(time) {
    return new Set(this.#read().flatMap(([id, at]) => (at < time ? [id] : [])));
  }

  add(ids) {
    const all = new Map(this.#read());
    const news = ids.filter((id) => !all.has(id));
    if (!news.length) return;
    for (const id of news) all.set(id, Date.now());
    try {
      localStorage.setItem(this.#name, JSON.stringify({ user: this.#user, shown: [...all].slice(-SHOWN) }));
    } catch {
      // Not allowed, or full.
    }
  }

  #read() {
    try {
      const { user, shown } = JSON.parse(localStorage.getItem(this.#name));
      return user === this.#user ? shown.filter(([, at]) => Number.isFinite(at)) : [];
    } catch {
      return []; // none, not allowed, or not ours
    }
  }
}

/**
 * The notices that reach this page, on whatever topic, and with the attribute `uploads` the outcomes of its uploads.
 *
 * Attributes: `timeout`, seconds that a notice stays (10; 0 means forever; errors always stay); `max`, how many are kept
 * (5). Time is paused while a notice is under the pointer, focused or touched, and while the tab is hidden. While a modal
 * dialog is open the element is in that dialog, because nothing outside it can be clicked or read out.
 */
export class NotificationToasts extends HTMLElement {
  // { notice, id, element, error, left, since, shown, noted, timer, carried }: topic and id of the message, milliseconds
  // that are left, when they began to run and those before that, whether the browser remembers it, whether it came from
  // the previous page. The oldest first.
  #toasts = [];
  #last = new Map(); // id of the last notice of each topic, the newest at the end
  #old = new Set(); // topics and ids of what this browser had shown before this page
  #stop;
  #before = null;
  #check; // timer that checks whether time still has to be paused
  #pointer = ""; // its type
  #finger = false; // whether a notice is being touched
  #home; // marks the element's place on the page while it is in a dialog
  #moving = false;
  #open = []; // modal dialogs and full-screen elements, in the order in which they were opened
  #sizes = new ResizeObserver(() => this.#place()); // theirs: one of them is displayed, or no longer
  #closed; // the topmost, if nothing can be put into it
  #connection = make("p", "connection"); // what is said about it, if nothing else on the page says it
  #errors = make("div", "errors");
  #others = make("div", "others");
  #more = make("button", "more");
  #list = make("div", "list", this.#errors, this.#others, this.#more);
  #narrow = globalThis.matchMedia?.(NARROW);
  #all = false; // whether all of them are to be shown there

  constructor() {
    super();
    this.#errors.ariaLive = "assertive";
    this.#others.ariaLive = "polite";
    this.#list.role = "region";
    this.#list.ariaLabel = labels.notices;
    shadowOf(this, TOASTS_CSS, this.#list);
    this.#more.type = "button";
    this.#more.hidden = true;
    this.#more.addEventListener("click", () => {
      this.#all = !this.#all;
      this.#fold(true);
      this.#resume();
    });
    const listen = (types, act) => types.forEach((type) => this.#list.addEventListener(type, act));
    listen(["keydown"], (event) => {
      const toast = this.#toasts.find(({ element }) => element.contains(event.target));
      if (event.key !== "Escape" || !toast) return;
      event.stopPropagation();
      event.preventDefault(); // a dialog behind it stays
      this.#dismiss(toast);
    });
    listen(["focusin"], ({ relatedTarget }) => {
      if (relatedTarget && relatedTarget !== this) this.#before = relatedTarget;
    });
    listen(["pointerenter", "pointerdown"], ({ type, pointerType }) => {
      this.#pointer = pointerType;
      this.#finger ||= type === "pointerdown" && pointerType !== "mouse";
    });
    listen(["pointerenter", "pointerdown", "focusin"], () => this.#pause());
    listen(["pointerleave", "focusout"], () => this.#resume());
    this.addEventListener("scroll", () => this.#pause());
  }

  connectedCallback() {
    if (this.#moving) return;
    connected.add(this);
    // A new one in place of one that is in a dialog, because what was replaced had only its place in it.
    queueMicrotask(() => connected.forEach((each) => each !== this && each.#homeless && each.remove()));
    if (this.#homeless) this.#home = undefined; // the page has been replaced, and has given it this place
    const page = new AbortController();
    const listen = (where, type, act, capture) => where.addEventListener(type, act, { signal: page.signal, capture });
    const leave = standing.enrol(1, (words) => this.#showConnection(words));
    const offs = [
      connection.on("notice", (message) => this.#receive(message)), // also those of topics that the site joins
      connection.on("inbox", ({ payload }) => MET.includes(payload?.change) && this._dismissKept(payload)),
    ];
    const lifted = () => {
      if (!this.#finger) return;
      this.#finger = false;
      this.#resume();
    };
    listen(document, "visibilitychange", () => (document.hidden ? this.#pause() : this.#resume()));
    listen(document, "upload-change", ({ detail }) => this.hasAttribute("uploads") && this.#uploadEnded(detail));
    // On the window, because the touched element may have been removed.
    for (const type of ["pointerup", "pointercancel"]) listen(window, type, lifted, true);
    if (this.#narrow) listen(this.#narrow, "change", () => this.#resume());
    // The focus is the only sign of dialogs in shadow roots.
    for (const type of ["fullscreenchange", "focusin", "focusout"]) listen(document, type, () => this.#place());
    // A popover that is opened lies over everything that was opened before it.
    const opened = ({ target, newState }) => target !== this && this.#place(newState === "open");
    listen(document, "toggle", opened, true);
    // htmx 2 stores a copy of the page for its back button: the element belongs to its own place there.
    listen(document, "htmx:beforeHistorySave", () => {
      if (this.#home) this.#goHome();
      queueMicrotask(() => this.#place());
    });
    // What is shown was for the previous user, when the page or the server names another one.
    listen(owners, "change", () => this.#startAnew());
    listen(connection, "state", ({ detail }) => detail.code === 4003 && this.#toasts.forEach((toast) => this.#remove(toast)));
    const dialogs = new MutationObserver(() => this.#place());
    dialogs.observe(document, { subtree: true, attributeFilter: ["open"] });
    this.#stop = () => {
      for (const off of offs) off();
      leave();
      page.abort();
      dialogs.disconnect();
      this.#sizes.disconnect();
    };
    for (const each of this.#open) this.#sizes.observe(each);
    if (memory) {
      listen(window, "pagehide", ({ persisted }) => this.#leave(persisted));
      listen(window, "pageshow", ({ persisted }) => {
        if (!persisted) return;
        began = Date.now();
        this.#recall();
      });
      if (carrier !== this) {
        this.#toasts.forEach((toast) => this.#remove(toast)); // another page has them
        if (!carrier?.isConnected) {
          carrier = this;
          this.#recall();
        }
      }
    }
    this.#place();
    this.#resume(); // the element may have been moved, notices and all
  }

  disconnectedCallback() {
    if (this.#moving) return;
    this.#stop?.();
    this.#pause();
    clearTimeout(this.#check);
    queueMicrotask(() => this.isConnected || this.#gone());
  }

  /** Go back if only the dialog was removed; otherwise another element, which has come already, takes the notices. */
  #gone() {
    if (this.#home) this.#goHome();
    if (this.isConnected) return;
    connected.delete(this);
    const [heir] = connected;
    if (!memory || !heir || carrier !== this) return;
    carrier = heir;
    heir.#recall();
  }

  /** Show a notice: `title`, and perhaps `level`, `body` and `url`. */
  show(notice) {
    this.#show(notice);
  }

  /** Remove notices of the list of kept ones, `ids` or all up to `until`. */
  _dismissKept(which) {
    this.#toasts.filter(({ notice }) => concerns(which, notice.kept)).forEach((toast) => this.#dismiss(toast, true));
  }

  #receive(message) {
    const { topic, id } = message._meta ?? {};
    if (id && !this.#note(topic, id)) return; // the previous page has shown it
    const name = id && `${topic} ${id}`;
    if (!this.#old.has(name)) this.#show(message, name);
  }

  /** Note a position in a topic, and return whether it is newer than the last one. */
  #note(topic, id) {
    const last = this.#last.get(topic);
    if (last !== undefined && !follows(id, last)) return false;
    this.#last.delete(topic);
    this.#last.set(topic, id);
    return true;
  }

  #show(message, id) {
    const notice = noticeOf(message, message.inbox?.id);
    // A page that shows the same notice each time it is opened shows it once.
    const same = (toast) => toast.carried && !toast.id && JSON.stringify(toast.notice) === JSON.stringify(notice);
    if (!id) this.#toasts.filter(same).forEach((toast) => this.#remove(toast));
    const toast = this.#make(notice, this.#timeFor(notice), id);
    this.#toasts.push(toast);
    this.#makeRoom();
    // Screen readers announce what is added to a region they know; this one has only just been moved into the dialog.
    if (this.#place()) setTimeout(() => this.#put(toast), 100);
    else this.#put(toast);
    this.#resume(0);
  }

  #make(notice, left, id) {
    const { level, title, body, url, kept } = notice;
    const heading = written(url ? "a" : "strong", "title", title);
    if (url) Object.assign(heading, { href: url, rel: "noopener noreferrer" });
    if (url && kept) whenFollowed(heading, () => tellFollowed(heading, kept));
    const icon = make("span", "icon");
    icon.ariaHidden = "true";
    const word = make("span", "level", `${wordFor(level)}: `);
    const close = make("button", "close", "×");
    close.type = "button";
    close.ariaLabel = labels.close;
    const text = make("div", "text", word, heading);
    if (body) text.append(written("p", "body", body));
    const element = make("div", `toast ${level}`, icon, text, close);
    const toast = { notice, id, element, error: level === "error", left, shown: 0 };
    close.addEventListener("click", ({ detail }) => this.#dismiss(toast, detail > 0));
    return toast;
  }

  #put(toast) {
    const at = this.#toasts.indexOf(toast);
    if (at < 0) return;
    const later = this.#toasts.slice(at + 1).find(({ error, element }) => error === toast.error && element.parentNode);
    if (later) later.element.before(toast.element);
    else (toast.error ? this.#errors : this.#others).append(toast.element);
    this.#fold();
    // If there are more than fit, the newest is in view; but nothing moves under the pointer.
    if (!this.#used()) toast.element.scrollIntoView({ block: "nearest" });
  }

  #showConnection(words) {
    const live = standing.shown === "live";
    this.#connection.setAttribute("part", live ? "connection unseen" : `connection ${standing.shown}`);
    if (this.#connection.textContent !== words) this.#connection.textContent = words;
    if (!words) this.#connection.remove();
    else if (!this.#connection.parentNode) this.#others.prepend(this.#connection); // which is announced
  }

  // From page to page

  /** Start again for another user. */
  #startAnew() {
    this.#toasts.forEach((toast) => this.#remove(toast));
    this.#last.clear();
    if (memory && carrier === this) this.#recall();
  }

  /** Show what the previous page has left in this tab. */
  #recall() {
    const { notices, last } = memory.recall((shown) => (shown ? this.#bring(taken) : (taken = this.#takeCarried())));
    let taken = [];
    this.#old = browser.before(began);
    for (const [topic, id] of last) this.#note(topic, id);
    const isOld = ({ id, at }) => id && (this.#toasts.some((toast) => toast.id === id) || (at && this.#old.has(id)));
    const news = notices.filter((notice) => !isOld(notice));
    this.#bring(
      news.map(({ kept, id, left, shown, at, ...rest }) => {
        const notice = noticeOf(rest, kept);
        left = at ? this.#timeFor(notice) : Math.max(left, Math.min(MOMENT, this.#lifetime));
        return Object.assign(this.#make(notice, left, id), { carried: true, shown: Number(shown) || 0 });
      }),
    );
  }

  #bring(carried) {
    this.#toasts = [...carried, ...this.#toasts];
    this.#makeRoom();
    for (const toast of carried) {
      toast.element.style.animation = "none"; // it has arrived before
      this.#put(toast);
    }
    this.#place();
    this.#resume(0);
  }

  #takeCarried() {
    this.#pause();
    const carried = this.#toasts.filter((toast) => toast.carried);
    carried.forEach((toast) => this.#remove(toast));
    this.#resume(0);
    return carried;
  }

  #leave(persisted) {
    this.#pause();
    if (carrier !== this) return;
    memory?.leave();
    // Back on this page, show what the other pages of the tab have left.
    if (persisted) this.#toasts.forEach((toast) => this.#remove(toast));
  }

  #save() {
    if (carrier === this) memory?.remember(this.#toasts, this.#last);
    if (document.hidden) return;
    const news = this.#toasts.filter(({ id, noted, element }) => id && !noted && !element.hidden);
    if (news.length) browser?.add(news.map((toast) => ((toast.noted = true), toast.id)));
  }

  #uploadEnded({ status, before, label, message }) {
    // Only uploads that end while the page is visible: one that is opened later shows them without a notice.
    if (before === null || before === status || !FINISHED.includes(status)) return;
    const level = status === "completed" ? "success" : "error";
    this.show({ level, title: `${label} – ${labels[status]}`, body: message });
  }

  #makeRoom() {
    const max = Math.max(1, Number.parseInt(this.getAttribute("max") ?? "5", 10) || 5);
    while (this.#toasts.length > max) {
      this.#remove(this.#toasts.slice(0, -1).find(({ error }) => !error) ?? this.#toasts[0]);
    }
  }

  /**
   * In a small window show the newest few, and the others behind a button; they come back when there is room, and their
   * time runs then. Nothing is collapsed under the pointer.
   */
  #fold(wanted = this.#toasts.length <= FEW[0] || !this.#used()) {
    if (!wanted) return;
    const narrow = this.#narrow?.matches && this.#toasts.length > FEW[0];
    if (!narrow) this.#all = false;
    const folded = narrow ? this.#toasts.length - FEW[1] : 0;
    this.#toasts.forEach((toast, n) => {
      const hidden = n < folded && !this.#all;
      if (toast.element.hidden && !hidden) toast.left = Math.max(toast.left, Math.min(MOMENT, this.#lifetime));
      toast.element.hidden = hidden;
    });
    this.#more.hidden = !folded;
    this.#more.ariaExpanded = String(this.#all);
    this.#more.textContent = this.#all ? labels.fewer : labels.more.replace("{n}", folded);
  }

  // Time

  /** Milliseconds that a notice stays, unless it is an error. */
  get #lifetime() {
    const seconds = Number.parseFloat(this.getAttribute("timeout") ?? "10");
    return seconds > 0 ? seconds * 1000 : Infinity;
  }

  #timeFor({ level }) {
    return level === "error" ? Infinity : this.#lifetime;
  }

  /** Whether the user is reading or using it. A tap leaves a `:hover` behind, which does not count. */
  #used() {
    const by = this.#pointer === "touch" ? ":focus-within" : ":hover, :focus-within";
    return this.#finger || this.#list.matches(by);
  }

  #held() {
    return document.hidden || this.#used();
  }

  #stand(toast) {
    if (toast.since === undefined) return;
    clearTimeout(toast.timer);
    const gone = performance.now() - toast.since;
    toast.left -= gone;
    toast.shown += gone;
    toast.since = undefined;
  }

  /** Pause time for as long as necessary. */
  #pause() {
    for (const toast of this.#toasts) this.#stand(toast);
    this.#fold();
    // Checked at intervals: a touch, or an element that was removed, sends no pointerleave.
    clearTimeout(this.#check);
    if (this.#toasts.some(({ left }) => left !== Infinity)) this.#check = setTimeout(() => this.#resume(), CHECK);
    this.#save();
  }

  /** Resume time, unless it has to stay paused. After reading one notice the user gets a moment for the others. */
  #resume(moment = MOMENT) {
    if (this.#held()) return this.#pause();
    clearTimeout(this.#check);
    this.#fold();
    for (const toast of this.#toasts) {
      if (toast.element.hidden) this.#stand(toast);
      if (toast.element.hidden || toast.since !== undefined || toast.left === Infinity) continue;
      toast.left = Math.max(toast.left, Math.min(moment, this.#lifetime));
      toast.since = performance.now();
      // Checked once more when the time is over: see above.
      toast.timer = setTimeout(() => (this.#held() ? this.#pause() : this.#over(toast)), toast.left);
    }
    this.#save();
  }

  #over(toast) {
    this.#remove(toast);
    this.#resume(0);
  }

  #remove(toast) {
    clearTimeout(toast.timer);
    this.#toasts = this.#toasts.filter((each) => each !== toast);
    toast.element.remove();
    this.#place();
    this.#save();
  }

  /**
   * Dismiss a notice, and leave the focus in a useful place: on the next notice with the keyboard, or where it was before
   * with a pointer; otherwise an invisible focus would pause the others.
   */
  #dismiss(toast, byPointer = false) {
    const seen = () => [...this.shadowRoot.querySelectorAll("[part~=toast]:not([hidden])")];
    const at = seen().indexOf(toast.element);
    const focused = toast.element.matches(":focus-within");
    this.#remove(toast);
    this.#fold(true);
    const next = byPointer ? undefined : (seen()[at] ?? seen().at(-1));
    if (focused) (next?.querySelector("[part=close]") ?? this.#before)?.focus({ preventScroll: byPointer });
    this.#resume();
  }

  // Place

  /**
   * Move to where notices can be seen and used: into the topmost modal dialog, or the full-screen element, because these
   * make everything outside them inert; without notices, or without these, back to the element's place on the page. Other
   * popovers, and dialogs that are opened as such, make nothing inert: the element goes in front of them where it is,
   * `again` if one of them has just been opened.
   *
   * Returns: whether the element has just been moved into one.
   */
  #place(again = false) {
    if (!this.isConnected || this.#moving) return false;
    const top = this.#toasts.length ? this.#topmost() : undefined;
    // A dialog in a shadow root is reached through its host: what is put into the host may be slotted into the dialog.
    if (top !== this.#closed) this.#closed = undefined;
    const spot = !this.#closed && around(top).find((node) => node.getRootNode() === document);
    const comes = spot && !around(this.#home ?? this).includes(top) && this.parentNode !== spot;
    if (comes) {
      this.#move(() => {
        if (!this.#home) this.replaceWith((this.#home = document.createComment("notification-toasts")));
        spot.append(this);
      });
    } else if (this.#home && this.parentNode !== spot) this.#goHome();
    this.#raise(Boolean(this.#home) || this.#covered(), again);
    if (!comes || this.getClientRects().length) return Boolean(comes);
    this.#closed = top; // a film, or a component without a slot
    this.#goHome();
    this.#raise(false);
    return false;
  }

  /**
   * Return the only element that is not inert, if it is displayed, or else the one below it: a script may display a dialog
   * later, or hide what it is in. Browsers do not tell in which order dialogs were opened.
   */
  #topmost() {
    const open = [...document.querySelectorAll("dialog:modal, :fullscreen")];
    const known = this.#open.filter((each) => each.matches("dialog:modal, :fullscreen"));
    const focused = around(focusedElement()).find((node) => node.matches?.("dialog:modal"));
    const news = open.filter((each) => !known.includes(each) && each !== focused);
    if (focused && !known.includes(focused)) news.push(focused);
    for (const each of news) this.#sizes.observe(each);
    for (const each of this.#open) if (!known.includes(each)) this.#sizes.unobserve(each);
    this.#open = [...known, ...news];
    return this.#open.findLast((each) => each.getClientRects().length);
  }

  get #homeless() {
    return Boolean(this.#home) && !this.#home.isConnected;
  }

  #goHome() {
    const home = this.#home;
    this.#home = undefined;
    this.#raise(false);
    if (this.isConnected && home.isConnected) this.#move(() => home.replaceWith(this));
    else if (home.parentNode) home.replaceWith(this); // also in a page that was replaced, for whoever shows it again
    else this.remove(); // as the page has done with its place
  }

  /** Move the element without treating it as removed from the page. */
  #move(act) {
    this.#moving = true;
    act();
    this.#moving = false;
  }

  /** Whether there are notices, and a popover that could lie over them. */
  #covered() {
    if (!this.#toasts.length || !this.showPopover) return false;
    // That of a bell is in its shadow root.
    return [...document.querySelectorAll(":popover-open, notification-bell[open]")].some((each) => each !== this);
  }

  /** Go to the top layer, in front of everything in it, or where the page's z-index says. */
  #raise(high, again) {
    if (!this.showPopover) return; // an old browser: within a dialog the element is visible all the same
    if (high) {
      this.popover = "manual";
      if (again) this.hidePopover();
      try {
        if (!this.matches(":popover-open")) this.showPopover();
      } catch {
        // Another one is being opened, which has the focus already; it says when it is open.
      }
    } else if (this.popover) this.popover = null;
  }
}

/**
 * For the page's corner: what is wrong with the connection, when the next attempt is, and a button that makes one now.
 *
 * Nothing is seen while messages come through a WebSocket; otherwise through what they come.
 */
export class ConnectionStatus extends HTMLElement {
  #text = make("span", "text");
  #detail = make("span", "detail");
  #button = make("button", "button");
  #box = make("div", "box", this.#text, this.#detail, this.#button);
  #stop;
  #tick;
  #before = null; // what had the focus before the button

  constructor() {
    super();
    this.#text.role = "status";
    this.#button.type = "button";
    this.#button.addEventListener("click", () => this.#act());
    this.#button.addEventListener("focus", ({ relatedTarget }) => (this.#before = relatedTarget));
    shadowOf(this, STATUS_CSS, this.#box);
  }

  connectedCallback() {
    const leave = standing.enrol(0, (words) => this.#show(words));
    const look = () => this.#showDetail();
    standing.addEventListener("network", look);
    this.#stop = () => {
      leave();
      standing.removeEventListener("network", look);
    };
    look();
  }

  disconnectedCallback() {
    this.#stop();
    clearInterval(this.#tick);
  }

  #show(words) {
    if (this.#text.textContent !== words) this.#text.textContent = words; // which is announced
    clearInterval(this.#tick);
    if (standing.shown === "offline") this.#tick = setInterval(() => this.#showCountdown(), 1000);
    this.#showDetail();
    if (standing.shown === "offline") this.#showCountdown();
  }

  #showDetail() {
    const { shown, closed } = standing;
    const transport = shown === "live" && connection.state === "open" && labels[`over_${connection.transport}`];
    const unseen = shown === "live" && !transport;
    this.#box.setAttribute("part", unseen ? "box live unseen" : `box ${shown}`);
    // An empty landmark would be one to skip.
    this.#box.role = unseen ? null : "region";
    this.#box.ariaLabel = unseen ? null : labels.connection;
    this.#text.setAttribute("part", shown === "live" ? "text unseen" : "text");
    if (shown !== "offline") this.#detail.textContent = transport || "";
    const action = shown === "offline" ? "try_now" : shown === "closed" && closed !== "disconnected" ? "reload_page" : "";
    if (!action && this.#button.matches(":focus")) this.#before?.focus({ preventScroll: true });
    this.#button.hidden = !action;
    this.#button.textContent = action && labels[action];
  }

  /** Once a second, and not with each attempt: one that fails at once would be a flicker. */
  #showCountdown() {
    const left = Math.ceil((standing.nextAttempt - performance.now()) / 1000);
    this.#detail.textContent = left > 0 ? labels.next_attempt.replace("{n}", left) : labels.connecting;
  }

  #act() {
    if (standing.shown === "closed") return location.reload();
    connection.retry();
    this.#showCountdown();
  }
}

const COMMON_CSS = `
:host {
  --accent: var(--notifications-accent, #3355dd);
  --success: var(--notifications-success, #16793f);
  --warning: var(--notifications-warning, #94610a);
  --error: var(--notifications-error, #b92c2c);
  --radius: var(--notifications-radius, 0.5rem);
  --line: var(--notifications-line, color-mix(in srgb, currentColor 20%, transparent));
  --surface: var(--notifications-surface, Canvas);
  box-sizing: border-box;
}
@supports (color: light-dark(red, red)) {
  :host {
    --accent: var(--notifications-accent, light-dark(#3355dd, #8ea6ff));
    --success: var(--notifications-success, light-dark(#16793f, #5fcf8d));
    --warning: var(--notifications-warning, light-dark(#94610a, #eab65a));
    --error: var(--notifications-error, light-dark(#b92c2c, #ff8a85));
  }
}
:host([hidden]) { display: none; }
[part~="outcome"], [part~="level"], [part~="unseen"] {
  position: absolute; inline-size: 1px; block-size: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
`;

/** How the level of a notice is drawn: its colour, and an `icon` in its shape. */
const LEVEL_CSS = `
[part~="info"] { --color: var(--accent); }
[part~="success"] { --color: var(--success); }
[part~="warning"] { --color: var(--warning); }
[part~="error"] { --color: var(--error); }
/* Drawn rather than written: no font, and no image that a policy would have to allow. */
[part="icon"] { position: relative; inline-size: 1.25em; block-size: 1.25em; margin-block-start: 0.1em; background: var(--color); }
[part="icon"]::before { content: ""; position: absolute; inset: 0; background: var(--surface); clip-path: var(--sign); }
[part~="info"], [part~="success"], [part~="warning"], [part~="error"] {
  --shape: circle(50%);
  --sign: polygon(43% 22%, 57% 22%, 57% 35%, 50% 35%, 50% 43%, 57% 43%, 57% 78%, 43% 78%, 43% 43%, 50% 43%, 50% 35%, 43% 35%);
}
[part~="success"] { --sign: polygon(21% 52%, 30% 43%, 43% 56%, 69% 28%, 79% 37%, 43% 75%); }
[part~="warning"], [part~="error"] {
  --shape: polygon(30% 0, 70% 0, 100% 30%, 100% 70%, 70% 100%, 30% 100%, 0 70%, 0 30%);
  --sign: polygon(43% 22%, 57% 22%, 57% 57%, 50% 57%, 50% 65%, 57% 65%, 57% 78%, 43% 78%, 43% 65%, 50% 65%, 50% 57%, 43% 57%);
}
[part~="warning"] {
  --shape: polygon(50% 3%, 100% 93%, 0 93%);
  --sign: polygon(44% 36%, 56% 36%, 56% 64%, 50% 64%, 50% 71%, 56% 71%, 56% 82%, 44% 82%, 44% 71%, 50% 71%, 50% 64%, 44% 64%);
}
[part="icon"] { clip-path: var(--shape); }
@media (forced-colors: active) { /* without backgrounds, the shapes tell the levels apart */
  [part="icon"] { forced-color-adjust: none; background: CanvasText; }
  [part="icon"]::before { background: Canvas; }
}
`;

const TOASTS_CSS = `${LEVEL_CSS}
:host {
  position: fixed;
  z-index: var(--notifications-z-index, 1000);
  inset-block: auto 0;
  inset-inline: auto 0;
  inline-size: min(24rem, 100%);
  block-size: auto; /* from here on, override the browser's own style for the top layer */
  margin: 0;
  border: 0;
  padding: 0;
  background: none;
  text-align: start;
  max-block-size: max(60vh, min(20rem, 100vh)); /* the page's own controls are mostly at its top */
  overflow: auto;
  scrollbar-width: none; /* it would take room on one side only, and cannot be dragged: see the next line */
  pointer-events: none;
  color: CanvasText;
}
@media (max-width: 34rem) { :host { inline-size: 100%; } }
@media print { :host { display: none; } }
[part="list"] { padding: 0.5rem 1rem 1rem; }
[hidden] { display: none !important; }
[part~="toast"] {
  position: relative;
  overflow: hidden;
  display: grid;
  grid-template-columns: auto minmax(0, 1fr) auto;
  gap: 0 0.75rem;
  align-items: start;
  margin-block-start: 0.5rem;
  scroll-margin-block: 0.5rem 1rem;
  padding-block: 0.75rem;
  padding-inline: 1rem 0.75rem;
  border: 1px solid var(--line);
  border-inline-start-color: var(--color);
  border-radius: var(--radius);
  background: var(--surface);
  box-shadow: 0 0.3rem 1.2rem rgb(0 0 0 / 20%);
  overflow-wrap: anywhere;
  pointer-events: auto;
  animation: arrive 0.25s;
}
[part~="toast"]::before { /* the stripe: a border of a different width would taper into the round corners */
  content: ""; position: absolute; inset-block: 0; inset-inline-start: 0; border-inline-start: 0.3rem solid var(--color);
}
[part~="connection"]:not([part~="unseen"]) {
  inline-size: fit-content; margin: 0.5rem 0 0; padding: 0.4rem 0.75rem; border: 1px solid var(--line); border-radius: var(--radius);
  background: var(--surface); box-shadow: 0 0.3rem 1.2rem rgb(0 0 0 / 20%);
}
[part~="connection"]::before {
  content: ""; display: inline-block; inline-size: 0.6em; block-size: 0.6em; margin-inline-end: 0.5em; border-radius: 50%;
  background: var(--warning); forced-color-adjust: none;
}
[part~="connection"][part~="closed"]::before { background: var(--error); }
[part="text"] { position: relative; }
[part="title"], [part="body"] {
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
  text-align: -webkit-match-parent; text-align: match-parent;
}
a[part="title"] { color: inherit; font-weight: 600; }
[part="body"] { -webkit-line-clamp: 6; margin: 0.25rem 0 0; font-size: 0.9em; }
[part="close"] {
  inline-size: 1.75rem; block-size: 1.75rem; margin-block: -0.2rem; padding: 0; border: 0; border-radius: var(--radius);
  background: none; color: inherit; font: inherit; cursor: pointer;
}
[part="close"]:hover { background: var(--line); }
[part="list"]:has(> [part="more"]:not([hidden])) [part~="toast"] { scroll-margin-block-end: 4rem; }
[part="more"] {
  position: sticky; inset-block-end: 0.5rem; display: block; inline-size: 100%; margin-block-start: 0.5rem; padding: 0.5rem; border: 1px solid var(--line);
  border-radius: var(--radius); background: var(--surface); color: inherit; font: inherit; font-size: 0.9em; cursor: pointer;
  box-shadow: 0 0.3rem 1.2rem rgb(0 0 0 / 20%); pointer-events: auto;
}
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@keyframes arrive { from { opacity: 0; transform: translateY(0.5rem); } }
@media (prefers-reduced-motion: reduce) { [part~="toast"] { animation: none; } }
`;

const STATUS_CSS = `
:host {
  position: fixed;
  z-index: var(--notifications-z-index, 1000);
  inset-block: auto 0;
  inset-inline: 0 auto;
  box-sizing: border-box;
  max-inline-size: calc(100% - 24rem); /* notices are opposite */
  padding: 1rem;
  pointer-events: none;
  color: CanvasText;
}
/* Where notices leave too little room beside them, or none. */
@media (max-width: 48rem) { :host { inset-block: 0 auto; max-inline-size: 100%; padding: 0.5rem; } }
@media print { :host { display: none; } }
[hidden] { display: none !important; }
[part~="box"]:not([part~="unseen"]) {
  display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 0.75rem; padding: 0.5rem 0.75rem;
  border: 1px solid var(--line); border-radius: var(--radius); background: var(--surface);
  box-shadow: 0 0.3rem 1.2rem rgb(0 0 0 / 20%); overflow-wrap: anywhere; pointer-events: auto; animation: arrive 0.25s;
}
[part~="box"]::before {
  content: ""; inline-size: 0.6em; block-size: 0.6em; border-radius: 50%; background: var(--color); forced-color-adjust: none;
}
[part~="box"] { --color: var(--warning); }
[part~="box"][part~="closed"] { --color: var(--error); }
[part~="box"][part~="live"] { --color: var(--accent); }
[part="text"] { font-weight: 600; }
[part="detail"] { font-size: 0.9em; font-variant-numeric: tabular-nums; }
[part="detail"]:empty { display: none; }
[part="button"] {
  padding: 0.25rem 0.75rem; border: 1px solid var(--accent); border-radius: var(--radius); background: none; color: var(--accent);
  font: inherit; font-size: 0.9em; cursor: pointer;
}
[part="button"]:hover { background: var(--line); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@keyframes arrive { from { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { [part~="box"] { animation: none !important; } }
`;
