// What {% notifications %} runs on a page: one connection, and the elements on it.
//
// The page's own scripts get the connection by `const connection = await notifications`. Where a library puts new pages
// into the document, this runs once, and each page brings the block of data that the tag has rendered.

const ID = "notifications-config";
const RENDERED = new RegExp(`<script id="${ID}" type="application/json">(.*?)</script>`, "s");
const JUST_NOW = 10_000; // milliseconds after a new page in which an old session's socket may still be closed

let shared; // what `define` has returned: the elements of this app's other modules need it
const told = { id: null }; // how far the page has been told of its user's topic; null if that is not known

const config = takeConfig();
const folder = new URL(".", import.meta.url).href;

/** Remove the tag's block of data from the document and return it: any that is found later belongs to a new page. */
function takeConfig() {
  const element = document.querySelector(`script#${ID}`); // markup smuggled into a page has the id at most
  element?.remove();
  return element && JSON.parse(element.textContent);
}

/** Import a module of this folder, with or without a hash in its name; smuggled markup cannot load any other. */
function load(url) {
  const { href } = new URL(url, document.baseURI);
  if (!href.startsWith(folder)) throw new Error(`${href} is not in ${folder}`);
  return import(href);
}

/** Wait until a page that the browser has prerendered is seen: until then the tab's storage and its messages are another's. */
async function seen() {
  if (document.prerendering) {
    await new Promise((go) => document.addEventListener("prerenderingchange", go, { once: true }));
  }
}

let tries = 0;

/** Load the transports over HTTP. Some browsers remember that a module could not be had, so each try has its own URL. */
function fallback() {
  const again = tries++ ? `?${tries}` : "";
  return load(config.fallback + again);
}

/**
 * Note where the first page of a tab began, where the client will note how far it has come: this page may be left before
 * it is connected, and what its form leads to is published before the next page is rendered.
 *
 * Returns: the position from which this page is told, which is that of the tab if there is one.
 */
function noteBeginning({ url, since, user_topic: user, positions }) {
  const name = `notifications ${url}`;
  const left = { ...positions, ...(since && { [user]: since }) };
  try {
    const stored = JSON.parse(sessionStorage.getItem(name));
    // Of a guest's page the client notes null.
    if (stored && (stored.user ?? undefined) === user) return stored.left?.[user] ?? since;
    if (Object.keys(left).length) sessionStorage.setItem(name, JSON.stringify({ user, left }));
  } catch {
    // Not allowed, or full.
  }
  return since;
}

async function token() {
  const answer = await fetch(config.token_url, { headers: { Accept: "application/json" }, cache: "no-store" });
  // Nobody is logged in any more: without a token the connection closes for good.
  if (answer.redirected || answer.status === 401 || answer.status === 403) return undefined;
  if (!answer.ok) throw new Error(`${config.token_url}: ${answer.status}`);
  return (await answer.json()).token;
}

/** The options of the client that each page brings. */
const beginning = ({ since, user_topic: userTopic, positions, guest }) => ({ since, userTopic, positions, guest });

/** Whose a page is: a user's, that of anybody who has not logged in, or nobody's. */
const whose = ({ user_topic: userTopic, guest }) => userTopic ?? (guest ? "guest" : undefined);

/** Continue the connection and the kept notices as the user of each new page: after a login, or as another user. */
function follow(connection, keepFor) {
  let user = whose(config); // none if the page is nobody's, as far as is known
  let open;
  let arrivedAt;
  let underWay = false; // opened for the newest page, and not open yet
  let ended = false; // the session; until there is another one
  let found = false; // a block since Turbo has rendered the page before

  function arrived(next) {
    const again = underWay && whose(next) === user; // told of one page twice, or of two in quick succession
    if (whose(next) !== user) told.id = next.since;
    user = whose(next);
    open = () => connection.open(beginning(next));
    arrivedAt = performance.now();
    if (!again) open();
    underWay = connection.state === "connecting";
    keepFor(user);
  }

  /** A page without a block: nobody's, a cached one, or one without the tag. Only if the session ends is it nobody's. */
  function arrivedWithout() {
    user = arrivedAt = undefined;
    if (ended) leave();
  }

  function leave() {
    connection.close();
    keepFor(undefined);
  }

  // Turbo, and htmx where the tag is in the body.
  new MutationObserver(() => {
    const next = takeConfig();
    found ||= Boolean(next);
    if (next) arrived(next);
  }).observe(document, { childList: true, subtree: true });
  document.addEventListener("turbo:render", () => {
    if (document.documentElement.hasAttribute("data-turbo-preview")) return;
    if (!found) arrivedWithout();
    found = false;
  });

  // With hx-boost, htmx takes nothing of the new page's head. The first event is that of version 2, the other of 4.
  for (const type of ["htmx:afterOnLoad", "htmx:after:request"]) {
    document.addEventListener(type, ({ detail }) => {
      const { boosted, target, text, xhr, request } = detail.ctx ?? detail;
      const whole = boosted || target === document.body || request?.headers["HX-Boosted"];
      if (!whole) return;
      const [, rendered] = RENDERED.exec(text ?? xhr?.responseText) ?? [];
      if (rendered) arrived(JSON.parse(rendered));
      else arrivedWithout();
    });
  }

  connection.addEventListener("state", ({ detail: { state, code } }) => {
    underWay &&= state === "connecting";
    if (state === "open") ended = false;
    if (state !== "closed" || code !== 4005) return;
    ended = true;
    if (!user) return leave();
    // After a quick logout and login the new page may arrive before the old session's socket is closed.
    if (!(performance.now() - arrivedAt < JUST_NOW)) return;
    arrivedAt = undefined;
    open();
  });
}

async function start() {
  const modules = [config.client, config.elements, config.progress].map(load);
  const [{ connect }, { define, keepFor }, { defineBars }] = await Promise.all(modules);
  const { url, stream_url: streamUrl } = config;
  await seen();
  told.id = noteBeginning(config);
  const connection = connect({
    url,
    ...beginning(config),
    ...(config.token_url && { token }),
    ...(streamUrl && { streamUrl, fallback }),
  });
  // Before there are messages, because modules that need to know may be loaded after some have come.
  connection.onUser(({ _meta }) => (told.id = _meta?.id ?? null), { gap: () => (told.id = null) });
  shared = { ...define(connection, config.labels, { user: whose(config), url }), told };
  defineBars(shared, { stale: config.stale });
  follow(connection, (user) => keepFor({ user, url }));
  return connection;
}

// `shared` is for this app's own modules: they can import nothing by name, and find it where the page's scripts find the
// connection.
const started = start();
globalThis.notifications = Object.assign(started, { shared: () => started.then(() => shared) });
