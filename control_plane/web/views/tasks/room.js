// @ts-check
// The tasks of a run: its evaluations, exports and publications; starting them, and what
// evaluations have measured.

import { get } from "../../api.js";
import { make, placeRows, show } from "../../dom.js";
import { findTwin } from "../compare/twin.js";
import { resultsTable } from "./results.js";
import { TaskRow } from "./row.js";
import { KINDS, StartForm } from "./start.js";

/** @import { ShownRun, Task, TaskDetail, Tasks } from "../../types.d.ts" */

export class TasksRoom {
  constructor() {
    this.runId = "";
    /** @type {Map<string, Task>} by id */
    this.tasks = new Map();
    /** @type {Map<string, TaskRow>} */
    this.rows = new Map();
    /** @type {Map<string, TaskDetail>} of succeeded evaluations, by id */
    this.details = new Map();
    /** @type {TaskDetail[]} */
    this.ofTwin = [];
    this.twinOf = "";
    this.results = make("div", { className: "results-box" });
    this.list = make("ul", { className: "tasks" });
    this.empty = make("p", {
      className: "muted", hidden: true,
      textContent: "No task yet. An evaluation measures the student, an export writes it for other programs.",
    });
    const forms = Object.keys(KINDS).map((stage) => new StartForm(stage, (task) => this.takeTask(task)));
    const buttons = forms.map((form) => {
      const opener = make("button", { type: "button", className: "quiet", textContent: `${form.kind.label} \u2026` });
      opener.addEventListener("click", () => {
        for (const other of forms) show(other.element, false);
        form.open(this.runId);
      });
      return opener;
    });
    this.forms = forms;
    this.element = make("div", {},
      make("div", { className: "actions" }, ...buttons),
      ...forms.map(({ element }) => element), this.results, this.empty, this.list);
  }

  clear() {
    this.runId = this.twinOf = "";
    this.tasks.clear();
    this.details.clear();
    this.ofTwin = [];
    for (const form of this.forms) show(form.element, false);
    this.results.replaceChildren();
    this.place();
  }

  /** @param {ShownRun} run */
  async load(run) {
    this.runId = run.id;
    /** @type {Tasks} */
    const { tasks } = await get(`/runs/${run.id}/tasks?limit=200`);
    if (this.runId !== run.id) return;
    this.tasks = new Map(tasks.map((task) => [task.id, task]));
    this.place();
    if (this.twinOf !== run.id && run.representation !== null) {
      this.twinOf = run.id;
      const twin = await findTwin(run);
      const found = twin === null ? [] : await this.measured(twin.id);
      if (this.runId === run.id) this.ofTwin = found;
    }
    await this.showResults();
  }

  /**
   * Takes a change of a task, if it is one of the run that is shown.
   *
   * @param {Task} task
   */
  takeTask(task) {
    const known = this.tasks.get(task.id);
    if (task.run_id !== this.runId || (known && known.revision > task.revision)) return;
    this.tasks.set(task.id, task);
    this.place();
    if (task.state === "succeeded" && known?.state !== "succeeded") this.showResults().catch(() => {});
  }

  /** @param {string} id of a task that was deleted */
  forgetTask(id) {
    if (!this.tasks.delete(id)) return;
    this.details.delete(id);
    this.place();
    this.showResults().catch(() => {});
  }

  place() {
    const newest = [...this.tasks.values()].sort((a, b) => b.seq - a.seq);
    placeRows(this.list, this.rows, newest, ({ id }) => id, (task) => new TaskRow(task));
    for (const task of newest) this.rows.get(task.id)?.fill(task);
    show(this.empty, newest.length === 0 && this.runId !== "");
  }

  async showResults() {
    const runId = this.runId;
    const own = await this.detailsOf([...this.tasks.values()]);
    if (this.runId !== runId) return;
    const table = resultsTable(own, this.ofTwin);
    this.results.replaceChildren(...(table === null ? [] : [table]));
  }

  /** @param {string} runId */
  async measured(runId) {
    /** @type {Tasks} */
    const { tasks } = await get(`/runs/${runId}/tasks?limit=200`);
    return this.detailsOf(tasks);
  }

  /**
   * Returns succeeded evaluations with their results, newest first; each is asked for once.
   *
   * @param {Task[]} tasks
   */
  async detailsOf(tasks) {
    const done = tasks.filter(({ stage, state }) => stage === "evaluate" && state === "succeeded");
    return Promise.all(done.sort((a, b) => b.seq - a.seq).map(async ({ id }) => {
      const known = this.details.get(id) ?? /** @type {TaskDetail} */ (await get(`/tasks/${id}`));
      this.details.set(id, known);
      return known;
    }));
  }
}
