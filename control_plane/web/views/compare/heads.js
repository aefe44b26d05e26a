// @ts-check
// How runs that are compared are called, and the heads of tables with a column for each.

import { make } from "../../dom.js";
import { pathOfRun } from "../../state/router.js";

/** @import { ShownRun } from "../../types.d.ts" */

/**
 * Returns the run's name, or its id if another of them has the same name.
 *
 * @param {ShownRun} run
 * @param {ShownRun[]} runs
 */
export function nameAmong(run, runs) {
  return runs.some((one) => one.id !== run.id && one.name === run.name) ? run.id : run.name;
}

/**
 * Returns the head of a table with a column per run.
 *
 * @param {ShownRun[]} runs
 * @param {string} corner
 */
export function headOf(runs, corner) {
  const heads = runs.map((run) => make("th", { scope: "col" },
    make("a", { href: pathOfRun(run.id), textContent: nameAmong(run, runs) })));
  return make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: corner }), ...heads));
}
