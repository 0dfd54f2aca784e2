// The bars, as far as they need no browser: what is known of a job, and how much time is left in words.

import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.HTMLElement = class {};
globalThis.customElements = { define() {} };
const { define } = await import("../../notifications/static/notifications/elements.js");
const { changed, defineBars, roughly, told } = await import("../../notifications/static/notifications/progress.js");
defineBars(define(Object.assign(new EventTarget(), { on() {} })));

const nothing = { unit: "", stage: "", message: "", error: "", url: "", eta: null };
const running = { ...nothing, state: "running", percent: 40, done: 80, total: 200, unit: "rows", stage: "Reading", eta: 12 };

test("seconds become what one would say, and never less than a step", () => {
  const said = (seconds) => roughly(seconds);
  const MINUTE = 60;
  const HOUR = 60 * MINUTE;

  assert.deepEqual([0, 4, 5, 14, 54].map(said), [0, 0, 10, 10, 50]);
  assert.deepEqual([55, 89, 91, 185].map(said), [MINUTE, MINUTE, 2 * MINUTE, 3 * MINUTE]);
  assert.deepEqual([54.9 * MINUTE, 55 * MINUTE, 80 * MINUTE].map(said), [55 * MINUTE, HOUR, 1.5 * HOUR]);
  assert.deepEqual([22 * HOUR, 47 * HOUR].map(said), [24 * HOUR, 48 * HOUR]);
});

test("an estimate that goes up and down is told once", () => {
  let before;
  const said = [185, 200, 215, 170, 140, 130, 160, 100].map((seconds) => (before = roughly(seconds, before)));

  assert.deepEqual(said, [180, 180, 180, 180, 180, 120, 120, 120]);
  assert.equal(roughly(50, 60), 50); // of another step
});

test("time that passes is told in falling steps, each once", () => {
  const said = [];
  let before;
  for (let left = 4000; left >= 0; left--) {
    before = roughly(left, before);
    if (before !== said.at(-1)) said.push(before);
  }

  assert.deepEqual(said, [...new Set(said)]);
  assert.deepEqual(said, said.toSorted((one, other) => other - one));
  assert.equal(said.at(-1), 0);
});

test("a message is all that there is to say", () => {
  const next = told({ state: "running", percent: 12 }, running);

  assert.deepEqual(next, { ...nothing, state: "running", percent: 12, done: null, total: null });
});

test("an end without numbers keeps those that were shown, and one with numbers does not", () => {
  const killed = told({ state: "failed", error: "killed" }, running);
  assert.deepEqual(killed, { ...running, state: "failed", error: "killed", eta: null });

  const counted = told({ state: "failed", done: 81 }, running);
  assert.deepEqual([counted.percent, counted.done, counted.total], [null, 81, null]);
  assert.equal(told({ state: "waiting" }, killed).percent, null);
});

test("what has succeeded is whole", () => {
  const { percent, done, total } = told({ state: "succeeded" }, running);

  assert.deepEqual({ percent, done, total }, { percent: 100, done: 200, total: 200 });
});

test("attributes change what they name; a count is a percentage, unless there is one", () => {
  assert.equal(changed(running, { done: "50" }).percent, 25);
  assert.equal(changed(running, { total: "80" }).percent, 100);
  assert.equal(changed(running, { done: "50", percent: "60" }).percent, 60);
  assert.equal(changed(running, { stage: "Indexing" }).percent, 40);
  assert.equal(changed(running, { total: "0" }).percent, 40);
});

test("what is no number, text or state changes nothing", () => {
  const strange = { state: "constructor", percent: "Infinity", done: -1, total: {}, unit: 7, stage: null, eta: "soon", url: ["a"] };

  assert.deepEqual(changed(running, strange), running);
});
