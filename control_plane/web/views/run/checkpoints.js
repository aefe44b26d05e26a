// @ts-check
// The checkpoints of a run that are on disk: step, size, age, validation loss.

import { get } from "../../api.js";
import { make } from "../../dom.js";
import { ago, count, dateTime, loss, size } from "../../format.js";
import { pathOfRun } from "../../state/router.js";

/** @import { Checkpoints, ShownRun } from "../../types.d.ts" */

const HEADS = ["Step", "Completed", "Size", "Validation loss", "", ""];

export class CheckpointsRoom {
  constructor() {
    this.shown = "";
    this.element = make("div", { className: "checkpoints" });
  }

  clear() {
    this.shown = "";
    this.element.replaceChildren();
  }

  /** @param {ShownRun} run */
  async load(run) {
    /** @type {Checkpoints} */
    const { checkpoints } = await get(`/runs/${run.id}/checkpoints`);
    const now = Date.now() / 1000;
    const rows = checkpoints.toReversed().map((one) => [
      count(one.step),
      `${dateTime(one.completed_at)} (${ago(one.completed_at, now)})`,
      size(one.bytes),
      loss(one.validation_loss),
      noteOf(one.step, run),
    ]);
    const text = JSON.stringify(rows);
    if (text === this.shown) return;
    this.shown = text;
    this.element.replaceChildren(rows.length > 0
      ? make(
        "table",
        { className: "plain" },
        make("thead", {}, make("tr", {}, ...HEADS.map((textContent) =>
          make("th", { scope: "col", textContent })))),
        make("tbody", {}, ...rows.map((cells, place) => make("tr", {},
          ...cells.map((textContent, column) => column === 0
            ? make("th", { scope: "row", textContent })
            : make("td", { textContent })),
          make("td", {}, newForkLink(run, checkpoints[checkpoints.length - 1 - place].step))))),
      )
      : make("p", { className: "muted", textContent: "No checkpoint yet." }));
  }
}

/**
 * @param {ShownRun} run
 * @param {number} step
 */
function newForkLink(run, step) {
  const link = make("a", { href: `${pathOfRun(run.id)}/fork?checkpoint=${step}`, textContent: "Fork from here" });
  link.setAttribute("aria-label", `Fork from step ${step}`);
  return link;
}

/**
 * @param {number} step
 * @param {ShownRun} run
 */
function noteOf(step, run) {
  const notes = [];
  if (step === run.checkpoint_step) notes.push("a resume continues here");
  if (step === run.latest["loss/val_best_step"]) notes.push("lowest validation loss");
  return notes.join("; ");
}
