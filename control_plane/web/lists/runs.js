// The list of runs: one row each, changed in place as the run goes.

import { onSchemeChange, paintLine } from "../charts/chart.js";
import { byId, setText, show } from "../dom.js";
import {
  STATES, count, dateTime, duration, elapsed, explanation, learnsFrom, loss, percent,
  studentOf,
} from "../format.js";

export class RunList {
  // drawn: Set of ids in the chart. onToggle(id): add or remove one. open(id): show its panel.
  constructor(drawn, onToggle, open) {
    this.drawn = drawn;
    this.onToggle = onToggle;
    this.open = open;
    this.rows = new Map();
    onSchemeChange(() => this.paintAll());
  }

  // runs: newest first, each with `index` for its line.
  render(runs, current) {
    const body = byId("rows");
    runs.forEach((run, place) => {
      let row = this.rows.get(run.id);
      if (!row) {
        row = this.addRow(run);
        this.rows.set(run.id, row);
      }
      if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
      this.fill(row, run, current === run.id);
    });
    const ids = new Set(runs.map((run) => run.id));
    for (const [id, row] of this.rows) {
      if (!ids.has(id)) {
        row.element.remove();
        this.rows.delete(id);
      }
    }
  }

  addRow(run) {
    const element = byId("row-template").content.firstElementChild.cloneNode(true);
    const part = (selector) => element.querySelector(selector);
    const row = {
      element,
      run,
      swatch: part(".swatch"),
      line: part(".swatch line"),
      name: part(".name"),
      id: part(".run-id"),
      pill: part(".pill"),
      student: part(".student"),
      learns: part(".learns"),
      bar: part(".bar i"),
      steps: part(".steps"),
      val: part(".val"),
      speed: part(".speed"),
      wait: part(".wait"),
      elapsed: part(".elapsed"),
      note: part(".note"),
    };
    element.dataset.runId = run.id;
    row.name.href = `#/runs/${run.id}`;
    row.swatch.addEventListener("click", (event) => {
      event.stopPropagation();
      this.onToggle(run.id);
    });
    element.addEventListener("click", (event) => {
      if (event.target.closest("a, button") === null && !String(getSelection())) this.open(run.id);
    });
    return row;
  }

  fill(row, run, isCurrent) {
    row.run = run;
    const isDrawn = this.drawn.has(run.id);
    row.element.dataset.state = run.state;
    row.element.classList.toggle("current", isCurrent);
    row.element.classList.toggle("undrawn", !isDrawn);
    row.swatch.setAttribute("aria-pressed", isDrawn);
    row.swatch.setAttribute("aria-label", `${isDrawn ? "Hide" : "Show"} the line of ${run.id}`);
    row.swatch.title = isDrawn ? "In the chart; click to hide" : "Not in the chart; click to show";
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

  // What changes with time alone.
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

  paintAll() {
    for (const row of this.rows.values()) paintLine(row.line, row.run.index);
  }
}
