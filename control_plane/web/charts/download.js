// @ts-check
// What a chart shows, as a file. The browser makes it from what is drawn; nothing is fetched.

import { make } from "../dom.js";

/** @import { Line } from "./types.d.ts" */
/** @import { Picture } from "./drawing/plot.js" */

/** @typedef {Record<string, string | number | null>} Row */

const COLUMNS = [
  "line", "run_id", "step", "first_step", "tokens", "seconds", "time", "x", "shown", "mean", "min",
  "max", "count", "non_finite", "runs",
];

/**
 * Returns one row per point in the part that is shown. `shown` is the value of the line, smoothed or
 * the mean of several runs; `min` and `max` are the edges of the band behind it.
 *
 * @param {Picture} picture
 * @returns {Row[]}
 */
export function rowsOf({ lines, x: [from, to] }) {
  return lines.flatMap((line) => line.x.flatMap((x, place) =>
    (x < from || x > to ? [] : [rowOf(line, x, place)])));
}

/**
 * @param {Line} line
 * @param {number} x
 * @param {number} place
 * @returns {Row}
 */
function rowOf({ columns, counts, low, high, name, runs, value }, x, place) {
  const at = (/** @type {(number | null)[] | undefined | null} */ column) => column?.[place] ?? null;
  return {
    line: name,
    run_id: runs.map(({ id }) => id).join(" "),
    step: at(columns?.step),
    first_step: at(columns?.first_step),
    tokens: at(columns?.tokens),
    seconds: at(columns?.seconds),
    time: at(columns?.time),
    x,
    shown: value[place],
    mean: columns === null ? value[place] : at(columns.mean),
    min: columns === null ? at(low) : at(columns.min),
    max: columns === null ? at(high) : at(columns.max),
    count: at(columns?.count),
    non_finite: at(columns?.non_finite),
    runs: at(counts),
  };
}

/** @param {Picture} picture */
export function csvOf(picture) {
  const lines = rowsOf(picture).map((row) => COLUMNS.map((name) => cell(row[name])).join());
  return [COLUMNS.join(), ...lines, ""].join("\r\n");
}

/** @param {string | number | null} value */
function cell(value) {
  if (value === null) return "";
  const text = String(value);
  if (typeof value === "number") return text;
  // A spreadsheet would compute a text that begins like a formula.
  const inert = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(inert) ? `"${inert.replaceAll('"', '""')}"` : inert;
}

/** @param {Picture} picture */
export function jsonOf(picture) {
  const { metric, view, x, y } = picture;
  const { x: axis, smooth, mean, band, color, logX, logY } = view;
  return JSON.stringify({
    metric: metric.key, title: metric.title, unit: metric.unit,
    x: { axis, from: x[0], to: x[1], log: logX }, y: { from: y[0], to: y[1], log: logY },
    smoothing_steps: metric.isEvaluated ? 0 : smooth,
    mean_by: mean ? color : null, band: mean ? band : "range of each bucket",
    points: rowsOf(picture),
  }, null, 1);
}

/**
 * Returns the chart as a picture, with its title and the names of its lines.
 *
 * @param {Picture} picture
 * @param {HTMLCanvasElement} drawn
 * @returns {Promise<Blob | null>}
 */
export function pngOf({ metric, lines }, drawn) {
  const css = getComputedStyle(document.documentElement);
  const token = (/** @type {string} */ name) => css.getPropertyValue(name).trim();
  const ratio = devicePixelRatio;
  const row = 20 * ratio;
  const canvas = make("canvas", {
    width: drawn.width + 2 * row, height: drawn.height + row * (lines.length + 4),
  });
  const ctx = canvas.getContext("2d");
  if (ctx === null) return Promise.resolve(null);
  ctx.fillStyle = token("--card");
  ctx.fillRect(0, 0, canvas.width, canvas.height);
  ctx.fillStyle = token("--ink");
  ctx.font = `600 ${16 * ratio}px ${token("--sans")}`;
  ctx.fillText(metric.title, row, 1.6 * row);
  ctx.drawImage(drawn, row, 2 * row);
  ctx.font = `${13 * ratio}px ${token("--sans")}`;
  lines.forEach(({ name, remark, style }, place) => {
    const y = drawn.height + row * (place + 3);
    ctx.strokeStyle = style.color;
    ctx.lineWidth = 2.5 * ratio;
    ctx.setLineDash(style.dash.map((length) => length * ratio));
    ctx.beginPath();
    ctx.moveTo(row, y - 4 * ratio);
    ctx.lineTo(2.2 * row, y - 4 * ratio);
    ctx.stroke();
    ctx.fillText([name, remark].filter(Boolean).join(", "), 2.6 * row, y);
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/**
 * Gives the user a file.
 *
 * @param {string} name
 * @param {Blob} content
 */
export function save(name, content) {
  const href = URL.createObjectURL(content);
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
