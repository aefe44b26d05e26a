// @ts-check
// Lines as uPlot draws them: axes and scales, the bands behind, cursor and zoom.

import { AXES, tickLabels } from "./axes.js";
import { drawMarks } from "./marks.js";

/** @import { AlignedData, Axis, Band, Series, default as Plot } from "uplot" */
/** @import { Line } from "../types.d.ts" */
/** @import { Metric } from "../metrics.js" */
/** @import { Range } from "../values/ranges.js" */
/** @import { View } from "../view.js" */

/**
 * @typedef {object} Picture what one chart shows now
 * @property {Line[]} lines at least one
 * @property {Metric} metric
 * @property {View} view
 * @property {Range} x
 * @property {Range} y
 */

/**
 * @typedef {object} Frame
 * @property {HTMLElement} container
 * @property {boolean} isLarge
 * @property {() => {width: number, height: number}} size
 * @property {() => Picture} picture the newest one
 * @property {(plot: Plot) => void} onCursor
 */

const SYNC = "lectern";

/**
 * Returns the columns of all lines over one common x, in the order of `seriesOf`.
 *
 * @param {Line[]} lines
 * @returns {AlignedData}
 */
export function dataOf(lines) {
  const tables = lines.map(({ x, value, faint, low, high }) => /** @type {AlignedData} */ (
    [x, ...[low, high, faint, value].filter((column) => column !== null)]));
  return tables.length > 1 ? window.uPlot.join(tables) : tables[0];
}

/**
 * Returns text that differs if the plot has to be made anew, not only filled with other values.
 *
 * @param {Picture} picture
 */
export function shapeOf({ lines, metric, view }) {
  const parts = lines.map(({ id, style, low, faint }) =>
    [id, style.color, style.dash.join(), low !== null, faint !== null]);
  const isSparse = lines.map(isSparseLine);
  return JSON.stringify([metric.key, view.x, view.logX, view.logY, parts, isSparse]);
}

/**
 * Makes a plot in the frame's container.
 *
 * @param {Frame} frame
 * @returns {Plot}
 */
export function newPlot(frame) {
  const picture = frame.picture();
  const { lines, metric, view } = picture;
  const css = getComputedStyle(document.documentElement);
  const token = (/** @type {string} */ name) => css.getPropertyValue(name).trim();
  const colors = { muted: token("--muted"), bad: token("--bad") };
  const { series, bands } = seriesOf(lines, metric);
  return new window.uPlot({
    ...frame.size(),
    padding: frame.isLarge ? [12, 28, 0, 0] : [8, 18, 0, 0],
    legend: { show: false },
    scales: {
      x: {
        time: view.x === "time", distr: view.logX ? 3 : 1,
        range: () => frame.picture().x,
      },
      y: { distr: view.logY ? 3 : 1, range: () => frame.picture().y },
    },
    cursor: cursorOf(view, frame.isLarge),
    axes: axesOf(frame, metric, view, token),
    series: [{}, ...series],
    bands,
    hooks: {
      draw: [(plot) => drawMarks(plot, frame.picture().lines, colors)],
      setCursor: [frame.onCursor],
      setSelect: [(plot) => zoomTo(plot, view)],
    },
  }, dataOf(lines), frame.container);
}

/**
 * @param {Line[]} lines
 * @param {Metric} metric
 */
function seriesOf(lines, metric) {
  /** @type {Series[]} */
  const series = [];
  /** @type {Band[]} */
  const bands = [];
  for (const line of lines) {
    const { color, dash } = line.style;
    const hidden = { stroke: "transparent", width: 0, points: { show: false } };
    if (line.low !== null) {
      series.push({ ...hidden, label: "lowest" }, { ...hidden, label: "highest" });
      bands.push({ series: [series.length, series.length - 1], fill: `${color}2b` });
    }
    if (line.faint !== null) {
      series.push({ label: "measured", stroke: `${color}48`, width: 1, points: { show: false } });
    }
    const hasPoints = metric.isEvaluated || isSparseLine(line);
    series.push({
      label: line.name, stroke: color, width: 2, dash, spanGaps: metric.isEvaluated,
      points: { show: hasPoints, size: 6, fill: color, stroke: color },
    });
  }
  return { series, bands };
}

/**
 * A line of few points shows them, or one point alone would not be seen.
 *
 * @param {Line} line
 */
const isSparseLine = ({ value }) => value.length <= 3;

/**
 * @param {View} view
 * @param {boolean} isLarge
 * @returns {Plot.Cursor}
 */
const cursorOf = (view, isLarge) => ({
  y: false,
  points: { size: isLarge ? 7 : 5 },
  drag: { x: true, y: false, setScale: false, dist: 5 },
  bind: { dblclick: () => () => { view.change({ zoom: null }); return null; } },
  sync: {
    key: SYNC,
    scales: ["x", null],
    setSeries: false,
    // The others follow the cursor; only the chart under the mouse selects.
    filters: { pub: (kind) => kind === "mousemove" || kind === "mouseleave" },
  },
});

/**
 * @param {Frame} frame
 * @param {Metric} metric
 * @param {View} view
 * @param {(name: string) => string} token
 * @returns {Axis[]}
 */
function axesOf({ isLarge }, metric, view, token) {
  const font = `${isLarge ? 12 : 11}px ${token("--sans")}`;
  const grid = token("--hairline");
  const { label, ticks, steps } = AXES[view.x];
  /** @type {Axis} */
  const axis = {
    stroke: token("--muted"), font, labelFont: font, labelSize: 20, labelGap: 2,
    ticks: { stroke: grid, size: 4 },
    grid: { stroke: grid, width: 1 },
  };
  return [
    {
      ...axis, size: isLarge ? 30 : 24, space: isLarge ? 70 : 56,
      ...(isLarge && { label }), ...(steps && !view.logX && { incrs: steps }),
      values: (_plot, splits, _axis, _space, step) =>
        ticks(splits, step).map((text, place) => (splits[place] === null ? "" : text)),
    },
    {
      ...axis, space: isLarge ? 34 : 26,
      // At least as wide as usual, so that charts below each other begin at the same place.
      size: (_plot, labels) =>
        Math.max(isLarge ? 56 : 50, ...(labels ?? []).map((text) => 12 + 6 * text.length)),
      ...(isLarge && metric.unit !== "" && { label: metric.unit }),
      values: (_plot, splits) => tickLabels(splits, metric.tick),
    },
  ];
}

/**
 * Makes what the user has selected the part that all charts show.
 *
 * @param {Plot} plot
 * @param {View} view
 */
function zoomTo(plot, view) {
  const { left, width } = plot.select;
  if (width <= 0) return;
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  const [low, high] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
  if (low < high) view.change({ zoom: [low, high] });
}
