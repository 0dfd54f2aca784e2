// What happens underneath: the frames of the connection as they come and go, and what their ids say.

const MAX_FRAMES = 100; // shown; a tab may stay open for weeks
const MAX_TEXT = 2000; // characters of one frame

const frames = document.getElementById("frames");
const counts = { messages: 0, replaced: 0, missing: 0, twice: 0 };
const last = new Map(); // the last id of each topic
const states = new Set(); // topics whose latest message is all that counts

function make(name, className, text) {
  return Object.assign(document.createElement(name), { className, textContent: text });
}

/**
 * Take note of an id. In one epoch the numbers go up by one, of a state perhaps by more; another epoch is another counting.
 */
function count({ topic, id }) {
  const [epoch, n] = id.split("-");
  const before = last.get(topic);
  counts.messages += 1;
  if (before?.epoch === epoch && +n <= before.n) counts.twice += 1;
  else {
    if (before?.epoch === epoch) counts[states.has(topic) ? "replaced" : "missing"] += +n - before.n - 1;
    last.set(topic, { epoch, n: +n });
  }
  for (const [name, value] of Object.entries(counts)) {
    const shown = document.getElementById(name);
    shown.textContent = value;
    shown.classList.toggle("bad", value > 0 && ["missing", "twice"].includes(name));
  }
}

function add(direction, frame, text) {
  const row = make("li", direction);
  const time = new Date().toTimeString().slice(0, 8);
  const arrow = make("span", "arrow", direction === "in" ? "↓" : "↑");
  arrow.role = "img";
  arrow.ariaLabel = direction === "in" ? "received" : "sent";
  const id = frame._meta ? `${frame._meta.topic} ${frame._meta.id}` : (frame.topic ?? "");
  const head = make("div", "head");
  head.append(arrow, make("time", "", time), make("b", "", frame.action ?? frame.type ?? ""), make("span", "id", id));
  row.append(head, make("code", "", text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)} …` : text));
  frames.prepend(row);
  while (frames.children.length > MAX_FRAMES) frames.lastElementChild.remove();
}

/** Show the frames of this connection, and let the button kill the listener. */
export function showFrames(connection) {
  connection.addEventListener("frame", ({ detail }) => {
    const { direction, text } = detail;
    const frame = JSON.parse(text);
    if (frame._meta) count(frame._meta);
    if (frame.action === "subscribed" && frame.state) states.add(frame.topic);
    // From here on the topic begins anew: what is missing is told.
    if (frame.recovered === false) last.delete(frame.topic ?? `user:${frame.user_id}`);
    add(direction, frame, text);
  });

  const showTransport = () => (document.getElementById("transport").textContent = connection.transport ?? "–");
  connection.addEventListener("state", showTransport);
  showTransport();

  const form = document.getElementById("kill-form");
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    const killed = document.getElementById("killed");
    button.disabled = true;
    try {
      const answer = await fetch(form.action, { method: "POST", body: new FormData(form) });
      const { pid, error } = await answer.json();
      killed.textContent = error ?? `Killed process ${pid}. The next one takes over within some seconds.`;
    } catch {
      killed.textContent = "The site does not answer.";
    } finally {
      button.disabled = false;
    }
  });
}
