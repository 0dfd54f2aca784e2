// The client in a process of its own, on a real site: tests/site/test_client.py reads what it prints, one JSON text a line.

import { WebSocket } from "ws";

import { connect } from "../../notifications/static/notifications/client.js";

const { url, cookie, token, topics, joined = [] } = JSON.parse(process.argv[2]);
const say = (line) => console.log(JSON.stringify(line));

Math.random = () => 0.1; // a server takes seconds to start, and a test should not wait for a longer time than it

globalThis.WebSocket = class extends WebSocket {
  constructor(address) {
    super(address, { headers: { Cookie: cookie ?? "" }, origin: new URL(url).origin.replace("ws", "http") });
  }
};

const notifications = connect({ url, ...(token && { token: async () => token }) });
notifications.addEventListener("state", ({ detail }) => say(detail));
notifications.addEventListener("error", ({ detail }) => say({ error: detail.code, topic: detail.topic }));
notifications.addEventListener("gap", ({ detail }) => say({ gap: detail.topic }));
const show = ({ _meta, action, value }) => say({ action, value, topic: _meta.topic });
notifications.onUser(show);
for (const topic of topics) notifications.subscribe(topic, show);
notifications.on("note", (message) => joined.includes(message._meta.topic) && show(message));
