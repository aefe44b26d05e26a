// @ts-check
// What the page builds on: the charts of several runs, and those of one.

import { Grid } from "./grid.js";
import { View } from "./view.js";

/** @import { Entry } from "./types.d.ts" */
/** @import { Params } from "./view.js" */

/**
 * @typedef {object} Options
 * @property {Params} [params] what the charts take from the address; unknown names are ignored
 * @property {(params: Params) => void} [onParams] called when the user has changed something, with
 *   all that differs from the defaults, to be put into the address
 * @property {string} [metric] key of the large chart at first
 * @property {boolean} [expanded] whether all metrics are shown at first
 * @property {(width: number) => number} [height] of the large chart, both in pixels
 */

/** The charts of several runs. */
export class Overview {
  /**
   * @param {HTMLElement} container empty
   * @param {Options} [options]
   */
  constructor(container, options = {}) {
    this.grid = newGrid("overview", container, { expanded: false, ...options });
  }

  /**
   * Draws these runs and keeps them up to date.
   *
   * @param {Entry[]} entries in the order of the legend
   */
  update(entries) {
    this.grid.update(entries);
  }

  /**
   * Returns colour and dashes of a run's line.
   *
   * @param {{id: string, index: number}} run
   */
  style(run) {
    return this.grid.style(run);
  }

  destroy() {
    this.grid.destroy();
  }
}

/** The charts of one run. */
export class RunCharts {
  /**
   * @param {HTMLElement} container empty
   * @param {Options} [options]
   */
  constructor(container, options = {}) {
    this.grid = newGrid("run", container, { expanded: true, ...options });
  }

  /** @param {Entry} entry */
  update(entry) {
    this.grid.update([entry]);
  }

  destroy() {
    this.grid.destroy();
  }
}

/**
 * @param {"overview" | "run"} place
 * @param {HTMLElement} container
 * @param {Options} options
 */
function newGrid(place, container, { params = {}, onParams = () => {}, metric, ...options }) {
  container.classList.add("charts");
  const view = new View(place, params, metric === undefined ? {} : { metric }, onParams);
  return new Grid(container, view, {
    isOfMany: place === "overview",
    expanded: options.expanded ?? false,
    height: options.height ?? ((width) => (width < 560 ? 240 : 350)),
  });
}
