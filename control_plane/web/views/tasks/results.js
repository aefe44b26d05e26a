// @ts-check
// What evaluations have measured, side by side: the teacher, the student before and after training,
// checkpoints, and the cross-entropy twin.

import { make } from "../../dom.js";
import { share } from "../../format.js";

/** @import { TaskDetail } from "../../types.d.ts" */

const TEACHER = "Teacher";
const BEFORE = "Before training";
const AFTER = "After training";
const TWIN = "Cross-entropy twin";
const ORDER = [TEACHER, BEFORE, AFTER, TWIN];

/** @typedef {Map<string, Map<string, string>>} Figures by row and column, as text */

/**
 * Returns the table of what succeeded evaluations of a run, and of its twin, have measured; null if
 * there is nothing yet. Of two that measured the same, the newer one counts.
 *
 * @param {TaskDetail[]} own newest first
 * @param {TaskDetail[]} ofTwin newest first
 */
export function resultsTable(own, ofTwin) {
  /** @type {Figures} */
  const figures = new Map();
  for (const task of own) addTask(figures, task, columnOf(task));
  for (const task of ofTwin) {
    if (columnOf(task) === AFTER) addTask(figures, task, TWIN);
  }
  if (figures.size === 0) return null;
  const columns = [...new Set([...figures.values()].flatMap((row) => [...row.keys()]))]
    .sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
  const head = (/** @type {string} */ textContent) => make("th", { scope: "col", textContent });
  return make("table", { className: "plain results" },
    make("caption", { className: "unseen", textContent: "What evaluations have measured" }),
    make("thead", {}, make("tr", {}, head(""), ...columns.map(head))),
    make("tbody", {}, ...[...figures].map(([name, row]) => make("tr", {},
      make("th", { scope: "row", textContent: name }),
      ...columns.map((column) => make("td", { textContent: row.get(column) ?? "\u2013" }))))));
}

/** @param {string} column */
const rank = (column) => (ORDER.includes(column) ? ORDER.indexOf(column) : 1.5);

/** @param {TaskDetail} task */
function columnOf({ asked: { weights } }) {
  if (weights === "initial") return BEFORE;
  return typeof weights === "number" ? `Step ${weights}` : AFTER;
}

/**
 * @param {Figures} figures
 * @param {TaskDetail} task
 * @param {string} column
 */
function addTask(figures, { result, asked }, column) {
  const put = (/** @type {string} */ row, /** @type {string} */ text, where = column) => {
    const cells = figures.get(row) ?? new Map();
    figures.set(row, cells);
    if (!cells.has(where)) cells.set(where, text);
  };
  const suites = result?.suites ?? {};
  const on = asked.text?.data ? ` on ${asked.text.data}` : "";
  if (suites.perplexity) {
    put(`Loss, nats per token${on}`, number(suites.perplexity.loss));
    put(`Perplexity${on}`, number(suites.perplexity.perplexity));
    put(`Bits per byte${on}`, number(suites.perplexity.bits_per_byte));
  }
  if (suites.agreement) {
    put(`Loss, nats per token${on}`, number(suites.agreement.teacher_loss), TEACHER);
    put(`KL to the teacher${on}`, number(suites.agreement.kl));
    put(`Same likeliest token${on}`, share(suites.agreement.top1_agreement));
    put(`Calibration error${on}`, share(suites.agreement.calibration_error));
  }
  const problems = asked.code?.problems ?? "humaneval";
  for (const [k, value] of Object.entries(suites.code?.pass_at_k ?? {})) {
    put(`pass@${k}, ${problems}`, share(value));
  }
  for (const [name, metrics] of Object.entries(suites.lm_eval?.tasks ?? {})) {
    for (const [metric, value] of Object.entries(metrics)) put(`${name}, ${metric}`, number(value));
  }
}

/** @param {any} value */
const number = (value) => (typeof value === "number" ? value.toFixed(4) : "\u2013");
