// @ts-check
// What the page builds on: the charts of several runs, and those of one.

import { Grid } from "./grid.js";
import { View } from "./view.js";

/** @import { Entry } from "./types.d.ts" */
/** @import { Params } from "./view.js" */

/**
 * @typedef {object} Options
 * @property {string} [place] whose choices are remembered together ("overview" or "run")
 * @property {Params} [params] what the charts take from the address; unknown names are ignored
 * @property {(params: Params) => void} [onParams] called when the user has changed something, with
 *   all that differs from the defaults, to be put into the address
 * @property {() => void} [onStyles] called when `style` returns others than before
 * @property {string} [metric] key of the large chart at first
 * @property {Params} [defaults] other choices at first
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
    this.grid = newGrid(container, true, { place: "overview", expanded: false, ...options });
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
    this.id = "";
    this.grid = newGrid(container, false, { place: "run", expanded: true, ...options });
  }

  /** @param {Entry | null} entry null: none, so nothing is fetched */
  update(entry) {
    if (entry !== null) {
      if (this.id !== "" && this.id !== entry.run.id) this.grid.view.seeAll();
      this.id = entry.run.id;
    }
    this.grid.update(entry === null ? [] : [entry]);
  }

  destroy() {
    this.grid.destroy();
  }
}

/**
 * @param {HTMLElement} container
 * @param {boolean} isOfMany
 * @param {Options & {place: string, expanded: boolean}} options
 */
function newGrid(container, isOfMany, options) {
  const { place, expanded, params, onParams, onStyles, metric, defaults, height } = options;
  container.classList.add("charts");
  const first = metric ?? "loss/val";
  const view = new View(place, params ?? {}, { ...defaults, metric: first }, onParams ?? (() => {}));
  return new Grid(container, view, {
    isOfMany, expanded, onStyles: onStyles ?? (() => {}), height: height ?? ((width) => (width < 560 ? 240 : 350)),
  });
}
