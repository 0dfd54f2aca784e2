import type { Message, MessageMap } from "./protocol.js";

export type { Message, MessageMap };

export type State = "connecting" | "open" | "waiting" | "closed";

export interface StateDetail {
  readonly state: State;
  /** Close code of the connection that was lost; 1006 where there was none. With `waiting` and `closed`. */
  readonly code?: number;
  /** Why, in words for a developer; may be empty. With `waiting` and `closed`. */
  readonly reason?: string;
  /** Seconds until the next attempt. With `waiting`; absent while the page itself is put away. */
  readonly seconds?: number;
}

/** A frame as it was sent or received, tokens and grants left out. */
export interface FrameDetail {
  readonly direction: "in" | "out";
  readonly text: string;
}

/** An answer of the server that refuses something. */
export interface ErrorDetail {
  /** One of docs/protocol.md, but for those that the client deals with; or `unsubscribed`: the permission was withdrawn. */
  readonly code: string;
  readonly message: string;
  /** As it was given to `subscribe`. */
  readonly topic?: string;
}

/** Something of the topic is missing for good. */
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
  /** Of the WebSocket, relative to the page or absolute; `/ws/notifications/` unless given. */
  url?: string;
  /**
   * Get a token. Called for each attempt to connect, and has to bring a fresh one. Without it the session cookie counts.
   * What it throws is a failed attempt.
   */
  token?: () => string | Promise<string>;
  /** Position of the user's own topic when the page was rendered. */
  since?: string | null;
  /** The own topic of the user the page was rendered for, such as `user:42`: another user's messages are not shown. */
  userTopic?: string | null;
}

export interface ListenOptions {
  /** Called when something of the topic is missing for good: load the page's state again. */
  gap?: (topic: string) => void;
}

export interface SubscribeOptions extends ListenOptions {
  /** Where to begin: an id or position, or `last` for the latest message first, which is the default of states. */
  since?: string | null;
  /** A grant, or a function that gets one; it is called each time the topic is asked for. */
  grant?: string | (() => string | Promise<string>) | null;
  /** Called when the server refuses the topic, or withdraws the permission. */
  error?: (detail: ErrorDetail) => void;
}

/** Ends what it was returned for. May be called again. */
export type Off = () => void;

export interface Notifications extends EventTarget {
  readonly state: State;
  /**
   * Call `handler` with each message of a topic. Handlers of one topic share a subscription, whose `since` and `grant` are
   * those of the first.
   */
  subscribe<T extends object = Message>(topic: string, handler: (message: T) => void, options?: SubscribeOptions): Off;
  /** Call `handler` with each message that has this `action`, of whatever topic. */
  on<Action extends keyof MessageMap>(action: Action, handler: (message: MessageMap[Action]) => void): Off;
  on<T extends object = Message>(action: string, handler: (message: T) => void): Off;
  /** Call `handler` with each message of the user's own topic. */
  onUser<T extends object = Message>(handler: (message: T) => void, options?: ListenOptions): Off;
  /**
   * Connect again, for a page that goes on after a login: `userTopic` and `since` are those of the new content. Does
   * nothing while the connection is open as that user.
   */
  open(options?: Pick<ConnectOptions, "since" | "userTopic">): void;
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

/** Open a connection that comes back by itself. One connection is one user; it throws nothing. */
export declare function connect(options?: ConnectOptions): Notifications;
