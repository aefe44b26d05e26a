// @ts-check
// The same actions from a terminal: a `lectern` line and a `curl` line for each.

import { copyText, make } from "../../dom.js";
import { isActiveOrQueued, resumesItself } from "../../format.js";

/** @import { ShownRun } from "../../types.d.ts" */

// The file is read when the line runs: the token itself is never in the page.
const TOKEN = "-H \"Authorization: Bearer $(cat ~/.lectern/secrets/control-plane)\"";

export class CommandsRoom {
  constructor() {
    this.shown = "";
    this.element = make("div", { className: "commands" });
  }

  clear() {
    this.shown = "";
  }

  /** @param {ShownRun} run */
  load(run) {
    const actions = actionsOf(run);
    const text = JSON.stringify(actions);
    if (text === this.shown) return;
    this.shown = text;
    this.element.replaceChildren(
      make("p", { className: "muted", textContent:
        "Run these on the machine of the control plane, which keeps its token in this file. "
        + "Without a token, leave the header out." }),
      ...actions.flatMap(([title, ...lines]) => [
        make("h3", { textContent: title }), ...lines.map(newCommand),
      ]),
    );
  }
}

/**
 * @param {ShownRun} run
 * @returns {[title: string, ...lines: string[]][]}
 */
function actionsOf({ id, ...run }) {
  const { origin } = location;
  const lectern = (/** @type {string} */ words) => `lectern runs ${words} --url ${origin}`;
  const curl = (/** @type {string} */ path, options = "") =>
    `curl ${TOKEN} ${options}${origin}/runs/${id}${path}`;
  const whole = /** @type {ShownRun} */ ({ id, ...run });
  const isIdle = !isActiveOrQueued(whole), goesOn = isIdle && resumesItself(whole);
  const json = (/** @type {object} */ body, method = "POST") =>
    `-X ${method} -H 'content-type: application/json' -d '${JSON.stringify(body)}' `;
  /** @type {[boolean, string, string, string][]} */
  const all = [
    [true, "Show", lectern(`show ${id}`), curl("")],
    [!isIdle, "Watch", lectern(`watch ${id}`), curl("/events", "-N ")],
    [!isIdle || goesOn, "Stop", lectern(`stop ${id}`), curl("/stop", "-X POST ")],
    [
      !isIdle, "Stop at the next checkpoint", lectern(`stop ${id} --at-checkpoint`),
      curl("/stop", json({ at: "checkpoint" })),
    ],
    [isIdle, "Resume", lectern(`resume ${id}`), curl("/resume", "-X POST ")],
    [
      isIdle, "Resume with a change", lectern(`resume ${id} --set schedule.steps=${2 * run.steps}`),
      curl("/resume", json({ schedule: { steps: 2 * run.steps } })),
    ],
    [
      run.checkpoint_step !== null, "Fork with a change",
      lectern(`fork ${id} --checkpoint ${run.checkpoint_step} --set optimizer.learning_rate=1e-5`),
      curl("/fork", json({
        checkpoint: run.checkpoint_step, changes: { optimizer: { learning_rate: 1e-5 } },
      })),
    ],
    [
      true, "Label", lectern(`set ${id} --priority 5 --group rates --tag baseline --notes 'the best so far'`),
      curl("", json({ priority: 5, group: "rates", tags: ["baseline"], notes: "the best so far" }, "PATCH")),
    ],
    [true, "Log", lectern(`logs ${id}`), curl("/logs?tail=100").replace(/(http\S+)$/, "'$1'")],
    [!isIdle, "Log that follows", lectern(`logs ${id} --follow`), curl("/log/stream", "-N ")],
    [true, "Whole log", "", curl("/log", "-o trainer.log ")],
    [true, "Samples", lectern(`samples ${id}`), curl("/samples")],
    ["rollout.fraction" in run.settings, "Rollouts", "", curl("/rollouts")],
    [true, "Spec as YAML", lectern(`show ${id}`), curl("/spec", "-o run.yaml ")],
    [isIdle && !goesOn, "Delete", lectern(`delete ${id}`), curl("", "-X DELETE ")],
  ];
  return all.filter(([isShown]) => isShown).map(([, title, ...lines]) => [title, ...lines.filter((line) => line !== "")]);
}

/** @param {string} text */
function newCommand(text) {
  const copy = make("button", { type: "button", className: "quiet", textContent: "Copy" });
  copy.setAttribute("aria-label", `Copy: ${text}`);
  copy.addEventListener("click", () => copyText(copy, text));
  return make("div", { className: "command" }, make("pre", { textContent: text }), copy);
}
