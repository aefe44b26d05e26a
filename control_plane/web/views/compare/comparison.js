// @ts-check
// Several runs side by side: results, the settings that differ, curves, samples.

import { get } from "../../api.js";
import { Overview } from "../../charts/charts.js";
import { make, setText, show } from "../../dom.js";
import { chartOptions } from "../../state/chart_address.js";
import { loadSchemas, settingsAmong } from "../lists/settings.js";
import { nameAmong } from "./heads.js";
import { resultsTable, settingsTable } from "./tables.js";
import { samplesTable } from "./texts.js";
import { findTwin } from "./twin.js";

/** @import { RunStore } from "../../state/store.js" */
/** @import { RunDetail, Samples, ShownRun } from "../../types.d.ts" */

const MAX_RUNS = 12;

export class Comparison {
  /**
   * @param {HTMLElement} element
   * @param {RunStore} store
   */
  constructor(element, store) {
    this.store = store;
    /** @type {string[]} */
    this.ids = [];
    this.frame = 0;
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.twin = make("p", { className: "actions" });
    this.results = make("div");
    this.settings = make("div");
    this.charts = make("section", { className: "card curves" });
    this.charts.setAttribute("aria-label", "Curves");
    this.samples = make("div");
    this.overview = new Overview(this.charts, { place: "compare", ...chartOptions("compare") });
    element.append(make(
      "div",
      { className: "compare" },
      make("p", { className: "trail" }, make("a", { href: "#/", textContent: "All runs" })),
      make("h1", { textContent: "Compare" }),
      this.problem,
      this.twin,
      part("Results", this.results),
      part("Settings that differ", this.settings),
      this.charts,
      part("Samples", this.samples),
    ));
  }

  /** @param {URLSearchParams} params `runs`: their ids */
  async show(params) {
    const ids = (params.get("runs") ?? "").split(",").filter(Boolean).slice(0, MAX_RUNS);
    this.ids = ids;
    try {
      await loadSchemas();
      for (const id of ids.filter((one) => !this.store.get(one))) {
        /** @type {RunDetail} */
        const { spec: _spec, history: _history, folder: _folder, ...view } = await get(
          `/runs/${encodeURIComponent(id)}`,
        );
        this.store.take(view);
      }
      this.say(ids.length < 2 ? "Choose at least two runs in the list." : "");
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
    if (this.ids !== ids) return;
    this.draw();
    await this.loadSamples();
    await this.offerTwin();
  }

  hide() {
    if (this.ids.length > 0) this.overview.update([]);
    this.ids = [];
  }

  /**
   * Takes a change of a run.
   *
   * @param {ShownRun | null} _run
   * @param {string} id
   */
  take(_run, id) {
    if (!this.ids.includes(id)) return;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  shown() {
    return this.ids.map((id) => this.store.get(id)).filter((run) => run !== undefined);
  }

  draw() {
    const runs = this.shown();
    replace(this.results, resultsTable(runs));
    replace(this.settings, settingsTable(runs));
    // Colours by place: in the order in which the page met the runs, two could be the same.
    this.overview.update(runs.map((run, index) =>
      ({ run: { ...run, index }, name: nameAmong(run, runs), settings: settingsAmong(run, runs) })));
  }

  async loadSamples() {
    const runs = this.shown();
    const answers = await Promise.all(runs.map(({ id }) =>
      get(`/runs/${id}/samples`).catch(() => ({ run_id: id, samples: [] }))));
    const texts = /** @type {Samples[]} */ (answers).map(({ samples }) => samples);
    replace(this.samples, samplesTable(runs, texts));
  }

  /** Offers the run that learns from labels only and is otherwise as the first one that distils. */
  async offerTwin() {
    const { ids } = this;
    const first = this.shown().find((run) => run.representation !== null);
    this.twin.replaceChildren();
    if (!first) return;
    const found = await findTwin(first).catch(() => null);
    if (this.ids !== ids || (found && ids.includes(found.id))) return;
    const more = [...ids, found?.id].join();
    this.twin.replaceChildren(found
      ? make("a", {
        href: `#/compare?runs=${more}`,
        textContent: `Add its cross-entropy twin ${found.id}`,
      })
      : make("a", {
        href: `#/new?from=${encodeURIComponent(first.id)}&twin=1`,
        textContent: `Start the cross-entropy twin of ${first.name}`,
        title: "The same run, learning from labels only: what the teacher is worth",
      }));
  }

  /** @param {string} problem */
  say(problem) {
    setText(this.problem, problem);
    show(this.problem, problem !== "");
  }
}

/**
 * Puts the element in the place of the last one, unless it says the same.
 *
 * @param {HTMLElement} container
 * @param {HTMLElement} element
 */
function replace(container, element) {
  if (container.textContent !== element.textContent) container.replaceChildren(element);
}

/**
 * @param {string} title
 * @param {HTMLElement} content
 */
function part(title, content) {
  const section = make("section", { className: "card part" }, make("h2", { textContent: title }), content);
  section.setAttribute("aria-label", title);
  return section;
}
