// Never run: it has to pass the type checker, where it is marked by failing.

import { connect } from "../../../notifications/static/notifications/client.js";
import { define } from "../../../notifications/static/notifications/elements.js";
import { defineInbox } from "../../../notifications/static/notifications/inbox.js";
import { defineBars, type JobState, type UploadState } from "../../../notifications/static/notifications/progress.js";

defineBars(define(connect(), { close: "Fermer" }), { stale: 60 });
defineInbox(define(await notifications));
document.querySelector("notification-bell")!.addEventListener("toggle", () => document.querySelector("notification-inbox")?.remove());
document.addEventListener("notice-follow", ({ detail }) => console.log(detail.id.length));
define(await notifications, {}, { user: "user:42", url: "/ws/notifications/" });

const progress = document.querySelector("upload-progress")!;
const state: UploadState = progress.state;
document.querySelector("notification-toasts")?.show({ title: "Saved", level: "success", url: null });
document.querySelector("connection-status")!.hidden = true;
document.querySelector("batch-progress")!.hidden = true;
progress.addEventListener("upload-change", ({ detail }) => console.log(detail.percent?.toFixed(), detail.before === null, detail.label));
document.addEventListener("upload-change", ({ detail }) => console.log(detail.upload));
document.addEventListener("upload-gap", ({ detail }) => console.log(detail.upload, state.message));

const bar = document.querySelector("task-progress")!;
const job: JobState = bar.state;
bar.state = "running";
// @ts-expect-error no state has this name
bar.state = "completed";
document.addEventListener("progress-change", ({ detail }) => console.log(detail.percent?.toFixed(), detail.before === "failed", detail.label));
bar.addEventListener("progress-gap", ({ detail }) => console.log(detail.topic, detail.stalled, job.eta));

// @ts-expect-error there is no such state
console.log(job.state === "completed");
// @ts-expect-error there is no such level
document.querySelector("notification-toasts")?.show({ title: "Saved", level: "fatal" });
// @ts-expect-error it is shown, not set
progress.state = state;
