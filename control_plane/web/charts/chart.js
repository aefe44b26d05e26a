// One chart with a line a run, drawn by uPlot, and its legend.

import { make, setText, show } from "../dom.js";
import { count } from "../format.js";

// After Okabe and Ito: told apart by people with any kind of colour vision. Darker for paper, lighter
// for night. The seventh run begins again, dashed.
const COLORS = {
  light: ["#0068a8", "#c8500a", "#00805c", "#b0508a", "#8f6400", "#55524c"],
  dark: ["#62b6ee", "#f08a4b", "#35c79a", "#e59ac4", "#e8bd4a", "#c9c5bd"],
};
const DASHES = [[], [7, 4], [2, 3]];
const NIGHT = matchMedia("(prefers-color-scheme: dark)");

export const lineStyle = (index) => ({
  color: COLORS[NIGHT.matches ? "dark" : "light"][index % 6],
  dash: DASHES[Math.floor(index / 6) % DASHES.length],
});

export function paintLine(svgLine, index) {
  const { color, dash } = lineStyle(index);
  svgLine.style.stroke = color;
  svgLine.style.strokeDasharray = dash.join(" ");
}

export function onSchemeChange(listener) {
  NIGHT.addEventListener("change", listener);
}

export class Chart {
  // height(width): in pixels.
  constructor(container, legend, height) {
    this.container = container;
    this.legend = legend;
    this.height = height;
    this.items = new Map(); // run id -> legend entry
    this.plot = null;
    this.shape = "";
    this.lines = [];
    onSchemeChange(() => this.discard());
    new ResizeObserver(() => this.resize()).observe(container);
  }

  // lines: [{id, name, index, steps, values, text}], each with a value, in the order of the legend;
  // text(value) is how the legend says it. metric: one of METRICS.
  draw(lines, metric, smoothing) {
    this.lines = lines;
    const smooth = smoothing > 0 && !metric.isEvaluated;
    const shape = JSON.stringify([lines.map((line) => [line.id, line.index]), metric.key, smooth]);
    const tables = lines.flatMap((line) => [
      ...(smooth ? [[line.steps, line.values]] : []),
      [line.steps, smooth ? smoothed(line.values, smoothing) : line.values],
    ]);
    show(this.container, lines.length > 0);
    if (lines.length === 0) this.discard();
    else {
      const data = tables.length > 1 ? window.uPlot.join(tables) : tables[0];
      if (this.plot === null || this.shape !== shape) this.build(lines, metric, smooth, data, shape);
      else this.plot.setData(data);
    }
    this.describe(lines, null);
  }

  build(lines, metric, smooth, data, shape) {
    this.discard();
    this.shape = shape;
    const css = getComputedStyle(document.documentElement);
    const ink = css.getPropertyValue("--muted").trim();
    const grid = css.getPropertyValue("--hairline").trim();
    const font = `12px ${css.getPropertyValue("--sans").trim()}`;
    const axis = {
      stroke: ink, font, ticks: { stroke: grid, size: 4 }, grid: { stroke: grid, width: 1 },
      labelFont: font, labelSize: 20, labelGap: 2,
    };
    const series = lines.flatMap((line) => {
      const { color, dash } = lineStyle(line.index);
      const main = {
        label: line.name,
        stroke: color,
        width: 2,
        dash,
        spanGaps: true,
        points: metric.isEvaluated ? { show: true, size: 6, fill: color, stroke: color } : { show: false },
      };
      const faint = { ...main, stroke: `${color}40`, width: 1, points: { show: false } };
      return smooth ? [faint, main] : [main];
    });
    this.stride = smooth ? 2 : 1;
    this.plot = new window.uPlot({
      ...this.size(),
      padding: [10, 24, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { range: (_plot, low, high) => padded(low, high) } },
      cursor: { y: false, drag: { x: true, y: false }, points: { size: 7 } },
      axes: [
        { ...axis, size: 30, label: "steps", values: (_plot, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? count(tick) : "")) },
        { ...axis, size: 48, label: metric.unit, values: (_plot, ticks) => ticks.map(metric.tick) },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [(plot) => this.describe(this.lines, plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : null)] },
    }, data, this.container);
  }

  // Fills the legend: values at a step, or the last ones.
  describe(lines, step) {
    const seen = new Set();
    for (const line of lines) {
      seen.add(line.id);
      const entry = this.items.get(line.id) ?? this.addItem(line);
      paintLine(entry.stroke, line.index);
      const at = step === null ? line.values.length - 1 : nearest(line.steps, step);
      setText(entry.name, line.name);
      setText(entry.value, line.text(line.values[at]));
      setText(entry.step, `at ${count(line.steps[at])}`);
      entry.element.dataset.points = line.values.length;
      this.legend.append(entry.element);
    }
    for (const [id, entry] of this.items) {
      if (!seen.has(id)) {
        entry.element.remove();
        this.items.delete(id);
      }
    }
  }

  addItem(line) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 10");
    const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of [["x1", 1], ["y1", 5], ["x2", 23], ["y2", 5]]) stroke.setAttribute(name, value);
    svg.append(stroke);
    const name = make("span", { className: "legend-name" });
    const value = make("b", { className: "legend-value" });
    const step = make("span", { className: "legend-step" });
    const element = make("li", { dataset: { runId: line.id } }, svg, name, value, step);
    const entry = { element, stroke, name, value, step };
    this.items.set(line.id, entry);
    return entry;
  }

  // What it shows, for who does not see it.
  say(text) {
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

// Exponential moving average, corrected for its start.
export function smoothed(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = Math.max(0.05 * (high - low), 1e-3);
  return [low - room, high + room];
}

function nearest(steps, step) {
  let best = 0;
  for (let index = 1; index < steps.length; index += 1) {
    if (Math.abs(steps[index] - step) <= Math.abs(steps[best] - step)) best = index;
  }
  return best;
}
