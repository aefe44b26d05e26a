// @ts-check
// What the horizontal axis of a chart can show.

import { clockTime, count, dateTime, duration, short } from "../../format.js";

/** @import { Axis } from "../types.d.ts" */

/**
 * @typedef {object} Horizontal
 * @property {string} name for the choice
 * @property {string} label under the axis
 * @property {string} by for a sentence
 * @property {(x: number) => string} at a place on it, in words
 * @property {(ticks: number[], step: number) => string[]} ticks their labels
 * @property {number[]} [steps] between ticks, where tens do not do
 */

const DAY = 86400;

/** @type {Record<Axis, Horizontal>} */
export const AXES = {
  step: {
    name: "Step", label: "steps", by: "step",
    at: (x) => `step ${count(x)}`,
    ticks: (ticks) => ticks.map((tick) => (Number.isInteger(tick) ? count(tick) : "")),
  },
  tokens: {
    name: "Tokens", label: "tokens trained on", by: "tokens trained on",
    at: (x) => `${short(x)} tokens`,
    ticks: (ticks) => ticks.map(short),
  },
  seconds: {
    name: "Time", label: "time of training", by: "time of training",
    at: duration,
    ticks: (ticks) => ticks.map(duration),
    steps: [
      1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
      DAY, 2 * DAY, 7 * DAY,
    ],
  },
  time: {
    name: "Clock", label: "time of day", by: "wall time",
    at: dateTime,
    ticks: clockTicks,
  },
};

/**
 * Returns the labels of values, with more digits where two that are close would read the same.
 *
 * @param {(number | null)[]} ticks
 * @param {(value: number) => string} labelOf
 */
export function tickLabels(ticks, labelOf) {
  const label = (/** @type {(value: number) => string} */ format) =>
    ticks.map((tick) => (tick === null ? "" : format(tick)));
  const isDistinct = (/** @type {string[]} */ labels) => {
    const shown = labels.filter((text) => text !== "");
    return new Set(shown).size === shown.length;
  };
  let labels = label(labelOf);
  for (let digits = 3; digits < 10 && !isDistinct(labels); digits += 1) {
    labels = label((tick) => String(+tick.toPrecision(digits)));
  }
  return labels;
}

/**
 * Returns times of day, with the date where a new day begins.
 *
 * @param {number[]} ticks
 * @param {number} step
 */
function clockTicks(ticks, step) {
  const format = { day: "numeric", month: "short" };
  const dayOf = (/** @type {number} */ tick) =>
    new Date(1000 * tick).toLocaleDateString("en-GB", /** @type {Intl.DateTimeFormatOptions} */ (format));
  return ticks.map((tick, place) => {
    const day = dayOf(tick);
    if (step >= DAY || (place > 0 && dayOf(ticks[place - 1]) !== day)) return day;
    return step < 60 ? clockTime(tick) : clockTime(tick).slice(0, 5);
  });
}
