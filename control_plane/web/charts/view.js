// @ts-check
// What the user has chosen to see. All charts of a page share one view; it can be put into an
// address and taken from one, and all but zoom and limits is remembered for the next visit.

import { ALL_BUT_SEED } from "./values/groups.js";

/** @import { Axis } from "./types.d.ts" */

/** @typedef {Record<string, string>} Params */

/** @typedef {readonly [from: number | null, to: number | null]} Limits */

const MEMORY = "lectern-charts";
/** In steps. The first means: not smoothed. */
export const SPANS = [0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
const AXES = ["step", "tokens", "seconds", "time"];
const NOT_REMEMBERED = ["zoom", "y"];

export class View {
  /**
   * @param {string} place whose choice is remembered: "overview" or "run"
   * @param {Params} params of the address
   * @param {Params} defaults used where neither the address nor the memory says anything
   * @param {(params: Params) => void} onParams called with what differs from the defaults
   */
  constructor(place, params, defaults, onParams) {
    this.place = place;
    this.defaults = { ...EMPTY, ...defaults };
    this.onParams = onParams;
    /** @type {Set<() => void>} */
    this.listeners = new Set();
    const known = Object.keys(params).filter((key) => key in EMPTY);
    const given = Object.fromEntries(known.map((key) => [key, params[key]]));
    this.metric = "";
    /** @type {Axis} */
    this.x = "step";
    this.logX = this.logY = this.showsOutliers = this.mean = false;
    this.marks = true;
    this.smooth = 0; // in steps
    this.color = ""; // a setting; "" colours each run by itself
    /** @type {"range" | "std"} */
    this.band = "range";
    /** @type {[number, number] | null} */
    this.zoom = null;
    /** @type {Map<string, Limits>} of the vertical axis, by metric */
    this.limits = new Map();
    this.take({ ...this.defaults, ...remembered(place), ...given });
  }

  /** @param {Params} params one of each name of EMPTY */
  take(params) {
    this.metric = params.metric;
    this.x = /** @type {Axis} */ (AXES.includes(params.x) ? params.x : "step");
    this.logX = params.logx === "1" && this.x !== "time";
    this.logY = params.logy === "1";
    this.showsOutliers = params.outliers === "1";
    const smooth = Number(params.smooth);
    this.smooth = smooth > 0 && Number.isFinite(smooth) ? smooth : 0;
    this.color = params.color;
    this.mean = params.mean === "1";
    this.band = params.band === "std" ? "std" : "range";
    this.marks = params.marks !== "0";
    this.zoom = zoomOf(params.zoom);
    this.limits = limitsOf(params.y);
    // A mean of runs that are coloured one by one would be the runs themselves.
    if (this.mean && this.color === "") this.color = ALL_BUT_SEED;
  }

  /** @returns {Params} */
  params() {
    const flag = (/** @type {boolean} */ isOn) => (isOn ? "1" : "0");
    return {
      metric: this.metric,
      x: this.x,
      logx: flag(this.logX),
      logy: flag(this.logY),
      outliers: flag(this.showsOutliers),
      smooth: String(this.smooth),
      color: this.color,
      mean: flag(this.mean),
      band: this.band,
      marks: flag(this.marks),
      zoom: this.zoom === null ? "" : this.zoom.join("~"),
      y: [...this.limits].map(([key, limits]) => `${key}~${limits.join("~")}`).join(","),
    };
  }

  /**
   * Changes some of the choices, remembers them, and tells the charts.
   *
   * @param {Partial<Pick<View, "metric" | "x" | "logX" | "logY" | "showsOutliers" | "smooth" |
   *   "color" | "mean" | "band" | "marks" | "zoom">>} choices
   */
  change(choices) {
    const isOtherX = choices.x !== undefined && choices.x !== this.x;
    Object.assign(this, isOtherX ? { ...choices, zoom: null } : choices);
    this.take(this.params());
    this.tell();
  }

  /**
   * Sets the limits of the vertical axis of one metric; [null, null] removes them.
   *
   * @param {string} key
   * @param {Limits} limits
   */
  limit(key, limits) {
    if (limits[0] === null && limits[1] === null) this.limits.delete(key);
    else this.limits.set(key, limits);
    this.tell();
  }

  /** Forgets the part of the charts that was looked at: another run has other steps and values. */
  seeAll() {
    if (this.zoom === null && this.limits.size === 0) return;
    this.zoom = null;
    this.limits.clear();
    this.tell();
  }

  tell() {
    const params = this.params();
    const changed = Object.entries(params).filter(([key, value]) => value !== this.defaults[key]);
    const kept = Object.entries(params).filter(([key]) => !NOT_REMEMBERED.includes(key));
    localStorage.setItem(`${MEMORY}-${this.place}`, JSON.stringify(Object.fromEntries(kept)));
    this.onParams(Object.fromEntries(changed));
    for (const listener of this.listeners) listener();
  }
}

/** @type {Params} */
const EMPTY = {
  metric: "loss/val", x: "step", logx: "0", logy: "0", outliers: "0", smooth: "0", color: "",
  mean: "0", band: "range", marks: "1", zoom: "", y: "",
};

/**
 * Returns what was remembered; a memory that cannot be read is none.
 *
 * @param {string} place
 * @returns {Params}
 */
function remembered(place) {
  try {
    const found = JSON.parse(localStorage.getItem(`${MEMORY}-${place}`) ?? "{}");
    return Object.fromEntries(Object.keys(EMPTY)
      .filter((key) => typeof found[key] === "string" && !NOT_REMEMBERED.includes(key))
      .map((key) => [key, found[key]]));
  } catch {
    return {};
  }
}

/**
 * "100~200" -> [100, 200]; null unless that is a range
 *
 * @param {string} text
 * @returns {[number, number] | null}
 */
function zoomOf(text) {
  const [low, high] = text.split("~").map((part) => (part === "" ? NaN : Number(part)));
  return Number.isFinite(low) && Number.isFinite(high) && low < high ? [low, high] : null;
}

/**
 * "loss/ce~1~,loss/kd~0~2" -> limits by metric
 *
 * @param {string} text
 * @returns {Map<string, Limits>}
 */
function limitsOf(text) {
  /** @type {Map<string, Limits>} */
  const limits = new Map();
  for (const part of text.split(",")) {
    const [key, ...ends] = part.split("~");
    const [low, high] = ends.map(limitOf);
    if (key && ends.length === 2 && (low !== null || high !== null)) limits.set(key, [low, high]);
  }
  return limits;
}

/**
 * @param {string} text
 * @returns {number | null}
 */
export function limitOf(text) {
  const limit = text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(limit) ? limit : null;
}
