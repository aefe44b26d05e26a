// @ts-check
// What the page builds on: the charts of several runs, and those of one.

import { make, setText } from "../dom.js";
import { CurveView } from "./curve_view.js";
import { Curves } from "./curves.js";

/** @import { ShownRun } from "../types.d.ts" */

/** @typedef {{run: ShownRun, name: string, settings?: Record<string, any>}} Entry */

/**
 * @typedef {object} Options
 * @property {string} [metric] key of the chart at first
 * @property {(width: number) => number} [height] of the chart, both in pixels
 */

/** The charts of several runs. */
export class Overview {
  /**
   * @param {HTMLElement} container empty
   * @param {Options} [options]
   */
  constructor(container, { metric, height } = {}) {
    this.smoothing = make("input", {
      type: "range", min: "0", max: "0.98", step: "0.02", value: "0", className: "amount",
    });
    this.amount = make("output");
    const choice = make("div", { className: "metric segments" });
    choice.setAttribute("role", "radiogroup");
    choice.setAttribute("aria-label", "Metric");
    const chart = make("div", { className: "chart" });
    chart.setAttribute("role", "img");
    container.append(
      make("div", { className: "toolbar" }, make("h2", { className: "curve-title" }), choice,
        make("label", { className: "smoothing" }, "Smoothing", this.smoothing, this.amount)),
      make("p", { className: "curve-note muted" }), chart,
      make("p", { className: "chart-empty muted", hidden: true }),
      make("ul", { className: "legend" }),
    );
    /** @type {Entry[]} */
    this.entries = [];
    this.curves = new Curves(() => this.draw());
    const usual = (/** @type {number} */ width) => (width < 560 ? 240 : 350);
    this.view = new CurveView(container, metric ?? null, height ?? usual, () => this.draw());
    this.smoothing.addEventListener("input", () => this.draw());
  }

  /** @param {Entry[]} entries in the order of the legend */
  update(entries) {
    this.entries = entries;
    this.curves.want(entries.map(({ run }) => run));
    this.draw();
  }

  draw() {
    const weight = Number(this.smoothing.value);
    this.view.draw(this.entries, this.curves, weight);
    this.smoothing.disabled = this.view.metric.isEvaluated ?? false;
    setText(this.amount, weight === 0 ? "off" : weight.toFixed(2));
  }
}

/** The charts of one run. */
export class RunCharts {
  /**
   * @param {HTMLElement} container empty
   * @param {Options} [options]
   */
  constructor(container, options = {}) {
    this.overview = new Overview(container, { height: () => 300, ...options });
  }

  /** @param {Entry | null} entry null: none, so nothing is fetched */
  update(entry) {
    this.overview.update(entry === null ? [] : [entry]);
  }
}
