// @ts-check
// What the checks before a start have found, and the estimate of the run.

import { make } from "../../dom.js";
import { count, roughly, short, size } from "../../format.js";

/** @import { Check, SpecCheck } from "../../types.d.ts" */

const MARKS = { pass: "\u2713", warn: "!", fail: "\u2717", skip: "\u2013" };
const WORDS = { pass: "passed", warn: "warning", fail: "failed", skip: "not checked here" };

/**
 * Returns the parts of the answer: a heading, the checks, the estimate.
 *
 * @param {SpecCheck} answer
 */
export function checkParts({ ok, checks, estimate }) {
  const { teacher_hours: hours, free_disk_bytes: free, bytes_per_step: sent } = estimate;
  /** @type {[string, string][]} */
  const figures = [
    ["Tokens", `${short(estimate.tokens)} in all, ${count(estimate.tokens_per_step)} a step`],
    ["Epochs", estimate.epochs === null ? "" : String(+estimate.epochs.toPrecision(3))],
    ["Rows", estimate.training_rows === null
      ? ""
      : `${count(estimate.training_rows)} to train on, ${count(estimate.validation_rows)} to validate`],
    ["From the teacher", sent === null ? "" : `${size(sent)} a step`],
    ["The teacher's time", hours === null
      ? ""
      : `${roughly(3600 * hours)} for ${short(estimate.teacher_tokens)} tokens, if nobody else asks`],
    ["Disk free", free === null ? "" : size(free)],
  ];
  return [
    make("h2", { textContent: ok ? "The run can start" : "The run cannot start" }),
    checkLines(checks),
    figureList(figures),
  ];
}

/** @param {Check[]} checks */
export function checkLines(checks) {
  return make("ul", { className: "checks" }, ...checks.map(({ outcome, subject, message }) => {
    const mark = make("span", { className: "mark", textContent: MARKS[outcome], title: WORDS[outcome] });
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", WORDS[outcome]);
    return make("li", { dataset: { outcome } }, mark, make("b", { textContent: subject }), ` ${message}`);
  }));
}

/** @param {[name: string, text: string][]} figures those without a text are left out */
export function figureList(figures) {
  return make("dl", { className: "facts" }, ...figures.filter(([, text]) => text !== "").map(([name, text]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: text }))));
}
