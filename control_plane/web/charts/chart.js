// @ts-check
// A line chart with one line per run, drawn by uPlot, and its legend.

import { make, setText, show } from "../dom.js";
import { count } from "../format.js";

/** @import { AlignedData, Axis, Series, default as Plot } from "uplot" */
/** @import { Metric } from "./metrics.js" */

/**
 * @typedef {object} Line
 * @property {string} id of the run
 * @property {string} name
 * @property {number} index which line style it has
 * @property {number[]} steps at least one
 * @property {number[]} values one per step
 * @property {(value: number) => string} text a value as the legend shows it
 */

/**
 * @typedef {object} LegendItem
 * @property {HTMLElement} element
 * @property {SVGElement} stroke
 * @property {HTMLElement} name
 * @property {HTMLElement} value
 * @property {HTMLElement} step
 */

// The palette of Okabe and Ito, which people with any kind of colour vision can tell apart: darker
// on paper, lighter in dark mode. The seventh run has the first colour again, dashed.
const COLORS = {
  light: ["#0068a8", "#c8500a", "#00805c", "#b0508a", "#8f6400", "#55524c"],
  dark: ["#62b6ee", "#f08a4b", "#35c79a", "#e59ac4", "#e8bd4a", "#c9c5bd"],
};
const DASHES = [[], [7, 4], [2, 3]];
const DARK_MODE = matchMedia("(prefers-color-scheme: dark)");

/** @param {number} index */
const lineStyle = (index) => ({
  color: COLORS[DARK_MODE.matches ? "dark" : "light"][index % 6],
  dash: DASHES[Math.floor(index / 6) % DASHES.length],
});

/**
 * @param {SVGElement} svgLine
 * @param {number} index
 */
export function paintLine(svgLine, index) {
  const { color, dash } = lineStyle(index);
  svgLine.style.stroke = color;
  svgLine.style.strokeDasharray = dash.join(" ");
}

/** @param {() => void} listener called when the colours of lines have changed */
export function onSchemeChange(listener) {
  DARK_MODE.addEventListener("change", listener);
}

export class Chart {
  /**
   * @param {HTMLElement} container
   * @param {HTMLElement} legend
   * @param {(width: number) => number} height both in pixels
   */
  constructor(container, legend, height) {
    this.container = container;
    this.legend = legend;
    this.height = height;
    /** @type {Map<string, LegendItem>} */
    this.items = new Map();
    /** @type {Plot | null} */
    this.plot = null;
    this.shape = "";
    /** @type {Line[]} */
    this.lines = [];
    onSchemeChange(() => this.discard());
    new ResizeObserver(() => this.resize()).observe(container);
  }

  /**
   * @param {Line[]} lines in the order of the legend
   * @param {Metric} metric
   * @param {number} smoothing weight of the moving average, from 0 (off) to below 1
   */
  draw(lines, metric, smoothing) {
    this.lines = lines;
    const isSmooth = smoothing > 0 && !metric.isEvaluated;
    const styles = lines.map((line) => [line.id, line.index]);
    const shape = JSON.stringify([styles, metric.key, isSmooth]);
    show(this.container, lines.length > 0);
    if (lines.length === 0) this.discard();
    else {
      /** @type {AlignedData[]} */
      const tables = lines.flatMap(({ steps, values }) =>
        isSmooth ? [[steps, values], [steps, smoothed(values, smoothing)]] : [[steps, values]]);
      const data = tables.length > 1 ? window.uPlot.join(tables) : tables[0];
      if (this.plot !== null && this.shape === shape) this.plot.setData(data);
      else {
        this.discard();
        this.plot = this.newPlot(lines, metric, isSmooth, data);
        this.shape = shape;
      }
    }
    this.fillLegend(null);
  }

  /**
   * @param {Line[]} lines
   * @param {Metric} metric
   * @param {boolean} isSmooth whether each line has a faint one behind it, not smoothed
   * @param {AlignedData} data
   */
  newPlot(lines, metric, isSmooth, data) {
    const css = getComputedStyle(document.documentElement);
    const grid = css.getPropertyValue("--hairline").trim();
    const font = `12px ${css.getPropertyValue("--sans").trim()}`;
    /** @type {Axis} */
    const axis = {
      stroke: css.getPropertyValue("--muted").trim(),
      font,
      ticks: { stroke: grid, size: 4 },
      grid: { stroke: grid, width: 1 },
      labelFont: font,
      labelSize: 20,
      labelGap: 2,
    };
    const series = lines.flatMap((line) => {
      const { color, dash } = lineStyle(line.index);
      /** @type {Series} */
      const main = {
        label: line.name,
        stroke: color,
        width: 2,
        dash,
        spanGaps: true,
        points: metric.isEvaluated
          ? { show: true, size: 6, fill: color, stroke: color }
          : { show: false },
      };
      const faint = { ...main, stroke: `${color}40`, width: 1, points: { show: false } };
      return isSmooth ? [faint, main] : [main];
    });
    return new window.uPlot({
      ...this.size(),
      padding: [10, 24, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { range: (_plot, low, high) => padded(low, high) } },
      cursor: { y: false, drag: { x: true, y: false }, points: { size: 7 } },
      axes: [
        { ...axis, size: 30, label: "steps", values: (_plot, ticks) => ticks.map(stepTick) },
        { ...axis, size: 48, label: metric.unit, values: (_plot, ticks) => ticks.map(metric.tick) },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [(plot) => this.fillLegend(stepUnderCursor(plot))] },
    }, data, this.container);
  }

  /**
   * Fills the legend with the values at a step; null means the last ones.
   *
   * @param {number | null} step
   */
  fillLegend(step) {
    const ids = new Set();
    for (const line of this.lines) {
      ids.add(line.id);
      const item = this.items.get(line.id) ?? this.addItem(line);
      paintLine(item.stroke, line.index);
      const at = step === null ? line.values.length - 1 : nearest(line.steps, step);
      setText(item.name, line.name);
      setText(item.value, line.text(line.values[at]));
      setText(item.step, `at ${count(line.steps[at])}`);
      item.element.dataset.points = String(line.values.length);
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
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 10");
    const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ x1: 1, y1: 5, x2: 23, y2: 5 })) {
      stroke.setAttribute(name, String(value));
    }
    svg.append(stroke);
    const name = make("span", { className: "legend-name" });
    const value = make("b", { className: "legend-value" });
    const step = make("span", { className: "legend-step" });
    const element = make("li", { dataset: { runId: line.id } }, svg, name, value, step);
    const item = { element, stroke, name, value, step };
    this.items.set(line.id, item);
    return item;
  }

  /**
   * Sets what a screen reader says of the chart.
   *
   * @param {string} text
   */
  describe(text) {
    this.container.setAttribute("aria-label", text);
  }

  size() {
    const width = Math.max(240, this.container.clientWidth);
    return { width, height: this.height(width) };
  }

  resize() {
    if (this.plot !== null && this.container.clientWidth > 0) this.plot.setSize(this.size());
  }

  discard() {
    this.plot?.destroy();
    this.plot = null;
    this.shape = "";
  }
}

/**
 * Returns the exponential moving average, corrected for its start at zero.
 *
 * @param {number[]} values
 * @param {number} weight of the past
 */
function smoothed(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

/** @param {number} tick */
const stepTick = (tick) => (Number.isInteger(tick) ? count(tick) : "");

/** @param {Plot} plot */
function stepUnderCursor(plot) {
  const { left } = plot.cursor;
  return left !== undefined && left >= 0 ? plot.posToVal(left, "x") : null;
}

/**
 * @param {number | null} low
 * @param {number | null} high
 * @returns {[number, number]}
 */
function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = Math.max(0.05 * (high - low), 1e-3);
  return [low - room, high + room];
}

/**
 * Returns the place of the step that is nearest to `step`.
 *
 * @param {number[]} steps
 * @param {number} step
 */
function nearest(steps, step) {
  let best = 0;
  for (let index = 1; index < steps.length; index += 1) {
    if (Math.abs(steps[index] - step) <= Math.abs(steps[best] - step)) best = index;
  }
  return best;
}
