// @ts-check
// Runs by a setting: which have the same value, and the mean of those.

/** @import { Entry, Setting } from "../types.d.ts" */

/**
 * @typedef {object} Group
 * @property {string} value of the setting, as text
 * @property {Entry[]} entries
 */

/**
 * @typedef {object} Mean
 * @property {number[]} x
 * @property {number[]} value mean of the runs that have one at this x
 * @property {number[]} low
 * @property {number[]} high
 * @property {number[]} runs how many the mean is over
 */

/** What a run does apart from chance. */
export const ALL_BUT_SEED = "all but the seed";

const MAX_POINTS = 1500;
const RUN_FIELDS = /** @type {const} */ ([
  "alpha", "temperature", "representation", "top_k", "num_draws", "teacher", "student",
  "keep_every_nth_layer", "lora_rank", "dataset", "steps",
]);

/**
 * @param {Entry} entry
 * @returns {Record<string, Setting>}
 */
export function settingsOf({ run, settings }) {
  return settings ?? Object.fromEntries(RUN_FIELDS.map((field) => [field, run[field]]));
}

/** @param {string} key */
const isSeed = (key) => key === "seed" || key.endsWith(".seed");

/** @param {string} key */
const isName = (key) => ["name", "priority", "group", "tags", "notes"].includes(key);

/**
 * Returns the settings in which these runs differ, in the order of their names.
 *
 * @param {Entry[]} entries
 */
export function differingSettings(entries) {
  const all = entries.map(settingsOf);
  const keys = new Set(all.flatMap((settings) => Object.keys(settings)));
  return [...keys].filter((key) => !isName(key) && new Set(
    all.map((settings) => textOf(settings[key])),
  ).size > 1).sort();
}

/**
 * Returns the runs by their value of a setting; numbers in their order, then texts in theirs.
 *
 * @param {Entry[]} entries
 * @param {string} key a setting, or ALL_BUT_SEED
 * @returns {Group[]}
 */
export function groupsOf(entries, key) {
  const differing = key === ALL_BUT_SEED
    ? differingSettings(entries).filter((name) => !isSeed(name))
    : [];
  /** @type {Map<string, Group>} */
  const groups = new Map();
  for (const entry of entries) {
    const settings = settingsOf(entry);
    const value = key === ALL_BUT_SEED
      ? differing.map((name) => `${shortName(name)} ${textOf(settings[name])}`).join(", ")
      : textOf(settings[key]);
    const group = groups.get(value) ?? { value, entries: [] };
    group.entries.push(entry);
    groups.set(value, group);
  }
  return [...groups.values()].sort((one, other) => ordered(one.value, other.value));
}

/** @param {Setting | undefined} value what a run does not set is undefined */
function textOf(value) {
  if (value === undefined) return "default";
  return value === null ? "none" : String(value);
}

/** @param {string} key */
export const shortName = (key) => key.slice(key.lastIndexOf(".") + 1).replaceAll("_", " ");

/**
 * @param {string} one
 * @param {string} other
 */
function ordered(one, other) {
  const difference = Number(one) - Number(other);
  return Number.isNaN(difference) ? one.localeCompare(other, "en", { numeric: true }) : difference;
}

/**
 * Returns the mean over runs at every x that one of them was measured at (at most 1,500, evenly
 * chosen). Between two measurements of a run its value is interpolated; before the first and after
 * the last, the run is left out of the mean.
 *
 * @param {{x: number[], value: (number | null)[]}[]} lines each sorted by x
 * @param {"range" | "std"} band from the lowest to the highest run, or one standard deviation of
 *   the runs (n - 1) to either side of the mean
 * @returns {Mean}
 */
export function meanOf(lines, band) {
  const finite = lines.map(({ x, value }) => {
    const places = x.map((_, place) => place).filter((place) => value[place] !== null);
    return { x: places.map((place) => x[place]), y: places.map((place) => Number(value[place])) };
  });
  const union = [...new Set(finite.flatMap(({ x }) => x))].sort((one, other) => one - other);
  /** @type {Mean} */
  const mean = { x: [], value: [], low: [], high: [], runs: [] };
  for (const x of spread(union, MAX_POINTS)) {
    const values = finite.map((line) => interpolated(line.x, line.y, x)).filter((y) => y !== null);
    const middle = values.reduce((sum, y) => sum + y, 0) / values.length;
    const [low, high] = band === "range"
      ? [Math.min(...values), Math.max(...values)]
      : around(middle, deviation(values, middle));
    mean.x.push(x);
    mean.value.push(middle);
    mean.low.push(low);
    mean.high.push(high);
    mean.runs.push(values.length);
  }
  return mean;
}

/**
 * @param {number} middle
 * @param {number} reach
 */
const around = (middle, reach) => [middle - reach, middle + reach];

/**
 * @param {number[]} values
 * @param {number} mean
 */
function deviation(values, mean) {
  if (values.length < 2) return 0;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1));
}

/**
 * @param {number[]} values
 * @param {number} limit at least 2
 */
function spread(values, limit) {
  if (values.length <= limit) return values;
  const last = values.length - 1;
  return Array.from({ length: limit }, (_, place) => values[Math.round(place * last / (limit - 1))]);
}

/**
 * Returns the value at `x` on the straight line between its neighbours; null outside the line.
 *
 * @param {number[]} xs sorted
 * @param {number[]} ys
 * @param {number} x
 */
export function interpolated(xs, ys, x) {
  const after = firstAtLeast(xs, x);
  if (after === xs.length) return null;
  if (xs[after] === x) return ys[after];
  if (after === 0) return null;
  const share = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
  return ys[after - 1] + share * (ys[after] - ys[after - 1]);
}

/**
 * Returns the place of the first value that is at least `x`; the number of values if none is.
 *
 * @param {number[]} sorted
 * @param {number} x
 */
export function firstAtLeast(sorted, x) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}
