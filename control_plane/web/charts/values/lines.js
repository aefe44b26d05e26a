// @ts-check
// The lines of one chart: from the columns of each run to what is drawn.

import { count } from "../../format.js";
import { valueOf } from "../metrics.js";
import { picked, xOfStep } from "./columns.js";
import { ALL_BUT_SEED, groupsOf, meanOf, shortName } from "./groups.js";
import { smoothed } from "./smoothing.js";

/** @import { Columns, Entry, LeftOut, Line, LineMark, Mark } from "../types.d.ts" */
/** @import { Style } from "../drawing/palette.js" */
/** @import { Metric } from "../metrics.js" */
/** @import { View } from "../view.js" */

/**
 * @typedef {object} Sources
 * @property {(runId: string, key: string) => Columns | undefined} columns
 * @property {(runId: string) => Mark[]} marks
 * @property {(entry: Entry) => Style} style
 */

/**
 * Returns the lines of the runs that have values of the metric, and what they leave out.
 *
 * @param {Entry[]} entries in the order of the legend
 * @param {Metric} metric
 * @param {View} view
 * @param {Sources} sources
 * @returns {{lines: Line[], leftOut: LeftOut}}
 */
export function linesOf(entries, metric, view, sources) {
  /** @type {LeftOut} */
  const leftOut = { withoutX: [], notPositive: 0 };
  /** @type {Map<Entry, Line>} */
  const found = new Map();
  for (const entry of entries) {
    const columns = sources.columns(entry.run.id, metric.key);
    if (columns === undefined || columns.step.length === 0) continue;
    const line = lineOf(entry, columns, metric, view, sources, leftOut);
    if (line.x.length > 0) found.set(entry, line);
  }
  const lines = view.mean ? meanLines([...found.keys()], found, metric, view) : [...found.values()];
  return { lines, leftOut };
}

/**
 * @param {Entry} entry
 * @param {Columns} all
 * @param {Metric} metric
 * @param {View} view
 * @param {Sources} sources
 * @param {LeftOut} leftOut
 * @returns {Line}
 */
function lineOf({ run, name, ...rest }, all, metric, view, sources, leftOut) {
  const axis = view.x;
  const whole = view.smooth > 0 && !metric.isEvaluated ? smoothed(all, view.smooth) : all.mean;
  const places = placesOf(all, view);
  if (places.length === 0) leftOut.withoutX.push(name);
  const columns = picked(all, places);
  const isSmooth = whole !== all.mean;
  const drop = (/** @type {(number | null)[]} */ values) =>
    view.logY ? values.map((value) => (value !== null && value > 0 ? value : null)) : values;
  if (view.logY) leftOut.notPositive += columns.mean.filter((v) => v !== null && v <= 0).length;
  const hasBand = columns.count.some((number) => number > 1);
  return {
    id: run.id,
    name,
    remark: metric.key === "loss/total" ? minimised(run) : "",
    style: sources.style({ run, name, ...rest }),
    runs: [run],
    x: columns[axis].map(Number),
    value: drop(places.map((place) => whole[place])),
    faint: isSmooth ? drop(columns.mean) : null,
    low: hasBand ? drop(columns.min) : null,
    high: hasBand ? drop(columns.max) : null,
    columns,
    counts: null,
    marks: marksOf(run.id, all, columns, view, sources),
    text: (value) => valueOf(metric, run, value),
  };
}

/**
 * Returns the places of the points that the horizontal axis can show, in its order.
 *
 * @param {Columns} columns
 * @param {View} view
 */
function placesOf(columns, view) {
  const xs = columns[view.x];
  const isShown = (/** @type {number | null} */ x) => x !== null && (!view.logX || x > 0);
  const places = xs.map((_, place) => place).filter((place) => isShown(xs[place]));
  // A clock that was set back makes a time smaller than the one before.
  return places.sort((one, other) => Number(xs[one]) - Number(xs[other]) || one - other);
}

/**
 * @param {string} id
 * @param {Columns} all
 * @param {Columns} shown
 * @param {View} view
 * @param {Sources} sources
 */
function marksOf(id, all, shown, view, sources) {
  if (!view.marks) return [];
  /** @type {LineMark[]} */
  const marks = [];
  for (const { kind, step, time } of sources.marks(id)) {
    if (kind === "non_finite") continue; // below, for this metric only
    const x = view.x === "time" && time !== null ? time : xOfStep(all, view.x, step);
    const label = kind === "restart" ? "Restarted from" : "Checkpoint at";
    if (x !== null) marks.push({ kind, x, label: `${label} step ${count(step)}` });
  }
  shown.non_finite.forEach((number, place) => {
    if (number === 0) return;
    const [from, to] = [shown.first_step[place], shown.step[place]];
    const where = from === to ? `at step ${count(to)}` : `in steps ${count(from)} to ${count(to)}`;
    const what = number === 1 ? "Not a finite number" : `${count(number)} values not finite`;
    marks.push({ kind: "non_finite", x: Number(shown[view.x][place]), label: `${what} ${where}` });
  });
  return marks;
}

/**
 * Returns one line per group of runs; a group of one run is called by the run's name.
 *
 * @param {Entry[]} entries that have a line
 * @param {Map<Entry, Line>} lines
 * @param {Metric} metric
 * @param {View} view
 * @returns {Line[]}
 */
function meanLines(entries, lines, metric, view) {
  return groupsOf(entries, view.color).map(({ value, entries: members }) => {
    const own = members.flatMap((entry) => lines.get(entry) ?? []);
    const { x, value: mean, low, high, runs } = meanOf(own, view.band);
    const kinds = new Set(own.map(({ remark }) => remark));
    const name = view.color === ALL_BUT_SEED ? value : `${shortName(view.color)} ${value}`;
    return {
      id: `group:${value}`,
      name: own.length === 1 ? own[0].name : name || "All runs",
      remark: [own.length === 1 ? "" : `mean of ${own.length}`, ...kinds].filter(Boolean).join(", "),
      style: own[0].style,
      runs: members.map(({ run }) => run),
      x, value: mean, faint: null,
      low: own.length === 1 ? null : low,
      high: own.length === 1 ? null : high,
      columns: null,
      counts: runs,
      marks: own.length === 1 ? own[0].marks : [],
      text: (number) => valueOf(metric, members[0].run, number),
    };
  });
}

/**
 * Returns what loss/total is for a run.
 *
 * @param {{alpha: number, temperature: number | null}} run
 */
export function minimised({ alpha, temperature }) {
  const scale = temperature === 1 ? "" : "T\u00b2 \u00b7 ";
  if (alpha === 1) return "cross entropy";
  const divergence = `${scale}distillation, T ${temperature}`;
  if (alpha === 0) return divergence;
  return `${alpha} \u00b7 cross entropy + ${+(1 - alpha).toPrecision(6)} \u00b7 ${divergence}`;
}
