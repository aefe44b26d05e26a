// @ts-check
// The list of runs: one row per run, changed in place as the run goes.

import { onSchemeChange, paintLine } from "../charts/drawing/palette.js";
import { byId, find, placeRows, setText, show } from "../dom.js";
import {
  STATES, count, dateTime, duration, elapsed, explanation, learnsFrom, loss, percent, studentOf,
} from "../format.js";

/** @import { ShownRun } from "../types.d.ts" */

/** @typedef {ReturnType<RunList["newRow"]>} Row */

export class RunList {
  /**
   * @param {Set<string>} drawn ids of the runs in the chart
   * @param {(id: string) => void} onToggle called to put a run into the chart or take it out
   * @param {(id: string) => void} onOpen called to open the panel of a run
   */
  constructor(drawn, onToggle, onOpen) {
    this.drawn = drawn;
    this.onToggle = onToggle;
    this.onOpen = onOpen;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    onSchemeChange(() => {
      for (const row of this.rows.values()) paintLine(row.line, row.run.index);
    });
  }

  /**
   * @param {ShownRun[]} runs newest first
   * @param {string | null} openId of the run in the panel
   */
  render(runs, openId) {
    placeRows(byId("rows"), this.rows, runs, (run) => run.id, (run) => this.newRow(run));
    for (const run of runs) {
      const row = this.rows.get(run.id);
      if (row) this.fill(row, run, run.id === openId);
    }
  }

  /** @param {ShownRun} run */
  newRow(run) {
    const template = byId("row-template", HTMLTemplateElement);
    const fragment = document.importNode(template.content, true);
    const element = find(fragment, ".run");
    const row = {
      element,
      run,
      swatch: find(element, ".swatch"),
      line: find(element, ".swatch line", SVGElement),
      name: find(element, ".name", HTMLAnchorElement),
      id: find(element, ".run-id"),
      pill: find(element, ".pill"),
      student: find(element, ".student"),
      learns: find(element, ".learns"),
      bar: find(element, ".bar i"),
      steps: find(element, ".steps"),
      val: find(element, ".val"),
      speed: find(element, ".speed"),
      wait: find(element, ".wait"),
      elapsed: find(element, ".elapsed"),
      note: find(element, ".note"),
    };
    element.dataset.runId = run.id;
    row.name.href = `#/runs/${run.id}`;
    row.swatch.addEventListener("click", (event) => {
      event.stopPropagation();
      this.onToggle(run.id);
    });
    element.addEventListener("click", (event) => {
      const isOnControl = event.target instanceof Element && event.target.closest("a, button");
      if (!isOnControl && !String(getSelection())) this.onOpen(run.id);
    });
    return row;
  }

  /**
   * @param {Row} row
   * @param {ShownRun} run
   * @param {boolean} isOpen
   */
  fill(row, run, isOpen) {
    row.run = run;
    const isDrawn = this.drawn.has(run.id);
    row.element.dataset.state = run.state;
    row.element.classList.toggle("current", isOpen);
    row.element.classList.toggle("undrawn", !isDrawn);
    row.swatch.setAttribute("aria-pressed", String(isDrawn));
    row.swatch.setAttribute("aria-label", `${isDrawn ? "Hide" : "Show"} the line of ${run.id}`);
    row.swatch.title = isDrawn
      ? "Shown in the chart; click to hide"
      : "Hidden from the chart; click to show";
    paintLine(row.line, run.index);
    setText(row.name, run.name);
    setText(row.id, run.id);
    row.element.title = `Created ${dateTime(run.created_at)}`;
    setText(row.pill, STATES[run.state]);
    row.pill.dataset.state = run.state;
    setText(row.student, studentOf(run));
    setText(row.learns, learnsFrom(run));
    row.bar.style.width = `${Math.min(100, (100 * run.step) / run.steps)}%`;
    setText(row.steps, `${count(run.step)} / ${count(run.steps)}`);
    setText(row.val, loss(run.latest["loss/val"]));
    setText(row.speed, count(run.tokens_per_second));
    setText(row.wait, run.representation === null ? "\u2013" : percent(run.teacher_wait_share));
    this.tick(row);
  }

  /**
   * Updates what changes as time passes.
   *
   * @param {Row} row
   */
  tick(row) {
    const now = Date.now() / 1000;
    setText(row.elapsed, duration(elapsed(row.run, now)));
    const note = explanation(row.run, now);
    setText(row.note, note);
    show(row.note, note !== "");
  }

  tickAll() {
    for (const row of this.rows.values()) this.tick(row);
  }
}
