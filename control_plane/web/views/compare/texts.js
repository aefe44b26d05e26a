// @ts-check
// What the students of several runs wrote for the same prompts, beside their teacher.

import { make } from "../../dom.js";
import { count } from "../../format.js";
import { headOf } from "./heads.js";

/** @import { Sample, ShownRun } from "../../types.d.ts" */

/**
 * Returns a table with a row per prompt that some run has: the newest text of each.
 *
 * @param {ShownRun[]} runs
 * @param {Sample[][]} samples of each run, in the order of their steps
 */
export function samplesTable(runs, samples) {
  const prompts = [...new Set(samples.flat().map(({ prompt }) => prompt))];
  if (prompts.length === 0) {
    return make("p", { className: "muted", textContent: "These runs have no samples." });
  }
  const head = headOf(runs, "Prompt");
  head.rows[0]?.append(make("th", { scope: "col", textContent: "Teacher" }));
  return make("table", { className: "plain side" }, head, make("tbody", {}, ...prompts.map((prompt) => {
    const newest = samples.map((all) => all.findLast((sample) => sample.prompt === prompt));
    const taught = newest.find((sample) => sample !== undefined && sample.teacher !== null);
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, make("blockquote", { textContent: prompt })),
      ...newest.map((sample) => make("td", {}, ...(sample
        ? [
          make("blockquote", { textContent: sample.student || "Empty" }),
          make("span", { className: "sub", textContent: `step ${count(sample.step)}` }),
        ]
        : ["\u2013"]))),
      make("td", {}, make("blockquote", { textContent: taught?.teacher ?? "\u2013" })),
    );
  })));
}
