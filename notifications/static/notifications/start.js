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
  if (!answer.ok) throw new Error(`${config.token_url}: ${answer.status}`);
  return (await answer.json()).token;
}

async function start() {
  const [{ connect }, { define }] = await Promise.all([load(config.client), load(config.elements)]);
  const { url, since } = config;
  const connection = connect({ url, since, ...(config.token_url && { token }) });
  define(connection, config.labels);
  return connection;
}

globalThis.notifications = start();
