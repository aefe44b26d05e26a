// @ts-check
// The tables of a sweep: its runs with what they vary, and the mean over runs that differ in their
// seed only. The best is first in neither; it is marked.

import { breakable, make } from "../../dom.js";
import { STATES, count, loss, sentence } from "../../format.js";
import { pathOfRun } from "../../state/router.js";
import { settingText } from "../lists/settings.js";

/** @import { Sweep, SweepRun } from "../../types.d.ts" */

const DASH = "\u2013";

/** @param {string} path */
export const isSeed = (path) => path === "seed" || path.endsWith(".seed");

/**
 * Returns the runs by their best value, those without one last.
 *
 * @param {Sweep} sweep
 */
export function runsTable(sweep) {
  const sign = sweep.goal === "min" ? 1 : -1;
  const runs = sweep.runs.toSorted((one, other) => {
    if (one.best === null || other.best === null)
      return Number(one.best === null) - Number(other.best === null);
    return sign * (one.best - other.best);
  });
  return table(
    ["Run", "State", ...sweep.settings, "Best", "Last", "Remark"],
    sweep.settings,
    runs.map((run) => {
      const isBest = run.run_id === sweep.best;
      return make(
        "tr",
        { dataset: { runId: run.run_id }, className: isBest ? "best-row" : "" },
        make(
          "th",
          { scope: "row" },
          make("a", { href: pathOfRun(run.run_id), textContent: run.name }),
          ...(isBest ? [make("span", { className: "chip best-chip", textContent: "best" })] : []),
        ),
        make(
          "td",
          {},
          make("span", {
            className: "pill",
            dataset: { state: run.state },
            textContent: STATES[run.state],
          }),
          make("span", { className: "sub", textContent: progressOf(run) }),
        ),
        ...sweep.settings.map((path) =>
          make("td", { textContent: settingText(run.settings[path]) }),
        ),
        valueCell(run.best, run.at_step),
        valueCell(run.value, run.value_step),
        make("td", { className: "muted", textContent: sentence(run.note ?? run.message) }),
      );
    }),
  );
}

/** @param {Sweep} sweep */
export function groupsTable(sweep) {
  const settings = sweep.settings.filter((path) => !isSeed(path));
  return table(
    [...(settings.length > 0 ? settings : ["Settings"]), "Mean", "Spread", "Runs", "Remark"],
    settings,
    sweep.groups.map((group, index) => {
      const isBest = index === sweep.best_group;
      return make(
        "tr",
        { className: isBest ? "best-row" : "" },
        ...(settings.length > 0
          ? settings.map((path) => make("td", { textContent: settingText(group.settings[path]) }))
          : [make("td", { textContent: "all" })]),
        make(
          "td",
          {},
          make("b", { textContent: loss(group.mean) }),
          ...(isBest ? [make("span", { className: "chip best-chip", textContent: "best" })] : []),
        ),
        make("td", {
          textContent: group.spread === null ? DASH : `\u00b1 ${loss(group.spread)}`,
          title: "Sample standard deviation",
        }),
        make("td", {
          textContent:
            group.n === group.runs.length ? String(group.n) : `${group.n} of ${group.runs.length}`,
        }),
        make("td", { className: "muted", textContent: sentence(group.note) }),
      );
    }),
  );
}

/**
 * @param {string[]} heads
 * @param {string[]} paths which of them are settings
 * @param {HTMLElement[]} rows
 */
function table(heads, paths, rows) {
  for (const row of rows) {
    for (const [place, cell] of [...row.children].entries()) {
      if (cell instanceof HTMLElement) cell.dataset.label = heads[place]; // where rows are cards
    }
  }
  return make(
    "div",
    { className: "scroll", tabIndex: 0 },
    make(
      "table",
      { className: "plain sweep-table" },
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          ...heads.map((head) =>
            make(
              "th",
              { scope: "col" },
              ...(paths.includes(head) ? [make("code", {}, ...breakable(head))] : [head]),
            ),
          ),
        ),
      ),
      make("tbody", {}, ...rows),
    ),
  );
}

/**
 * @param {number | null} value
 * @param {number | null} step
 */
function valueCell(value, step) {
  return make(
    "td",
    {},
    loss(value),
    make("span", {
      className: "sub",
      textContent: value === null || step === null ? "" : `at ${count(step)}`,
    }),
  );
}

/** @param {SweepRun} run */
const progressOf = ({ state, step, steps }) =>
  state === "succeeded" || state === "queued" ? "" : `${count(step)} / ${count(steps)}`;
