// What {% notifications %} runs on a page: one connection, and the elements on it.
//
// The page's own scripts reach the connection as `const connection = await notifications`.

const config = JSON.parse(document.getElementById("notifications-config").textContent);
const folder = new URL(".", import.meta.url).href;

/** Import a neighbour by the name it has here, with or without a hash; markup smuggled into the page loads no other. */
function load(url) {
  const { href } = new URL(url, document.baseURI);
  if (!href.startsWith(folder)) throw new Error(`${href} is not in ${folder}`);
  return import(href);
}

async function token() {
  const answer = await fetch(config.token_url, { headers: { Accept: "application/json" }, cache: "no-store" });
  // Nobody is logged in any more: without a token the connection is closed for good.
  if (answer.redirected || answer.status === 401 || answer.status === 403) return undefined;
  if (!answer.ok) throw new Error(`${config.token_url}: ${answer.status}`);
  return (await answer.json()).token;
}

async function start() {
  const [{ connect }, { define }] = await Promise.all([load(config.client), load(config.elements)]);
  const { url, since, user_topic: userTopic } = config;
  const connection = connect({ url, since, userTopic, ...(config.token_url && { token }) });
  define(connection, config.labels, { user: userTopic, url });
  return connection;
}

globalThis.notifications = start();
