// The file itself: its size, its types, what the documentation says of it.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { CLIENT } from "./browser.js";

const root = new URL("../../", import.meta.url);
const source = readFileSync(CLIENT, "utf8");
const types = readFileSync(new URL("client.d.ts", CLIENT), "utf8");

/** The names in an interface of the types, but for those that every EventTarget has. */
function members(name) {
  const [, body] = types.match(new RegExp(`interface ${name} [^{]*\\{\\n(.*?)\\n\\}`, "s"));
  const names = [...body.matchAll(/^ {2}(?:readonly )?(\w+)\??[:(<]/gm)].map(([, member]) => member);
  return new Set(names.filter((member) => !member.endsWith("EventListener")));
}

test("it is less than 5 KB, compressed", () => {
  assert.ok(gzipSync(source).length < 5000, `${gzipSync(source).length} bytes`);
});

test("it needs nothing: no import, no eval", () => {
  assert.doesNotMatch(source, /^\s*import\b|\bimport\(|\brequire\(|\beval\(|\bnew Function\b/m);
});

test("a connection has every member that its type has, and no other of its own", async () => {
  const { connect } = await import(CLIENT);
  const notifications = connect();
  notifications.close();
  const own = Object.getOwnPropertyNames(notifications).filter((name) => name !== "addEventListener");

  assert.deepEqual(new Set(own), members("Notifications"));
  assert.ok(notifications instanceof EventTarget);
});

test("a program that uses all of it is accepted", () => {
  const tsc = new URL("node_modules/typescript/bin/tsc", import.meta.url);
  const { stdout, status } = spawnSync(process.execPath, [tsc.pathname, "-p", new URL("types/", import.meta.url).pathname]);
  assert.equal(status, 0, stdout.toString());
});

test("the documentation has every number of the code", () => {
  const [, table] = readFileSync(new URL("docs/browser.md", root), "utf8").split("<!-- table: numbers -->\n");
  const stated = [...table.split("\n\n")[0].matchAll(/\| ([\d.]+) s \|$/gm)].map(([, seconds]) => Number(seconds));
  const constants = [...source.matchAll(/^const [A-Z_]+ = ([\d_]+);/gm)].map(([, ms]) => Number(ms.replaceAll("_", "")) / 1000);

  assert.deepEqual(stated, constants);
});

test("the documentation names everything that the types name, and nothing else", () => {
  const docs = readFileSync(new URL("docs/browser.md", root), "utf8");
  const rows = (mark) => {
    const [, table] = docs.split(`<!-- table: ${mark} -->\n`);
    return new Set([...table.split("\n\n")[0].matchAll(/^\| `\.?(\w+)/gm)].map(([, name]) => name));
  };

  assert.deepEqual(rows("connect"), members("ConnectOptions"));
  assert.deepEqual(rows("subscribe"), new Set([...members("SubscribeOptions"), ...members("ListenOptions")]));
  assert.deepEqual(rows("methods"), members("Notifications"));
  assert.deepEqual(rows("events"), members("EventMap"));
});
