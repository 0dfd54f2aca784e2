// What a page written in TypeScript relies on; tests/test_protocol.py lets tsc check it, nothing runs it.

import type {
  AnyMessage,
  ClientFrame,
  Message,
  MessageMap,
  ServerFrame,
} from "../../notifications/static/notifications/protocol.js";

/** A message of the site's own. */
interface OrderShipped {
  action: "order_shipped";
  parcel: string;
}

declare module "../../notifications/static/notifications/protocol.js" {
  interface MessageMap {
    order_shipped: OrderShipped;
  }
}

/** ``action`` tells the messages apart, those of the site among them. */
export function textOf(message: Message): string {
  switch (message.action) {
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
    case "notice":
      // @ts-expect-error  a notice has no payload
      return message.payload;
    case "order_shipped":
      return message.parcel;
    default:
      return message satisfies never;
  }
}

/** A handler takes what its action is. */
export declare function on<Action extends keyof MessageMap>(
  action: Action,
  handler: (message: MessageMap[Action]) => void,
): void;

on("upload_progress", ({ payload, _meta }) => {
  payload.stage satisfies "queued" | "extracting_frames" | (string & {});
  // @ts-expect-error  "done" is no status
  payload.status === "done";
  // @ts-expect-error  a message that is not kept has no _meta
  _meta.id;
});
// @ts-expect-error  there is no such message
on("upload_progressed", () => {});

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

export const raw: AnyMessage = { action: "shout", text: ["anything"] };
