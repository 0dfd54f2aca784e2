import type { Notifications } from "./client.js";

export interface Notice {
  title: string;
  level?: "info" | "success" | "warning" | "error";
  body?: string | null;
  /** Becomes a link if it is http:, https: or relative. */
  url?: string | null;
}

/** For the page's corner: what is wrong with the connection, when the next attempt is, and a button that makes one now. */
export class ConnectionStatus extends HTMLElement {}

export class NotificationToasts extends HTMLElement {
  show(notice: Notice): void;
}

/** The page's user: notices shown when the page is left move on to the next page of this tab and user. */
export interface Owner {
  /** The user's own topic, such as "user:42". Without it no notice is kept. */
  user?: string;
  /** URL of the WebSocket, as given to connect(): one origin may have several sites. */
  url?: string;
}

/** What `defineBars` of progress.js and `defineInbox` of inbox.js need: a matter among these modules. */
export interface Shared {
  readonly connection: Notifications;
}

/** Define the elements on this connection, once per page. `texts` replaces words of all elements, those of bars too. */
export function define(connection: Notifications, texts?: Record<string, string>, owner?: Owner): Shared;

/** Set the page's user when another one has logged in without a new page: the previous user's notices are removed. */
export function keepFor(whose: Owner): void;

declare global {
  interface GlobalEventHandlersEventMap {
    /** The link of a toast is followed whose notice the site keeps. */
    "notice-follow": CustomEvent<{ id: string }>;
  }
  interface HTMLElementTagNameMap {
    "notification-toasts": NotificationToasts;
    "connection-status": ConnectionStatus;
  }
  /** The page's connection, if the template tag has made it. */
  var notifications: Promise<Notifications>;
}
