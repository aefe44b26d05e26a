// @ts-check
// The metrics that the page draws: names, units, and how exact the values are.

import { loss, share } from "../format.js";

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
export const KEYS = METRICS.map((metric) => metric.key);

const byKey = new Map(METRICS.map((metric) => [metric.key, metric]));

/**
 * Returns the metric with this key, or the first one.
 *
 * @param {string | null} key
 */
export const metricOf = (key) => byKey.get(key ?? "") ?? METRICS[0];

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
