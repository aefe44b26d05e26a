// @ts-check
// The series of each drawn run: thinned out at first, finer where the user looks closer, and every
// new record of a run that trains.

import { RequestFailed, get } from "../api.js";
import { append, emptyColumns, isThinned, spliced, stepsWithin } from "./values/columns.js";

/** @import { Metrics, Run } from "../types.d.ts" */
/** @import { Axis, Columns, Mark, SeriesAnswer } from "./types.d.ts" */

/**
 * @typedef {object} Loaded
 * @property {Map<string, Columns>} columns by metric; kept up to date by what the trainer adds
 * @property {Map<string, number>} points how many were asked for, by metric
 * @property {Map<string, Fine>} fine the part that is zoomed in on, by metric
 * @property {string[]} keys every metric of the run
 * @property {Mark[]} marks
 * @property {number} lastStep up to which all columns are complete; -1 before any
 * @property {string | null} cursor where the next records are; null before any
 * @property {number} numRecords appended since the series were read
 * @property {string} version of the run at the last request
 * @property {number} attempt
 * @property {number} notBefore when the next request may be made, after one that failed
 */

/** @typedef {{asked: string, from: number, to: number, columns: Columns}} Fine */

/**
 * @typedef {object} Wanted
 * @property {Run[]} runs
 * @property {Map<string, number>} points how many points each metric is drawn with
 * @property {Axis} axis of the zoom
 * @property {readonly [number, number] | null} zoom
 */

const EVERY_MS = 700;
const RETRY_MS = 5000;
const MAX_RECORDS = 3000; // appended; beyond this the run is read again, thinned out

export class SeriesStore {
  /** @param {() => void} onChange called after new values */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Map<string, Loaded>} */
    this.byRun = new Map();
    /** @type {Wanted} */
    this.wanted = { runs: [], points: new Map(), axis: "step", zoom: null };
    /** @type {Set<string>} */
    this.busy = new Set();
    this.timer = setInterval(() => this.refresh(), EVERY_MS);
  }

  destroy() {
    clearInterval(this.timer);
    this.wanted = { ...this.wanted, runs: [] };
    this.onChange = () => {};
  }

  /**
   * Keeps these metrics of these runs up to date from now on, and of no others.
   *
   * @param {Wanted} wanted
   */
  want(wanted) {
    this.wanted = wanted;
    const ids = new Set(wanted.runs.map(({ id }) => id));
    for (const id of this.byRun.keys()) if (!ids.has(id)) this.byRun.delete(id);
    this.refresh();
  }

  /**
   * Returns the values of a metric: finer where the user has zoomed in.
   *
   * @param {string} id
   * @param {string} key
   */
  columns(id, key) {
    const loaded = this.byRun.get(id);
    const columns = loaded?.columns.get(key);
    const fine = loaded?.fine.get(key);
    if (columns === undefined || fine === undefined || this.wanted.zoom === null) return columns;
    return spliced(columns, fine.columns, fine.from, fine.to);
  }

  /** @param {string} id */
  marks(id) {
    return this.byRun.get(id)?.marks ?? [];
  }

  /** Returns every metric of the wanted runs. */
  keys() {
    return new Set([...this.byRun.values()].flatMap(({ keys }) => keys));
  }

  refresh() {
    for (const run of this.wanted.runs) {
      const loaded = this.byRun.get(run.id);
      if (this.busy.has(run.id) || Date.now() < (loaded?.notBefore ?? 0)) continue;
      const request = this.nextRequest(run, loaded);
      if (request !== null) this.make(run, request);
    }
  }

  /**
   * Returns what to ask for next; null if there is nothing new to know.
   *
   * @param {Run} run
   * @param {Loaded} [loaded]
   * @returns {(() => Promise<void>) | null}
   */
  nextRequest(run, loaded) {
    const { points } = this.wanted;
    if (loaded === undefined || loaded.attempt !== run.attempt) {
      return () => this.readAgain(run, [...points.keys()]);
    }
    if (loaded.numRecords > MAX_RECORDS) {
      return () => this.readAgain(run, [...loaded.columns.keys()]);
    }
    const missing = [...points.keys()].filter((key) => {
      const isKnown = loaded.keys.includes(key) || !loaded.columns.has(key);
      return isKnown && (loaded.points.get(key) ?? 0) < (points.get(key) ?? 0);
    });
    if (missing.length > 0) return () => this.readMore(run, loaded, missing);
    if (loaded.version !== versionOf(run)) return () => this.readNew(run, loaded);
    return this.finerRequest(run, loaded);
  }

  /**
   * @param {Run} run
   * @param {() => Promise<void>} request
   */
  async make(run, request) {
    this.busy.add(run.id);
    try {
      await request();
    } catch (error) {
      // Asked again later; the banner says if the connection is lost.
      const loaded = this.byRun.get(run.id) ?? newLoaded(run);
      loaded.notBefore = Date.now() + (error instanceof RequestFailed ? RETRY_MS : EVERY_MS);
      this.byRun.set(run.id, loaded);
    } finally {
      this.busy.delete(run.id);
    }
    if (!this.wanted.runs.some(({ id }) => id === run.id)) this.byRun.delete(run.id);
    this.onChange();
  }

  /**
   * Reads the run from its start. What was read before stays until the answer is there.
   *
   * @param {Run} run
   * @param {string[]} keys
   */
  async readAgain(run, keys) {
    const loaded = newLoaded(run);
    await this.readMore(run, loaded, keys);
    this.byRun.set(run.id, loaded);
  }

  /**
   * Reads metrics that are not loaded yet, or with too few points.
   *
   * @param {Run} run
   * @param {Loaded} loaded changed in place
   * @param {string[]} keys
   */
  async readMore(run, loaded, keys) {
    const points = new Map(keys.map((key) => [key, this.wanted.points.get(key) ?? 0]));
    const version = versionOf(run);
    const isFirst = loaded.columns.size === 0;
    for (const number of new Set(points.values())) {
      const some = keys.filter((key) => points.get(key) === number);
      const answer = await seriesOf(run.id, some, number || FEW_POINTS);
      for (const key of some) {
        loaded.columns.set(key, answer.series[key] ?? emptyColumns());
        loaded.points.set(key, number);
        loaded.fine.delete(key);
      }
      const last = answer.last_step ?? -1;
      loaded.keys = answer.keys;
      loaded.marks = answer.marks;
      if (loaded.cursor === null || last < loaded.lastStep) {
        // If these columns end before the others, reading goes on from where they end.
        loaded.lastStep = last;
        loaded.cursor = answer.cursor;
        loaded.version = "";
      }
    }
    if (isFirst) loaded.version = version;
  }

  /**
   * Reads what the trainer has added.
   *
   * @param {Run} run
   * @param {Loaded} loaded changed in place
   */
  async readNew(run, loaded) {
    const version = versionOf(run);
    /** @type {Metrics} */
    const answer = await get(`/runs/${run.id}/metrics?cursor=${loaded.cursor ?? ""}`);
    if (answer.rewound) {
      await this.readAgain(run, [...loaded.columns.keys()]);
      return;
    }
    const keys = new Set(loaded.keys);
    for (const record of answer.metrics) {
      for (const key of Object.keys(record)) keys.add(key);
      for (const [key, columns] of loaded.columns) append(columns, record, key);
      loaded.lastStep = Math.max(loaded.lastStep, record.step);
    }
    loaded.keys = [...keys];
    loaded.cursor = answer.cursor;
    loaded.numRecords += answer.metrics.length;
    const saved = run.checkpoint_step;
    const isKnown = loaded.marks.some(({ kind, step }) => kind === "checkpoint" && step === saved);
    if (saved !== null && !isKnown) loaded.marks.push({ kind: "checkpoint", step: saved, time: null });
    if (!answer.more) loaded.version = version;
  }

  /**
   * Returns the request for more points where the user has zoomed in, if there are more.
   *
   * @param {Run} run
   * @param {Loaded} loaded
   */
  finerRequest(run, loaded) {
    const { points, axis, zoom } = this.wanted;
    if (zoom === null) return null;
    for (const number of new Set(points.values())) {
      /** @type {Map<string, [number, number]>} */
      const parts = new Map();
      for (const key of points.keys()) {
        const columns = loaded.columns.get(key);
        if (points.get(key) !== number || columns === undefined) continue;
        const steps = stepsWithin(columns, axis, zoom);
        if (steps === null || loaded.fine.get(key)?.asked === steps.join()) continue;
        if (isThinned(columns, ...steps)) parts.set(key, steps);
      }
      const [first] = parts.values();
      if (first === undefined) continue;
      const keys = [...parts.keys()].filter((key) => parts.get(key)?.join() === first.join());
      return () => readFiner(run, loaded, keys, number, first);
    }
    return null;
  }
}

const FEW_POINTS = 100;

/**
 * @param {Run} run
 * @param {Loaded} loaded changed in place
 * @param {string[]} keys
 * @param {number} points
 * @param {readonly [number, number]} steps
 */
async function readFiner(run, loaded, keys, points, [from, to]) {
  const answer = await seriesOf(run.id, keys, points, `&from_step=${from}&to_step=${to}`);
  for (const key of keys) {
    const columns = answer.series[key] ?? emptyColumns();
    // What the trainer adds after this answer belongs to the coarse columns.
    const end = Math.max(from - 1, Math.min(to, answer.last_step ?? -1));
    const start = Math.min(from, columns.first_step[0] ?? from);
    loaded.fine.set(key, { asked: [from, to].join(), from: start, to: end, columns });
  }
}

/**
 * @param {string} id
 * @param {string[]} keys
 * @param {number} points
 * @param {string} [part]
 * @returns {Promise<SeriesAnswer>}
 */
function seriesOf(id, keys, points, part = "") {
  const names = encodeURIComponent(keys.join());
  return get(`/runs/${id}/series?keys=${names}&max_points=${points}${part}`);
}

/**
 * Changes whenever there may be new records.
 *
 * @param {Run} run
 */
const versionOf = (run) => [run.step, run.state, run.checkpoint_step].join();

/**
 * @param {Run} run
 * @returns {Loaded}
 */
const newLoaded = (run) => ({
  columns: new Map(), points: new Map(), fine: new Map(), keys: [], marks: [], lastStep: -1,
  cursor: null, numRecords: 0, version: "", attempt: run.attempt, notBefore: 0,
});
