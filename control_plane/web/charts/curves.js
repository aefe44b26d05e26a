// @ts-check
// The metric records of each drawn run: thinned out at first, then every new one.

import { get } from "../api.js";
import { KEYS } from "./metrics.js";

/** @import { Metrics, Run } from "../types.d.ts" */

/** @typedef {[steps: number[], values: number[]]} Points */

/**
 * @typedef {object} Curve
 * @property {Record<string, Points>} points by metric
 * @property {string} cursor where the next request continues
 * @property {number} numRecords
 * @property {string | null} version of the run at the last request; null means there is more to read
 */

const MAX_POINTS = 1200;
const MAX_RECORDS = 6000; // beyond this, the run is read again, thinned out
const EVERY_MS = 700;

export class Curves {
  /** @param {() => void} onChange called after new records */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Map<string, Curve>} */
    this.byRun = new Map();
    /** @type {Map<string, string>} run id -> version: changes whenever there may be new records */
    this.wanted = new Map();
    /** @type {Set<string>} */
    this.busy = new Set();
    setInterval(() => this.refresh(), EVERY_MS);
  }

  /**
   * Keeps the records of these runs up to date from now on, and of no others.
   *
   * @param {Run[]} runs
   */
  want(runs) {
    this.wanted = new Map(runs.map((run) => [run.id, [run.step, run.attempt, run.state].join()]));
    this.refresh();
  }

  /**
   * @param {string} id
   * @param {string} key
   * @returns {Points}
   */
  points(id, key) {
    return this.byRun.get(id)?.points[key] ?? [[], []];
  }

  refresh() {
    for (const [id, version] of this.wanted) {
      if (!this.busy.has(id) && this.byRun.get(id)?.version !== version) this.fetch(id, version);
    }
  }

  /**
   * @param {string} id
   * @param {string} version
   */
  async fetch(id, version) {
    this.busy.add(id);
    try {
      const path = `/runs/${id}/metrics?keys=${KEYS.join()}`;
      let curve = this.byRun.get(id);
      /** @type {Metrics} */
      let answer;
      if (curve === undefined || curve.numRecords > MAX_RECORDS) {
        curve = emptyCurve();
        answer = await get(`${path}&max_points=${MAX_POINTS}`);
        curve.version = version;
      } else {
        answer = await get(`${path}&cursor=${curve.cursor}`);
        if (answer.rewound) curve = emptyCurve();
        curve.version = answer.more ? null : version;
      }
      add(curve, answer);
      this.byRun.set(id, curve);
      this.onChange();
    } catch {
      // The next round asks again; the banner says if the connection is lost.
    } finally {
      this.busy.delete(id);
    }
  }
}

/** @returns {Curve} */
function emptyCurve() {
  /** @type {Record<string, Points>} */
  const points = Object.fromEntries(KEYS.map((key) => [key, [[], []]]));
  return { points, cursor: "", numRecords: 0, version: null };
}

/**
 * Appends the records. One of the same step as the last replaces it.
 *
 * @param {Curve} curve
 * @param {Metrics} answer
 */
function add(curve, answer) {
  for (const record of answer.metrics) {
    for (const key of KEYS) {
      const value = record[key];
      if (value === undefined || value === null) continue;
      const [steps, values] = curve.points[key];
      if (steps.at(-1) === record.step) values[values.length - 1] = value;
      else {
        steps.push(record.step);
        values.push(value);
      }
    }
  }
  curve.cursor = answer.cursor;
  curve.numRecords += answer.metrics.length;
}
