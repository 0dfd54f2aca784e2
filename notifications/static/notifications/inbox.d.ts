import type { Shared } from "./elements.js";

/** A button with the number of unread notices, which opens the list of them; dispatches "toggle", as <details> does. */
export class NotificationBell extends HTMLElement {}

/** The list in the page itself. */
export class NotificationInbox extends HTMLElement {}

/**
 * Define both, once per page, with what `define` of elements.js has returned. On a page with the template tags, the
 * script of the bell does that.
 */
export function defineInbox(shared: Shared): void;

declare global {
  interface HTMLElementTagNameMap {
    "notification-bell": NotificationBell;
    "notification-inbox": NotificationInbox;
  }
}
