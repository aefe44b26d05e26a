// @ts-check
// The tables of a comparison: what each run has come to, and the settings in which they differ.

import { breakable, make } from "../../dom.js";
import { columnOf } from "../lists/columns.js";
import { settingNames, settingOf, settingText } from "../lists/settings.js";
import { headOf } from "./heads.js";

/** @import { ShownRun } from "../../types.d.ts" */

const RESULTS = ["state", "val", "kl", "agreement", "progress", "speed", "wait", "elapsed", "device"];
/** What is not a setting of the training. */
export const LABELS = new Set(["name", "priority", "group", "tags", "notes"]);
const LOWEST_IS_BEST = new Set(["val", "kl"]);

/** @param {ShownRun[]} runs */
export function resultsTable(runs) {
  const now = Date.now() / 1000;
  const rows = RESULTS.map(columnOf).filter((column) => column !== undefined).map((column) => {
    const values = runs.map((run) => column.value(run)).filter((value) => typeof value === "number");
    const isRanked = LOWEST_IS_BEST.has(column.key) && new Set(values).size > 1;
    const lowest = isRanked ? Math.min(...values) : null;
    const cells = runs.map((run) => {
      const text = column.text(run, now);
      const isLowest = lowest !== null && column.value(run) === lowest;
      return make("td", { className: isLowest ? "lowest" : "" }, text,
        make("span", { className: "sub" }, column.note ? ` ${column.note(run, now)}` : ""));
    });
    return make("tr", {}, make("th", { scope: "row", textContent: column.label, title: column.title }),
      ...cells);
  });
  return make("table", { className: "plain" }, headOf(runs, ""), make("tbody", {}, ...rows));
}

/**
 * Returns the settings of which at least two runs have different values. Defaults of a section that
 * some of them lack are not among them; nor are labels, which say nothing of the training.
 *
 * @param {ShownRun[]} runs
 */
export function settingsTable(runs) {
  const set = new Set(runs.flatMap((run) => Object.keys(run.settings)));
  const paths = [...new Set([...settingNames(), ...set])]
    .filter((path) => set.has(path) && !LABELS.has(path));
  const rows = paths.map((path) =>
    ({ path, texts: runs.map((run) => settingText(settingOf(run, path))) }));
  const differing = rows.filter(({ texts }) => new Set(texts).size > 1);
  if (differing.length === 0) {
    return make("p", { className: "muted", textContent: "They have the same settings." });
  }
  return make("table", { className: "plain" }, headOf(runs, "Setting"), make(
    "tbody",
    {},
    ...differing.map(({ path, texts }) => make("tr", { dataset: { path } },
      make("th", { scope: "row" }, make("code", {}, ...breakable(path))),
      ...texts.map((textContent) => make("td", { textContent })))),
  ));
}
