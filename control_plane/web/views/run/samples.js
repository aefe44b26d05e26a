// @ts-check
// What student and teacher wrote for each prompt: newest evaluation first, prompts in their order.

import { get } from "../../api.js";
import { make } from "../../dom.js";
import { count, isActiveOrQueued } from "../../format.js";

/** @import { Run, Sample, Samples, ShownRun } from "../../types.d.ts" */

const EMPTY = "No samples yet. They are written at evaluations, "
  + "for the prompts in evaluation.prompts of the spec.";
const VISIBLE_SPACES = new Map([["\n", "\u21b5\n"], ["\r", "\u240d"], ["\t", "\u21e5"]]);

export class SamplesRoom {
  constructor() {
    this.shown = "";
    this.list = make("ol", { className: "samples" });
    this.element = make("div", {}, this.list);
  }

  clear() {
    this.shown = "";
    this.list.replaceChildren();
  }

  /**
   * Changes nothing if there is nothing new, so that a selection survives.
   *
   * @param {ShownRun} run
   */
  async load(run) {
    /** @type {Samples} */
    const { samples } = await get(`/runs/${run.id}/samples`);
    const text = JSON.stringify([run.id, samples, isActiveOrQueued(run)]);
    if (text === this.shown) return;
    this.shown = text;
    this.list.replaceChildren(...sampleItems(samples, run));
  }
}

/**
 * Returns one list item per evaluation.
 *
 * @param {Sample[]} samples in the order of their steps
 * @param {Run} run
 */
function sampleItems(samples, run) {
  if (samples.length === 0) return [make("li", { textContent: EMPTY })];
  /** @type {Map<number, Sample[]>} */
  const byStep = new Map();
  for (const sample of samples) {
    byStep.set(sample.step, [...(byStep.get(sample.step) ?? []), sample]);
  }
  return [...byStep].reverse().map(([step, written]) => make(
    "li",
    {},
    make("h3", { textContent: `Step ${count(step)}` }),
    ...written.map((sample) => make(
      "dl",
      {},
      ...labelled("Prompt", textOf(sample.prompt)),
      ...labelled("Student", textOf(sample.student)),
      ...teacherParts(sample, run),
    )),
  ));
}

/**
 * @param {string} label
 * @param {HTMLElement} text
 */
const labelled = (label, text) => [make("dt", { textContent: label }), text];

/** @param {string} text */
const placeholder = (text) => make("dd", { className: "not-yet", textContent: text });

/**
 * Returns the text as an element. White space is made visible if there is nothing else.
 *
 * @param {string} text
 */
export function textOf(text) {
  if (text === "") return placeholder("Empty");
  if (text.trim() !== "") return make("dd", { textContent: text });
  const marked = text.replace(/\s/g, (space) => VISIBLE_SPACES.get(space) ?? "\u2423");
  return make("dd", { className: "blank", title: "Only white space", textContent: marked });
}

/**
 * @param {Sample} sample
 * @param {Run} run
 */
function teacherParts(sample, run) {
  if (sample.teacher !== null) return labelled("Teacher", textOf(sample.teacher));
  if (run.representation === null) return [];
  const why = isActiveOrQueued(run) ? "Added at the last evaluation." : "No answer.";
  return labelled("Teacher", placeholder(why));
}
