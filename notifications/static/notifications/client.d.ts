import type { Message, MessageMap } from "./protocol.js";

export type { Message, MessageMap };

export type State = "connecting" | "open" | "waiting" | "closed";

/** How frames reach the page: docs/browser.md#transports */
export type Transport = "websocket" | "stream" | "poll";

/** What `fallback.js` exports. */
export interface Fallback {
  choose(options: ConnectOptions, dial: (socket: never) => void): (address: URL) => unknown;
}

export interface StateDetail {
  readonly state: State;
  /** With `open`, which is also dispatched when a connection that is open goes on over a better transport. */
  readonly transport?: Transport;
  /** Close code of the connection that was lost; 1006 if there was none. With `waiting` and `closed`. */
  readonly code?: number;
  /** Why, in words for a developer; may be empty. With `waiting` and `closed`. */
  readonly reason?: string;
  /** Seconds until the next attempt. With `waiting`; absent while the page itself is in the browser's cache. */
  readonly seconds?: number;
}

/** A frame as it was sent or received, without tokens and grants. */
export interface FrameDetail {
  readonly direction: "in" | "out";
  readonly text: string;
}

/** A refusal by the server. */
export interface ErrorDetail {
  /** One of docs/protocol.md, except those that the client handles; or `unsubscribed`: the permission was withdrawn. */
  readonly code: string;
  readonly message: string;
  /** The topic as it was given to `subscribe`. */
  readonly topic?: string;
}

/** Messages of the topic are missing for good. */
export interface GapDetail {
  readonly topic: string;
}

export interface EventMap {
  state: CustomEvent<StateDetail>;
  gap: CustomEvent<GapDetail>;
  error: CustomEvent<ErrorDetail>;
  frame: CustomEvent<FrameDetail>;
}

export interface ConnectOptions {
  /** URL of the WebSocket, relative to the page or absolute; `/ws/notifications/` by default. */
  url?: string;
  /**
   * Fetch a token. Called for each attempt to connect, and must return a fresh one. Without it the session cookie counts.
   * If it throws, the attempt has failed.
   */
  token?: () => string | Promise<string>;
  /** Which transports to use, the preferred one first; all of them by default. Others than WebSockets need `fallback`. */
  transports?: readonly Transport[];
  /** URL of the transports over HTTP, `notifications:stream`; `/notifications/stream/` by default. */
  streamUrl?: string;
  /** Import `fallback.js`: `() => import("/static/notifications/fallback.js")`. Called only when it is needed. */
  fallback?: () => Promise<Fallback>;
  /** Position of the user's own topic when the page was rendered. */
  since?: string | null;
  /** The topic of the user for whom the page was rendered, such as `user:42`: messages of others are not shown. */
  userTopic?: string | null;
  /** Positions of other topics when the page was rendered: of those that the site joins without being asked. */
  positions?: Readonly<Record<string, string>>;
  /** Connect without a user, where the site admits guests: they receive what everybody may read. A session counts. */
  guest?: boolean;
}

export interface ListenOptions {
  /** Called when messages of the topic are missing for good: load the page's state again. */
  gap?: (topic: string) => void;
  /** Called each time the server has subscribed the connection to the topic: at first and after each reconnect. */
  subscribed?: (topic: string) => void;
}

export interface SubscribeOptions extends ListenOptions {
  /** Where to begin: an id or position, or `last` for the latest message first, which is the default of states. */
  since?: string | null;
  /** A grant, or a function that fetches one; it is called each time the topic is requested. */
  grant?: string | (() => string | Promise<string>) | null;
  /** Called when the server refuses the topic, or withdraws the permission. */
  error?: (detail: ErrorDetail) => void;
}

/** Undoes the call that returned it. May be called again. */
export type Off = () => void;

export interface Notifications extends EventTarget {
  readonly state: State;
  /** How frames reach the page; null unless the connection is open. */
  readonly transport: Transport | null;
  /**
   * Call `handler` with each message of a topic. Handlers of one topic share a subscription, whose `since` and `grant` are
   * those of the first.
   */
  subscribe<T extends object = Message>(topic: string, handler: (message: T) => void, options?: SubscribeOptions): Off;
  /** Call `handler` with each message that has this `action`, on any topic. */
  on<Action extends keyof MessageMap>(action: Action, handler: (message: MessageMap[Action]) => void): Off;
  on<T extends object = Message>(action: string, handler: (message: T) => void): Off;
  /** Call `handler` with each message of the user's own topic. */
  onUser<T extends object = Message>(handler: (message: T) => void, options?: ListenOptions): Off;
  /**
   * Connect again, for a page that continues after a login or a logout: the options are those of the new content. Does
   * nothing while the connection is open as that user.
   */
  open(options?: Pick<ConnectOptions, "since" | "userTopic" | "positions" | "guest">): void;
  /** Try to connect at once instead of waiting; an open connection is probed. Does nothing while it is closed. */
  retry(): void;
  /** Close the connection until it is opened again. */
  close(): void;

  addEventListener<K extends keyof EventMap>(
    type: K,
    listener: ((event: EventMap[K]) => void) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof EventMap>(
    type: K,
    listener: ((event: EventMap[K]) => void) | null,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** Open a connection that reconnects by itself. A connection belongs to one user; it throws nothing. */
export declare function connect(options?: ConnectOptions): Notifications;
