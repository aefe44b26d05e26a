// One run in full: what it is, its curve, what happened, its log, and the two things one can ask of
// it.

import { get, getText, post } from "../api.js";
import { CurveView } from "../charts/curve_view.js";
import { byId, choices, make, setText, show } from "../dom.js";
import {
  STATES, clockTime, count, dateTime, duration, elapsed, explanation, exportOf, isActive, isLive,
  learnsFrom, percent, studentOf,
} from "../format.js";
import { metricOf, valueOf } from "../charts/metrics.js";
import { sampleItems } from "./samples.js";
import { Timeline } from "./timeline.js";

const FOLLOW_EVERY_MS = 2000;
const TABS = [["events", "Events"], ["samples", "Samples"], ["log", "Log"], ["spec", "Spec"]];
const STOPPABLE = new Set(["queued", "starting", "running", "waiting_for_teacher"]);

export class Panel {
  // onClose(): it is to be closed. onMetric(): its curve is to be drawn again.
  constructor(onClose, onMetric) {
    this.onClose = onClose;
    this.view = new CurveView(byId("panel-curve"), "loss/val", () => 200, onMetric);
    this.timeline = new Timeline(byId("tab-events"));
    this.run = null;
    this.tab = "events";
    this.markTab = choices(byId("tabs"), TABS, "tab", (tab) => this.choose(tab));
    byId("panel-close").addEventListener("click", onClose);
    byId("stop").addEventListener("click", () => this.stop());
    byId("resume").addEventListener("click", () => this.resume());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.run && !document.querySelector("dialog[open]")) onClose();
    });
    setInterval(() => this.follow(), FOLLOW_EVERY_MS);
  }

  get id() {
    return this.run?.id ?? null;
  }

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

  // Takes a newer view of the run that is open.
  update(run) {
    if (run.id !== this.id) return;
    const isNews = run.state !== this.run.state || run.checkpoint_step !== this.run.checkpoint_step;
    this.fill(run);
    if (isNews) this.load();
  }

  draw(curves, smoothing) {
    this.view.draw([{ run: this.run, name: this.run.name }], curves, smoothing);
  }

  fill(run) {
    this.run = run;
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
    const latest = (key) => valueOf(metricOf(key), run, run.latest[key]);
    const facts = [
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
      ["Teacher wait", run.representation === null ? "\u2013" : percent(run.teacher_wait_share)],
      ["Elapsed", duration(elapsed(run, now))],
      ["Checkpoint", run.checkpoint_step === null ? "none yet" : `step ${count(run.checkpoint_step)}`],
      ["Attempt", String(run.attempt || "\u2013")],
      ["Created", dateTime(run.created_at)],
    ];
    if (run.state === "succeeded" && this.folder) facts.push(["Export", exportOf(this.folder)]);
    const list = byId("panel-facts");
    if (list.children.length !== facts.length) {
      list.replaceChildren(...facts.map(([name]) => make("div", { dataset: { name } }, make("dt", { textContent: name }), make("dd"))));
    }
    facts.forEach(([, value], place) => setText(list.children[place].lastChild, value));
  }

  choose(tab) {
    this.tab = tab;
    this.markTab(tab);
    for (const [name] of TABS) show(byId(`tab-${name}`), name === tab);
    this.load();
  }

  async load() {
    const id = this.id;
    try {
      if (this.tab === "events") {
        const { history, folder } = await get(`/runs/${id}`);
        if (id === this.id) this.timeline.show(history, folder);
      } else if (this.tab === "samples") {
        const { samples } = await get(`/runs/${id}/samples`);
        if (id === this.id) this.showSamples(samples);
      } else if (this.tab === "log") {
        const text = await getText(`/runs/${id}/logs?tail=400`);
        if (id === this.id) this.showLog(text);
      } else {
        const text = await getText(`/runs/${id}/spec`);
        if (id === this.id) setText(byId("tab-spec"), text);
      }
    } catch (error) {
      setText(byId("action-note"), error.message);
    }
  }

  // Whatever tab is open; where it cannot be had, that tab says why.
  async findFolder(id) {
    const { folder } = await get(`/runs/${id}`).catch(() => ({}));
    if (id !== this.id || !folder) return;
    this.folder = folder;
    this.fill(this.run);
  }

  follow() {
    if (this.run && this.tab !== "spec" && isActive(this.run) && !document.hidden) this.load();
  }

  showLog(text) {
    const log = byId("tab-log");
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4 || log.textContent === "";
    setText(log, text || "The trainer has written nothing yet.");
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  // Left alone where nothing is new, and with it what is selected there.
  showSamples(samples) {
    const text = JSON.stringify([samples, isLive(this.run)]);
    if (text === this.samples) return;
    this.samples = text;
    byId("tab-samples").replaceChildren(...sampleItems(samples, this.run));
  }

  async stop() {
    const { id, name, state } = this.run;
    const active = isActive(this.run);
    const text = active
      ? "It writes a checkpoint first, and can be resumed from there."
      : "It will not start by itself any more, and can be resumed later.";
    if (await confirmed(`Stop ${name}?`, text, "Stop the run")) {
      await this.act(`/runs/${id}/stop`, active || state === "queued" ? "Asked to stop." : "");
    }
  }

  async resume() {
    const { id, name, checkpoint_step: step, state } = this.run;
    const from = step === null ? "from the beginning: there is no checkpoint" : `from step ${count(step)}`;
    const advice = state === "failed" ? " It failed; without a change it may fail again." : "";
    if (await confirmed(`Resume ${name}?`, `It goes on ${from}.${advice}`, "Resume the run")) {
      await this.act(`/runs/${id}/resume`, "Queued.");
    }
  }

  async act(path, note) {
    setText(byId("action-note"), "");
    try {
      await post(path);
      setText(byId("action-note"), note);
    } catch (error) {
      setText(byId("action-note"), error.message);
    }
  }
}

function confirmed(title, text, yes) {
  const dialog = byId("confirm");
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
