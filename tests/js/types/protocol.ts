// Never run: what handlers and other clients rely on in protocol.d.ts, which is made from the code of the server.

import { connect } from "../../../notifications/static/notifications/client.js";
import type { ClientFrame, Message, ServerFrame, TypedMessage } from "../../../notifications/static/notifications/protocol.js";

/** A message of the site's own. */
interface OrderShipped {
  action: "order_shipped";
  parcel: string;
}

declare module "../../../notifications/static/notifications/protocol.js" {
  interface MessageMap {
    order_shipped: OrderShipped;
  }
}

/** `action` tells the messages apart, those of the site among them. */
export function textOf(message: TypedMessage): string {
  switch (message.action) {
    case "progress":
      return `${message.payload.percent?.toFixed() ?? "?"} % ${message.payload.stage ?? ""}`;
    case "upload_progress":
      return `${message.payload.progress_percent.toFixed()} % ${message.payload.error_message ?? ""}`;
    case "upload_completed":
      return message.description;
    case "upload_failed":
      return message.error_message;
    case "batch_progress":
      return `${message.payload.processed + message.payload.failed} of ${message.payload.total}`;
    case "file_progress":
      return message.payload.file_name;
    case "progress":
      return message.payload.stage ?? message.payload.state;
    case "notice":
      // @ts-expect-error  a notice has no payload
      return message.payload;
    case "inbox":
      return `${message.payload.unread.toFixed()} ${message.payload.ids?.join() ?? ""}`;
    case "order_shipped":
      return message.parcel;
    default:
      return message satisfies never;
  }
}

const { on, subscribe } = connect();

// A handler gets what its action is.
on("upload_progress", ({ payload, _meta }) => {
  payload.stage satisfies string;
  // @ts-expect-error  a message that is not kept has no _meta
  _meta.id;
});
on("progress", ({ payload }) => {
  payload.percent satisfies number | null;
  // @ts-expect-error  "done" is no state
  payload.state === "done";
});
on("order_shipped", ({ parcel }) => parcel.toUpperCase());
on("greeting", ({ text }) => {
  // @ts-expect-error  of other messages nothing is known
  text.toUpperCase();
});
subscribe<TypedMessage>("upload:7", textOf);

/** The server's own frames are told apart as well. */
export function position(frame: ServerFrame): string | null | undefined {
  if (frame.action === "subscribed" || frame.action === "auth_success") return frame.id;
  // @ts-expect-error  an error has no id
  if (frame.action === "error") return frame.id;
  return undefined;
}

export const said: ClientFrame[] = [
  { type: "auth", token: "t" },
  { action: "subscribe", topic: "order:7", since: "last" },
  { action: "pong", n: 7 },
  // @ts-expect-error  a subscription names its topic
  { action: "subscribe" },
];

export const raw: Message = { action: "shout", text: ["anything"] };
