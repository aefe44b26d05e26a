// The metric records of each run, kept up to date: thinned at first, then every new one.

import { get } from "../api.js";
import { KEYS } from "./metrics.js";

const MAX_POINTS = 1200;
const MAX_RECORDS = 6000; // then the run is fetched anew, thinned
const EVERY_MS = 700;

export class Curves {
  constructor(onChange) {
    this.onChange = onChange;
    this.byRun = new Map(); // id -> {points: {key: [[steps], [values]]}, cursor, step}
    this.wanted = new Map(); // id -> newest step that the run list knows
    this.busy = new Set();
    setInterval(() => this.refresh(), EVERY_MS);
  }

  // Says which runs are drawn, and how far each has come.
  want(runs) {
    this.wanted = new Map(runs.map((run) => [run.id, [run.step, run.attempt, run.state]]));
    this.refresh();
  }

  points(id, key) {
    return this.byRun.get(id)?.points[key] ?? [[], []];
  }

  last(id, key) {
    return this.points(id, key)[1].at(-1) ?? null;
  }

  refresh() {
    for (const [id, seen] of this.wanted) {
      const curve = this.byRun.get(id);
      if (!this.busy.has(id) && (!curve || curve.seen !== seen.join())) this.fetch(id, seen.join());
    }
  }

  async fetch(id, seen) {
    this.busy.add(id);
    try {
      let curve = this.byRun.get(id);
      const path = `/runs/${id}/metrics?keys=${KEYS.join()}`;
      if (!curve || curve.count > MAX_RECORDS) {
        curve = fresh();
        add(curve, await get(`${path}&max_points=${MAX_POINTS}`));
      } else {
        const answer = await get(`${path}&cursor=${curve.cursor}`);
        if (answer.rewound) curve = fresh();
        add(curve, answer);
        if (answer.more) seen = null; // at once again
      }
      curve.seen = seen;
      this.byRun.set(id, curve);
      this.onChange();
    } catch {
      // The next round asks again; the banner says when the connection is lost.
    } finally {
      this.busy.delete(id);
    }
  }
}

function fresh() {
  return { points: Object.fromEntries(KEYS.map((key) => [key, [[], []]])), cursor: "", count: 0 };
}

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
  curve.count += answer.metrics.length;
}
