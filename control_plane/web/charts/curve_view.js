// A chart with the choice of its metric, a title, and what to know of the values.

import { Chart } from "./chart.js";
import { choices, setText, show } from "../dom.js";
import { isLive } from "../format.js";
import { METRICS, metricOf, noteOf, valueOf } from "./metrics.js";

const NAMES = METRICS.map(({ key, name }) => [key, name]);

export class CurveView {
  // element: has a part of each class below. key: of the first metric. onChoose(key): one is chosen.
  constructor(element, key, height, onChoose) {
    const part = (name) => element.querySelector(`.${name}`);
    this.title = part("curve-title");
    this.note = part("curve-note");
    this.nothing = part("chart-empty");
    this.chart = new Chart(part("chart"), part("legend"), height);
    this.metric = metricOf(key);
    this.mark = choices(part("metric"), NAMES, "radio", (chosen) => {
      this.metric = metricOf(chosen);
      onChoose(chosen);
    });
  }

  // lines: [{run, name}]; curves: Curves. Draws those that have a value of the metric.
  draw(lines, curves, smoothing) {
    const { metric } = this;
    this.mark(metric.key);
    const drawn = lines.map(({ run, name }) => {
      const [steps, values] = curves.points(run.id, metric.key);
      const text = (value) => valueOf(metric, run, value);
      return { run, id: run.id, name, index: run.index, steps, values, text };
    }).filter((line) => line.values.length > 0);
    this.chart.draw(drawn, metric, smoothing);
    this.chart.say(`${metric.title}, in ${metric.unit} over steps, one line a run`);
    setText(this.title, metric.title);
    setText(this.note, noteOf(metric, drawn.map((line) => line.run)));
    setText(this.nothing, whyNothing(metric, lines.map((line) => line.run)));
    show(this.nothing, drawn.length === 0);
  }
}

function whyNothing(metric, runs) {
  if (runs.length === 0) return "No run is chosen. Click the line beside a run's name to draw it.";
  if (metric.isOfTeacher && runs.every((run) => run.representation === null)) {
    return "Learns from labels alone: there is no teacher to compare with.";
  }
  return runs.some(isLive) ? "No values yet." : "It ended before the first value.";
}
