// @ts-check
// The panel of one run: its state, curve, facts, events, samples, log and spec; stop and resume.

import { get, getText, post } from "../api.js";
import { RunCharts } from "../charts/charts.js";
import { metricOf, valueOf } from "../charts/metrics.js";
import { byId, choices, make, setText, show } from "../dom.js";
import {
  STATES, clockTime, count, dateTime, duration, elapsed, explanation, exportOf, isActive,
  isActiveOrQueued, learnsFrom, percent, studentOf,
} from "../format.js";
import { sampleItems } from "./samples.js";
import { Timeline } from "./timeline.js";

/** @import { RunDetail, Samples, ShownRun } from "../types.d.ts" */

const RELOAD_EVERY_MS = 2000;
/** @type {[string, string][]} */
const TABS = [["events", "Events"], ["samples", "Samples"], ["log", "Log"], ["spec", "Spec"]];
const STOPPABLE = new Set(["queued", "starting", "running", "waiting_for_teacher"]);

export class Panel {
  /**
   * @param {() => void} onClose called when the user wants the panel closed
   */
  constructor(onClose) {
    this.charts = new RunCharts(byId("panel-curve"), { height: () => 220 });
    this.timeline = new Timeline(byId("tab-events"));
    /** @type {ShownRun | null} */
    this.run = null;
    /** @type {string | null} the run's folder, once it is known */
    this.folder = null;
    this.samples = ""; // what the tab shows now
    this.tab = "events";
    this.markTab = choices(byId("tabs"), TABS, "tab", (tab) => this.choose(tab));
    byId("panel-close").addEventListener("click", onClose);
    byId("stop").addEventListener("click", () => this.run && stop(this.run));
    byId("resume").addEventListener("click", () => this.run && resume(this.run));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.run && !document.querySelector("dialog[open]")) onClose();
    });
    setInterval(() => this.reload(), RELOAD_EVERY_MS);
  }

  get id() {
    return this.run?.id ?? null;
  }

  /** @param {ShownRun} run */
  open(run) {
    if (this.id !== run.id) {
      this.timeline.clear();
      this.folder = null;
      this.findFolder(run.id);
      byId("tab-samples").replaceChildren();
      this.samples = "";
      for (const part of ["tab-log", "tab-spec", "action-note"]) setText(byId(part), "");
      byId("panel").scrollTop = 0;
    }
    this.fill(run);
    show(byId("panel"), true);
    document.body.classList.add("with-panel");
    this.choose(this.tab);
  }

  close() {
    this.run = null;
    show(byId("panel"), false);
    document.body.classList.remove("with-panel");
  }

  /**
   * Takes a newer view of a run, if it is the one that is open.
   *
   * @param {ShownRun} run
   */
  update(run) {
    if (this.run?.id !== run.id) return;
    const { state, checkpoint_step: checkpointStep } = this.run;
    this.fill(run);
    if (run.state !== state || run.checkpoint_step !== checkpointStep) this.load(run);
  }

  /** @param {ShownRun} run */
  fill(run) {
    this.run = run;
    this.charts.update({ run, name: run.name });
    const now = Date.now() / 1000;
    setText(byId("panel-title"), run.name);
    setText(byId("panel-id"), run.id);
    const pill = byId("panel-state");
    setText(pill, STATES[run.state]);
    pill.dataset.state = run.state;
    const since = `Since ${clockTime(run.since)}.`;
    setText(byId("panel-message"), [explanation(run, now), since].filter(Boolean).join(" "));
    show(byId("stop"), STOPPABLE.has(run.state) || run.resumes_at !== null);
    show(byId("resume"), run.resumable);
    setText(byId("resume"), run.resumes_at === null ? "Resume" : "Resume now");
    const facts = factsOf(run, now);
    if (run.state === "succeeded" && this.folder) facts.push(["Export", exportOf(this.folder)]);
    const list = byId("panel-facts");
    if (list.children.length !== facts.length) {
      list.replaceChildren(...facts.map(([name]) =>
        make("div", { dataset: { name } }, make("dt", { textContent: name }), make("dd"))));
    }
    const values = list.querySelectorAll("dd");
    facts.forEach(([, value], place) => setText(values[place], value));
  }

  /** @param {string} tab */
  choose(tab) {
    this.tab = tab;
    this.markTab(tab);
    for (const [name] of TABS) show(byId(`tab-${name}`), name === tab);
    if (this.run) this.load(this.run);
  }

  /**
   * Loads the open tab; if that fails, says why.
   *
   * @param {ShownRun} run
   */
  async load({ id }) {
    try {
      if (this.tab === "events") {
        /** @type {RunDetail} */
        const { history, folder } = await get(`/runs/${id}`);
        if (id === this.id) this.timeline.show(history, folder);
      } else if (this.tab === "samples") {
        /** @type {Samples} */
        const { samples } = await get(`/runs/${id}/samples`);
        if (this.run?.id === id) this.showSamples(samples, this.run);
      } else if (this.tab === "log") {
        const text = await getText(`/runs/${id}/logs?tail=400`);
        if (id === this.id) showLog(text);
      } else {
        const text = await getText(`/runs/${id}/spec`);
        if (id === this.id) setText(byId("tab-spec"), text);
      }
    } catch (error) {
      showFailure(error);
    }
  }

  /**
   * Finds the run's folder, whatever tab is open. A failure shows when the tab is loaded.
   *
   * @param {string} id
   */
  async findFolder(id) {
    try {
      /** @type {RunDetail} */
      const { folder } = await get(`/runs/${id}`);
      if (this.run?.id !== id) return;
      this.folder = folder;
      this.fill(this.run);
    } catch {
      // Said by load().
    }
  }

  reload() {
    if (this.run && this.tab !== "spec" && isActive(this.run) && !document.hidden) {
      this.load(this.run);
    }
  }

  /**
   * Changes nothing if there is nothing new, so that a selection survives.
   *
   * @param {Samples["samples"]} samples
   * @param {ShownRun} run
   */
  showSamples(samples, run) {
    const text = JSON.stringify([samples, isActiveOrQueued(run)]);
    if (text === this.samples) return;
    this.samples = text;
    byId("tab-samples").replaceChildren(...sampleItems(samples, run));
  }
}

/**
 * Returns [name, value] of each fact.
 *
 * @param {ShownRun} run
 * @param {number} now
 * @returns {[string, string][]}
 */
function factsOf(run, now) {
  const latest = (/** @type {string} */ key) => valueOf(metricOf(key), run, run.latest[key]);
  const hasTeacher = run.representation !== null;
  const checkpoint = run.checkpoint_step;
  return [
    ["Step", `${count(run.step)} of ${count(run.steps)}`],
    ["Validation loss", latest("loss/val")],
    ["KL to teacher, T = 1", latest("val/kl")],
    ["Agreement", latest("val/top1_agreement")],
    ["Student", studentOf(run)],
    ["Learns from", learnsFrom(run)],
    ["Teacher", run.teacher ?? "none"],
    ["Data", run.dataset ?? "synthetic"],
    ["Device", run.device ?? "\u2013"],
    ["Tokens/s", count(run.tokens_per_second)],
    ["Teacher wait", hasTeacher ? percent(run.teacher_wait_share) : "\u2013"],
    ["Elapsed", duration(elapsed(run, now))],
    ["Checkpoint", checkpoint === null ? "none yet" : `step ${count(checkpoint)}`],
    ["Attempt", String(run.attempt || "\u2013")],
    ["Created", dateTime(run.created_at)],
  ];
}

/** @param {string} text */
function showLog(text) {
  const log = byId("tab-log");
  const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  const followsEnd = isAtEnd || log.textContent === "";
  setText(log, text || "The trainer has not written anything yet.");
  if (followsEnd) log.scrollTop = log.scrollHeight;
}

/** @param {ShownRun} run */
async function stop(run) {
  const text = isActive(run)
    ? "The run saves a checkpoint first. You can resume it from there."
    : "The run will not start on its own. You can resume it later.";
  if (await isConfirmed(`Stop ${run.name}?`, text, "Stop the run")) {
    await act(`/runs/${run.id}/stop`, isActiveOrQueued(run) ? "Stop requested." : "");
  }
}

/** @param {ShownRun} run */
async function resume(run) {
  const step = run.checkpoint_step;
  const from = step === null
    ? "The run has no checkpoint, so it starts from the beginning."
    : `The run continues from step ${count(step)}.`;
  const advice = run.state === "failed" ? " It failed; without a change it may fail again." : "";
  if (await isConfirmed(`Resume ${run.name}?`, from + advice, "Resume the run")) {
    await act(`/runs/${run.id}/resume`, "Queued.");
  }
}

/**
 * Posts a request. Shows the note if it is accepted, otherwise why it is not.
 *
 * @param {string} path
 * @param {string} note
 */
async function act(path, note) {
  setText(byId("action-note"), "");
  try {
    await post(path);
    setText(byId("action-note"), note);
  } catch (error) {
    showFailure(error);
  }
}

/** @param {unknown} error */
function showFailure(error) {
  setText(byId("action-note"), error instanceof Error ? error.message : String(error));
}

/**
 * Asks the user. Resolves to whether they agreed.
 *
 * @param {string} title
 * @param {string} text
 * @param {string} yes the label of the button
 * @returns {Promise<boolean>}
 */
function isConfirmed(title, text, yes) {
  const dialog = byId("confirm", HTMLDialogElement);
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  byId("confirm-yes").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
