// @ts-check
// One chart: title, unit, the values of its lines, the plot, and what it leaves out.

import { make, setText, show } from "../dom.js";
import { count, joined } from "../format.js";
import { AXES } from "./drawing/axes.js";
import { marksInWords, marksNear } from "./drawing/marks.js";
import { paint, sampleLine } from "./drawing/palette.js";
import { dataOf, newPlot, shapeOf } from "./drawing/plot.js";
import { firstAtLeast } from "./values/groups.js";
import { extent, limited, padded, robustExtent } from "./values/ranges.js";

/** @import { default as Plot } from "uplot" */
/** @import { LeftOut, Line } from "./types.d.ts" */
/** @import { Metric } from "./metrics.js" */
/** @import { Picture } from "./drawing/plot.js" */
/** @import { Range } from "./values/ranges.js" */
/** @import { View } from "./view.js" */

/**
 * @typedef {object} Item a line's part of the legend
 * @property {HTMLElement} element
 * @property {SVGElement} stroke
 * @property {HTMLElement} name
 * @property {HTMLElement} value
 * @property {HTMLElement} step
 * @property {HTMLElement} remark
 */

const KEY_PAN = 0.02; // of the chart's width, per key press
const DESCRIBED_LINES = 6;

export class Chart {
  /**
   * @param {boolean} isLarge
   * @param {(width: number) => number} height both in pixels
   */
  constructor(isLarge, height) {
    this.isLarge = isLarge;
    this.height = height;
    this.plotBox = make("div", { className: "chart", tabIndex: 0 });
    this.plotBox.setAttribute("role", "img");
    this.note = make("p", { className: "mark-note", hidden: true });
    this.box = make("div", { className: "chart-box" }, this.plotBox, this.note);
    this.legend = make("ul", { className: isLarge ? "legend" : "chart-values" });
    this.remark = make("p", { className: "chart-remark muted" });
    /** @type {Map<string, Item>} */
    this.items = new Map();
    /** @type {Plot | null} */
    this.plot = null;
    /** @type {Picture | null} */
    this.picture = null;
    this.shape = "";
    this.isVisible = isLarge;
    this.outside = 0;
    this.resizing = new ResizeObserver(() => this.resize());
    this.resizing.observe(this.plotBox);
    this.plotBox.addEventListener("keydown", (event) => this.onKey(event));
  }

  /**
   * @param {Line[]} lines
   * @param {Metric} metric
   * @param {View} view
   * @param {Range | null} x that the lines of all charts have together
   * @param {LeftOut} leftOut
   */
  draw(lines, metric, view, x, leftOut) {
    show(this.box, lines.length > 0);
    const span = view.zoom ?? xRange(x, view);
    const y = yRange(lines, metric, view, view.zoom);
    this.outside = y.outside;
    this.picture = { lines, metric, view, x: span, y: y.range };
    this.fillLegend();
    this.setRemark(leftOut);
    this.describe();
    if (lines.length === 0) this.discard();
    else if (this.isVisible) this.paint();
  }

  /** Puts the picture on the canvas. */
  paint() {
    const { picture } = this;
    if (picture === null || picture.lines.length === 0) return;
    const shape = shapeOf(picture);
    if (this.plot !== null && this.shape === shape) {
      this.plot.setData(dataOf(picture.lines));
      return;
    }
    this.discard();
    this.shape = shape;
    this.plot = newPlot({
      container: this.plotBox,
      isLarge: this.isLarge,
      size: () => this.size(),
      picture: () => this.picture ?? picture,
      onCursor: (plot) => this.onCursor(plot),
    });
  }

  /** @param {boolean} isVisible whether the chart is near what the window shows */
  reveal(isVisible) {
    this.isVisible = isVisible;
    if (isVisible) this.paint();
  }

  /** @param {Plot} plot */
  onCursor(plot) {
    this.fillLegend();
    const isHere = plot.over.matches(":hover") || document.activeElement === this.plotBox;
    const { left = -1 } = plot.cursor;
    const said = left >= 0 && isHere ? marksNear(plot, this.picture?.lines ?? [], left) : "";
    setText(this.note, said);
    show(this.note, said !== "");
  }

  /** Returns where the cursor of this chart is on the x axis; null if it is not on the chart. */
  hovered() {
    const left = this.plot?.cursor.left ?? -1;
    return this.plot !== null && left >= 0 ? this.plot.posToVal(left, "x") : null;
  }

  /** Fills in the values under the cursor, or the last ones. */
  fillLegend() {
    const { lines, view } = this.picture ?? { lines: [], view: null };
    const x = this.hovered();
    const ids = new Set();
    for (const line of lines) {
      ids.add(line.id);
      const item = this.items.get(line.id) ?? this.addItem(line);
      const at = x === null ? lastPlace(line) : nearest(line, x);
      paint(item.stroke, line.style);
      setText(item.name, line.name);
      setText(item.remark, line.remark);
      setText(item.value, at === null ? "\u2013" : line.text(line.value[at]));
      const runs = line.counts === null || at === null ? "" : `, ${runsOf(line.counts[at])}`;
      setText(item.step, at === null || !view ? "" : `at ${AXES[view.x].at(line.x[at])}${runs}`);
      item.element.dataset.points = String(line.x.length);
      item.element.title = this.isLarge ? "" : joined(line.name, line.remark);
      this.legend.append(item.element);
    }
    for (const [id, item] of this.items) {
      if (!ids.has(id)) {
        item.element.remove();
        this.items.delete(id);
      }
    }
  }

  /** @param {Line} line */
  addItem(line) {
    const { svg, line: stroke } = sampleLine();
    const name = make("span", { className: "legend-name" });
    const value = make("b", { className: "legend-value" });
    const step = make("span", { className: "legend-step" });
    const remark = make("span", { className: "legend-remark" });
    const element = make("li", { dataset: { runId: line.id } }, svg, name, value, step, remark);
    const item = { element, stroke, name, value, step, remark };
    this.items.set(line.id, item);
    return item;
  }

  /** @param {LeftOut} leftOut */
  setRemark({ withoutX, notPositive }) {
    const { lines = [], view } = this.picture ?? {};
    const values = lines.flatMap(({ value }) => value).filter((value) => value !== null);
    const isConstant = values.length > 1 && new Set(values).size === 1;
    const axis = view ? AXES[view.x].by : "";
    setText(this.remark, joined(
      isConstant && "Constant",
      this.outside > 0 && `${countOf(this.outside, "point")} outside this range`,
      notPositive > 0 && `${countOf(notPositive, "value")} not above 0, not on a log scale`,
      withoutX.length > 0 && `no ${axis} recorded for ${listed(withoutX)}`,
    ));
  }

  /** Sets what a screen reader says of the chart. */
  describe() {
    const { lines, metric, view } = this.picture ?? {};
    if (!lines || !metric || !view) return;
    const unit = metric.unit === "" ? "" : `, in ${metric.unit}`;
    const texts = lines.slice(0, DESCRIBED_LINES).map((line) => {
      const at = lastPlace(line);
      if (at === null) return `${line.name}: no finite value`;
      const range = extent(line.value.filter((value) => value !== null));
      const ends = range && `, between ${line.text(range[0])} and ${line.text(range[1])}`;
      return `${line.name}: ${line.text(line.value[at])} at ${AXES[view.x].at(line.x[at])}${ends}`;
    });
    const more = lines.length - DESCRIBED_LINES;
    const parts = [...texts, more > 0 && `${more} more lines`, marksInWords(lines)];
    const said = parts.filter(Boolean).join("; ");
    const label = `${metric.title}${unit} by ${AXES[view.x].by}. ${said || "No values"}.`;
    this.plotBox.setAttribute("aria-label", label);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const { plot, picture } = this;
    if (plot === null || picture === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const width = plot.over.clientWidth;
    const left = plot.cursor.left ?? -1;
    const here = left >= 0 ? left : width / 2;
    const pan = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const factor = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    if (pan !== undefined) {
      const to = left < 0 ? width / 2 : Math.min(width - 1, Math.max(0, here + pan * KEY_PAN * width));
      plot.setCursor({ left: to, top: 1 }, true);
    } else if (factor !== undefined) {
      const reach = (width * factor) / 2;
      const ends = [here - reach, here + reach].map((place) => plot.posToVal(place, "x"));
      picture.view.change({ zoom: [ends[0], ends[1]] });
    } else if (event.key === "0") picture.view.change({ zoom: null });
    else return;
    event.preventDefault();
  }

  size() {
    const width = Math.max(this.isLarge ? 240 : 160, this.plotBox.clientWidth);
    return { width, height: this.height(width) };
  }

  resize() {
    if (this.plot !== null && this.plotBox.clientWidth > 0) this.plot.setSize(this.size());
  }

  discard() {
    this.plot?.destroy();
    this.plot = null;
    this.shape = "";
  }

  destroy() {
    this.resizing.disconnect();
    this.discard();
  }
}

/**
 * @param {Range | null} x
 * @param {View} view
 * @returns {Range}
 */
function xRange(x, view) {
  const [low, high] = x ?? [1, 10];
  if (low < high) return [low, high];
  return view.logX ? [low / 2, low * 2] : [low - 1, low + 1];
}

/**
 * Returns the vertical range of the part that is shown, and how many points lie outside it.
 *
 * @param {Line[]} lines
 * @param {Metric} metric
 * @param {View} view
 * @param {readonly [number, number] | null} zoom
 */
function yRange(lines, metric, view, zoom) {
  const isInside = (/** @type {number} */ x) => zoom === null || (x >= zoom[0] && x <= zoom[1]);
  /** @type {number[][]} */
  const points = lines.flatMap(({ x, value, faint, low, high }) => x.flatMap((at, place) => {
    const all = [value, faint, low, high].map((column) => column?.[place] ?? null);
    const found = isInside(at) ? all.filter((number) => number !== null) : [];
    return found.length > 0 ? [found] : [];
  }));
  const values = points.flat();
  const found = view.showsOutliers ? extent(values) : robustExtent(values, view.logY);
  const limits = view.limits.get(metric.key) ?? [null, null];
  const range = limited(padded(found, view.logY), limits, view.logY);
  const isOutside = (/** @type {number} */ value) => value < range[0] || value > range[1];
  return { range, outside: points.filter((point) => point.some(isOutside)).length };
}

/** @param {Line} line */
function lastPlace({ value }) {
  for (let place = value.length - 1; place >= 0; place -= 1) {
    if (value[place] !== null) return place;
  }
  return null;
}

/**
 * Returns the place of the point with a value that is nearest to `x`.
 *
 * @param {Line} line
 * @param {number} x
 */
export function nearest(line, x) {
  let after = firstAtLeast(line.x, x);
  while (after < line.x.length && line.value[after] === null) after += 1;
  let before = Math.min(after, line.x.length) - 1;
  while (before >= 0 && line.value[before] === null) before -= 1;
  if (after >= line.x.length) return before >= 0 ? before : null;
  if (before < 0) return after;
  return x - line.x[before] <= line.x[after] - x ? before : after;
}

/**
 * @param {number} number
 * @param {string} what
 */
const countOf = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

/** @param {number} number */
const runsOf = (number) => countOf(number, "run");

/** @param {string[]} names */
const listed = (names) =>
  (names.length > 3 ? `${names.slice(0, 2).join(", ")} and ${names.length - 2} more` : names.join(", "));
