// @ts-check
// One row of the list of runs. It is filled again only when its run or the columns have changed.

import { paint } from "../../charts/drawing/palette.js";
import { make, setText, show } from "../../dom.js";
import { dateTime, explanation, validation } from "../../format.js";
import { pathOfRun } from "../../state/router.js";

/** @import { ShownRun } from "../../types.d.ts" */
/** @import { Style } from "../../charts/drawing/palette.js" */
/** @import { Column } from "./columns.js" */

/**
 * @typedef {object} Handlers
 * @property {(id: string) => boolean} isDrawn whether it is in the chart
 * @property {(id: string) => boolean} isChosen to be compared
 * @property {(run: ShownRun) => Style} styleOf how its line is drawn
 * @property {(id: string) => void} toggleDrawn
 * @property {(id: string) => void} toggleChosen
 */

/** @typedef {{column: Column, text: HTMLElement, note: HTMLElement | null, bar?: HTMLElement}} Cell */

export class Row {
  /**
   * @param {ShownRun} run
   * @param {Column[]} columns
   * @param {Handlers} handlers
   */
  constructor(run, columns, handlers) {
    this.run = run;
    this.handlers = handlers;
    this.choose = make("input", { type: "checkbox", className: "choose" });
    this.choose.setAttribute("aria-label", `Choose ${run.id} to compare`);
    this.choose.title = "Choose to compare";
    this.choose.addEventListener("change", () => handlers.toggleChosen(run.id));
    this.swatch = make("button", { type: "button", className: "swatch" });
    this.line = swatchLine(this.swatch);
    this.swatch.addEventListener("click", () => handlers.toggleDrawn(run.id));
    this.name = make("a", { className: "name", href: pathOfRun(run.id), textContent: run.name });
    this.labels = make("span", { className: "row-labels" });
    this.note = make("span", { className: "note" });
    this.head = make(
      "th",
      { scope: "row", className: "who" },
      make("span", { className: "choices" }, this.choose, this.swatch),
      make("span", { className: "names" }, this.name,
        make("code", { className: "run-id", textContent: run.id }), this.labels, this.note),
    );
    this.element = make("tr", { className: "row run", dataset: { runId: run.id } }, this.head);
    this.element.title = `Created ${dateTime(run.created_at)}`;
    this.element.addEventListener("click", (event) => {
      const isOnControl = event.target instanceof Element && event.target.closest("a, button, input");
      if (!isOnControl && !String(getSelection())) this.name.click();
    });
    /** @type {Cell[]} */
    this.cells = [];
    this.setColumns(columns);
  }

  /** @param {Column[]} columns */
  setColumns(columns) {
    this.cells = columns.map((column) => newCell(column));
    this.element.replaceChildren(this.head, ...this.cells.map(({ column, text, note, bar }) => {
      const parts = [bar, text, note].filter((part) => part !== null && part !== undefined);
      const className = column.isNumber && !bar ? `cell number ${column.key}` : `cell ${column.key}`;
      return make("td", { className, dataset: { label: column.label } }, ...parts);
    }));
    this.fill(this.run);
  }

  /** @param {ShownRun} run */
  fill(run) {
    this.run = run;
    this.element.dataset.state = run.state;
    this.element.classList.toggle("stalled", run.stalled_since !== null);
    this.mark();
    this.fillLabels();
    const now = Date.now() / 1000;
    for (const cell of this.cells) this.fillCell(cell, now);
    this.tick(now);
  }

  /**
   * @param {Cell} cell
   * @param {number} now
   */
  fillCell({ column, text, note, bar }, now) {
    const { run } = this;
    const words = column.text(run, now);
    setText(text, words);
    text.parentElement?.classList.toggle("nothing", words === "\u2013" && !column.note?.(run, now));
    if (note) setText(note, column.note?.(run, now) ?? "");
    if (bar?.firstElementChild instanceof HTMLElement) {
      bar.firstElementChild.style.width = `${Math.min(100, (100 * run.step) / (run.steps || 1))}%`;
    }
    if (column.key === "state") text.dataset.state = run.state;
    if (column.key === "val") text.classList.toggle("best", validation(run).isBest);
  }

  /** Shows group and tags, each of which filters the list. */
  fillLabels() {
    const { group, tags } = this.run;
    const text = JSON.stringify([group, tags]);
    if (this.labels.dataset.shown === text) return;
    this.labels.dataset.shown = text;
    show(this.labels, group !== null || tags.length > 0);
    this.labels.replaceChildren(
      ...(group === null ? [] : [newLabel("group", group)]),
      ...tags.map((tag) => newLabel("tag", tag)),
    );
  }

  /** Shows whether the run is drawn and chosen. */
  mark() {
    const { run, handlers } = this;
    const isDrawn = handlers.isDrawn(run.id);
    this.element.classList.toggle("undrawn", !isDrawn);
    this.swatch.setAttribute("aria-pressed", String(isDrawn));
    this.swatch.setAttribute("aria-label", `${isDrawn ? "Hide" : "Show"} the line of ${run.id}`);
    this.swatch.title = isDrawn
      ? "Shown in the chart; click to hide"
      : "Hidden from the chart; click to show";
    this.choose.checked = handlers.isChosen(run.id);
    paint(this.line, handlers.styleOf(run));
  }

  /**
   * Updates what changes as time passes.
   *
   * @param {number} now
   */
  tick(now) {
    for (const cell of this.cells) {
      if (cell.column.changesWithTime) this.fillCell(cell, now);
    }
    const note = explanation(this.run, now);
    setText(this.note, note);
    this.note.title = note; // of which the row has room for two lines
    show(this.note, note !== "");
  }
}

/**
 * @param {"group" | "tag"} name
 * @param {string} value
 */
function newLabel(name, value) {
  const label = make("button", {
    type: "button", className: "chip", textContent: value, dataset: { [name]: value },
    title: `Only runs ${name === "group" ? "of this group" : "with this tag"}`,
  });
  label.setAttribute("aria-label", `${name} ${value}: show only these`);
  return label;
}

/**
 * @param {Column} column
 * @returns {Cell}
 */
function newCell(column) {
  const text = make("span", { className: column.key === "state" ? "pill" : "value" });
  const note = column.note ? make("span", { className: "sub" }) : null;
  if (column.key !== "progress") return { column, text, note };
  return { column, text, note, bar: make("span", { className: "bar" }, make("i")) };
}

/** @param {HTMLElement} button */
function swatchLine(button) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 10");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ x1: 1, y1: 5, x2: 23, y2: 5 })) {
    line.setAttribute(name, String(value));
  }
  svg.append(line);
  button.append(svg);
  return line;
}
