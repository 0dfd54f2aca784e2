// <notification-bell> and <notification-inbox>: the notices that the site keeps for the user of the page, in a popover
// behind their number, or in the page itself.
//
// Like elements.js this module imports nothing; it gets from there what the elements of a page share, by way of start.js.
// The contents of messages and answers become text, never HTML, and an address becomes a link only if it is that of a
// web page. How many are unread is never counted here: the site counts, in messages and in answers.

/** The words on the page, besides those of elements.js; the labels that are given there replace these, too. */
const WORDS = {
  all_notices: "All notices",
  and_more: "and {n} more",
  archive: "Archive",
  load_failed: "The notices could not be loaded",
  loading: "Loading…",
  mark_all_read: "Mark all as read",
  mark_failed: "The site did not answer: try again",
  mark_read: "Mark as read",
  mark_refused: "The site refused: reload the page and try again",
  mark_unread: "Mark as unread",
  no_notices: "No notices",
  older: "Show older",
  try_again: "Try again",
  unread: "Unread",
  unread_count: "{n} unread",
};
const REQUEST = { timeout: 15_000, page: 20, most: 100 }; // milliseconds, notices in an answer, and ids or notices at most
const REFRESH = { spread: 5000, watched: 1000, first: 5000, longest: 60_000, old: 60_000 }; // milliseconds
const KEPT = 500; // notices in the list of a page that is open for days: older ones can be loaded again
const SEEN = 500; // milliseconds in which the list gathers what has been shown
const MOST = 99; // a larger number is "99+"
const CALM = { before: 2000, between: 30_000 }; // milliseconds: the number is announced when it rests, and rarely
const READ = 5000; // milliseconds in which one can hear what has come into an open list, before the next is announced
const TICK = 30_000; // milliseconds between two looks at the clock
const ROOM = 8; // pixels between the popover and the edge of the window
const FLAGS = { seen: { seen: true }, read: { seen: true, read: true }, unread: { read: false } };

// What elements.js shares: see its `define`.
let connection, labels, owners, ownerOf, LEVELS, textOf, wordFor, webAddress, follows, concerns;
let make, written, shadowOf, whenFollowed, LEVEL_CSS, hasToasts, dismissToasts;
let inbox; // of the page

/**
 * Make the bell and the list work; call it once per page. The tag `{% notification_bell %}` does it by itself.
 *
 * @param shared what `define` of elements.js has returned
 */
export function defineInbox(shared) {
  ({ connection, labels, owners, ownerOf, LEVELS, textOf, wordFor, webAddress, follows, concerns } = shared);
  ({ make, written, shadowOf, whenFollowed, LEVEL_CSS, hasToasts, dismissToasts } = shared);
  labels = { ...WORDS, ...labels };
  inbox = new Inbox(shared.told);
  customElements.define("notification-bell", NotificationBell);
  customElements.define("notification-inbox", NotificationInbox);
}

const filled = (label, n) => label.replace("{n}", n);

/** Whether an id is older than another: they are whole numbers, as text. */
const older = (id, other) => id.length - other.length < 0 || (id.length === other.length && id < other);

/** What is shown of a number of unread notices, in a language: "3", "99+". */
export function shownNumber(n, language) {
  const number = formatOf("NumberFormat", language).format(Math.min(n, MOST));
  return n > MOST ? `${number}+` : number;
}

const UNITS = [["year", 31_557_600], ["month", 2_629_800], ["week", 604_800], ["day", 86_400], ["hour", 3600], ["minute", 60]];

/** How long ago something was, as `[value, unit]` of Intl.RelativeTimeFormat; "now" for a minute, or by a clock that is behind. */
export function ago(seconds) {
  const [unit, length] = UNITS.find(([, length]) => seconds >= length) ?? [];
  return unit ? [-Math.floor(seconds / length), unit] : [0, "second"];
}

/** Notices in the order given, those of one group together at the place of its first: `[[notice, …], …]`. */
export function grouped(notices) {
  const groups = new Map();
  for (const notice of notices) {
    const name = notice.group ? `group ${notice.group}` : notice.id;
    groups.set(name, [...(groups.get(name) ?? []), notice]);
  }
  return [...groups.values()];
}

const formats = new Map();

/** A format of Intl in a language; these take long to make. */
function formatOf(kind, language, options) {
  const name = `${kind} ${language}`;
  if (!formats.has(name)) {
    let format;
    try {
      format = new Intl[kind](language || undefined, options);
    } catch {
      format = new Intl[kind](undefined, options); // a lang that is not a language
    }
    formats.set(name, format);
  }
  return formats.get(name);
}

/** The language around an element; in a shadow tree that of the page. */
const languageOf = (element) => (element.closest("[lang]") ?? document.documentElement).lang;

/** What is shown of a notice, from an answer or from a message. */
function noticeOf({ id, level, title, body, url, group, timestamp, seen = false, read = false, archived = false }) {
  level = LEVELS.includes(level) ? level : "info";
  const texts = { title: textOf(title), body: textOf(body), group: textOf(group) };
  return { id: textOf(id), level, ...texts, url: webAddress(url), timestamp: Date.parse(timestamp), seen, read, archived };
}

/** Ask the site; returns `{ answer }`, or `{ failure }`: "ended" (nobody is logged in), "refused", or "failed" for now. */
async function ask(url, options = {}, signal) {
  const wait = new AbortController();
  const timer = setTimeout(() => wait.abort(), REQUEST.timeout);
  signal?.addEventListener("abort", () => wait.abort());
  try {
    const answer = await fetch(url, {
      headers: { Accept: "application/json" },
      mode: "same-origin",
      credentials: "same-origin",
      referrerPolicy: "same-origin", // Django wants to know from where
      redirect: "manual", // to a login page
      cache: "no-cache",
      signal: wait.signal,
      ...options,
    });
    const isJson = /json/.test(answer.headers.get("Content-Type"));
    if (answer.type === "opaqueredirect" || answer.status === 401) return { failure: "ended" };
    if (answer.status === 403) return { failure: isJson ? "ended" : "refused" }; // what is wrong with the token is told as HTML
    if (answer.ok && isJson) return { answer: Object(await answer.json()) };
    return { failure: answer.ok || answer.status >= 500 || answer.status === 429 ? "failed" : "refused" };
  } catch {
    return { failure: "failed" }; // unreachable, too late, or no JSON
  } finally {
    clearTimeout(timer);
  }
}

/**
 * What the page knows of its user's notices, for all elements: how many are unread, and once a list has been shown, the
 * list. "change" is dispatched when something changes, "news" with a notice that has come.
 *
 * The number is that of the newest message, or of an answer during whose request no message came: both are counted by the
 * site, a message after its change, so the last of them is right. A message from before the position at which the page
 * was rendered is older than what the page says.
 */
class Inbox extends EventTarget {
  unread = null; // null: not known
  notices = []; // of the list, the newest first
  next = null; // the id before which there are more
  state = "unknown"; // or "loading", "shown", "failed", "ended"
  problem = ""; // why the last change was not made: a label
  busy = false; // whether older ones are being loaded
  #told; // how far the page was told before this began
  #at; // position up to which the number is known to be right
  #messages = 0;
  #during = null; // what was said while the list is being loaded
  #elements = new Set(); // on the page, the newest at the end
  #adopted = new WeakMap(); // what each of them was rendered with
  #lists = new Set(); // those that somebody is looking at
  #request; // for the list
  #loadedAt;
  #doubted = false;
  #spread = 0; // milliseconds in which it is asked
  #delay = REFRESH.first;
  #timer;
  #seeing;
  #waiting = []; // changes: one is made after the other
  #changing = false;
  #session = 0; // another number when the page has become another user's, or nobody's

  constructor(told = { id: null }) {
    super();
    this.#told = told;
    this.#at = told.id;
    connection.on("notice", (message) => message.inbox && this.#receive(message));
    connection.on("inbox", (message) => this.#receive(message));
    const subscribed = () => this.#doubted && this.#timer === undefined && this.#schedule();
    connection.onUser(() => {}, { gap: () => this.#miss(), subscribed });
    connection.addEventListener("state", ({ detail: { state, code, reason } }) => {
      if (state === "closed" && (code === 4001 || code === 4005 || /another user/.test(reason))) this.#end();
      else if (state === "open" && this.state === "ended") this.#begin();
    });
    owners.addEventListener("change", () => this.#begin());
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      this.#spread = 0;
      if (this.#doubted) this.#schedule();
      this.look();
    });
    addEventListener("pagehide", () => {
      for (const change of this.#waiting.splice(0)) this.#post(...change, true);
    });
    document.addEventListener("notice-follow", ({ detail: { id } }) => this.follow(id));
  }

  // The elements of the page

  join(element) {
    this.#elements.delete(element);
    this.#elements.add(element);
    if (this.state === "ended" && this.#owns(element) && connection.state !== "closed") this.state = "unknown";
    this.#adopt(element);
  }

  leave(element) {
    this.#elements.delete(element);
    this.unwatch(element);
  }

  /** Whether this element, of several, is the one that says what all of them know. */
  speaks(element) {
    return [...this.#elements].find((each) => each instanceof NotificationBell) === element;
  }

  /** An attribute of the newest element that is the user's. */
  attribute(name) {
    return [...this.#elements].filter((each) => this.#owns(each)).at(-1)?.getAttribute(name) ?? null;
  }

  #owns(element) {
    const user = element.getAttribute("user");
    return user === null || user === ownerOf();
  }

  /** Take the number that an element was rendered with, unless what is known here is newer. */
  #adopt(element) {
    const [since, unread] = ["since", "unread"].map((name) => element.getAttribute(name));
    const rendered = `${since} ${unread}`;
    if (!this.#owns(element) || unread === null || this.#adopted.get(element) === rendered) return;
    this.#adopted.set(element, rendered);
    const isFirst = this.unread === null;
    const isSure = Boolean(since && this.#at) && this.#leadsTo(since);
    if (isSure || isFirst) this.unread = Number(unread) || 0;
    if (isSure) this.#at = since;
    else if (isFirst || since?.split("-")[0] !== this.#at?.split("-")[0]) this.#doubt(since ? 0 : REFRESH.watched);
    this.#tell();
  }

  /** Whether the page is told of everything that comes after a position. */
  #leadsTo(since) {
    if (!follows(this.#at, since)) return true;
    const [[epoch, n], [sinceEpoch]] = [this.#at, since].map((id) => id.split("-").map(Number));
    return n === 0 && sinceEpoch >= epoch; // nothing had been published: each page is given the time instead
  }

  /** The page is another user's, or there is a session again. */
  #begin() {
    this.#forget();
    const elements = [...this.#elements];
    this.state = elements.length && !elements.some((each) => this.#owns(each)) ? "ended" : "unknown";
    this.#at = this.#told.id;
    this.#adopted = new WeakMap();
    for (const element of elements) this.#adopt(element);
    this.#tell();
    if (this.watched && this.state === "unknown") this.reload();
  }

  #end() {
    this.#forget();
    this.state = "ended";
    this.#tell();
  }

  #forget() {
    this.#request?.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#seeing);
    this.#request = this.#seeing = this.#timer = undefined;
    this.#during = this.unread = this.next = null;
    this.#doubted = this.busy = false;
    this.notices = [];
    this.#waiting = [];
    this.#session++;
    this.problem = "";
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }

  // What the site says

  #receive(message) {
    const { topic, id } = message._meta ?? {};
    if (this.state === "ended" || (topic && topic !== ownerOf())) return;
    if (id && this.#at && !follows(id, this.#at)) return; // the page was rendered, or asked, after that
    if (id) this.#at = id;
    this.#messages++;
    this.#during?.push(message);
    const before = this.unread;
    const { unread } = message.inbox ?? message.payload ?? {};
    if (Number.isInteger(unread) && unread >= 0) this.unread = unread;
    this.#apply(message);
    this.#tell();
    const detail = { more: before !== null && this.unread > before, notice: message.inbox && noticeOf(given(message)) };
    this.dispatchEvent(new CustomEvent("news", { detail }));
    // After all handlers of the message: the notice is in a list before the user's eyes, and need not be shown twice.
    if (message.inbox && this.watched) queueMicrotask(() => dismissToasts({ ids: [message.inbox.id] }));
    this.look();
  }

  #apply({ action, inbox: kept, payload, ...message }) {
    if (this.state !== "shown" && !this.#during) return;
    if (action === "notice") return this.#put(noticeOf(given({ ...message, inbox: kept })));
    const { change } = payload ?? {};
    if (change === "restored" && !this.#has(payload.ids)) this.#doubt();
    else if (change) this.#change(change, payload);
  }

  #put(notice) {
    if (!notice.id || this.notices.some(({ id }) => id === notice.id)) return;
    const at = this.notices.findIndex(({ id }) => older(id, notice.id));
    if (at < 0 && this.next !== null) return; // it comes with the older ones
    this.notices.splice(at < 0 ? this.notices.length : at, 0, notice);
    if (this.notices.length <= KEPT) return;
    this.notices.length = KEPT;
    this.next = this.notices.at(-1).id;
  }

  /** Whether the list has these, or they come with the older ones. */
  #has(ids) {
    const last = this.next === null ? null : this.notices.at(-1)?.id;
    return ids?.every((id) => this.notices.some((notice) => notice.id === id) || (last && older(id, last))) ?? false;
  }

  #change(change, which) {
    if (change === "archived") this.notices = this.notices.filter(({ id }) => !concerns(which, id));
    else for (const notice of this.notices) if (concerns(which, notice.id)) Object.assign(notice, FLAGS[change]);
  }

  // When it is not sure what the site has

  /** Messages are missing for good: every tab of the site may be told so in the same moment. */
  #miss() {
    this.#at = null;
    this.#doubt();
  }

  #doubt(spread = this.watched ? REFRESH.watched : REFRESH.spread) {
    this.#doubted = true;
    this.#spread = spread;
    this.#delay = REFRESH.first;
    if (connection.state === "open") this.#schedule();
  }

  #schedule(delay = this.#spread * Math.random()) {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (document.hidden || this.state === "ended") return; // asked when it is seen
    this.#timer = setTimeout(() => this.#refresh(), delay);
  }

  async #refresh() {
    this.#timer = undefined;
    if (document.hidden || !this.attribute("src")) return;
    const failure = this.state === "shown" ? await this.#load() : await this.#count();
    if (!failure || failure === "ended") return;
    this.#schedule(this.#delay * (0.5 + Math.random() / 2));
    this.#delay = Math.min(2 * this.#delay, REFRESH.longest);
  }

  /** Ask for the number alone. Returns why that failed, if it did. */
  async #count() {
    const [messages, session] = [this.#messages, this.#session];
    this.#doubted = false;
    const { answer, failure } = await ask(this.#url({ limit: 1 }));
    if (session !== this.#session) return undefined;
    if (failure) this.#fail(failure);
    else this.#takeNumber(answer, messages);
    return failure;
  }

  #fail(failure) {
    if (failure === "ended") this.#end();
    else this.#doubted = true;
  }

  #takeNumber({ unread }, messages) {
    if (messages !== this.#messages || !Number.isInteger(unread)) return; // a message is newer, or the next one will be
    this.unread = unread;
    this.#tell();
  }

  #url(query) {
    const url = new URL(this.attribute("src"), document.baseURI);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return url;
  }

  // The list

  /** Whether somebody is looking at a list. */
  get watched() {
    return this.#lists.size > 0 && !document.hidden;
  }

  watch(list) {
    const before = this.#lists.size;
    this.#lists.add(list);
    if (before === this.#lists.size) return;
    if (!before) this.problem = "";
    const old = performance.now() - this.#loadedAt > REFRESH.old || connection.state !== "open";
    if (this.state === "unknown" || this.state === "failed" || this.#doubted || old) this.reload();
    this.look();
  }

  unwatch(list) {
    this.#lists.delete(list);
  }

  /** Load the list, because somebody wants to see it. */
  reload() {
    if (this.state === "shown") this.#refresh(); // and again, if the site does not answer
    else if (this.state !== "ended") this.#load();
  }

  async #load() {
    if (!this.attribute("src")) return undefined;
    this.#request?.abort();
    const request = (this.#request = new AbortController());
    const messages = this.#messages;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#doubted = this.busy = false;
    this.#during = [];
    if (this.state !== "shown") this.state = "loading";
    this.#tell();
    const limit = Math.min(Math.max(this.notices.length, REQUEST.page), REQUEST.most);
    const { answer, failure } = await ask(this.#url({ limit }), {}, request.signal);
    if (request !== this.#request) return undefined;
    const said = this.#during;
    this.#during = this.#request = null;
    if (failure) {
      this.#fail(failure);
      if (this.state === "loading") this.state = "failed";
    } else {
      this.state = "shown";
      this.#loadedAt = performance.now();
      this.#take(answer, []);
      for (const message of said) this.#apply(message);
      this.#takeNumber(answer, messages);
    }
    this.#tell();
    this.look();
    return failure;
  }

  #take({ notices, next }, before) {
    const given = Array.isArray(notices) ? notices.map((each) => noticeOf(Object(each))) : [];
    const known = new Set(before.map(({ id }) => id));
    this.notices = [...before, ...given.filter(({ id }) => !known.has(id))];
    this.next = next === null || next === undefined ? null : textOf(next);
  }

  /** Load those before the oldest that is shown. */
  async loadOlder() {
    if (this.busy || this.next === null || this.state !== "shown") return;
    this.busy = true;
    this.problem = "";
    this.#tell();
    const [list, next] = [this.notices, this.next];
    const { answer, failure } = await ask(this.#url({ limit: REQUEST.page, before: next }));
    if (!this.busy || this.next !== next) return; // loaded anew meanwhile
    this.busy = false;
    if (failure) {
      this.#fail(failure);
      if (failure !== "ended") this.problem = "load_failed";
    } else {
      if (list !== this.notices) this.#doubt(0); // something was archived meanwhile, perhaps one of these
      this.#take(answer, this.notices);
    }
    this.#tell();
    this.look();
  }

  /** Tell the site what is before the user's eyes for the first time. */
  look() {
    if (!this.watched || this.#seeing || !this.notices.some(({ seen }) => !seen)) return;
    this.#seeing = setTimeout(() => {
      this.#seeing = undefined;
      if (!this.watched) return;
      const ids = this.notices.filter(({ seen }) => !seen).map(({ id }) => id);
      if (!ids.length) return;
      dismissToasts({ ids });
      this.mark("seen", { ids });
    }, SEEN);
  }

  // What the user does

  /** The link of a notice is followed: this page may be gone in a moment. */
  follow(id) {
    id = textOf(id);
    if (this.notices.find((notice) => notice.id === id)?.read) return;
    this.#post("read", { ids: [id] }, this.#anticipate("read", { ids: [id] }), true);
  }

  /** Change notices, `ids` or all up to `until`: "seen", "read", "unread" or "archived". One change is made after the other. */
  mark(change, { ids, until }) {
    const which = { ids: ids?.slice(0, REQUEST.most), until };
    this.#waiting.push([change, which, this.#anticipate(change, which)]);
    if (ids?.length > REQUEST.most) this.mark(change, { ids: ids.slice(REQUEST.most) });
    this.#makeChanges();
  }

  async #makeChanges() {
    if (this.#changing) return;
    this.#changing = true;
    while (this.#waiting.length) await this.#post(...this.#waiting.shift());
    this.#changing = false;
  }

  /** All that the list shows, and all before: what comes meanwhile stays unread. */
  markAllRead() {
    const [newest] = this.notices;
    if (newest) this.mark("read", { until: newest.id });
  }

  /** Show a change that the site has yet to make, and return what it was before. */
  #anticipate(change, which) {
    const before = this.notices.filter(({ id }) => concerns(which, id)).map((notice) => ({ ...notice }));
    this.#change(change, which);
    if (change !== "seen") this.problem = ""; // that is not the user's doing
    this.#tell();
    return before;
  }

  async #post(change, { ids, until }, before, leaving = false) {
    const url = this.attribute("mark-url");
    if (!url) return; // nobody's any more
    const form = new URLSearchParams({ change, csrfmiddlewaretoken: this.attribute("csrf-token") ?? "" });
    for (const id of ids ?? []) form.append("id", id);
    if (until) form.append("until", until);
    if (leaving && !("keepalive" in Request.prototype)) return void navigator.sendBeacon(url, form); // a message answers
    const [messages, session] = [this.#messages, this.#session];
    const { answer, failure } = await ask(url, { method: "POST", body: form, keepalive: true });
    if (session !== this.#session) return; // what was another user's is not put back
    if (!failure) return this.#takeNumber(answer, messages);
    if (failure === "ended") return this.#end();
    if (change === "seen") return; // it matters little
    this.problem = `mark_${failure}`;
    for (const notice of before) {
      const shown = this.notices.find(({ id }) => id === notice.id);
      if (shown) Object.assign(shown, notice);
      else if (change === "archived") this.#put(notice);
    }
    this.#doubt(0); // a message, or another change that was not made, may have been about these
    this.#tell();
  }
}

/** The notice in a message, as in an answer. */
const given = ({ inbox: kept, ...message }) => ({ ...message, id: kept.id, group: kept.group });

/** The list, drawn in the shadow root of an element. */
class NoticeList {
  element = make("div", "panel");
  #host;
  #rows = new Map(); // by what is written in them
  #open = new Set(); // groups of which all are shown
  #all = make("button", "all");
  #heading = make("strong", "heading", labels.notices);
  #status = make("p", "status");
  #again = make("button", "again");
  #list = make("ul", "list");
  #empty = make("p", "empty", labels.no_notices);
  #older = make("button", "older", labels.older);
  #page = make("a", "page", labels.all_notices);
  #foot = make("div", "foot", this.#older, this.#page);
  #said = ""; // of what came while the list is shown
  #unsaid = []; // what came since
  #hearing; // while that is read out
  #stop;
  #tick;
  #wanted; // the notice that gets the focus when it is there

  constructor(host) {
    this.#host = host;
    this.#status.role = "status";
    this.#list.role = "list"; // Safari forgets it where there are no bullets
    const head = make("div", "head", this.#heading, this.#all);
    this.element.append(head, this.#status, this.#again, this.#list, this.#empty, this.#foot);
    for (const button of [this.#all, this.#again, this.#older]) button.type = "button";
    this.#all.textContent = labels.mark_all_read;
    this.#all.addEventListener("click", () => {
      this.element.focus({ preventScroll: true }); // the button goes
      inbox.markAllRead();
    });
    this.#again.addEventListener("click", () => {
      if (inbox.state === "ended") return location.reload();
      this.element.focus({ preventScroll: true });
      inbox.reload();
    });
    this.#older.addEventListener("click", () => {
      this.#wanted = inbox.next;
      inbox.loadOlder();
    });
    this.element.addEventListener("keydown", (event) => this.#move(event));
    this.element.tabIndex = -1;
    this.element.ariaLabel = labels.notices;
  }

  start() {
    const draw = () => this.draw();
    const news = ({ detail: { notice } }) => notice && this.#announce(notice);
    inbox.addEventListener("change", draw);
    inbox.addEventListener("news", news);
    this.#tick = setInterval(() => document.hidden || this.draw(), TICK);
    this.#stop = () => {
      inbox.removeEventListener("change", draw);
      inbox.removeEventListener("news", news);
      clearInterval(this.#tick);
    };
    inbox.watch(this.#host);
    this.draw();
  }

  stop() {
    this.#stop?.();
    clearTimeout(this.#hearing);
    this.#stop = this.#hearing = undefined;
    this.#said = "";
    this.#unsaid = [];
    inbox.unwatch(this.#host);
  }

  get running() {
    return Boolean(this.#stop);
  }

  /** Have a notice that has come read out, and those that come in quick succession as one. */
  #announce(notice) {
    this.#unsaid.push(notice);
    if (this.#hearing === undefined) this.#sayNews();
  }

  #sayNews() {
    this.#hearing = undefined;
    const newest = this.#unsaid.at(-1);
    const words = newest ? [`${wordFor(newest.level)}: ${newest.title}`] : [];
    if (this.#unsaid.length > 1) words.push(filled(labels.and_more, this.#unsaid.length - 1));
    this.#said = words.join(", ");
    this.#unsaid = [];
    if (newest) this.#hearing = setTimeout(() => this.#sayNews(), READ);
    this.draw();
  }

  draw() {
    if (!this.running) return;
    const { state, notices, next, unread, problem, busy } = inbox;
    const trouble = { failed: labels.load_failed, ended: labels.session_ended }[state];
    const words = trouble ?? (problem ? labels[problem] : state === "shown" ? (busy ? labels.loading : "") : labels.loading);
    this.#say(this.#status, words || this.#said);
    this.#status.setAttribute("part", trouble || problem ? "status problem" : words ? "status" : "status unseen");
    this.#say(this.#again, state === "ended" ? labels.reload_page : labels.try_again);
    this.#show(this.#again, Boolean(trouble));
    this.#show(this.#all, state === "shown" && notices.length > 0 && unread !== 0);
    this.#show(this.#empty, state === "shown" && !notices.length);
    this.#show(this.#list, notices.length > 0);
    this.#show(this.#older, next !== null && state === "shown");
    const page = webAddress(inbox.attribute("page-url"));
    if (page) this.#page.href = page;
    this.#show(this.#page, Boolean(page));
    this.element.ariaBusy = String(state === "loading" || busy);
    this.#drawRows(notices);
  }

  #drawRows(notices) {
    const focused = this.#focusedRow();
    const at = focused ? [...this.#list.children].indexOf(focused) : -1;
    const shown = [];
    for (const group of grouped(notices)) {
      const [first] = group;
      const isOpen = group.length > 1 && this.#open.has(first.group);
      const members = isOpen ? group : [first];
      for (const notice of members) shown.push(this.#row(notice, isOpen || group.length === 1 ? [notice] : group));
      const last = shown.at(-1);
      last.showMore(group.length - 1, isOpen, () => this.#toggle(first.group));
    }
    const now = performance.now();
    for (const row of shown) row.drawnAt = now;
    for (const [id, row] of this.#rows) if (row.drawnAt !== now) this.#rows.delete(id);
    const elements = shown.map(({ element }) => element);
    const kept = new Set(elements);
    for (const child of [...this.#list.children]) if (!kept.has(child)) child.remove();
    elements.forEach((element, n) => {
      if (this.#list.children[n] !== element) this.#list.insertBefore(element, this.#list.children[n] ?? null);
    });
    this.#focusAfter(focused, at, elements);
  }

  #row(notice, group) {
    const { id, level, title, body, url } = notice;
    const text = JSON.stringify([id, level, title, body, url]);
    const row = this.#rows.get(text) ?? new Row(notice);
    this.#rows.set(text, row);
    row.draw(notice, group, this.#host);
    return row;
  }

  #toggle(group) {
    if (!this.#open.delete(group)) this.#open.add(group);
    this.draw();
  }

  #focusedRow() {
    return this.element.getRootNode().activeElement?.closest("li");
  }

  /** Where the focus goes when its row has gone, or when the older ones have come that were asked for. */
  #focusAfter(focused, at, elements) {
    if (focused && !focused.isConnected) this.#focusRow(elements[at] ?? elements.at(-1));
    if (this.#wanted === undefined || inbox.busy) return;
    const wanted = [...this.#rows.values()].find(({ notice }) => !older(this.#wanted, notice.id) && notice.id !== this.#wanted);
    this.#wanted = undefined;
    if (wanted) this.#focusRow(wanted.element);
  }

  #focusRow(element) {
    const target = element?.querySelector("a, button:not([hidden])");
    (target ?? this.element).focus();
  }

  /** The arrow keys go from notice to notice, Tab through what is in each. */
  #move(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const rows = [...this.#list.children];
    const at = rows.indexOf(this.#focusedRow());
    const to = { ArrowDown: at + 1, ArrowUp: Math.max(at - 1, 0), Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows.length) return;
    event.preventDefault();
    this.#focusRow(rows[Math.min(to, rows.length - 1)]);
  }

  #say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  #show(element, shown) {
    if (!shown && element.matches(":focus")) this.element.focus({ preventScroll: true });
    element.hidden = !shown;
  }
}

/** One notice of the list. */
class Row {
  notice;
  element = make("li");
  #group = []; // what its buttons are about: itself, or all that it stands for
  #mark = make("button", "mark");
  #archive = make("button", "archive", labels.archive);
  #more = make("button", "more");
  #time = written("time", "time"); // in the language of the browser, if that of the page is not one
  #unread = make("span", "level");
  #heading;

  constructor(notice) {
    const { id, level, title, body, url } = notice;
    this.#heading = written(url ? "a" : "strong", "title", title);
    if (url) {
      Object.assign(this.#heading, { href: url, rel: "noopener noreferrer" });
      whenFollowed(this.#heading, () => inbox.follow(id));
    }
    const icon = make("span", "icon");
    icon.ariaHidden = "true";
    const text = make("div", "text", this.#unread, make("span", "level", `${wordFor(level)}: `), this.#heading);
    if (body) text.append(written("p", "body", body));
    text.append(make("div", "actions", this.#time, this.#mark, this.#archive), this.#more);
    const dot = make("span", "dot");
    dot.ariaHidden = "true";
    this.element.append(icon, text, dot);
    for (const button of [this.#mark, this.#archive, this.#more]) button.type = "button";
    this.#more.hidden = true;
    this.#more.addEventListener("click", () => this.#toggle());
    this.#mark.addEventListener("click", () => this.#send(this.#isUnread ? "read" : "unread"));
    this.#archive.addEventListener("click", () => this.#send("archived"));
  }

  #toggle = () => {};

  get #isUnread() {
    return this.#group.some(({ read }) => !read);
  }

  #send(change) {
    const about = change === "read" ? this.#group.filter(({ read }) => !read) : change === "unread" ? [this.notice] : this.#group;
    inbox.mark(change, { ids: about.map(({ id }) => id) });
  }

  draw(notice, group, host) {
    this.notice = notice;
    this.#group = group;
    this.#more.hidden = true;
    const unread = this.#isUnread;
    const part = `notice ${notice.level}${unread ? " unread" : ""}`;
    if (this.element.getAttribute("part") !== part) this.element.setAttribute("part", part);
    const word = unread ? `${labels.unread}. ` : "";
    if (this.#unread.textContent !== word) this.#unread.textContent = word;
    const mark = unread ? labels.mark_read : labels.mark_unread;
    if (this.#mark.textContent !== mark) this.#mark.textContent = mark;
    const name = group.length > 1 ? `${notice.title}, ${filled(labels.and_more, group.length - 1)}` : notice.title;
    this.#mark.ariaLabel = `${mark}: ${name}`;
    this.#archive.ariaLabel = `${labels.archive}: ${name}`;
    this.#showTime(languageOf(host));
  }

  showMore(n, isOpen, toggle) {
    this.#toggle = toggle;
    this.#more.hidden = n < 1;
    this.#more.ariaExpanded = String(isOpen);
    const word = isOpen ? labels.fewer : filled(labels.and_more, n);
    if (this.#more.textContent !== word) this.#more.textContent = word;
  }

  #showTime(language) {
    const { timestamp } = this.notice;
    if (Number.isNaN(timestamp)) return;
    const words = formatOf("RelativeTimeFormat", language, { numeric: "auto" }).format(...ago((Date.now() - timestamp) / 1000));
    if (this.#time.textContent === words) return;
    this.#time.textContent = words;
    this.#time.dateTime = new Date(timestamp).toISOString();
    this.#time.title = formatOf("DateTimeFormat", language, { dateStyle: "long", timeStyle: "short" }).format(timestamp);
  }
}

/** What both elements do: they bring a number from the page, and show what the page knows. */
class InboxElement extends HTMLElement {
  static observedAttributes = ["unread", "since", "user", "src"];
  #joining = false;
  #draw = () => this._draw?.();

  connectedCallback() {
    inbox.addEventListener("change", this.#draw);
    this.#join();
  }

  disconnectedCallback() {
    inbox.removeEventListener("change", this.#draw);
    inbox.leave(this);
  }

  /** A library that changes a page in place sets one attribute after the other. */
  attributeChangedCallback(name, before, now) {
    if (!this.isConnected || before === now || this.#joining) return;
    this.#joining = true;
    queueMicrotask(() => this.isConnected && this.#join());
  }

  #join() {
    this.#joining = false;
    inbox.join(this);
  }
}

const SVG = "http://www.w3.org/2000/svg";

/** A bell, drawn so that no policy has to allow an image. */
function bell() {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", "M12 3a6 6 0 0 0-6 6c0 5-2 7-2 7h16s-2-2-2-7a6 6 0 0 0-6-6M10 20a2.2 2.2 0 0 0 4 0");
  const lines = { fill: "none", stroke: "currentColor", "stroke-width": "1.8", "stroke-linecap": "round" };
  for (const [name, value] of Object.entries({ ...lines, "stroke-linejoin": "round" })) path.setAttribute(name, value);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}

/** A button with the number of unread notices, which opens the list. */
export class NotificationBell extends InboxElement {
  #button = make("button", "button");
  #number = make("span", "number");
  #spoken = make("span", "unseen");
  #list = new NoticeList(this);
  #panel = this.#list.element;
  #layered = "popover" in HTMLElement.prototype; // otherwise it is positioned all the same
  #open;
  #calm;
  #said = -Infinity;
  #hadFocus = false; // the list, when it was closed
  #news = ({ detail: { more } }) => more && this.#announce();

  constructor() {
    super();
    const icon = make("slot", "", bell());
    icon.name = "icon";
    this.#number.ariaHidden = "true"; // the button's name has it
    this.#spoken.role = "status";
    this.#button.type = "button";
    this.#button.append(icon, this.#number);
    this.#button.ariaHasPopup = "dialog";
    this.#button.ariaExpanded = "false";
    this.#panel.setAttribute("part", "panel popover");
    this.#panel.role = "dialog";
    if (this.#layered) {
      this.#panel.popover = "auto";
      this.#button.popoverTargetElement = this.#panel;
      this.#panel.addEventListener("toggle", ({ newState }) => this.#toggled(newState === "open"));
      this.#panel.addEventListener("beforetoggle", ({ newState }) => {
        if (newState === "open") this.#list.start();
        else this.#hadFocus = this.shadowRoot.activeElement !== null;
      });
    } else {
      this.#panel.hidden = true;
      this.#button.addEventListener("click", () => this.#show(this.#panel.hidden));
    }
    this.#panel.addEventListener("focusout", ({ relatedTarget }) => {
      if (relatedTarget && !this.shadowRoot.contains(relatedTarget)) this.#show(false); // it would be under the popover
    });
    shadowOf(this, LEVEL_CSS + LIST_CSS + BELL_CSS, this.#button, this.#panel, this.#spoken);
  }

  connectedCallback() {
    inbox.addEventListener("news", this.#news);
    super.connectedCallback();
    this._draw();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    inbox.removeEventListener("news", this.#news);
    clearTimeout(this.#calm);
    if (!this.#layered) this.#panel.hidden = true;
    if (this.#open) this.#toggled(false);
  }

  _draw() {
    const { unread } = inbox;
    const shown = unread ? shownNumber(unread, languageOf(this)) : "";
    if (this.#number.textContent !== shown) this.#number.textContent = shown;
    this.#number.hidden = !shown;
    const name = shown ? `${labels.notices}, ${filled(labels.unread_count, shown)}` : labels.notices;
    if (this.#button.ariaLabel !== name) this.#button.ariaLabel = name;
    this.#button.title = labels.notices;
    if (this.#open) this.#place();
  }

  /** Say the number, where nothing says the notice itself. */
  #announce() {
    clearTimeout(this.#calm);
    if (!inbox.speaks(this) || hasToasts() || inbox.watched) return;
    const wait = Math.max(CALM.before, this.#said + CALM.between - performance.now());
    this.#calm = setTimeout(() => {
      this.#said = performance.now();
      this.#spoken.textContent = this.#button.ariaLabel;
    }, wait);
  }

  #show(open) {
    if (this.#layered) return open ? this.#panel.showPopover() : this.#panel.hidePopover();
    if (open === !this.#panel.hidden) return;
    this.#hadFocus = !open && this.shadowRoot.activeElement !== null;
    this.#panel.hidden = !open;
    if (open) this.#list.start();
    this.#toggled(open);
  }

  #toggled(open) {
    this.#button.ariaExpanded = String(open);
    this.toggleAttribute("open", open);
    this.#open?.abort();
    this.#open = undefined;
    if (open) {
      const { signal } = (this.#open = new AbortController());
      const listen = (where, type, act) => where.addEventListener(type, act, { signal, capture: true, passive: true });
      for (const type of ["scroll", "resize"]) listen(window, type, ({ target }) => target !== this && this.#place());
      if (!this.#layered) {
        listen(window, "pointerdown", (event) => event.composedPath().includes(this) || this.#show(false));
        listen(window, "keydown", ({ key }) => key === "Escape" && this.#show(false));
      }
      this.#place();
      this.#panel.focus({ preventScroll: true });
    } else {
      this.#list.stop();
      // In the shadow tree of a header, the document takes the header for what has the focus.
      const isLost = [document.body, null].includes(document.activeElement) || this.getRootNode().activeElement === this;
      if (this.#hadFocus && isLost) this.#button.focus({ preventScroll: true });
    }
    // As <details> has it. Notices on the page that are no part of the list come in front of it.
    this.dispatchEvent(Object.assign(new Event("toggle"), { newState: open ? "open" : "closed" }));
  }

  /** Below the button or above it, within the window. */
  #place() {
    const { left, right, top, bottom } = this.#button.getBoundingClientRect();
    const { clientWidth: width, clientHeight: height } = document.documentElement;
    const size = this.#panel.offsetWidth;
    const wanted = getComputedStyle(this).direction === "rtl" ? left : right - size;
    const { style } = this.#panel;
    const above = height - bottom < 240 && top > height - bottom;
    style.left = `${Math.max(ROOM, Math.min(wanted, width - size - ROOM))}px`;
    style.top = above ? "auto" : `${bottom + ROOM / 2}px`;
    style.bottom = above ? `${height - top + ROOM / 2}px` : "auto";
    style.maxHeight = `${(above ? top : height - bottom) - 1.5 * ROOM}px`;
  }
}

/** The list in the page itself. */
export class NotificationInbox extends InboxElement {
  #list = new NoticeList(this);
  #observer = new IntersectionObserver(([{ isIntersecting }]) => {
    if (isIntersecting === this.#list.running) return;
    if (isIntersecting) this.#list.start();
    else this.#list.stop();
  });

  constructor() {
    super();
    this.#list.element.role = "region";
    shadowOf(this, LEVEL_CSS + LIST_CSS, this.#list.element);
  }

  connectedCallback() {
    super.connectedCallback();
    this.#observer.observe(this);
  }

  disconnectedCallback() {
    this.#observer.disconnect();
    this.#list.stop();
    super.disconnectedCallback();
  }
}

const LIST_CSS = `
:host { display: block; color: CanvasText; }
[hidden] { display: none !important; }
[part~="panel"] { position: relative; min-block-size: 3rem; overflow-wrap: anywhere; text-align: start; }
[part="head"], [part="foot"] { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 1rem; padding: 0.75rem 1rem; }
[part="heading"] { margin-inline-end: auto; }
[part="foot"] { justify-content: space-between; }
[part="page"] { color: var(--accent); margin-inline-start: auto; }
[part~="status"], [part="empty"] { margin: 0; padding: 0.5rem 1rem; }
[part="empty"] { padding-block: 1.5rem; text-align: center; }
[part~="problem"] { color: var(--error); font-weight: 600; }
[part="list"] { list-style: none; margin: 0; padding: 0; }
[part~="notice"] {
  display: grid; grid-template-columns: auto minmax(0, 1fr) 0.6em; gap: 0 0.75rem; align-items: start;
  padding: 0.75rem 1rem; border-block-start: 1px solid var(--line);
}
[part="title"] { display: inline; font-weight: 400; }
a[part="title"] { color: inherit; }
[part~="unread"] [part="title"] { font-weight: 700; }
[part="dot"] { visibility: hidden; inline-size: 0; block-size: 0; margin-block-start: 0.4em; border: 0.3em solid var(--accent); border-radius: 50%; }
[part~="unread"] [part="dot"] { visibility: visible; }
[part="body"] {
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 6; overflow: hidden; margin: 0.25rem 0 0;
  font-size: 0.9em; text-align: -webkit-match-parent; text-align: match-parent;
}
[part="actions"] { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.25rem 1rem; margin-block-start: 0.35rem; font-size: 0.875em; }
[part="time"]:empty { display: none; }
[part="mark"], [part="archive"], [part="all"], [part="more"], [part="page"] {
  min-block-size: 1.5rem; padding: 0; border: 0; border-radius: 0.2rem; background: none; color: var(--accent); font: inherit;
  text-align: start; text-decoration: underline; text-decoration-color: var(--line); text-underline-offset: 0.2em; cursor: pointer;
}
:is([part="mark"], [part="archive"], [part="all"], [part="more"], [part="page"]):hover { text-decoration-color: currentColor; }
[part="more"] { display: block; margin-block-start: 0.35rem; font-size: 0.875em; }
[part="again"], [part="older"] {
  padding: 0.35rem 0.9rem; border: 1px solid var(--accent); border-radius: var(--radius); background: none; color: var(--accent);
  font: inherit; font-size: 0.9em; cursor: pointer;
}
[part="again"] { margin: 0 1rem 0.75rem; }
:is([part="again"], [part="older"]):hover { background: var(--line); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
[part~="panel"]:focus-visible { outline-offset: -2px; }
@media print { button { display: none !important; } }
`;

const BELL_CSS = `
:host { display: inline-block; color: inherit; }
[part="button"] {
  position: relative; display: grid; place-items: center; inline-size: 2.5rem; block-size: 2.5rem; padding: 0; border: 0;
  border-radius: var(--radius); background: none; color: inherit; font: inherit; cursor: pointer;
}
[part="button"]:hover { background: var(--line); }
svg { display: block; inline-size: 1.5rem; block-size: 1.5rem; }
[part="number"] {
  position: absolute; inset-block-start: 0; inset-inline-start: 50%; box-sizing: border-box; min-inline-size: 1.25rem; padding-inline: 0.3rem;
  border: 1px solid transparent; border-radius: 1rem; background: var(--error); color: var(--surface); font-size: 0.75rem; font-weight: 700;
  line-height: 1.15rem; text-align: center; font-variant-numeric: tabular-nums;
}
[part~="popover"] {
  position: fixed; z-index: var(--notifications-z-index, 1000); inset: auto; box-sizing: border-box; inline-size: min(26rem, 100vw - 1rem);
  margin: 0; border: 1px solid var(--line); border-radius: var(--radius); padding: 0; background: var(--surface); color: CanvasText;
  box-shadow: 0 0.3rem 1.2rem rgb(0 0 0 / 20%); overflow: auto; overscroll-behavior: contain; font-size: 1rem; font-weight: 400;
}
[part~="popover"] [part="head"] { position: sticky; inset-block-start: 0; z-index: 1; background: var(--surface); }
[part~="popover"]:popover-open { animation: arrive 0.15s; }
@media (forced-colors: active) { [part="number"] { border-color: ButtonText; background: ButtonFace; color: ButtonText; } }
@keyframes arrive { from { opacity: 0; transform: translateY(-0.25rem); } }
@media (prefers-reduced-motion: reduce) { [part~="popover"] { animation: none !important; } }
@media print { :host { display: none; } }
`;

/** Begin on a page of the template tags, whichever of their scripts comes first. */
async function begin() {
  const loaded = new Promise((go) => (document.readyState === "complete" ? go() : addEventListener("load", go, { once: true })));
  if (!globalThis.notifications) await loaded;
  if (!globalThis.notifications && !customElements.get("notification-bell")) {
    console.warn("notifications: without {% notifications %} on the page, a bell is only a link: docs/inbox.md#the-bell-and-the-list");
  }
  await customElements.whenDefined("notification-toasts");
  if (!globalThis.notifications?.shared || customElements.get("notification-bell")) return; // the page does it itself
  defineInbox(await globalThis.notifications.shared());
}

if (globalThis.document?.querySelector("notification-bell, notification-inbox")) begin();
