// The bell and the list, as far as they need no browser: how numbers and times are said, and what a group is.

import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.HTMLElement = class {};
const { ago, grouped, shownNumber } = await import("../../notifications/static/notifications/inbox.js");

test("a number is said in the language of the page, up to 99", () => {
  assert.deepEqual([0, 7, 99, 100, 5000].map((n) => shownNumber(n, "en")), ["0", "7", "99", "99+", "99+"]);
  assert.equal(shownNumber(100, "ar-EG"), "٩٩+");
  assert.equal(shownNumber(7, "no language"), "7");
});

test("a time is said in the largest unit of which there is one", () => {
  const [HOUR, DAY] = [3600, 86_400];

  assert.deepEqual(ago(-5), [0, "second"]);
  assert.deepEqual(ago(59), [0, "second"]);
  assert.deepEqual(ago(60), [-1, "minute"]);
  assert.deepEqual(ago(HOUR - 1), [-59, "minute"]);
  assert.deepEqual(ago(25 * HOUR), [-1, "day"]);
  assert.deepEqual(ago(13 * DAY), [-1, "week"]);
  assert.deepEqual(ago(300 * DAY), [-9, "month"]);
  assert.deepEqual(ago(800 * DAY), [-2, "year"]);
});

test("a group is at the place of its newest notice, and what has none stands alone", () => {
  const notices = [["5", "a"], ["4", ""], ["3", "b"], ["2", "a"], ["1", ""]].map(([id, group]) => ({ id, group }));

  const ids = grouped(notices).map((group) => group.map(({ id }) => id));

  assert.deepEqual(ids, [["5", "2"], ["4"], ["3"], ["1"]]);
});

test("a group is not taken for a notice of that id", () => {
  assert.equal(grouped([{ id: "1", group: "" }, { id: "2", group: "1" }]).length, 2);
});
