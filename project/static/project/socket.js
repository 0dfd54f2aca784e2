// One WebSocket to /ws/notifications/ that comes back by itself.

const FIRST_DELAY = 500; // ms before the first new attempt; doubles up to LONGEST_DELAY
const LONGEST_DELAY = 20_000;
const SILENCE = 75_000; // ms without any frame after which the connection is dead: the server pings every 30 s

/**
 * Connect, and reconnect until the server says that it is no use.
 *
 * @param {string} path of the socket on this origin
 * @param {(message: object) => void} onMessage gets every frame but the heartbeat's
 * @param {(state: "connecting" | "live" | "waiting" | "ended") => void} onState
 * @returns {(message: object) => void} sends a message, or drops it while there is no connection: on every
 *     "live" the page subscribes anew
 */
export function connect(path, onMessage, onState) {
  const url = new URL(path, location.href.replace(/^http/, "ws"));
  let socket;
  let attempts = 0;
  let silence;
  let retry;

  function send(message) {
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  function open() {
    clearTimeout(retry);
    onState("connecting");
    socket = new WebSocket(url);
    socket.onmessage = receive;
    socket.onclose = (event) => lost(event.code);
    listen();
  }

  function listen() {
    clearTimeout(silence);
    silence = setTimeout(() => {
      // close() of a dead connection takes its time to say so; this socket is not waited for.
      socket.onclose = socket.onmessage = null;
      socket.close();
      lost(0);
    }, SILENCE);
  }

  function receive(event) {
    listen();
    const message = JSON.parse(event.data);
    if (message.action === "ping") return send({ action: "pong", n: message.n });
    if (message.action === "auth_success") {
      attempts = 0;
      onState("live");
    }
    onMessage(message);
  }

  function lost(code) {
    clearTimeout(silence);
    // 4000 to 4099 mean: do not retry. Bad credentials do not get better.
    if (code >= 4000 && code < 4100) return onState("ended");
    onState("waiting");
    // Full jitter: a server that restarts must not meet all its clients in the same instant.
    const longest = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** attempts++);
    retry = setTimeout(open, Math.random() * longest);
  }

  addEventListener("online", () => socket.readyState === WebSocket.CLOSED && open());
  // A page that comes out of the back/forward cache has lost its socket without being told.
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  open();
  return send;
}
