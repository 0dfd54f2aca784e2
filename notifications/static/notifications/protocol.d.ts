// The wire protocol of notifications. Made by `manage.py notifications_schema typescript`; do not edit.

/** Anything published: an object that says by its `action` what it is, if whoever published it gave it one. Without `_meta` it has no id and is not kept. */
export interface AnyMessage {
  _meta?: MessageMeta;
  [field: string]: unknown;
}

/**
 * The first frame of a socket without a session: who the client is, and where it was in its user's own topic.
 *
 * Later, with a token of the same user: go on.
 */
export interface Auth {
  type: "auth";
  token: string;
  /** What the client has: absent, nothing of the past follows; "last", the latest message first; the id of a message or a position, everything after it. */
  since?: string | null;
}

/** The socket is refused; a close follows. */
export interface AuthError {
  action: "auth_error";
  message: string;
}

/** The socket is this user's, and has his own topic. */
export interface AuthSuccess {
  action: "auth_success";
  user_id: string;
  /** The topic's position before the messages that follow; null where no history is kept. */
  id: string | null;
  /** Whether everything after the client's position follows. False: something may be missing for good, load the state from the site. Null: the client gave no position. */
  recovered: boolean | null;
}

/** How far a batch of uploads is; published to its user. */
export interface BatchProgress {
  _meta?: MessageMeta;
  action: "batch_progress";
  payload: BatchProgressPayload;
  /** When it was so: ISO 8601, with an offset. */
  timestamp: string;
}

/** What `batch_progress` says. */
export interface BatchProgressPayload {
  batch_id: string;
  status: "analyzing" | "completed" | "embedding" | "failed" | "pending";
  total: number;
  processed: number;
  successful: number;
  failed: number;
  progress_percentage: number;
}

/** A frame was refused; the socket stays open. */
export interface Error {
  action: "error";
  code: "forbidden" | "invalid_message" | "rate_limited" | "too_many_subscriptions" | "unknown_action";
  message: string;
  /** A kind and an id, such as order:7. */
  topic?: string;
}

/** How far one file of a batch is; published to its user. */
export interface FileProgress {
  _meta?: MessageMeta;
  action: "file_progress";
  payload: FileProgressPayload;
  /** When it was so: ISO 8601, with an offset. */
  timestamp: string;
}

/** What `file_progress` says. */
export interface FileProgressPayload {
  batch_id: string;
  upload_id: string;
  file_name: string;
  file_size: number;
  progress_percentage: number;
  status: "completed" | "failed" | "processing";
}

/** What the site puts first in a published message. Who publishes must not write it. */
export interface MessageMeta {
  /** A kind and an id, such as order:7. */
  topic: string;
  /** An id or a position, <epoch>-<n>: two integers. The message after it has n + 1. */
  id: string;
}

/** Something the site tells a person. */
export interface Notice {
  _meta?: MessageMeta;
  action: "notice";
  /** Plain text; a page must not read it as HTML. */
  title: string;
  level: "error" | "info" | "success" | "warning";
  /** Plain text; a page must not read it as HTML. */
  body: string | null;
  /** Where a click leads: https:, http: or a path of the site. */
  url: string | null;
  /** When it was so: ISO 8601, with an offset. */
  timestamp: string;
}

/** Answered with `pong`. */
export interface Ping {
  action: "ping";
}

/** The answer to the server's `ping`, with its number. It confirms all that was read before that ping. */
export interface Pong {
  action: "pong";
  n?: number | null;
}

/** To be answered with `pong` and the same number. */
export interface ServerPing {
  action: "ping";
  n: number;
}

/** The answer to the client's `ping`. */
export interface ServerPong {
  action: "pong";
}

/** Receive what is published on a topic. Again: answered with the position the socket has, and nothing else. */
export interface Subscribe {
  action: "subscribe";
  /** A kind and an id, such as order:7. */
  topic: string;
  /** What the site signed for this user and topic instead of a permission. */
  grant?: string | null;
  /** What the client has: absent, nothing of the past follows; "last", the latest message first; the id of a message or a position, everything after it. */
  since?: string | null;
}

/** The same as `subscribe` to the topic `upload:<upload_id>`. */
export interface SubscribeUpload {
  action: "subscribe_upload";
  upload_id: string;
  /** What the site signed for this user and topic instead of a permission. */
  grant?: string | null;
  /** What the client has: absent, nothing of the past follows; "last", the latest message first; the id of a message or a position, everything after it. */
  since?: string | null;
}

/**
 * The topic is subscribed.
 *
 * Also unasked, with `recovered` false, when something is missing on an open socket.
 */
export interface Subscribed {
  action: "subscribed";
  /** A kind and an id, such as order:7. */
  topic: string;
  /** Whether everything after the client's position follows. False: something may be missing for good, load the state from the site. Null: the client gave no position. */
  recovered: boolean | null;
  /** The topic's position before the messages that follow; null where no history is kept. */
  id: string | null;
}

/** Receive it no longer. Nothing of the topic follows the answer. */
export interface Unsubscribe {
  action: "unsubscribe";
  /** A kind and an id, such as order:7. */
  topic: string;
}

/** The same as `unsubscribe` from the topic `upload:<upload_id>`. */
export interface UnsubscribeUpload {
  action: "unsubscribe_upload";
  upload_id: string;
}

/** The topic is not, or no longer, subscribed. */
export interface Unsubscribed {
  action: "unsubscribed";
  /** A kind and an id, such as order:7. */
  topic: string;
}

/** The analysis of one upload has ended well. */
export interface UploadCompleted {
  _meta?: MessageMeta;
  action: "upload_completed";
  upload_id: string;
  description: string;
  audit_score: number;
  /** When it was so: ISO 8601, with an offset. */
  timestamp: string;
}

/** The analysis of one upload has ended badly. */
export interface UploadFailed {
  _meta?: MessageMeta;
  action: "upload_failed";
  upload_id: string;
  error_message: string;
  /** When it was so: ISO 8601, with an offset. */
  timestamp: string;
}

/** How far the analysis of one upload is. */
export interface UploadProgress {
  _meta?: MessageMeta;
  action: "upload_progress";
  payload: UploadProgressPayload;
  /** When it was so: ISO 8601, with an offset. */
  timestamp: string;
}

/** What `upload_progress` says. */
export interface UploadProgressPayload {
  upload_id: string;
  status: "analyzing" | "completed" | "embedding" | "failed" | "pending";
  stage: "completed" | "description_audit" | "embedding_generation" | "extracting_frames" | "failed" | "indexing" | "queued" | "vision_analysis";
  progress_percent: number;
  message: string;
  error_message: string | null;
  description_audit_score: number | null;
}

/** What a client may say. */
export type ClientFrame =
  | Auth
  | SubscribeUpload
  | UnsubscribeUpload
  | Subscribe
  | Unsubscribe
  | Ping
  | Pong;

/** What the server says itself. */
export type ServerFrame =
  | AuthSuccess
  | AuthError
  | Subscribed
  | Unsubscribed
  | Error
  | ServerPing
  | ServerPong;

/** The typed messages by `action`. A site adds its own: `declare module "…/protocol.js" { interface MessageMap { order_shipped: OrderShipped } }` */
export interface MessageMap {
  upload_progress: UploadProgress;
  upload_completed: UploadCompleted;
  upload_failed: UploadFailed;
  batch_progress: BatchProgress;
  file_progress: FileProgress;
  notice: Notice;
}

/** A typed message; `action` tells which. */
export type Message = MessageMap[keyof MessageMap];
