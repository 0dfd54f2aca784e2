// The page: rows for the uploads of this user, sent from here or from another tab. The elements in them know how far
// each is; what they cannot know (which rows there are, thumbnails) comes from the site.

import { showFrames } from "./underneath.js";

const STATES = {
  connecting: "Connecting …",
  open: "Live",
  waiting: "Offline",
  closed: "Logged out",
};
const ATTRIBUTES = ["label", "status", "stage", "percent", "message", "status-url"]; // of <upload-progress>, as the site has them

const form = document.getElementById("upload-form");
const list = document.getElementById("uploads");
const problem = document.getElementById("problem");

// --- rows ----------------------------------------------------------------------------------------------------

const elementOf = (id) => list.querySelector(`upload-progress[upload="${CSS.escape(id)}"]`);
const finished = (element) => element.state?.status === "completed" || element.state?.status === "failed";

/** Show an upload as the site has it: in its row, or in a new one. */
function show(upload) {
  let element = elementOf(upload.upload);
  let row = element?.closest("li");
  if (!row) {
    row = document.importNode(document.getElementById("upload-template").content, true).querySelector("li");
    element = row.querySelector("upload-progress");
  }
  // What is finished stays as it is: an answer may have been under way while the last message came.
  if (!finished(element)) for (const name of ATTRIBUTES) element.setAttribute(name, upload[name]);
  element.setAttribute("upload", upload.upload);
  const picture = row.querySelector(".picture");
  picture.dataset.suffix = upload.suffix;
  if (upload.thumbnail && !picture.firstElementChild) {
    picture.replaceChildren(Object.assign(new Image(), { src: upload.thumbnail, alt: "" }));
  }
  if (!row.isConnected) list.prepend(row);
}

let refreshing = false;
let again = false;

/** Ask the site: there are new uploads, or results, or messages were missed for good. */
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
      const known = new Set(uploads.map(({ upload }) => upload));
      for (const row of [...list.children]) {
        const element = row.querySelector("upload-progress");
        if (finished(element) && !known.has(element.getAttribute("upload"))) row.remove();
      }
      uploads.reverse().forEach(show);
    }
  } catch {
    // Offline: what comes with the next connection asks again.
  } finally {
    refreshing = false;
  }
}

addEventListener("upload-change", ({ detail }) => {
  // Before one's eyes, so not for what was finished when the page was made.
  if (detail.before !== detail.status && detail.status === "completed") refresh();
});

function receive(message) {
  switch (message.action) {
    case "file_progress": // of every upload of this user, so also those sent from another tab
      return elementOf(message.payload.upload_id) ? undefined : refresh();
    case "uploads_cleared":
      return refresh();
  }
}

// --- the connection ------------------------------------------------------------------------------------------

const connection = await globalThis.notifications;

function showState(state) {
  const indicator = document.getElementById("connection");
  indicator.dataset.state = state;
  indicator.textContent = STATES[state];
}

connection.addEventListener("state", ({ detail }) => showState(detail.state));
showState(connection.state);
connection.onUser(receive);
connection.addEventListener("gap", refresh); // messages were missed for good
showFrames(connection);

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
