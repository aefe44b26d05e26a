// @ts-check
// Metrics: names, units, formats, groups, and how exact the values are.

import { count, loss, percent, share, short, size, wait } from "../format.js";

/** @import { Run } from "../types.d.ts" */

/**
 * @typedef {object} Metric
 * @property {string} key as the trainer writes it
 * @property {string} name short, for the choice
 * @property {string} title
 * @property {string} note
 * @property {string} unit
 * @property {(value: number | null | undefined) => string} format
 * @property {(value: number) => string} tick the label of an axis
 * @property {boolean} [isEvaluated] measured at evaluations, on the validation set
 * @property {boolean} [needsTeacher] not measured if the run learns from labels only
 * @property {boolean} [isDivergence] only as exact as what the teacher sends
 */

const NATS = {
  unit: "nats per token",
  format: loss,
  tick: (/** @type {number} */ value) => String(+value.toPrecision(6)),
};
const SHARE = {
  unit: "share of positions",
  format: share,
  tick: (/** @type {number} */ value) => `${+(100 * value).toFixed(2)}\u2009%`,
};

/** @type {Metric[]} */
export const METRICS = [
  {
    key: "loss/val", name: "Validation", title: "Validation loss", ...NATS, isEvaluated: true,
    note: "Cross entropy on the validation set.",
  },
  {
    key: "val/kl", name: "KL to teacher", title: "KL to teacher, at T = 1", ...NATS,
    isEvaluated: true, needsTeacher: true, isDivergence: true,
    note: "KL(teacher \u2016 student) on the validation set. Always at T = 1.",
  },
  {
    key: "val/top1_agreement", name: "Agreement", title: "Agreement with teacher", ...SHARE,
    isEvaluated: true, needsTeacher: true,
    note: "How often student and teacher rank the same token first, on the validation set.",
  },
  {
    key: "loss/total", name: "Total", title: "Training loss", ...NATS,
    note: "What training minimises: "
      + "\u03b1 \u00b7 cross entropy + (1 \u2212 \u03b1) \u00b7 T\u00b2 \u00b7 distillation.",
  },
  {
    key: "loss/ce", name: "Cross entropy", title: "Training cross entropy", ...NATS,
    note: "On the training rows of each step.",
  },
  {
    key: "loss/kd", name: "Distillation", title: "Distillation loss", ...NATS,
    needsTeacher: true, isDivergence: true,
    note: "Divergence from the teacher on the training rows of each step, "
      + "at the run's temperature T and without the factor T\u00b2.",
  },
];

/** @type {Map<string, Metric>} metrics that were logged, by key; those above from the start */
const byKey = new Map(METRICS.map((metric) => [metric.key, metric]));

/** @param {number} tick */
const whole = (tick) => (Number.isInteger(tick) ? short(tick) : "");

/**
 * Units and formats by the end of a key.
 *
 * @type {[end: RegExp, unit: string, format: Metric["format"], tick: Metric["tick"]][]}
 */
const BY_ENDING = [
  [/_?tokens_per_second$/, "tokens per second", number, short],
  [/_?bytes$/, "bytes", size, size],
  [/_?bytes_per_token$/, "bytes per token", number, number],
  [/_?seconds$/, "seconds", wait, wait],
  [/_?share$/, "share", percent, percent],
  [/_?tokens(_seen)?$/, "tokens", count, whole],
  [/_?positions$/, "positions", count, whole],
  [/_?steps$/, "steps", count, whole],
  [/_?lines$/, "lines", count, whole],
  [/\/epoch$/, "epochs", number, number],
];

/**
 * Returns the metric with this key. One that the page does not know by name gets a title, a unit and
 * a format by its key.
 *
 * @param {string} key
 * @returns {Metric}
 */
export function metricOf(key) {
  let metric = byKey.get(key);
  if (metric === undefined) {
    const [, unit, format, tick] = BY_ENDING.find(([end]) => end.test(key))
      ?? [null, key.startsWith("loss/") ? NATS.unit : "", number, number];
    const title = titleOf(key, unit);
    const isEvaluated = key.startsWith("val/") || key === "time/evaluation_seconds";
    metric = { key, name: title, title, note: "", unit, format, tick, isEvaluated };
    byKey.set(key, metric);
  }
  return metric;
}

const SHORT_WORDS = /\b(cuda|gpu|cpu|rss|kl|ce|kd|lr|io)\b/g;

/**
 * "memory/cuda_peak_bytes" in bytes -> "CUDA peak"
 *
 * @param {string} key
 * @param {string} unit that the title need not repeat
 */
function titleOf(key, unit) {
  const words = key.slice(key.indexOf("/") + 1).replaceAll(/[_/]/g, " ");
  const repeats = unit !== "share" && words.endsWith(` ${unit}`); // there are seconds of it, too
  const short = repeats ? words.slice(0, -unit.length - 1) : words;
  const title = short.replaceAll(SHORT_WORDS, (word) => word.toUpperCase());
  return title.charAt(0).toUpperCase() + title.slice(1) || key;
}

/**
 * 0.000123 -> "1.23e-4"
 *
 * @param {number | null | undefined} value
 */
function number(value) {
  if (value === null || value === undefined) return "\u2013";
  const magnitude = Math.abs(value);
  if (magnitude >= 1e4 && magnitude < 1e9) return count(value);
  const isPlain = value === 0 || (magnitude >= 1e-3 && magnitude < 1e4);
  return isPlain ? String(+value.toPrecision(4)) : String(value.toExponential(2));
}

// Positions on the axes, not metrics; each chart can be drawn over them.
const NOT_DRAWN = /^(step|time|non_finite|progress\/.*)$/;
const FIRST_GROUPS = ["loss", "val", "optim", "time", "perf", "memory"];

/**
 * Returns the keys by their prefix: losses first, then what follows from them, then the others.
 *
 * @param {Iterable<string>} keys
 * @returns {Map<string, string[]>}
 */
export function keysByGroup(keys) {
  /** @type {Map<string, string[]>} */
  const groups = new Map();
  const known = METRICS.map(({ key }) => key);
  const rank = (/** @type {string} */ group) => placeOf(FIRST_GROUPS, group);
  const place = (/** @type {string} */ key) => placeOf(known, key);
  const drawn = [...new Set(keys)].filter((key) => !NOT_DRAWN.test(key));
  const ordered = drawn.sort((one, other) =>
    place(one) - place(other) || (one < other ? -1 : 1));
  for (const key of ordered) {
    const group = key.includes("/") ? key.slice(0, key.indexOf("/")) : "other";
    groups.set(group, [...(groups.get(group) ?? []), key]);
  }
  return new Map([...groups].sort(([one], [other]) =>
    rank(one) - rank(other) || (one < other ? -1 : 1)));
}

/**
 * By representation: the sign before a divergence, and what the sign means.
 *
 * @type {Record<string, [sign: string, meaning: string]>}
 */
const INEXACT = {
  top_k: ["\u2265", "a lower bound; the tokens outside the teacher's top k count as one token"],
  sampled: ["\u2248", "an estimate from tokens drawn from the teacher"],
};

/**
 * @param {Metric} metric
 * @param {Run} run
 */
const inexactness = (metric, run) =>
  metric.isDivergence && run.representation !== null ? INEXACT[run.representation] : undefined;

/**
 * @param {Metric} metric
 * @param {Run} run
 * @param {number | null | undefined} value
 */
export function valueOf(metric, run, value) {
  const sign = inexactness(metric, run)?.[0];
  return sign === undefined || value === undefined || value === null
    ? metric.format(value)
    : `${sign}\u2009${metric.format(value)}`;
}

/**
 * Returns what the values of these runs mean, in a sentence or more.
 *
 * @param {Metric} metric
 * @param {Run[]} runs
 */
export function noteOf(metric, runs) {
  const pairs = runs.map((run) => inexactness(metric, run)).filter((pair) => pair !== undefined);
  const signs = new Map(pairs);
  return [metric.note, ...[...signs].map(([sign, meaning]) => `${sign}: ${meaning}.`)].join(" ");
}

/**
 * Returns the place of a text; behind all others if it is not among them.
 *
 * @param {string[]} texts
 * @param {string} text
 */
const placeOf = (texts, text) => (texts.includes(text) ? texts.indexOf(text) : texts.length);
