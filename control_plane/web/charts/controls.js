// @ts-check
// What the user can choose about the charts of a page.

import { choices, make, setText, show } from "../dom.js";
import { count } from "../format.js";
import { AXES } from "./drawing/axes.js";
import { METRICS, keysByGroup, metricOf } from "./metrics.js";
import { ALL_BUT_SEED, differingSettings, shortName } from "./values/groups.js";
import { SPANS, limitOf } from "./view.js";

/** @import { Axis, Entry } from "./types.d.ts" */
/** @import { View } from "./view.js" */

const MORE = "More metrics\u2009\u2026";

export class Controls {
  boxes = {
    logY: make("input", { type: "checkbox" }), logX: make("input", { type: "checkbox" }),
    showsOutliers: make("input", { type: "checkbox" }), marks: make("input", { type: "checkbox" }),
    mean: make("input", { type: "checkbox" }),
  };

  low = make("input", { inputMode: "decimal", placeholder: "auto" });
  high = make("input", { inputMode: "decimal", placeholder: "auto" });
  color = make("select");
  band = make("select", {}, new Option("lowest to highest", "range"),
    new Option("one standard deviation", "std"));

  /**
   * @param {View} view
   * @param {boolean} isOfMany whether the charts may show several runs
   * @param {(kind: "csv" | "json" | "png") => void} onSave
   */
  constructor(view, isOfMany, onSave) {
    this.view = view;
    this.title = make("h2", { className: "curve-title" });
    const metrics = make("div", { className: "metric segments" });
    metrics.setAttribute("role", "radiogroup");
    metrics.setAttribute("aria-label", "Metric");
    /** @type {[string, string][]} */
    const names = METRICS.map((metric) => [metric.key, metric.name]);
    this.markMetric = choices(metrics, names, "radio", (metric) => view.change({ metric }));
    this.more = make("select", { className: "more-metrics" });
    this.more.setAttribute("aria-label", "More metrics");
    this.more.addEventListener("change", () => {
      if (this.more.value !== "") view.change({ metric: this.more.value });
    });
    const axes = make("div", { className: "segments axes" });
    axes.setAttribute("role", "radiogroup");
    axes.setAttribute("aria-label", "Horizontal axis");
    /** @type {[string, string][]} */
    const axisNames = Object.entries(AXES).map(([axis, { name }]) => [axis, name]);
    this.markAxis = choices(axes, axisNames, "radio", (x) => view.change({ x: /** @type {Axis} */ (x) }));
    this.smoothing = make("input", { type: "range", min: "0", max: String(SPANS.length - 1) });
    this.smoothing.addEventListener("input", () =>
      view.change({ smooth: SPANS[Number(this.smoothing.value)] }));
    this.span = make("output");
    this.reset = make("button", {
      type: "button", className: "quiet reset-zoom", textContent: "Reset zoom", hidden: true,
    });
    this.reset.addEventListener("click", () => view.change({ zoom: null }));
    this.options = this.newOptions(isOfMany, onSave);
    this.element = make("div", { className: "chart-controls" },
      make("div", { className: "toolbar" }, this.title, this.reset, metrics, this.more),
      make("div", { className: "toolbar settings" }, axes,
        make("label", { className: "smoothing" }, "Smoothing", this.smoothing, this.span),
        this.options));
    /** @type {Entry[]} */
    this.entries = [];
    this.keysText = "";
  }

  /**
   * @param {boolean} isOfMany
   * @param {(kind: "csv" | "json" | "png") => void} onSave
   */
  newOptions(isOfMany, onSave) {
    const { view } = this;
    for (const [name, box] of Object.entries(this.boxes)) {
      box.addEventListener("change", () => view.change({ [name]: box.checked }));
    }
    for (const input of [this.low, this.high]) {
      input.addEventListener("change", () =>
        view.limit(view.metric, [limitOf(this.low.value), limitOf(this.high.value)]));
    }
    this.color.addEventListener("change", () =>
      view.change({ color: this.color.value, ...(this.color.value === "" && { mean: false }) }));
    this.band.addEventListener("change", () =>
      view.change({ band: this.band.value === "std" ? "std" : "range" }));
    const saved = /** @type {const} */ (["csv", "json", "png"]).map((kind) => {
      const button = make("button", {
        type: "button", className: "quiet", textContent: kind.toUpperCase(),
        title: `Download what the chart shows as ${kind.toUpperCase()}`,
      });
      button.addEventListener("click", () => onSave(kind));
      return button;
    });
    const { logY, logX, showsOutliers, marks, mean } = this.boxes;
    const many = isOfMany ? [
      labelled("Colour by", this.color), ticked(mean, "Mean of runs of one colour"),
      labelled("Band of a mean", this.band),
    ] : [];
    const options = make("details", { className: "chart-options" },
      make("summary", { textContent: "Options" }),
      make("div", {}, ...[
        ticked(logY, "Log scale, vertical"), ticked(logX, "Log scale, horizontal"),
        ticked(showsOutliers, "Fit outliers in"), ticked(marks, "Checkpoints, restarts, NaN"),
        labelled("Vertical from", this.low), labelled("Vertical to", this.high),
        ...many,
        make("div", { className: "chart-files" }, "Download", ...saved),
      ]));
    options.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !options.open) return;
      options.open = false;
      options.querySelector("summary")?.focus();
      event.stopPropagation();
    });
    return options;
  }

  /**
   * Shows what is chosen, and what can be.
   *
   * @param {Entry[]} entries
   * @param {Set<string>} keys of every metric of the runs
   */
  update(entries, keys) {
    const { view } = this;
    const metric = metricOf(view.metric);
    setText(this.title, metric.title);
    this.markMetric(view.metric);
    this.markAxis(view.x);
    this.fillMore(keys);
    const place = SPANS.findIndex((span) => span >= view.smooth);
    this.smoothing.value = String(place < 0 ? SPANS.length - 1 : place);
    this.smoothing.disabled = metric.isEvaluated ?? false;
    const text = view.smooth === 0 ? "off" : `${count(view.smooth)} steps`;
    setText(this.span, text);
    this.smoothing.setAttribute("aria-valuetext", text);
    show(this.reset, view.zoom !== null);
    for (const [name, box] of Object.entries(this.boxes)) {
      box.checked = view[/** @type {keyof typeof this.boxes} */ (name)];
    }
    this.boxes.logX.disabled = view.x === "time";
    const limits = view.limits.get(view.metric) ?? [null, null];
    [this.low, this.high].forEach((input, end) => {
      if (document.activeElement !== input) input.value = limits[end] === null ? "" : String(limits[end]);
    });
    this.fillColors(entries);
    this.band.value = view.band;
    this.band.disabled = !view.mean;
  }

  /** @param {Set<string>} keys */
  fillMore(keys) {
    const groups = keysByGroup(keys);
    const known = new Set(METRICS.map(({ key }) => key));
    const text = JSON.stringify([...groups]);
    if (text !== this.keysText) {
      this.keysText = text;
      const parts = [...groups].flatMap(([group, members]) => {
        const others = members.filter((key) => !known.has(key));
        const element = make("optgroup", { label: group });
        element.append(...others.map((key) => new Option(metricOf(key).title, key)));
        return others.length > 0 ? [element] : [];
      });
      this.more.replaceChildren(new Option(MORE, ""), ...parts);
    }
    const isOther = [...this.more.options].some(({ value }) => value === this.view.metric);
    this.more.value = isOther ? this.view.metric : "";
    this.more.classList.toggle("chosen", isOther);
  }

  /** @param {Entry[]} entries */
  fillColors(entries) {
    if (document.activeElement === this.color) return;
    const { color } = this.view;
    const settings = differingSettings(entries);
    const names = new Set([...settings, ...(color === "" ? [] : [color])]);
    names.delete(ALL_BUT_SEED);
    this.color.replaceChildren(new Option("run", ""), new Option(ALL_BUT_SEED, ALL_BUT_SEED),
      ...[...names].map((name) => new Option(shortName(name), name)));
    this.color.value = color;
  }
}

/**
 * @param {string} text
 * @param {HTMLElement} control
 */
const labelled = (text, control) => make("label", { className: "option" }, text, control);

/**
 * @param {HTMLElement} box
 * @param {string} text
 */
const ticked = (box, text) => make("label", { className: "option tick" }, box, text);
