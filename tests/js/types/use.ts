// Never run: it has to pass the type checker, where it is marked by failing.

import { connect, type Message, type Notifications, type State, type Transport } from "../../../notifications/static/notifications/client.js";

interface Progress {
  payload: { progress_percent: number };
}

const notifications: Notifications = connect({
  url: "/ws/notifications/",
  token: async () => "token",
  since: null,
  userTopic: "user:42",
});
connect();
connect({ token: () => "token" });
connect({ guest: true, positions: { "site:all": "100-1" } });
connect({
  transports: ["stream", "poll"],
  streamUrl: "/notifications/stream/",
  fallback: () => import("../../../notifications/static/notifications/fallback.js"),
});

const off: () => void = notifications.subscribe("order:7", (message) => {
  const topic: string | undefined = message._meta?.topic;
  const parcel: unknown = message.parcel;
  console.log(topic, parcel);
});
off();
notifications.subscribe<Progress>("upload:7", ({ payload }) => payload.progress_percent.toFixed(), {
  since: "last",
  grant: async () => "grant",
  gap: (topic: string) => console.log(topic),
  error: ({ code, topic }) => console.log(code, topic?.length),
});
notifications.subscribe("upload:7", (message: Message) => console.log(message.action), { grant: "grant", since: null });
notifications.on("notice", (message) => console.log(message.title));
notifications.on<Progress>("upload_progress", ({ payload }) => payload.progress_percent)();
notifications.onUser((message) => console.log(message), {
  gap: () => location.reload(),
  subscribed: (topic: string) => console.log(topic),
})();

const state: State = notifications.state;
const transport: Transport | null = notifications.transport;
notifications.addEventListener("state", ({ detail }) => console.log(detail.transport === "stream", transport));
notifications.addEventListener("state", ({ detail }) => console.log(detail.state, detail.code, detail.reason, detail.seconds?.toFixed()));
notifications.addEventListener("gap", ({ detail }) => console.log(detail.topic), { once: true });
notifications.addEventListener("error", ({ detail }) => console.log(detail.code, detail.message, detail.topic));
const show = ({ detail }: CustomEvent<{ direction: "in" | "out"; text: string }>) => console.log(detail.direction, detail.text);
notifications.addEventListener("frame", show);
notifications.removeEventListener("frame", show);
notifications.retry();
notifications.close();
notifications.open();
notifications.open({ userTopic: "user:43", since: null });
notifications.open({ guest: true, positions: {} });

// @ts-expect-error there is no such option
connect({ adress: "/ws/" });
// @ts-expect-error there is no such transport
connect({ transports: ["pigeon"] });
// @ts-expect-error it goes on at the address where it was
notifications.open({ url: "/ws/" });
// @ts-expect-error a token is fetched for each attempt, not given once
connect({ token: "token" });
// @ts-expect-error the state is the connection's own
notifications.state = "open";
// @ts-expect-error there is no such state
const other: State = "ended";
// @ts-expect-error events have no such detail
notifications.addEventListener("gap", ({ detail }) => console.log(detail.code));

console.log(state, other);
