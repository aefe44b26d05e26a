// @ts-check
// The page of one sweep: its runs by what they vary, the best, mean and spread over seeds, curves.

import { get, post, remove } from "../../api.js";
import { Overview } from "../../charts/charts.js";
import { ALL_BUT_SEED } from "../../charts/values/groups.js";
import { byId, make, setText, show } from "../../dom.js";
import { dateTime, isActiveOrQueued, joined, percent, resumesItself, short } from "../../format.js";
import { chartOptions } from "../../state/chart_address.js";
import { pathOfRun } from "../../state/router.js";
import { loadSchemas, settingsAmong } from "../lists/settings.js";
import { isConfirmed } from "../run/actions.js";
import { groupsTable, isSeed, runsTable } from "./tables.js";

/** @import { Run, RunDetail, RunsPage, ShownRun, Sweep } from "../../types.d.ts" */
/** @import { RunStore } from "../../state/store.js" */

const EVERY_MS = 3000;
const MAX_LINES = 60; // the chart cannot be read with more

export class SweepPage {
  /**
   * @param {HTMLElement} element
   * @param {RunStore} store
   */
  constructor(element, store) {
    this.store = store;
    this.id = "";
    /** @type {Sweep | null} */
    this.sweep = null;
    /** @type {Overview | null} */
    this.overview = null;
    this.shown = "";
    this.frame = 0;
    this.title = make("h1");
    this.about = make("p", { className: "muted" });
    this.note = make("p", { className: "muted" });
    this.note.setAttribute("role", "status");
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.stop = make("button", { type: "button", textContent: "Stop all" });
    this.fork = make("a", { className: "quiet", textContent: "Fork the best" });
    this.list = make("a", { className: "quiet", textContent: "Show in the list" });
    this.delete = make("button", {
      type: "button",
      className: "danger",
      textContent: "Delete the sweep",
    });
    this.groups = make("div");
    this.groupsPart = part("Mean over seeds", this.groups);
    this.runs = make("div");
    this.charts = make("section", { className: "card curves" });
    this.charts.setAttribute("aria-label", "Curves");
    const actions = [this.stop, this.fork, this.list, this.delete];
    const runsPart = part("Runs", this.runs);
    /** What there is only once the sweep is known. */
    this.parts = [...actions, this.groupsPart, runsPart, this.charts];
    element.append(
      make(
        "div",
        { className: "sweep-view" },
        make(
          "p",
          { className: "trail" },
          make("a", { href: "#/sweeps", textContent: "All sweeps" }),
        ),
        make(
          "header",
          { className: "run-head" },
          make("div", { className: "run-names" }, this.title, this.about),
          make("div", { className: "actions" }, ...actions),
        ),
        this.problem,
        this.note,
        this.groupsPart,
        runsPart,
        this.charts,
      ),
    );
    this.stop.addEventListener("click", () => this.stopAll());
    this.delete.addEventListener("click", () => this.forget());
    setInterval(() => {
      const isLive = this.sweep?.runs.some(({ run_id: id, state }) =>
        isActiveOrQueued(this.store.get(id) ?? /** @type {Run} */ ({ state })),
      );
      if (this.id !== "" && isLive && !document.hidden) this.load();
    }, EVERY_MS);
  }

  /** @param {string} id */
  async show(id) {
    if (this.id !== id) this.clear();
    this.id = id;
    if (this.sweep === null) setText(this.about, "Loading \u2026");
    await this.load(true);
  }

  hide() {
    if (this.id === "") return;
    this.id = "";
    this.clear();
  }

  clear() {
    this.sweep = null;
    this.shown = "";
    this.overview?.destroy();
    this.overview = null;
    this.charts.replaceChildren();
    for (const one of this.parts) show(one, false);
    for (const text of [this.title, this.about, this.note]) setText(text, "");
    this.say("");
  }

  /**
   * Takes a change of a run.
   *
   * @param {ShownRun | null} run
   * @param {ShownRun | undefined} before
   * @param {string} id
   */
  take(run, before, id) {
    if (!this.sweep?.runs.some(({ run_id }) => run_id === id)) return;
    if (run === null || before?.state !== run.state) this.load();
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.sweep !== null) this.fillActions(this.sweep);
      this.draw();
    });
  }

  /** @param {boolean} [withRuns] whether the runs are loaded too; later, events say what they do */
  async load(withRuns = false) {
    const { id } = this;
    try {
      await loadSchemas();
      /** @type {Sweep} */
      const sweep = await get(`/sweeps/${encodeURIComponent(id)}`);
      if (withRuns) await this.loadRuns(sweep);
      if (this.id !== id) return;
      this.sweep = sweep;
      this.say("");
      this.fill(sweep);
      this.fillActions(sweep);
      this.draw();
    } catch (error) {
      if (this.id !== id) return;
      if (this.sweep === null) setText(this.about, "");
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {Sweep} sweep */
  async loadRuns(sweep) {
    /** @type {RunsPage} */
    const page = await get(`/runs?limit=200&group=${encodeURIComponent(sweep.group)}`);
    for (const run of page.runs) this.store.take(run);
    // Whose group was changed since.
    for (const { run_id: id } of sweep.runs
      .filter((run) => !this.store.get(run.run_id))
      .slice(0, 20)) {
      /** @type {RunDetail} */
      const { spec: _spec, history: _history, folder: _folder, ...view } = await get(`/runs/${id}`);
      this.store.take(view);
    }
  }

  /** @param {Sweep} sweep */
  fill(sweep) {
    const text = JSON.stringify(sweep);
    if (text === this.shown) return;
    this.shown = text;
    for (const one of this.parts) show(one, true);
    setText(this.title, sweep.name);
    const number =
      sweep.runs.length === sweep.num_runs
        ? `${sweep.num_runs} runs`
        : `${sweep.runs.length} of ${sweep.num_runs} runs left`;
    setText(
      this.about,
      joined(
        sweep.id,
        number,
        `${sweep.goal === "min" ? "lowest" : "highest"} ${sweep.metric}`,
        dateTime(sweep.created_at),
        teacherText(sweep),
      ),
    );
    show(this.fork, sweep.best !== null);
    if (sweep.best !== null) this.fork.href = `${pathOfRun(sweep.best)}/fork`;
    this.list.href = `#/?group=${encodeURIComponent(sweep.group)}`;
    this.runs.replaceChildren(runsTable(sweep));
    const hasSeeds = sweep.groups.some(({ runs }) => runs.length > 1);
    show(this.groupsPart, hasSeeds);
    if (hasSeeds) this.groups.replaceChildren(groupsTable(sweep));
  }

  /**
   * Shows what can be done now, which depends only on the states of the runs.
   *
   * @param {Sweep} sweep
   */
  fillActions(sweep) {
    const states = sweep.runs.map(
      ({ run_id, state }) =>
        this.store.get(run_id) ??
        /** @type {ShownRun} */ ({ state, resumes_at: null, resumes_when: null }),
    );
    show(
      this.stop,
      states.some(
        (run) => run.state !== "stopping" && (isActiveOrQueued(run) || resumesItself(run)),
      ),
    );
    show(this.delete, !states.some((run) => isActiveOrQueued(run) || resumesItself(run)));
  }

  draw() {
    const { sweep } = this;
    if (sweep === null) return;
    const hasSeeds = sweep.settings.some(isSeed);
    this.overview ??= new Overview(this.charts, {
      place: "sweep",
      metric: sweep.metric,
      ...chartOptions("sweep"),
      defaults: hasSeeds ? { color: ALL_BUT_SEED, mean: "1", band: "std" } : {},
    });
    const runs = sweep.runs
      .map(({ run_id }) => this.store.get(run_id))
      .filter((run) => run !== undefined);
    this.overview.update(
      runs
        .slice(0, MAX_LINES)
        .map((run, index) => ({
          run: { ...run, index },
          name: run.name,
          settings: settingsAmong(run, runs),
        })),
    );
  }

  async stopAll() {
    const { sweep } = this;
    if (sweep === null) return;
    const text =
      "Its runs save a checkpoint first; those that wait will not start. Each can be resumed later.";
    if (!(await isConfirmed(`Stop all runs of ${sweep.name}?`, text, "Stop all"))) return;
    await this.act(async () => {
      await post(`/sweeps/${sweep.id}/stop`);
      setText(this.note, "Asked all runs to stop.");
      await this.load();
    });
  }

  async forget() {
    const { sweep } = this;
    if (sweep === null) return;
    const text = "Only the record of the sweep goes; its runs stay.";
    if (!(await isConfirmed(`Delete ${sweep.name}?`, text, "Delete the sweep"))) return;
    await this.act(async () => {
      await remove(`/sweeps/${sweep.id}`);
      setText(
        byId("notice-text"),
        `The sweep ${sweep.name} was deleted; its runs are still there.`,
      );
      show(byId("notice"), true);
      location.hash = "#/sweeps";
    });
  }

  /** @param {() => Promise<void>} send */
  async act(send) {
    this.say("");
    try {
      await send();
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {string} problem */
  say(problem) {
    setText(this.problem, problem);
    show(this.problem, problem !== "");
  }
}

/**
 * Says how much of what the runs asked the teacher computed only once.
 *
 * @param {Sweep} sweep
 */
function teacherText({ teacher }) {
  if (teacher === null || teacher.asked_tokens === null || teacher.shared === null) return "";
  return `teacher: ${short(teacher.asked_tokens)} tokens asked, ${percent(teacher.shared)} of them shared`;
}

/**
 * @param {string} title
 * @param {HTMLElement} content
 */
function part(title, content) {
  const section = make(
    "section",
    { className: "card part" },
    make("h2", { textContent: title }),
    content,
  );
  section.setAttribute("aria-label", title);
  return section;
}
