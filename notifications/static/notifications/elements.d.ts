import type { Notifications } from "./client.js";

/** What an upload-progress shows. */
export interface UploadState {
  upload: string | null;
  /** "pending", "analyzing", "embedding", "completed", "failed", or a word of the site's own. */
  status: string;
  stage: string;
  /** 0 to 100; null while unknown. */
  percent: number | null;
  message: string;
}

/** The state that is now shown, the upload's name, and the previous status; null if there was none. */
export interface UploadChange extends UploadState {
  label: string;
  before: string | null;
}

export interface Notice {
  title: string;
  level?: "info" | "success" | "warning" | "error";
  body?: string | null;
  /** Becomes a link if it is http:, https: or relative. */
  url?: string | null;
}

export class UploadProgress extends HTMLElement {
  readonly state: UploadState;
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

/** Define the elements on this connection, once per page. `texts` replaces words of the elements. */
export function define(connection: Notifications, texts?: Record<string, string>, owner?: Owner): void;

/** Set the page's user when another one has logged in without a new page: the previous user's notices are removed. */
export function keepFor(whose: Owner): void;

declare global {
  interface HTMLElementTagNameMap {
    "upload-progress": UploadProgress;
    "notification-toasts": NotificationToasts;
    "connection-status": ConnectionStatus;
  }
  interface GlobalEventHandlersEventMap {
    "upload-change": CustomEvent<UploadChange>;
    /** Messages were missed for good: the page can ask its site for the state. */
    "upload-gap": CustomEvent<UploadState>;
  }
  /** The page's connection, if the template tag has made it. */
  var notifications: Promise<Notifications>;
}
