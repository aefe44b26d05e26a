// @ts-check
// The charts of a page: a large one, and a small one of every metric that was logged, by group.

import { make, setText, show } from "../dom.js";
import { isActiveOrQueued } from "../format.js";
import { Chart } from "./chart.js";
import { Controls } from "./controls.js";
import { csvOf, jsonOf, pngOf, save } from "./download.js";
import { lineStyle, onSchemeChange } from "./drawing/palette.js";
import { keysByGroup, metricOf, noteOf } from "./metrics.js";
import { SeriesStore } from "./series.js";
import { groupsOf } from "./values/groups.js";
import { linesOf, minimised } from "./values/lines.js";
import { extent } from "./values/ranges.js";

/** @import { Entry, LeftOut, Line } from "./types.d.ts" */
/** @import { Metric } from "./metrics.js" */
/** @import { View } from "./view.js" */

/** @typedef {{lines: Line[], leftOut: LeftOut}} Drawn */

/** @typedef {{element: HTMLElement, chart: Chart, title: HTMLElement, unit: HTMLElement}} Card */

/** @typedef {{element: HTMLDetailsElement, cards: HTMLElement, keys: string[]}} Group */

const MAIN_POINTS = 800;
const CARD_POINTS = 100;
const CARD_HEIGHT = 150;
const CLOSED = "lectern-charts-closed";

export class Grid {
  /**
   * @param {HTMLElement} container empty; filled with the charts
   * @param {View} view
   * @param {{isOfMany: boolean, expanded: boolean, onStyles: () => void,
   *   height: (width: number) => number}} options
   */
  constructor(container, view, { isOfMany, expanded, onStyles, height }) {
    this.onStyles = onStyles;
    this.container = container;
    this.view = view;
    this.isOfMany = isOfMany;
    /** @type {Entry[]} */
    this.entries = [];
    this.store = new SeriesStore(() => this.draw());
    this.controls = new Controls(view, isOfMany, (kind) => this.save(kind));
    this.note = make("p", { className: "curve-note muted" });
    this.warning = make("p", { className: "chart-warning", hidden: true });
    this.nothing = make("p", { className: "chart-empty muted", hidden: true });
    this.main = new Chart(true, height);
    /** @type {Map<string, import("./drawing/palette.js").Style> | null} by run; null: each its own */
    this.styles = null;
    this.closed = new Set((localStorage.getItem(CLOSED) ?? "").split(",").filter(Boolean));
    this.all = make("details", { className: "all-metrics", open: expanded });
    this.allSummary = make("summary");
    this.allGroups = make("div", { className: "chart-groups" });
    this.all.append(this.allSummary, this.allGroups);
    this.all.addEventListener("toggle", () => this.draw());
    /** @type {Map<string, Group>} */
    this.groups = new Map();
    /** @type {Map<string, Card>} */
    this.cards = new Map();
    this.seeing = new IntersectionObserver((entries) => this.onSeen(entries), { rootMargin: "200px" });
    container.append(
      make("div", { className: "chart-main" }, this.controls.element, this.note, this.warning,
        this.main.box, this.nothing, this.main.remark, this.main.legend),
      this.all,
    );
    this.frame = 0;
    const draw = () => this.draw();
    view.listeners.add(draw);
    const forgetScheme = onSchemeChange(draw);
    this.forget = () => {
      view.listeners.delete(draw);
      forgetScheme();
    };
  }

  destroy() {
    this.forget();
    cancelAnimationFrame(this.frame);
    this.store.destroy();
    this.seeing.disconnect();
    this.main.destroy();
    for (const { chart } of this.cards.values()) chart.destroy();
    this.container.replaceChildren();
  }

  /** @param {Entry[]} entries in the order of the legend */
  update(entries) {
    this.entries = entries;
    this.draw();
  }

  /** Draws everything at the next frame. */
  draw() {
    if (this.frame === 0) this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.drawNow();
    });
  }

  drawNow() {
    const { view, entries } = this;
    const keys = this.store.keys();
    this.placeCards(keys);
    const open = this.openKeys();
    const points = new Map([...open.map((key) => /** @type {[string, number]} */ ([key, CARD_POINTS])),
      [view.metric, MAIN_POINTS]]);
    const runs = entries.map(({ run }) => run);
    this.store.want({ runs, points, axis: view.x, zoom: view.zoom });
    this.controls.update(entries, keys);
    const before = this.styles;
    this.styles = stylesOf(entries, view);
    if (!areSame(before, this.styles)) this.onStyles();
    /** @type {Map<string, Drawn>} */
    const drawn = new Map([...points.keys()].map((key) => [key, this.linesOf(key)]));
    const x = extent([...drawn.values()].flatMap(({ lines }) => lines.flatMap(({ x: xs }) =>
      (xs.length > 0 ? [xs[0], xs[xs.length - 1]] : []))));
    this.drawMain(drawn.get(view.metric) ?? NOTHING, x);
    for (const key of open) {
      const { lines, leftOut } = key === view.metric ? this.linesOf(key) : drawn.get(key) ?? NOTHING;
      const card = this.cards.get(key);
      // Checkpoints stand in the large chart; in the small ones they would crowd the lines.
      for (const line of lines) line.marks = line.marks.filter(({ kind }) => kind !== "checkpoint");
      card?.chart.draw(lines, metricOf(key), view, x, leftOut);
      card?.element.classList.toggle("enlarged", key === view.metric);
    }
  }

  /**
   * @param {string} key
   * @returns {Drawn}
   */
  linesOf(key) {
    return linesOf(this.entries, metricOf(key), this.view, {
      columns: (id, name) => this.store.columns(id, name),
      marks: (id) => this.store.marks(id),
      style: ({ run }) => this.style(run),
    });
  }

  /** @param {{id: string, index: number}} run */
  style(run) {
    return this.styles?.get(run.id) ?? lineStyle(run.index);
  }

  /**
   * @param {Drawn} drawn
   * @param {import("./values/ranges.js").Range | null} x
   */
  drawMain({ lines, leftOut }, x) {
    const metric = metricOf(this.view.metric);
    this.main.draw(lines, metric, this.view, x, leftOut);
    setText(this.note, noteOf(metric, lines.flatMap(({ runs }) => runs)));
    const totals = new Set(lines.flatMap(({ runs }) => runs).map(minimised));
    const isMixed = metric.key === "loss/total" && totals.size > 1;
    show(this.warning, isMixed);
    setText(this.warning, isMixed ? MIXED : "");
    setText(this.nothing, whyNothing(metric, this.entries, leftOut));
    show(this.nothing, lines.length === 0);
  }

  /** Returns the metrics whose small charts are not folded away. */
  openKeys() {
    if (!this.all.open) return [];
    return [...this.groups.values()].flatMap(({ element, keys }) => (element.open ? keys : []));
  }

  /** @param {Set<string>} keys of every metric of the runs */
  placeCards(keys) {
    const byGroup = keysByGroup(keys);
    for (const [name, members] of byGroup) {
      const group = this.groups.get(name) ?? this.newGroup(name);
      if (group.keys.join() === members.join()) continue;
      group.keys = members;
      group.cards.replaceChildren(...members.map((key) => this.cardOf(key).element));
    }
    for (const [name, group] of this.groups) show(group.element, byGroup.has(name));
    this.allGroups.append(...[...byGroup.keys()].flatMap((name, place) => {
      const element = this.groups.get(name)?.element;
      return element && this.allGroups.children[place] !== element ? [element] : [];
    }));
    const number = [...byGroup.values()].flat().length;
    setText(this.allSummary, `All metrics (${number})`);
    show(this.all, number > 0);
  }

  /** @param {string} name */
  newGroup(name) {
    const cards = make("div", { className: "chart-cards" });
    const element = make("details", { open: !this.closed.has(name), className: "chart-group" },
      make("summary", { textContent: name }), cards);
    element.addEventListener("toggle", () => {
      if (element.open) this.closed.delete(name);
      else this.closed.add(name);
      localStorage.setItem(CLOSED, [...this.closed].join());
      this.draw();
    });
    /** @type {Group} */
    const group = { element, cards, keys: [] };
    this.groups.set(name, group);
    return group;
  }

  /** @param {string} key */
  cardOf(key) {
    const known = this.cards.get(key);
    if (known) return known;
    const metric = metricOf(key);
    const chart = new Chart(false, () => CARD_HEIGHT);
    const title = make("button", {
      type: "button", className: "enlarge", textContent: metric.title, title: `${key}: enlarge`,
    });
    title.addEventListener("click", () => {
      this.view.change({ metric: key });
      this.container.scrollIntoView({ block: "nearest" });
    });
    const unit = make("span", { className: "chart-unit muted", textContent: metric.unit });
    const element = make("article", { className: "chart-card", dataset: { key } },
      make("header", {}, title, unit), chart.legend, chart.box, chart.remark);
    const card = { element, chart, title, unit };
    this.cards.set(key, card);
    this.seeing.observe(element);
    return card;
  }

  /** @param {IntersectionObserverEntry[]} entries */
  onSeen(entries) {
    for (const { target, isIntersecting } of entries) {
      const key = target instanceof HTMLElement ? target.dataset.key : undefined;
      this.cards.get(key ?? "")?.chart.reveal(isIntersecting);
    }
  }

  /** @param {"csv" | "json" | "png"} kind */
  async save(kind) {
    const { picture, plot } = this.main;
    if (picture === null || plot === null) return;
    const name = `${picture.metric.key.replaceAll("/", "-")}.${kind}`;
    if (kind === "csv") save(name, new Blob([csvOf(picture)], { type: "text/csv" }));
    else if (kind === "json") save(name, new Blob([jsonOf(picture)], { type: "application/json" }));
    else {
      const image = await pngOf(picture, plot.ctx.canvas);
      if (image !== null) save(name, image);
    }
  }
}

/** @type {Drawn} */
const NOTHING = { lines: [], leftOut: { withoutX: [], notPositive: 0 } };

const MIXED = "These runs minimise different things, so their totals cannot be compared: the legend "
  + "says what each total is. Compare the validation loss, the cross entropy or the KL instead.";

/**
 * Returns the styles of the runs if they are coloured by a setting: one style for each value.
 *
 * @param {Entry[]} entries
 * @param {View} view
 */
function stylesOf(entries, { color }) {
  if (color === "") return null;
  return new Map(groupsOf(entries, color).flatMap((group, index) =>
    group.entries.map(({ run }) => /** @type {const} */ ([run.id, lineStyle(index)]))));
}

/**
 * @param {ReturnType<typeof stylesOf>} one
 * @param {ReturnType<typeof stylesOf>} other
 */
const areSame = (one, other) =>
  JSON.stringify([...(one ?? [])]) === JSON.stringify([...(other ?? [])]);

/**
 * Returns why there is nothing to draw.
 *
 * @param {Metric} metric
 * @param {Entry[]} entries
 * @param {LeftOut} leftOut
 */
function whyNothing(metric, entries, { withoutX }) {
  const runs = entries.map(({ run }) => run);
  if (runs.length === 0) {
    return "No run is selected. Click the line next to a run's name to show it here.";
  }
  const isOne = runs.length === 1;
  if (withoutX.length > 0) return "There are values, but not over this horizontal axis.";
  if (metric.needsTeacher && runs.every((run) => run.representation === null)) {
    const who = isOne ? "This run learns" : "These runs learn";
    return `${who} from labels only; there is no teacher to compare with.`;
  }
  if (runs.some(isActiveOrQueued)) return "No values yet.";
  return `${isOne ? "The run" : "The runs"} ended before the first value.`;
}
