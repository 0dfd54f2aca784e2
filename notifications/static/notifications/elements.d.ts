import type { Notifications } from "./client.js";

/** What an upload-progress shows. */
export interface UploadState {
  upload: string | null;
  /** "pending", "analyzing", "embedding", "completed", "failed", or a word of the site's own. */
  status: string;
  stage: string;
  /** 0 to 100; null while nobody has said it. */
  percent: number | null;
  message: string;
}

/** The state that is shown now, the upload's name, and the status that was shown before; null if nobody had said one. */
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

export class NotificationToasts extends HTMLElement {
  show(notice: Notice): void;
}

/** Whose page it is: notices that are there when it is left go along to the next page of this tab and user. */
export interface Owner {
  /** The user's own topic, such as "user:42". Without it no notice goes along. */
  user?: string;
  /** Of the WebSocket, as given to connect(): one origin may have several sites. */
  url?: string;
}

/** Define both elements to work on this connection; once a page. `texts` replaces words of the elements. */
export function define(connection: Notifications, texts?: Record<string, string>, owner?: Owner): void;

/** Say whose page it is from now on, where another user has logged in without a new one: notices of the one before go. */
export function keepFor(whose: Owner): void;

declare global {
  interface HTMLElementTagNameMap {
    "upload-progress": UploadProgress;
    "notification-toasts": NotificationToasts;
  }
  interface GlobalEventHandlersEventMap {
    "upload-change": CustomEvent<UploadChange>;
    /** Messages were missed for good: the page may ask its site for the state. */
    "upload-gap": CustomEvent<UploadState>;
  }
  /** The page's connection, where the template tag has made it. */
  var notifications: Promise<Notifications>;
}
