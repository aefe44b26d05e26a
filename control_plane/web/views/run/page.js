// @ts-check
// The page of one run: what it does now, its charts, what can be done with it, and rooms for
// everything else that is known of it.

import { RunCharts } from "../../charts/charts.js";
import { byId, choices, make, setText, show } from "../../dom.js";
import {
  STATES, clockTime, count, eta, explanation, isActive, joined,
} from "../../format.js";
import { chartOptions } from "../../state/chart_address.js";
import { pathOfRun, route, setParams } from "../../state/router.js";
import { get } from "../../api.js";
import { clearNote, makeActions, showActions } from "./actions.js";
import { factsOf } from "./facts.js";
import { Labels } from "./labels.js";
import { ROOMS } from "./rooms.js";

/** @import { RunStore } from "../../state/store.js" */
/** @import { RunDetail, ShownRun, Task } from "../../types.d.ts" */
/** @import { Room } from "./rooms.js" */

const RELOAD_EVERY_MS = 2000;
const [FIRST] = ROOMS;

export class RunPage {
  /** @param {RunStore} store */
  constructor(store) {
    this.store = store;
    /** @type {ShownRun | null} */
    this.run = null;
    /** @type {RunDetail | null} */
    this.detail = null;
    this.charts = new RunCharts(byId("run-charts"), chartOptions("run"));
    /** @type {Map<string, Room>} */
    this.rooms = new Map(ROOMS.map(({ name, make: newRoom }) => [name, newRoom()]));
    this.tab = FIRST.name;
    for (const [name, room] of this.rooms) {
      room.element.id = `room-${name}`;
      room.element.setAttribute("role", "tabpanel");
      room.element.setAttribute("aria-labelledby", `tab-${name}`);
      byId("rooms").append(room.element);
    }
    const labels = ROOMS.map(({ name, label }) => /** @type {[string, string]} */ ([name, label]));
    this.mark = choices(byId("tabs"), labels, "tab", (name) => {
      setParams({ tab: name === FIRST.name ? null : name });
      this.open(name);
    });
    for (const button of byId("tabs").querySelectorAll("button")) {
      button.id = `tab-${button.dataset.value}`;
      button.setAttribute("aria-controls", `room-${button.dataset.value}`);
    }
    this.labels = new Labels(byId("run-labels"), store);
    makeActions(() => this.run);
    setInterval(() => this.tick(), 1000);
    setInterval(() => {
      if (this.run && isActive(this.run) && !document.hidden) this.load();
    }, RELOAD_EVERY_MS);
  }

  /** @param {ShownRun} run */
  show(run) {
    const isOther = this.run?.id !== run.id;
    if (isOther) {
      this.detail = null;
      clearNote();
      for (const room of this.rooms.values()) room.clear();
    }
    this.fill(run);
    const tab = route().params.get("tab") ?? FIRST.name;
    this.open(roomsOf(run).includes(tab) ? tab : FIRST.name);
  }

  hide() {
    if (this.run === null) return;
    this.run = null;
    this.rooms.get(this.tab)?.leave?.();
    this.charts.update(null);
  }

  /**
   * Takes a change of a run, if it is the one that is shown.
   *
   * @param {ShownRun | null} run null means that it was deleted
   * @param {string} id
   */
  take(run, id) {
    if (this.run?.id !== id) return;
    if (run === null) {
      setText(byId("notice-text"), `${this.run.name} was deleted.`);
      show(byId("notice"), true);
      this.hide();
      location.replace("#/");
      return;
    }
    const before = this.run;
    if (before.state !== run.state) clearNote();
    this.fill(run);
    const isNews = before.state !== run.state || before.checkpoint_step !== run.checkpoint_step;
    if (isNews) this.load();
  }

  /** @param {Task} task that has changed */
  takeTask(task) {
    for (const room of this.rooms.values()) room.takeTask?.(task);
  }

  /** @param {string} id of a run or task that was deleted */
  forgetTask(id) {
    for (const room of this.rooms.values()) room.forgetTask?.(id);
  }

  /** @param {ShownRun} run */
  fill(run) {
    this.run = run;
    setText(byId("run-title"), run.name);
    setText(byId("run-id"), run.id);
    byId("view-run").dataset.state = run.state;
    const pill = byId("run-state");
    setText(pill, STATES[run.state]);
    pill.dataset.state = run.state;
    byId("view-run").classList.toggle("stalled", run.stalled_since !== null);
    const bar = byId("run-bar");
    bar.setAttribute("aria-valuemax", String(run.steps));
    bar.setAttribute("aria-valuenow", String(run.step));
    if (bar.firstElementChild instanceof HTMLElement) {
      bar.firstElementChild.style.width = `${Math.min(100, (100 * run.step) / (run.steps || 1))}%`;
    }
    this.labels.fill(run);
    const shown = roomsOf(run);
    for (const { name } of ROOMS) show(byId(`tab-${name}`), shown.includes(name));
    showForkedFrom(run);
    showActions(run);
    this.tick();
    this.charts.update({ run, name: run.name, settings: run.settings });
  }

  /** Updates what changes as time passes. */
  tick() {
    const { run } = this;
    if (run === null) return;
    const now = Date.now() / 1000;
    const since = `Since ${clockTime(run.since)}.`;
    setText(byId("run-message"), [explanation(run, now), since].filter(Boolean).join(" "));
    const share = run.steps ? Math.floor((100 * run.step) / run.steps) : 0;
    setText(byId("run-steps"), joined(
      `${count(run.step)} of ${count(run.steps)} steps`, `${share}\u2009%`, eta(run, now),
    ));
    const facts = factsOf(run, this.detail?.folder ?? null, now);
    const list = byId("run-facts");
    if (list.children.length !== facts.length) {
      list.replaceChildren(...facts.map(([name]) =>
        make("div", { dataset: { name } }, make("dt", { textContent: name }), make("dd"))));
    }
    const values = list.querySelectorAll("dd");
    facts.forEach(([, value], place) => setText(values[place], value));
  }

  /** @param {string} tab */
  open(tab) {
    if (this.tab !== tab) this.rooms.get(this.tab)?.leave?.();
    this.tab = tab;
    this.mark(tab);
    for (const [name, room] of this.rooms) show(room.element, name === tab);
    this.load();
  }

  /** Loads what the open room shows; if that fails, says why. */
  async load() {
    const { run } = this;
    if (run === null) return;
    try {
      const isNeeded = this.detail?.revision !== run.revision || this.tab === "timeline";
      if (isNeeded && (this.detail === null || this.tab === "timeline" || this.tab === "settings")) {
        /** @type {RunDetail} */
        const detail = await get(`/runs/${run.id}`);
        if (this.run?.id !== run.id) return;
        this.detail = detail;
        this.tick();
      }
      await this.rooms.get(this.tab)?.load(this.run ?? run, this.detail);
    } catch (error) {
      if (this.run?.id === run.id) {
        setText(byId("action-note"), error instanceof Error ? error.message : String(error));
      }
    }
  }
}

/** @param {ShownRun} run */
function showForkedFrom({ forked_from: from }) {
  const place = byId("run-forked");
  show(place, from !== null);
  const text = from === null ? "" : `${from.run_id} ${from.step}`;
  if (from === null || place.dataset.from === text) return;
  place.dataset.from = text;
  place.replaceChildren("forked from ",
    make("a", { href: pathOfRun(from.run_id), textContent: from.run_id }), ` at step ${count(from.step)}`);
}

/** @param {ShownRun} run */
const roomsOf = (run) =>
  ROOMS.filter(({ isFor }) => isFor === undefined || isFor(run)).map(({ name }) => name);
