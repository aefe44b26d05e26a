// @ts-check
// A chart with its title, the choice of a metric, and a note on what the values mean.

import { choices, find, setText, show } from "../dom.js";
import { isActiveOrQueued } from "../format.js";
import { Chart } from "./chart.js";
import { METRICS, metricOf, noteOf, valueOf } from "./metrics.js";

/** @import { ShownRun } from "../types.d.ts" */
/** @import { Line } from "./chart.js" */
/** @import { Curves } from "./curves.js" */
/** @import { Metric } from "./metrics.js" */

export class CurveView {
  /**
   * @param {HTMLElement} element has a part of each class below
   * @param {string | null} key of the metric that is chosen at first
   * @param {(width: number) => number} height of the chart, both in pixels
   * @param {(key: string) => void} onChoose called after the user has chosen a metric
   */
  constructor(element, key, height, onChoose) {
    this.title = find(element, ".curve-title");
    this.note = find(element, ".curve-note");
    this.nothing = find(element, ".chart-empty");
    this.chart = new Chart(find(element, ".chart"), find(element, ".legend"), height);
    this.metric = metricOf(key);
    /** @type {[string, string][]} */
    const names = METRICS.map((metric) => [metric.key, metric.name]);
    this.mark = choices(find(element, ".metric"), names, "radio", (chosen) => {
      this.metric = metricOf(chosen);
      onChoose(chosen);
    });
  }

  /**
   * Draws the runs that have a value of the metric.
   *
   * @param {{run: ShownRun, name: string}[]} runs in the order of the legend
   * @param {Curves} curves
   * @param {number} smoothing
   */
  draw(runs, curves, smoothing) {
    const { metric } = this;
    this.mark(metric.key);
    const drawn = runs.filter(({ run }) => curves.points(run.id, metric.key)[1].length > 0);
    /** @type {Line[]} */
    const lines = drawn.map(({ run, name }) => {
      const [steps, values] = curves.points(run.id, metric.key);
      const text = (/** @type {number} */ value) => valueOf(metric, run, value);
      return { id: run.id, name, index: run.index, steps, values, text };
    });
    this.chart.draw(lines, metric, smoothing);
    this.chart.describe(`${metric.title}, in ${metric.unit} by step, one line per run`);
    setText(this.title, metric.title);
    setText(this.note, noteOf(metric, drawn.map(({ run }) => run)));
    setText(this.nothing, whyNothing(metric, runs.map(({ run }) => run)));
    show(this.nothing, drawn.length === 0);
  }
}

/**
 * Returns why there is nothing to draw.
 *
 * @param {Metric} metric
 * @param {ShownRun[]} runs
 */
function whyNothing(metric, runs) {
  if (runs.length === 0) {
    return "No run is selected. Click the line next to a run's name to show it here.";
  }
  const isOne = runs.length === 1;
  if (metric.needsTeacher && runs.every((run) => run.representation === null)) {
    const who = isOne ? "This run learns" : "These runs learn";
    return `${who} from labels only; there is no teacher to compare with.`;
  }
  if (runs.some(isActiveOrQueued)) return "No values yet.";
  return `${isOne ? "The run" : "The runs"} ended before the first value.`;
}
