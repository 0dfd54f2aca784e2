// The wire protocol of notifications. Made by `manage.py notifications_schema typescript`; do not edit.

/**
 * The first frame of a socket without a session: the client's token, and its position in its user's own topic.
 *
 * It may be repeated later with a token of the same user.
 */
export interface Auth {
  readonly type: "auth";
  readonly token: string;
  /** What the client has. Absent: nothing from the past follows; "last": the latest message first; the id of a message or a position: everything after it, or of a state the latest message. */
  readonly since?: string | null;
}

/** The socket is refused, or its access has ended; a close follows. */
export interface AuthError {
  readonly action: "auth_error";
  readonly message: string;
}

/** The socket is this user's, and has the user's own topic; or it is a guest's, who has neither. */
export interface AuthSuccess {
  readonly action: "auth_success";
  /** Null for a guest. */
  readonly user_id: string | null;
  /** The topic's position before the messages that follow; null where no history is kept. */
  readonly id: string | null;
  /** Whether everything after the client's position follows, or of a state the latest message. False: something may be missing for good, load the state from the site. Null: the client gave no position. */
  readonly recovered: boolean | null;
}

/** How far a batch of uploads has progressed; published to its user. */
export interface BatchProgress {
  readonly _meta?: MessageMeta;
  readonly action: "batch_progress";
  readonly payload: BatchProgressPayload;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
}

/** The payload of `batch_progress`. */
export interface BatchProgressPayload {
  readonly batch_id: string;
  /** Any word; the documentation lists those that the replaced service used. */
  readonly status: string;
  readonly total: number;
  readonly processed: number;
  readonly successful: number;
  readonly failed: number;
  readonly progress_percentage: number;
}

/**
 * The last frame of a response over HTTP that ends for a reason: the code and reason of a close.
 *
 * A WebSocket's close frame has them. A response without it ended in the ordinary way.
 */
export interface Close {
  readonly action: "close";
  readonly code: number;
  readonly reason: string;
}

/** A frame was refused; the socket stays open. */
export interface Error {
  readonly action: "error";
  readonly code: "forbidden" | "invalid_message" | "rate_limited" | "too_many_subscriptions" | "unavailable" | "unknown_action";
  readonly message: string;
  /** A kind and an id, such as order:7. */
  readonly topic?: string;
}

/** How far one file of a batch has progressed; published to its user. */
export interface FileProgress {
  readonly _meta?: MessageMeta;
  readonly action: "file_progress";
  readonly payload: FileProgressPayload;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
}

/** The payload of `file_progress`. */
export interface FileProgressPayload {
  readonly batch_id: string;
  readonly upload_id: string;
  readonly file_name: string;
  readonly file_size: number;
  readonly progress_percentage: number;
  /** Any word; the documentation lists those that the replaced service used. */
  readonly status: string;
}

/**
 * The first frame of a socket of somebody who has not logged in, where the site admits guests.
 *
 * It has no topic of its own, and may read what everybody may. Where a session says who it is, that counts.
 */
export interface Guest {
  readonly type: "auth";
  readonly guest: true;
}

/** Kept notices of a user have changed, or the number of those that are unread. */
export interface InboxChanged {
  readonly _meta?: MessageMeta;
  readonly action: "inbox";
  readonly payload: InboxChangedPayload;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
}

/** The payload of `inbox`. */
export interface InboxChangedPayload {
  /** How many notices of the user are unread; 100: at least so many, shown as 99+. */
  readonly unread: number;
  /** What happened to the notices; null: only the number is corrected. */
  readonly change: null | "archived" | "read" | "restored" | "seen" | "unread";
  /** The notices that have changed; null: see `until`. */
  readonly ids: readonly string[] | null;
  /** If `ids` is null: all notices of the user up to this one have changed. */
  readonly until: string | null;
}

/** How far a job has progressed; `notifications.Progress` publishes it. */
export interface JobProgress {
  readonly _meta?: MessageMeta;
  readonly action: "progress";
  readonly payload: JobProgressPayload;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
}

/** The payload of `progress`. */
export interface JobProgressPayload {
  /** The job: the id of its topic. */
  readonly id: string;
  readonly state: "cancelled" | "failed" | "running" | "succeeded" | "waiting";
  /** Null: nobody knows. */
  readonly percent: number | null;
  readonly done: number | null;
  readonly total: number | null;
  /** Plain text; a page must not read it as HTML. */
  readonly unit: string | null;
  /** Plain text; a page must not read it as HTML. */
  readonly stage: string | null;
  /** Plain text; a page must not read it as HTML. */
  readonly message: string | null;
  /** Estimated seconds until the end; null: nobody knows. */
  readonly eta: number | null;
  /** Plain text; a page must not read it as HTML. */
  readonly error: string | null;
  /** Where a click leads: https:, http: or a path of the site. */
  readonly url: string | null;
}

/** Anything published: an object that says by its `action` what it is, if whoever published it gave it one. Without `_meta` it has no id and is not kept. */
export interface Message {
  readonly _meta?: MessageMeta;
  readonly [field: string]: unknown;
}

/** What the site puts first in a published message. Who publishes must not write it. */
export interface MessageMeta {
  /** A kind and an id, such as order:7. */
  readonly topic: string;
  /** An id or a position, <epoch>-<n>: two integers. The message after it has n + 1. */
  readonly id: string;
}

/** A notice from the site to a user. */
export interface Notice {
  readonly _meta?: MessageMeta;
  readonly action: "notice";
  /** Plain text; a page must not read it as HTML. */
  readonly title: string;
  readonly level: "error" | "info" | "success" | "warning";
  /** Plain text; a page must not read it as HTML. */
  readonly body: string | null;
  /** Where a click leads: https:, http: or a path of the site. */
  readonly url: string | null;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
  readonly inbox?: NoticeInbox;
}

/** What a notice that is kept says beside its text: where it is in its user's inbox. */
export interface NoticeInbox {
  /** The notice: in the list, and to mark it. */
  readonly id: string;
  /** How many notices of the user are unread; 100: at least so many, shown as 99+. */
  readonly unread: number;
  /** Of notices of one group a list shows the newest; empty: of none. */
  readonly group: string;
  /** Whoever did something, in the site's own form. */
  readonly actor: unknown;
  /** What it was done to, in the site's own form. */
  readonly target: unknown;
}

/** Answered with `pong`. */
export interface Ping {
  readonly action: "ping";
}

/** The answer to the server's `ping`, with its number. It confirms everything that was read before that ping. */
export interface Pong {
  readonly action: "pong";
  readonly n?: number | null;
}

/** A ping to answer with `pong` and the same number. */
export interface ServerPing {
  readonly action: "ping";
  readonly n: number;
}

/** The answer to the client's `ping`. */
export interface ServerPong {
  readonly action: "pong";
}

/** Receive what is published on a topic. If repeated, it is answered with the current position and does nothing. */
export interface Subscribe {
  readonly action: "subscribe";
  /** A kind and an id, such as order:7. */
  readonly topic: string;
  /** Signed by the site for this user and topic, in place of a permission check. */
  readonly grant?: string | null;
  /** What the client has. Absent: nothing from the past follows; "last": the latest message first; the id of a message or a position: everything after it, or of a state the latest message. */
  readonly since?: string | null;
}

/** The same as `subscribe` to the topic `upload:<upload_id>`. */
export interface SubscribeUpload {
  readonly action: "subscribe_upload";
  readonly upload_id: string;
  /** Signed by the site for this user and topic, in place of a permission check. */
  readonly grant?: string | null;
  /** What the client has. Absent: nothing from the past follows; "last": the latest message first; the id of a message or a position: everything after it, or of a state the latest message. */
  readonly since?: string | null;
}

/**
 * The topic is subscribed.
 *
 * Also sent without a request: with `joined`, and with `recovered` false when something is missing on an open
 * socket, and some time after an `unavailable`.
 */
export interface Subscribed {
  readonly action: "subscribed";
  /** A kind and an id, such as order:7. */
  readonly topic: string;
  /** Whether everything after the client's position follows, or of a state the latest message. False: something may be missing for good, load the state from the site. Null: the client gave no position. */
  readonly recovered: boolean | null;
  /** The topic's position before the messages that follow; null where no history is kept. */
  readonly id: string | null;
  /** Whether the latest message of the topic is the complete state, such as progress: then it follows unless the client has it, and messages that it has replaced need not arrive: ids may jump. */
  readonly state: boolean;
  /** Whether the site has subscribed the client without a request. A client that has a position of the topic subscribes with it as since, and ignores messages until the answer: they follow again. */
  readonly joined: boolean;
}

/** Stop receiving a topic. No message of the topic follows the answer. */
export interface Unsubscribe {
  readonly action: "unsubscribe";
  /** A kind and an id, such as order:7. */
  readonly topic: string;
}

/** The same as `unsubscribe` from the topic `upload:<upload_id>`. */
export interface UnsubscribeUpload {
  readonly action: "unsubscribe_upload";
  readonly upload_id: string;
}

/** The topic is not, or no longer, subscribed; also sent unasked when permission is denied, even later. */
export interface Unsubscribed {
  readonly action: "unsubscribed";
  /** A kind and an id, such as order:7. */
  readonly topic: string;
}

/** The analysis of one upload has succeeded. */
export interface UploadCompleted {
  readonly _meta?: MessageMeta;
  readonly action: "upload_completed";
  readonly upload_id: string;
  readonly description: string;
  readonly audit_score: number;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
}

/** The analysis of one upload has failed. */
export interface UploadFailed {
  readonly _meta?: MessageMeta;
  readonly action: "upload_failed";
  readonly upload_id: string;
  readonly error_message: string;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
}

/** How far the analysis of one upload has progressed. */
export interface UploadProgress {
  readonly _meta?: MessageMeta;
  readonly action: "upload_progress";
  readonly payload: UploadProgressPayload;
  /** When this was the case: ISO 8601, with an offset. */
  readonly timestamp: string;
}

/** The payload of `upload_progress`. */
export interface UploadProgressPayload {
  readonly upload_id: string;
  /** Any word; the documentation lists those that the replaced service used. */
  readonly status: string;
  /** Any word; the documentation lists those that the replaced service used. */
  readonly stage: string;
  readonly progress_percent: number;
  readonly message: string;
  readonly error_message: string | null;
  readonly description_audit_score: number | null;
}

/** What a client may say. */
export type ClientFrame =
  | Auth
  | Guest
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
  | ServerPong
  | Close;

/** The typed messages by `action`. A site adds its own: `declare module "…/protocol.js" { interface MessageMap { order_shipped: OrderShipped } }` */
export interface MessageMap {
  progress: JobProgress;
  upload_progress: UploadProgress;
  upload_completed: UploadCompleted;
  upload_failed: UploadFailed;
  batch_progress: BatchProgress;
  file_progress: FileProgress;
  notice: Notice;
  inbox: InboxChanged;
}

/** A typed message; `action` tells which. */
export type TypedMessage = MessageMap[keyof MessageMap];
