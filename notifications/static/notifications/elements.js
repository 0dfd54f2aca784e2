// <upload-progress> and <notification-toasts>: what arrives on the page's connection, shown.
//
// This module imports nothing and is given the connection by `define`: a file name written in here would be one that
// storages with hashed names do not know, and a second copy of the client would be a second connection.
// Whatever a message says becomes text, never HTML, and an address becomes a link only if it is a web page.

/** The words on the page; `define` replaces them. */
const labels = {
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
  info: "Information",
  success: "Success",
  warning: "Warning",
  error: "Error",
};
const LEVELS = { info: "i", success: "✓", warning: "!", error: "!!" };
const FINISHED = ["completed", "failed"];
const TEXTS = ["status", "stage", "message"];

let connection;

/**
 * Make the elements work on this connection; once a page.
 *
 * @param {import("./client.js").Notifications} given
 * @param {Record<string, string>} [texts] words in the language of the page, in place of the English ones
 */
export function define(given, texts = {}) {
  connection = given;
  Object.assign(labels, texts);
  customElements.define("upload-progress", UploadProgress);
  customElements.define("notification-toasts", NotificationToasts);
}

/** Only text and numbers are shown: a message may come from any program. */
const textOf = (value) => (typeof value === "string" || Number.isFinite(value) ? String(value) : "");

/** The word for what a message calls so, or that itself: sites have stages of their own. */
const wordFor = (name) => (Object.hasOwn(labels, name) ? labels[name] : textOf(name));

/** The address as a link may have it, or null if it is no web page. */
function webAddress(url) {
  if (typeof url !== "string" || url === "") return null;
  try {
    const { protocol, href } = new URL(url, document.baseURI);
    return protocol === "https:" || protocol === "http:" ? href : null;
  } catch {
    return null;
  }
}

function make(name, part, ...children) {
  const element = document.createElement(name);
  if (part) element.setAttribute("part", part);
  element.append(...children);
  return element;
}

/** An element for what others have written, in whatever script: its full stop stays at its own end. */
const written = (name, part, text = "") => Object.assign(make(name, part, text), { dir: "auto" });

/** A shadow root styled by a constructed sheet: a strict CSP lets no <style> through. */
function shadowOf(element, css, ...children) {
  const root = element.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(COMMON_CSS + css);
  root.adoptedStyleSheets = [sheet];
  root.append(...children);
}

/**
 * The progress of one upload.
 *
 * Attributes: `upload` (its id), `grant`, `label` (its name), and what the site knew when it made the page: `status`,
 * `stage`, `percent`, `message`. They may be set later as well, for instance after an `upload-gap`.
 *
 * Events, which bubble: `upload-change` with the state that is shown now, `upload-gap` when messages were missed for
 * good, so that the page may ask its site.
 */
export class UploadProgress extends HTMLElement {
  static observedAttributes = ["upload", "grant", "label", "percent", ...TEXTS];

  #state;
  #told; // whether anybody has said anything of this upload
  #stop;
  #label = written("span", "label");
  #percent = make("span", "percent");
  #fill = make("div", "fill");
  #bar = make("div", "bar", this.#fill);
  #stage = make("span", "stage");
  #message = written("span", "message");
  #outcome = make("p", "outcome");

  constructor() {
    super();
    this.#bar.role = "progressbar";
    this.#bar.ariaValueMin = "0";
    this.#bar.ariaValueMax = "100";
    this.#percent.ariaHidden = "true"; // the bar says it
    this.#outcome.role = "status"; // only the end is announced: twenty bars that speak help nobody
    const head = make("div", "head", this.#label, this.#percent);
    const detail = make("div", "detail", this.#stage, this.#message);
    shadowOf(this, UPLOAD_CSS, head, this.#bar, detail, this.#outcome);
  }

  connectedCallback() {
    this.#watch();
  }

  disconnectedCallback() {
    this.#stop?.();
    this.#stop = undefined;
  }

  attributeChangedCallback(name, before, now) {
    if (!this.#state || before === now) return; // not on the page yet
    if (name === "upload" || name === "grant") this.#watch();
    else if (name === "label") this.#show();
    else this.#advance({ [name]: now });
  }

  /** What is shown: `upload`, `status`, `stage`, `percent` (null while nobody has said it) and `message`. */
  get state() {
    return { ...this.#state };
  }

  #watch() {
    this.#stop?.();
    this.#stop = undefined;
    const upload = this.getAttribute("upload");
    if (this.#state?.upload !== upload) this.#begin(upload); // the same one, moved to another place, goes on
    if (!upload || FINISHED.includes(this.#state.status)) return;
    const topic = `upload:${upload}`;
    // Of an upload the client asks for the latest message first.
    const off = connection.subscribe(topic, (message) => this.#receive(message), {
      grant: this.getAttribute("grant"),
      gap: () => this.#tell("upload-gap"),
    });
    const refused = ({ detail }) => {
      if (detail.topic === topic) this.#stage.textContent = labels.forbidden;
    };
    connection.addEventListener("error", refused);
    this.#stop = () => {
      off();
      connection.removeEventListener("error", refused);
    };
  }

  #begin(upload) {
    this.#state = { upload, status: "pending", stage: "queued", percent: null, message: "" };
    this.#told = false;
    this.#outcome.textContent = "";
    const known = ["percent", ...TEXTS].filter((name) => this.hasAttribute(name));
    this.#advance(Object.fromEntries(known.map((name) => [name, this.getAttribute(name)])));
  }

  #receive(message) {
    switch (message.action) {
      case "upload_progress": {
        const { status, stage, progress_percent, message: text, error_message } = message.payload ?? {};
        return this.#advance({ status, stage, percent: progress_percent, message: error_message || text });
      }
      case "upload_completed":
        return this.#end({ status: "completed", stage: "completed", message: message.description });
      case "upload_failed":
        return this.#end({ status: "failed", stage: "failed", message: message.error_message });
    }
  }

  #end(state) {
    this.#stop?.(); // nothing more is to come, and a socket has a limited number of topics
    this.#stop = undefined;
    this.#advance(state);
  }

  /** Show a newer state. Its words replace the old ones; the percentage only grows. */
  #advance(next) {
    const state = this.#state;
    const before = this.#told ? state.status : null;
    this.#told ||= Object.keys(next).length > 0;
    for (const name of TEXTS) if (typeof next[name] === "string") state[name] = next[name];
    const percent = state.status === "completed" ? 100 : Number.parseFloat(textOf(next.percent));
    if (percent >= 0) state.percent = Math.max(state.percent ?? 0, Math.min(100, percent));
    this.#show();
    if (before !== null && before !== state.status && FINISHED.includes(state.status)) {
      this.#outcome.textContent = `${this.#name} – ${labels[state.status]}`;
    }
    this.#tell("upload-change", { ...state, label: this.#name, before });
  }

  get #name() {
    return this.getAttribute("label") || labels.upload;
  }

  #show() {
    const { status, stage, percent, message } = this.#state;
    const failed = status === "failed";
    this.#bar.setAttribute("part", FINISHED.includes(status) ? `bar ${status}` : "bar");
    this.#fill.setAttribute("part", FINISHED.includes(status) ? `fill ${status}` : "fill");
    this.#fill.style.inlineSize = `${percent ?? 0}%`;
    this.#bar.ariaLabel = this.#name;
    this.#bar.ariaValueNow = percent === null ? null : String(Math.round(percent)); // null: not known yet
    this.#stage.textContent = FINISHED.includes(status) ? labels[status] : wordFor(stage);
    this.#stage.setAttribute("part", failed ? "stage failed" : "stage");
    this.#label.textContent = this.#name;
    this.#message.textContent = textOf(message);
    this.#percent.textContent = percent === null ? "" : this.#inWords(percent);
    this.#bar.ariaValueText = [this.#percent.textContent, this.#stage.textContent].filter(Boolean).join(", ");
  }

  #inWords(percent) {
    const options = { style: "percent", maximumFractionDigits: 0 };
    try {
      return new Intl.NumberFormat(this.closest("[lang]")?.lang || undefined, options).format(percent / 100);
    } catch {
      return `${Math.round(percent)} %`; // a lang that is no language
    }
  }

  #tell(name, detail = { ...this.#state }) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, composed: true, detail }));
  }
}

/**
 * The user's notices, and with the attribute `uploads` the ends of the uploads on this page.
 *
 * Attributes: `timeout`, seconds that a notice stays (10; 0 for ever; errors always stay); `max`, how many are shown
 * (5). No notice leaves while one of them has the pointer or the focus, or while the tab is hidden.
 */
export class NotificationToasts extends HTMLElement {
  #timers = new Map();
  #stop;
  #before = null;
  #errors = make("div", "errors");
  #others = make("div", "others");

  constructor() {
    super();
    this.#errors.ariaLive = "assertive";
    this.#others.ariaLive = "polite";
    const list = make("div", "list", this.#errors, this.#others);
    list.role = "region";
    list.ariaLabel = labels.notices;
    shadowOf(this, TOASTS_CSS, list);
    list.addEventListener("keydown", (event) => {
      const toast = event.target.closest("[part~=toast]");
      if (event.key !== "Escape" || !toast) return;
      event.stopPropagation(); // a dialog behind it stays
      this.#dismiss(toast);
    });
    list.addEventListener("focusin", ({ relatedTarget }) => {
      if (relatedTarget && relatedTarget !== this) this.#before = relatedTarget;
    });
    for (const type of ["pointerenter", "focusin"]) list.addEventListener(type, () => this.#hold());
    for (const type of ["pointerleave", "focusout"]) list.addEventListener(type, () => this.#release());
  }

  connectedCallback() {
    const off = connection.onUser((message) => message.action === "notice" && this.show(message));
    const visible = () => (document.hidden ? this.#hold() : this.#release());
    const change = ({ detail }) => this.hasAttribute("uploads") && this.#uploadEnded(detail);
    document.addEventListener("visibilitychange", visible);
    document.addEventListener("upload-change", change);
    this.#release(); // the element may have been moved, notices and all
    this.#stop = () => {
      off();
      document.removeEventListener("visibilitychange", visible);
      document.removeEventListener("upload-change", change);
    };
  }

  disconnectedCallback() {
    this.#stop?.();
    this.#hold();
  }

  /** Show a notice: `title`, and perhaps `level`, `body` and `url`. */
  show({ level, title, body, url }) {
    level = Object.keys(LEVELS).includes(level) ? level : "info";
    const href = webAddress(url);
    const heading = written(href ? "a" : "strong", "title", textOf(title));
    if (href) Object.assign(heading, { href, rel: "noopener noreferrer" });
    const icon = make("span", "icon", LEVELS[level]);
    icon.ariaHidden = "true";
    const word = make("span", "level", `${wordFor(level)}: `);
    const close = make("button", "close", "×");
    close.type = "button";
    close.ariaLabel = labels.close;
    const toast = make("div", `toast ${level}`, icon, make("div", "text", word, heading), close);
    if (textOf(body)) toast.children[1].append(written("p", "body", textOf(body)));
    close.addEventListener("click", ({ detail }) => this.#dismiss(toast, detail > 0));
    (level === "error" ? this.#errors : this.#others).append(toast);
    this.#timers.set(toast, undefined);
    this.#makeRoom();
    // Where there are more than there is room for, the newest is seen; but nothing moves under somebody's pointer.
    if (!this.#used()) toast.scrollIntoView({ block: "nearest" });
    if (!this.#held()) this.#release();
  }

  #uploadEnded({ status, before, label, message }) {
    // Only what ended before one's eyes: a page that is opened later shows it, and says nothing.
    if (before === null || before === status || !FINISHED.includes(status)) return;
    const level = status === "completed" ? "success" : "error";
    this.show({ level, title: `${label} – ${labels[status]}`, body: message });
  }

  #makeRoom() {
    const max = Math.max(1, Number.parseInt(this.getAttribute("max") ?? "5", 10) || 5);
    while (this.#timers.size > max) {
      const [newest] = [...this.#timers.keys()].slice(-1);
      const oldest = [...this.#timers.keys()].find((toast) => toast !== newest && !toast.matches("[part~=error]"));
      this.#remove(oldest ?? this.#timers.keys().next().value);
    }
  }

  #used() {
    return this.shadowRoot.querySelector("[part=list]").matches(":hover, :focus-within");
  }

  #held() {
    return document.hidden || this.#used();
  }

  #hold() {
    for (const timer of this.#timers.values()) clearTimeout(timer);
  }

  #release() {
    const seconds = Number.parseFloat(this.getAttribute("timeout") ?? "10");
    this.#hold();
    if (!(seconds > 0)) return;
    for (const toast of this.#timers.keys()) {
      if (toast.matches("[part~=error]")) continue;
      // Asked when the time is over, not now: nobody may say that a finger, or a pointer over what was removed, has left.
      const over = () => (this.#held() ? this.#release() : this.#remove(toast));
      this.#timers.set(toast, setTimeout(over, seconds * 1000));
    }
  }

  #remove(toast) {
    clearTimeout(this.#timers.get(toast));
    this.#timers.delete(toast);
    toast.remove();
  }

  /**
   * Take a notice away because somebody wants it, and leave the focus where he goes on: on the next notice with the
   * keyboard, where it was before with a pointer, or the others would be held by a focus that nobody sees.
   */
  #dismiss(toast, byPointer = false) {
    const all = [...this.shadowRoot.querySelectorAll("[part~=toast]")];
    const next = byPointer ? undefined : (all[all.indexOf(toast) + 1] ?? all[all.indexOf(toast) - 1]);
    const focused = toast.matches(":focus-within");
    this.#remove(toast);
    if (focused) (next?.querySelector("[part=close]") ?? this.#before)?.focus({ preventScroll: byPointer });
    this.#release();
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
[part~="outcome"], [part~="level"] {
  position: absolute; inline-size: 1px; block-size: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
`;

const UPLOAD_CSS = `
:host { display: block; position: relative; font-variant-numeric: tabular-nums; }
[part="head"], [part="detail"] { display: flex; gap: 0 0.75em; justify-content: space-between; }
[part="detail"] { font-size: 0.875em; justify-content: start; flex-wrap: wrap; }
[part="label"] { min-inline-size: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
[part="message"] { min-inline-size: 0; overflow-wrap: anywhere; }
[part~="stage"] { font-weight: 600; }
[part~="bar"] {
  box-sizing: border-box;
  block-size: var(--notifications-bar-size, 0.5em);
  margin-block: 0.25em;
  border: 1px solid transparent;
  border-radius: var(--radius);
  background: var(--line);
  overflow: hidden;
}
[part~="fill"] { block-size: 100%; border-radius: inherit; background: var(--accent); transition: inline-size 0.25s; }
[part~="fill"][part~="completed"] { background: var(--success); }
[part~="fill"][part~="failed"] { background: var(--error); }
[part~="stage"][part~="failed"] { color: var(--error); }
@media (prefers-reduced-motion: reduce) { [part~="fill"] { transition: none; } }
@media (forced-colors: active) {
  [part~="bar"] { border-color: CanvasText; background: Canvas; }
  [part~="fill"] { forced-color-adjust: none; background: Highlight !important; }
}
`;

const TOASTS_CSS = `
:host {
  position: fixed;
  z-index: var(--notifications-z-index, 1000);
  inset-block-end: 0;
  inset-inline-end: 0;
  inline-size: min(24rem, 100%);
  max-block-size: max(60vh, min(20rem, 100vh)); /* the page's own controls are mostly at its top */
  overflow: auto;
  pointer-events: none;
  color: CanvasText;
}
[part="list"] { padding: 0.5rem 1rem 1rem; }
[part~="toast"] {
  --color: var(--accent);
  display: grid;
  grid-template-columns: auto minmax(0, 1fr) auto;
  gap: 0 0.75rem;
  align-items: start;
  margin-block-start: 0.5rem;
  scroll-margin-block: 0.5rem 1rem;
  padding: 0.75rem;
  border: 1px solid var(--line);
  border-inline-start: 0.3rem solid var(--color);
  border-radius: var(--radius);
  background: var(--notifications-surface, Canvas);
  box-shadow: 0 0.3rem 1.2rem rgb(0 0 0 / 20%);
  overflow-wrap: anywhere;
  pointer-events: auto;
  animation: arrive 0.25s;
}
[part~="success"] { --color: var(--success); }
[part~="warning"] { --color: var(--warning); }
[part~="error"] { --color: var(--error); }
[part="icon"] { color: var(--color); font-weight: 700; inline-size: 1em; text-align: center; }
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
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@keyframes arrive { from { opacity: 0; transform: translateY(0.5rem); } }
@media (prefers-reduced-motion: reduce) { [part~="toast"] { animation: none; } }
`;
