// The page: what is on it comes from the database; messages only move it forward.

import { connect } from "./socket.js";

const STATES = {
  connecting: "Connecting …",
  live: "Live",
  waiting: "Offline, trying again …",
  ended: "Logged out: reload the page",
};
const NOTICE_TIME = 12_000; // ms a notice stays, unless somebody reads or touches it; errors stay

const form = document.getElementById("upload-form");
const list = document.getElementById("uploads");
const notices = document.getElementById("notices");
const problem = document.getElementById("problem");
const finished = (row) => row.dataset.status === "completed" || row.dataset.status === "failed";
const rowOf = (id) => list.querySelector(`[data-id="${CSS.escape(id)}"]`);

// --- uploads -------------------------------------------------------------------------------------------------

function fileSize(bytes) {
  const power = bytes < 1024 ? 0 : bytes < 1024 ** 2 ? 1 : 2;
  return `${(bytes / 1024 ** power).toFixed(power ? 1 : 0)} ${["bytes", "KB", "MB"][power]}`;
}

function addRow({ id, name, size }) {
  const row = document.getElementById("upload-template").content.firstElementChild.cloneNode(true);
  row.dataset.id = id;
  row.dataset.status = "pending";
  row.querySelector(".name").textContent = name;
  row.querySelector(".size").textContent = fileSize(size);
  row.querySelector("progress").setAttribute("aria-label", `Analysis of ${name}`);
  list.prepend(row);
  return row;
}

/** Show a newer state of an upload. What is older than what is shown changes nothing. */
function advance(row, { percent, status, stage, message }) {
  const bar = row.querySelector("progress");
  if (finished(row) || percent < bar.value) return;
  bar.value = percent;
  row.querySelector(".percent").textContent = `${percent} %`;
  Object.assign(row.dataset, { status, stage });
  row.querySelector(".message").textContent = message;
}

/** Show an upload as the database has it, results included. */
function show(upload) {
  const known = rowOf(upload.id);
  const row = known ?? addRow(upload);
  const before = known && finished(row);
  advance(row, upload);
  if (!known) watch(row);
  if (!before && finished(row)) send({ action: "unsubscribe_upload", upload_id: upload.id });
  const facts = upload.facts.map((fact) => Object.assign(document.createElement("li"), { textContent: fact }));
  row.querySelector(".facts").replaceChildren(...facts);
  const picture = row.querySelector(".picture");
  if (upload.thumbnail && !picture.firstChild) {
    picture.append(Object.assign(new Image(), { src: upload.thumbnail, alt: "" }));
  }
}

let refreshing = false;
let again = false;

/** Ask the database: after a connection there may be a gap, and results are not part of any message. */
async function refresh() {
  again = true;
  if (refreshing) return; // the one under way may have read before the change; it starts once more
  refreshing = true;
  try {
    while (again) {
      again = false;
      const answer = await fetch(form.dataset.stateUrl, { headers: { Accept: "application/json" } });
      if (!answer.ok || answer.redirected) return;
      const { uploads } = await answer.json();
      const known = new Set(uploads.map((upload) => upload.id));
      for (const row of [...list.children]) if (finished(row) && !known.has(row.dataset.id)) row.remove();
      uploads.reverse().forEach(show);
    }
  } catch {
    // Offline: the next connection asks again.
  } finally {
    refreshing = false;
  }
}

// --- notices -------------------------------------------------------------------------------------------------

/** Only web pages: an address in a message may come from anybody who can publish. */
function safeUrl(url) {
  if (typeof url !== "string" || !URL.canParse(url, location.href)) return null;
  const { protocol, href } = new URL(url, location.href);
  return protocol === "https:" || protocol === "http:" ? href : null;
}

function showNotice({ level, title, body, url }) {
  const notice = document.createElement("div");
  notice.className = "notice";
  notice.dataset.level = ["success", "warning", "error"].includes(level) ? level : "info";
  const href = safeUrl(url);
  const heading = document.createElement(href ? "a" : "strong");
  if (href) Object.assign(heading, { href, rel: "noopener noreferrer" });
  heading.textContent = String(title ?? "");
  const text = Object.assign(document.createElement("p"), { textContent: String(body ?? "") });
  const close = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
  close.setAttribute("aria-label", "Close the notice");
  close.addEventListener("click", () => notice.remove());
  notice.append(heading, close, text);
  notices.append(notice);
  while (notices.children.length > 5) notices.firstChild.remove();
  if (level === "error") return;
  const fade = () => (notice.matches(":hover, :focus-within") ? setTimeout(fade, 2000) : notice.remove());
  setTimeout(fade, NOTICE_TIME);
}

// --- messages ------------------------------------------------------------------------------------------------

function receive(message) {
  switch (message.action) {
    case "auth_success":
      [...list.children].forEach(watch);
      return refresh();
    case "subscribed":
      // Only now nothing more can be missed, so only now the database's answer is complete.
      return message.recovered ? undefined : refresh();
    case "upload_progress": {
      const { upload_id, progress_percent, status, stage, message: text } = message.payload;
      const row = rowOf(upload_id);
      if (row) advance(row, { percent: progress_percent, status, stage, message: text });
      return;
    }
    case "file_progress": // of every upload of this user, so also those sent from another tab
      return rowOf(message.payload.upload_id) ? undefined : refresh();
    case "upload_completed":
    case "upload_failed":
    case "uploads_cleared":
      return refresh();
    case "notice":
      return showNotice(message);
  }
}

const send = connect(form.dataset.socket, receive, (state) => {
  const indicator = document.getElementById("connection");
  indicator.dataset.state = state;
  indicator.textContent = STATES[state];
});

function watch(row) {
  if (!finished(row)) send({ action: "subscribe_upload", upload_id: row.dataset.id, since: "last" });
}

// --- sending files -------------------------------------------------------------------------------------------

function complain(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

function upload(files) {
  const data = new FormData();
  data.set("csrfmiddlewaretoken", form.elements.csrfmiddlewaretoken.value);
  for (const file of files) data.append("files", file);
  const sending = document.getElementById("sending");
  const request = new XMLHttpRequest(); // fetch() cannot tell how much was sent
  request.open("POST", form.action);
  request.responseType = "json";
  request.upload.onprogress = ({ loaded, total }) => {
    sending.querySelector("progress").value = (100 * loaded) / total;
  };
  request.onloadend = () => {
    sending.hidden = true;
    const answer = request.response;
    if (!answer) return complain(`The files were not taken (${request.status || "no connection"}).`);
    answer.uploads?.toReversed().forEach(show);
    complain(answer.error ?? answer.rejected.map(({ name, reason }) => `${name}: ${reason}`).join(" "));
  };
  complain("");
  sending.querySelector("progress").value = 0;
  sending.hidden = false;
  request.send(data);
}

form.elements.files.addEventListener("change", ({ target }) => {
  if (target.files.length) upload([...target.files]);
  target.value = ""; // so that the same file can be chosen again
});
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  // Anywhere on the page: a file dropped beside the box would otherwise replace the page.
  addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    form.classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop") upload([...event.dataTransfer.files]);
  });
}

document.getElementById("copy").addEventListener("click", async ({ target }) => {
  await navigator.clipboard.writeText(document.getElementById("publish-command").textContent);
  target.textContent = "Copied";
});
