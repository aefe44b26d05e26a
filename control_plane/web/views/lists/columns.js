// @ts-check
// The columns of the list of runs: what each shows, and what it is sorted by.

import { metricOf, valueOf } from "../../charts/metrics.js";
import {
  STATES, ago, count, dateTime, duration, elapsed, eta, joined, learnsFrom, percent, size,
  studentOf, validation,
} from "../../format.js";
import { settingOf, settingText } from "./settings.js";

/** @import { ShownRun } from "../../types.d.ts" */

/**
 * @typedef {object} Column
 * @property {string} key
 * @property {string} label
 * @property {string} title what it means
 * @property {string} sort the `sort` of GET /runs
 * @property {(run: ShownRun) => string | number | null} value what it is sorted by
 * @property {(run: ShownRun, now: number) => string} text
 * @property {(run: ShownRun, now: number) => string} [note] small, below the text
 * @property {boolean} [isNumber] aligned to the right; the largest comes first when sorted
 * @property {boolean} [changesWithTime]
 */

const SETTING = "spec.";
const METRIC = "latest.";

/** @type {Column[]} */
export const COLUMNS = [
  {
    key: "state", label: "State", title: "What the run does now", sort: "state",
    value: (run) => run.state,
    text: (run) => STATES[run.state],
  },
  {
    key: "progress", label: "Progress", title: "Finished steps, and the time until the last one",
    sort: "progress", isNumber: true, changesWithTime: true,
    value: (run) => run.steps ? run.step / run.steps : 0,
    text: (run) => `${count(run.step)} / ${count(run.steps)}`,
    note: (run, now) => eta(run, now),
  },
  {
    key: "val", label: "Val. loss",
    title: "Cross entropy on the validation set, where it was measured, and the lowest so far",
    sort: `${METRIC}loss/val`, isNumber: true,
    value: (run) => run.latest["loss/val"] ?? null,
    text: (run) => validation(run).text,
    note: (run) => validation(run).note,
  },
  {
    key: "kl", label: "KL to teacher",
    title: "KL(teacher | student) on the validation set, at T = 1; below it the divergence on the "
      + "training rows, at the run's own T",
    sort: `${METRIC}val/kl`, isNumber: true,
    value: (run) => run.latest["val/kl"] ?? null,
    text: (run) => resultOf(run, "val/kl"),
    note: (run) => typeof run.latest["loss/kd"] === "number"
      ? `training ${valueOf(metricOf("loss/kd"), run, run.latest["loss/kd"])}`
      : "",
  },
  {
    key: "agreement", label: "Agreement",
    title: "How often student and teacher rank the same token first, on the validation set",
    sort: `${METRIC}val/top1_agreement`, isNumber: true,
    value: (run) => run.latest["val/top1_agreement"] ?? null,
    text: (run) => resultOf(run, "val/top1_agreement"),
  },
  {
    key: "learns", label: "Learns from", title: "What the teacher sends, and how it is weighed",
    sort: "spec.teacher.representation",
    value: (run) => run.representation,
    text: learnsFrom,
  },
  {
    key: "student", label: "Student", title: "The model that is trained", sort: "student",
    value: (run) => run.student,
    text: studentOf,
  },
  {
    key: "checkpoint", label: "Checkpoint", title: "The newest checkpoint, and how old it is",
    sort: "checkpoint_at", isNumber: true, changesWithTime: true,
    value: (run) => run.checkpoint_at,
    text: (run) => run.checkpoint_step === null ? "\u2013" : count(run.checkpoint_step),
    note: (run, now) => run.checkpoint_at === null ? "" : ago(run.checkpoint_at, now),
  },
  {
    key: "speed", label: "Tokens/s", title: "Tokens trained on per second, over the last steps",
    sort: "tokens_per_second", isNumber: true,
    value: (run) => run.tokens_per_second,
    text: (run) => count(run.tokens_per_second),
  },
  {
    key: "wait", label: "Teacher wait", title: "Share of the time spent waiting for the teacher",
    sort: "teacher_wait_share", isNumber: true,
    value: (run) => run.teacher_wait_share,
    text: (run) => run.representation === null ? "\u2013" : percent(run.teacher_wait_share),
  },
  {
    key: "elapsed", label: "Elapsed", title: "Time with a trainer, over all attempts",
    sort: "elapsed", isNumber: true, changesWithTime: true,
    value: (run) => elapsed(run, run.received),
    text: (run, now) => duration(elapsed(run, now)),
  },
  {
    key: "attempts", label: "Attempts",
    title: "Trainers started for it; below, automatic restarts since its last new checkpoint",
    sort: "attempt", isNumber: true,
    value: (run) => run.attempt,
    text: (run) => String(run.attempt || "\u2013"),
    note: (run) => run.restarts > 0 ? `${run.restarts} automatic` : "",
  },
  {
    key: "device", label: "Device", title: "Where it trains", sort: "device",
    value: (run) => run.device,
    text: (run) => run.slots.join(", ") || (run.device ?? "\u2013"),
    note: (run) => run.threads === null ? "" : `${run.threads} CPU thread${run.threads === 1 ? "" : "s"}`,
  },
  {
    key: "size", label: "Size", title: "What its folder takes on the disk", sort: "disk_bytes",
    isNumber: true,
    value: (run) => run.disk_bytes,
    text: (run) => size(run.disk_bytes),
  },
  {
    key: "priority", label: "Priority",
    title: "Of the runs that wait for a device, those of the highest priority start first",
    sort: "spec.priority", isNumber: true,
    value: (run) => run.priority,
    text: (run) => String(run.priority),
  },
  {
    key: "group", label: "Group", title: "Runs that belong together", sort: "spec.group",
    value: (run) => run.group,
    text: (run) => run.group ?? "\u2013",
  },
  {
    key: "created", label: "Created", title: "When it was accepted", sort: "created_at",
    isNumber: true,
    value: (run) => run.created_at,
    text: (run) => dateTime(run.created_at),
  },
];

export const SHOWN_AT_FIRST = [
  "state", "progress", "val", "kl", "agreement", "learns", "checkpoint", "speed", "elapsed",
];

/** @type {Column} */
const NAME = {
  key: "name", label: "Run", title: "", sort: "name", value: (run) => run.id,
  text: (run) => run.name,
};

const byKey = new Map([NAME, ...COLUMNS].map((column) => [column.key, column]));
const bySort = new Map([NAME, ...COLUMNS].map((column) => [column.sort, column]));

/**
 * Returns the column with this key: one of those above, `spec.SETTING` or `latest.METRIC`.
 *
 * @param {string} key
 * @returns {Column | undefined}
 */
export function columnOf(key) {
  const known = byKey.get(key) ?? bySort.get(key);
  if (known) return known;
  if (/^spec\.\w+(\.\w+)*$/.test(key)) {
    const path = key.slice(SETTING.length);
    return {
      key, label: path.split(".").slice(-2).join("."), title: `The setting ${path}`, sort: key,
      value: (run) => {
        const value = settingOf(run, path);
        return value === null || typeof value === "number" ? value : String(value);
      },
      text: (run) => settingText(settingOf(run, path)),
    };
  }
  if (/^latest\.[\w./@-]+$/.test(key)) {
    const name = key.slice(METRIC.length);
    const metric = metricOf(name);
    const isKnown = metric.key === name;
    return {
      key, label: isKnown ? metric.name : name, sort: key, isNumber: true,
      title: `The last ${isKnown ? metric.title : `value of ${name}`}`,
      value: (run) => run.latest[name] ?? null,
      text: (run) => isKnown ? valueOf(metric, run, run.latest[name]) : plain(run.latest[name]),
    };
  }
  return undefined;
}

/** @param {number | null | undefined} value */
function plain(value) {
  if (value === null || value === undefined) return "\u2013";
  return Number.isInteger(value) ? count(value) : String(+value.toPrecision(4));
}

/**
 * Returns an evaluated metric, or a dash before the first evaluation of the trained student.
 *
 * @param {ShownRun} run
 * @param {string} key
 */
function resultOf(run, key) {
  const value = run.latest["loss/val_step"] === 0 ? null : run.latest[key];
  return valueOf(metricOf(key), run, value);
}

/**
 * Returns the column's value as "TEXT" or "TEXT, NOTE", for a screen reader or a copy.
 *
 * @param {Column} column
 * @param {ShownRun} run
 * @param {number} now
 */
export const spoken = (column, run, now) => joined(column.text(run, now), column.note?.(run, now));
