/** What the charts take and pass on. Never loaded by the page. */

import type { ShownRun } from "../types.d.ts";
import type { Style } from "./drawing/palette.js";

export type Setting = string | number | boolean | null;

/** A run to draw. */
export interface Entry {
  run: ShownRun;
  name: string;
  /** Of its spec, flat: {"optimizer.learning_rate": 1e-4}. Without them, fields of the run serve. */
  settings?: Record<string, Setting>;
}

/** One metric of one run in buckets of steps, as `GET /runs/{id}/series` sends it. */
export interface Columns {
  /** The last step of each bucket. */
  step: number[];
  first_step: number[];
  /** Null where no value of the bucket was finite, as are min and max. */
  mean: (number | null)[];
  min: (number | null)[];
  max: (number | null)[];
  count: number[];
  non_finite: number[];
  /** At the bucket's last step: trained on so far, training so far, Unix seconds. */
  tokens: (number | null)[];
  seconds: (number | null)[];
  time: (number | null)[];
}

export interface Mark {
  kind: "checkpoint" | "restart" | "non_finite";
  step: number;
  time: number | null;
}

export interface SeriesAnswer {
  run_id: string;
  revision: string;
  last_step: number | null;
  keys: string[];
  series: Record<string, Columns>;
  marks: Mark[];
  /** Where records that came later begin, for /runs/{id}/metrics. */
  cursor: string;
}

export type Axis = "step" | "tokens" | "seconds" | "time";

/** A line of a chart, as it is drawn: of one run, or the mean of several. */
export interface Line {
  id: string;
  name: string;
  /** What the name does not say: what the run minimises, over how many runs the mean is. */
  remark: string;
  style: Style;
  runs: ShownRun[];
  x: number[];
  value: (number | null)[];
  /** Behind it, not smoothed; null if there is nothing else to show. */
  faint: (number | null)[] | null;
  low: (number | null)[] | null;
  high: (number | null)[] | null;
  /** Of each point, for one run; null for a mean. */
  columns: Columns | null;
  /** How many runs the mean is over at each point; null for one run. */
  counts: number[] | null;
  marks: LineMark[];
  text: (value: number | null) => string;
}

export interface LineMark {
  kind: Mark["kind"];
  x: number;
  label: string;
}

/** What a chart leaves out, for it to say so. */
export interface LeftOut {
  /** Names of runs whose records lack what the horizontal axis shows. */
  withoutX: string[];
  /** Points with a value that a logarithmic scale cannot show. */
  notPositive: number;
}
