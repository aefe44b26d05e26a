// The metrics that are drawn: their names, what they are measured in, and how exact they are.

import { loss, share } from "../format.js";

const NATS = { unit: "nats per token", format: loss, tick: (value) => String(+value.toPrecision(6)) };
const SHARE = { unit: "share of positions", format: share, tick: (value) => `${+(100 * value).toFixed(2)}\u2009%` };

// isEvaluated: measured now and then, on the validation set. isOfTeacher: none where a run learns
// from labels alone. isDivergence: as exact as what the teacher sends.
export const METRICS = [
  {
    key: "loss/val", name: "Validation", title: "Validation loss", ...NATS, isEvaluated: true,
    note: "Cross entropy on rows held out for it.",
  },
  {
    key: "val/kl", name: "KL to teacher", title: "KL to teacher, at T = 1", ...NATS,
    isEvaluated: true, isOfTeacher: true, isDivergence: true,
    note: "KL(teacher \u2016 student) on the validation set, at T = 1 whatever a run distils at.",
  },
  {
    key: "val/top1_agreement", name: "Agreement", title: "Agreement with teacher", ...SHARE,
    isEvaluated: true, isOfTeacher: true,
    note: "Where both sides' likeliest token is the same, on the validation set.",
  },
  {
    key: "loss/total", name: "Total", title: "Training loss", ...NATS,
    note: "What a run minimises: \u03b1 \u00b7 cross entropy + (1 \u2212 \u03b1) \u00b7 T\u00b2 \u00b7 distillation.",
  },
  {
    key: "loss/ce", name: "Cross entropy", title: "Cross entropy in training", ...NATS,
    note: "On the rows of each step.",
  },
  {
    key: "loss/kd", name: "Distillation", title: "Divergence from teacher in training", ...NATS,
    isOfTeacher: true, isDivergence: true,
    note: "On the rows of each step, at the T that a run distils at; without T\u00b2.",
  },
];
export const KEYS = METRICS.map((metric) => metric.key);

const byKey = new Map(METRICS.map((metric) => [metric.key, metric]));
export const metricOf = (key) => byKey.get(key) ?? METRICS[0];

// By representation: a sign before the value, and what it means.
const INEXACT = {
  top_k: ["\u2265", "a lower bound; all tokens beyond the teacher's top k count as one outcome"],
  sampled: ["\u2248", "an estimate from the teacher's draws"],
};

const inexact = (metric, run) => (metric.isDivergence ? INEXACT[run.representation] : undefined);

export function valueOf(metric, run, value) {
  const sign = inexact(metric, run)?.[0];
  return sign === undefined || value === undefined || value === null
    ? metric.format(value)
    : `${sign}\u2009${metric.format(value)}`;
}

// What to know of the values of these runs, in a sentence or more.
export function noteOf(metric, runs) {
  const signs = new Map(runs.map((run) => inexact(metric, run)).filter(Boolean));
  return [metric.note, ...[...signs].map(([sign, meaning]) => `${sign}: ${meaning}.`)].join(" ");
}
