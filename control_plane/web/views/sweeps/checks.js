// @ts-check
// What the checks of a sweep have found: its runs, what is wrong, and what it will need.

import { make } from "../../dom.js";
import { count, roughly, short, size } from "../../format.js";
import { checkLines, figureList } from "../create/checks.js";
import { settingText } from "../lists/settings.js";

/** @import { SweepCheck } from "../../types.d.ts" */

/** @param {SweepCheck} answer */
export function sweepCheckParts({ ok, runs, settings, checks, estimate, advice }) {
  const { teacher_hours: hours, free_disk_bytes: free, teacher_tokens: asked } = estimate;
  const number = runs.length === 1 ? "1 run" : `${count(runs.length)} runs`;
  return [
    make("h2", { textContent: ok ? `The sweep can start: ${number}` : "The sweep cannot start" }),
    ...advice.map((textContent) => make("p", { className: "advice", textContent })),
    checkLines(checks),
    figureList([
      ["Tokens", `${short(estimate.tokens)} in all`],
      [
        "From the teacher",
        asked === 0
          ? ""
          : `${short(asked)} tokens; ${short(estimate.teacher_tokens_shared)} if equal ones are computed once`,
      ],
      ["The teacher's time", hours === null ? "" : `${roughly(3600 * hours)}, if nobody else asks`],
      ["Disk free", free === null ? "" : size(free)],
    ]),
    make(
      "div",
      { className: "scroll", tabIndex: 0 },
      make(
        "table",
        { className: "plain" },
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            make("th", { scope: "col", textContent: "Run" }),
            ...settings.map((path) =>
              make("th", { scope: "col" }, make("code", { textContent: path })),
            ),
          ),
        ),
        make(
          "tbody",
          {},
          ...runs.map((run) =>
            make(
              "tr",
              {},
              make("th", { scope: "row", textContent: run.name }),
              ...settings.map((path) =>
                make("td", { textContent: settingText(run.settings[path]) }),
              ),
            ),
          ),
        ),
      ),
    ),
  ];
}
