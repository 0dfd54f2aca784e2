import type { Shared } from "./elements.js";

/** What a task-progress shows; null, or "" for a text, stands for what is not known. */
export interface JobState {
  /** Such as "job:7". */
  topic: string | null;
  state: "waiting" | "running" | "succeeded" | "failed" | "cancelled";
  /** Whether it should be running, and nothing was heard of it for longer than the site's PROGRESS_STALE. */
  stalled: boolean;
  /** 0 to 100, with a fraction. */
  percent: number | null;
  done: number | null;
  total: number | null;
  unit: string;
  stage: string;
  message: string;
  error: string;
  /** As it was published: check it before it becomes a link. */
  url: string;
  /** Seconds until the end, by the latest message. */
  eta: number | null;
}

/** The state that is now shown, the job's name, and the previous `state`; null if there was none. */
export interface JobChange extends JobState {
  label: string;
  before: JobState["state"] | null;
}

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

export class TaskProgress extends HTMLElement {
  get state(): JobState;
  /** Sets the attribute: frameworks set properties where an element has some. */
  set state(word: JobState["state"] | null | undefined);
}

export class UploadProgress extends HTMLElement {
  readonly state: UploadState;
}

/** How far all bars in it are; or a batch, by its `batch_progress` messages. */
export class BatchProgress extends HTMLElement {}

/** Define the bars, once per page, with what `define` of elements.js has returned. `stale`: the site's PROGRESS_STALE. */
export function defineBars(shared: Shared, options?: { stale?: number }): void;

declare global {
  interface HTMLElementTagNameMap {
    "task-progress": TaskProgress;
    "upload-progress": UploadProgress;
    "batch-progress": BatchProgress;
  }
  interface GlobalEventHandlersEventMap {
    "progress-change": CustomEvent<JobChange>;
    /** Messages were missed for good: the page can ask its site for the state. */
    "progress-gap": CustomEvent<JobState>;
    "upload-change": CustomEvent<UploadChange>;
    /** Messages were missed for good: the page can ask its site for the state. */
    "upload-gap": CustomEvent<UploadState>;
  }
}
