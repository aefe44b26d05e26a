// @ts-check
// The columns of one metric of one run: putting parts together, finding places in them.

import { firstAtLeast, interpolated } from "./groups.js";

/** @import { Axis, Columns } from "../types.d.ts" */

/** @type {(keyof Columns)[]} */
const NAMES = [
  "step", "first_step", "mean", "min", "max", "count", "non_finite", "tokens", "seconds", "time",
];

/** @returns {Columns} */
export const emptyColumns = () => ({
  step: [], first_step: [], mean: [], min: [], max: [], count: [], non_finite: [],
  tokens: [], seconds: [], time: [],
});

/**
 * Returns the points at these places.
 *
 * @param {Columns} columns
 * @param {number[]} places
 */
export function picked(columns, places) {
  const found = emptyColumns();
  for (const name of NAMES) {
    Object.assign(found, { [name]: places.map((place) => columns[name][place]) });
  }
  return found;
}

/**
 * Returns the coarse columns with the buckets between two steps replaced by finer ones. A coarse
 * bucket that reaches over an end of the finer part is left out, so no value is drawn twice.
 *
 * @param {Columns} coarse
 * @param {Columns} fine
 * @param {number} from first step of the finer part
 * @param {number} to last step of it
 */
export function spliced(coarse, fine, from, to) {
  const places = coarse.step.map((_, place) => place);
  const before = places.filter((place) => coarse.step[place] < from);
  const after = places.filter((place) => coarse.first_step[place] > to);
  const parts = [picked(coarse, before), fine, picked(coarse, after)];
  const whole = emptyColumns();
  for (const name of NAMES) {
    Object.assign(whole, { [name]: parts.flatMap((part) => /** @type {any[]} */ (part[name])) });
  }
  return whole;
}

/**
 * Appends what was measured at one step, unless the columns have that step or a later one.
 *
 * @param {Columns} columns changed in place
 * @param {Record<string, any>} record a line of metrics.jsonl
 * @param {string} key
 */
export function append(columns, record, key) {
  const value = record[key];
  if (value === undefined || record.step <= (columns.step.at(-1) ?? -1)) return;
  columns.step.push(record.step);
  columns.first_step.push(record.step);
  columns.mean.push(value);
  columns.min.push(value);
  columns.max.push(value);
  columns.count.push(value === null ? 0 : 1);
  columns.non_finite.push(value === null ? 1 : 0);
  columns.tokens.push(record["progress/tokens"] ?? null);
  columns.seconds.push(record["progress/seconds"] ?? null);
  columns.time.push(record.time ?? null);
}

/**
 * Returns where a step lies on an axis; null if the columns do not say.
 *
 * @param {Columns} columns
 * @param {Axis} axis
 * @param {number} step
 */
export function xOfStep(columns, axis, step) {
  if (axis === "step") return step;
  const places = columns.step.map((_, place) => place);
  const known = places.filter((place) => columns[axis][place] !== null);
  const steps = known.map((place) => columns.step[place]);
  return interpolated(steps, known.map((place) => Number(columns[axis][place])), step);
}

/**
 * Returns the first and last step of the points between two places of an axis, with one neighbour
 * to each side; null if no point lies there.
 *
 * @param {Columns} columns
 * @param {Axis} axis
 * @param {readonly [number, number]} zoom
 * @returns {[from: number, to: number] | null}
 */
export function stepsWithin(columns, axis, [low, high]) {
  if (columns.step.length === 0) return null;
  if (axis === "step") return [Math.max(0, Math.floor(low)), Math.max(0, Math.ceil(high))];
  const xs = columns[axis].map((x) => x ?? NaN);
  const inside = xs.map((_, place) => place).filter((place) => xs[place] >= low && xs[place] <= high);
  const next = firstAtLeast(xs, low);
  const first = Math.max(0, (inside[0] ?? next) - 1);
  const last = Math.min(xs.length - 1, (inside.at(-1) ?? next) + 1);
  return [columns.first_step[first], columns.step[last]];
}

/**
 * Tells whether some bucket between two steps holds more than one value.
 *
 * @param {Columns} columns
 * @param {number} from
 * @param {number} to
 */
export const isThinned = (columns, from, to) => columns.step.some((step, place) =>
  step >= from && columns.first_step[place] <= to
  && columns.count[place] + columns.non_finite[place] > 1);
