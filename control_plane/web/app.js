// @ts-check
// The page: what is shown at which address, and how the parts hear of a change.

import { RequestFailed, get } from "./api.js";
import { Overview } from "./charts/charts.js";
import { Comparison } from "./views/compare/comparison.js";
import { stayConnected } from "./state/connection.js";
import { AlertCenter } from "./views/alerts/alerts.js";
import { AlertsPage } from "./views/alerts/page.js";
import { NewRun } from "./views/create/new_run.js";
import { NewSweep } from "./views/sweeps/new_sweep.js";
import { SweepList } from "./views/sweeps/list.js";
import { SweepPage } from "./views/sweeps/sweep.js";
import { byId, makeCopyButtons, setText, show } from "./dom.js";
import { count, isActive } from "./format.js";
import { chartOptions, showChartParams } from "./state/chart_address.js";
import { Counts } from "./state/counts.js";
import { showExamples } from "./views/lists/examples.js";
import { watchDisk } from "./views/lists/disk.js";
import { makeFilters, showFilters } from "./views/lists/filters.js";
import { openPrune } from "./views/lists/prune.js";
import { RunList } from "./views/lists/runs.js";
import { queryOfAddress } from "./views/lists/query.js";
import { watchTeachers } from "./views/lists/teachers.js";
import { route } from "./state/router.js";
import { RunPage } from "./views/run/page.js";
import { RunStore } from "./state/store.js";

/** @import { Run, RunDetail } from "./types.d.ts" */

const DRAWN_AT_FIRST = 8;
const MAX_SHOW_ALL = 40; // the chart cannot be read with more lines

/** @type {Set<string>} ids of the runs in the chart */
const drawn = new Set();
/** @type {Set<string>} ids of the runs that the user put into the chart or took out */
const decided = new Set();
/** @type {Set<string>} ids of the runs to compare */
const chosen = new Set();
let hasLoaded = false;
let frame = 0;

const store = new RunStore();
const counts = new Counts(store, render);
const overview = new Overview(byId("curves"), {
  ...chartOptions("runs"), onStyles: () => list.markAll(),
});
const list = new RunList(store, {
  isDrawn: (id) => drawn.has(id),
  isChosen: (id) => chosen.has(id),
  styleOf: (run) => overview.style(run),
  toggleDrawn: (id) => {
    decided.add(id);
    if (!drawn.delete(id)) drawn.add(id);
    list.markAll(id);
    render();
  },
  toggleChosen: (id) => {
    if (!chosen.delete(id)) chosen.add(id);
    showCompareLink();
  },
}, () => {
  drawNewest();
  render();
});
const runPage = new RunPage(store);
const newRun = new NewRun(byId("view-new"));
const comparison = new Comparison(byId("view-compare"), store);
const alertsPage = new AlertsPage(byId("view-alerts"));
const alerts = new AlertCenter(() => alertsPage.fill());
const sweepList = new SweepList(byId("view-sweeps"));
const sweepPage = new SweepPage(byId("view-sweep"), store);
const newSweep = new NewSweep(byId("view-new-sweep"));

// ---- what the control plane sends --------------------------------------------------------------

/** Loads the list and the active runs; forgets what is gone. Returns the newest revision. */
async function load() {
  /** @type {Set<string>} */
  const present = new Set();
  const active = await counts.ask();
  await list.load((page) => {
    for (const run of [...page.runs, ...active.runs]) present.add(run.id);
    for (const run of active.runs) store.take(run);
  });
  if (hasLoaded) {
    for (const id of [...store.runs.keys()]) {
      if (!present.has(id)) store.forget(id);
    }
  }
  hasLoaded = true;
  if (store.runs.size === 0) showExamples().catch(() => {});
  alerts.load().catch(() => {}); // the runs are shown all the same
  await showRoute();
  render();
  return active.revision;
}

store.onChange((run, before, id) => {
  if (run === null) {
    drawn.delete(id);
    chosen.delete(id);
    showCompareLink();
  } else if (before === undefined || isActive(before) !== isActive(run)) {
    drawNewest();
  }
  if (drawn.has(id) || before === undefined || before.state !== run?.state) render();
  runPage.take(run, id);
  comparison.take(run, id);
  sweepPage.take(run, before, id);
});

// ---- what is drawn -----------------------------------------------------------------------------

/** Puts active runs and the first of the list into the chart, except where the user decided. */
function drawNewest() {
  const first = new Set(list.order.slice(0, DRAWN_AT_FIRST));
  for (const run of list.order) {
    if (decided.has(run.id)) continue;
    const isDrawn = isActive(run) || first.has(run);
    if (isDrawn === drawn.has(run.id)) continue;
    if (isDrawn) drawn.add(run.id);
    else drawn.delete(run.id);
    list.markAll(run.id);
  }
}

/** Draws the overview at the next frame. */
function render() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    renderNow();
  });
}

function renderNow() {
  setText(byId("summary"), summary());
  const isList = !byId("view-runs").hidden;
  const hasRuns = store.runs.size > 0 || list.total > 0 || isFiltered();
  show(byId("empty"), hasLoaded && !hasRuns);
  show(byId("curves"), list.order.length > 0);
  show(byId("runs"), hasLoaded && hasRuns);
  const shown = isList ? list.order.filter((run) => drawn.has(run.id)) : [];
  const names = list.order.map((run) => run.name);
  const isUnique = (/** @type {Run} */ { name }) => names.indexOf(name) === names.lastIndexOf(name);
  overview.update(shown.toSorted((a, b) => a.seq - b.seq).map((run) =>
    ({ run, name: isUnique(run) ? run.name : run.id, settings: run.settings })));
  const numListed = list.order.length;
  setText(byId("show-all"), `Show all ${numListed} in the chart`);
  show(byId("show-all"), shown.length < numListed && numListed <= MAX_SHOW_ALL);
}

const isFiltered = () => list.query.text !== "" || list.query.states.size > 0
  || list.query.group !== "" || list.query.tags.length > 0;

function summary() {
  if (!hasLoaded) return "Connecting \u2026";
  const active = counts.active === 1 ? "1 active run" : `${counts.active ? count(counts.active) : "No"} active runs`;
  return counts.queued > 0 ? `${active}, ${count(counts.queued)} queued` : active;
}

function showCompareLink() {
  const link = byId("compare-link", HTMLAnchorElement);
  link.href = `#/compare?runs=${[...chosen].join()}`;
  setText(link, chosen.size === 1 ? "Choose another to compare" : `Compare ${chosen.size} runs`);
  link.setAttribute("aria-disabled", String(chosen.size < 2));
  show(link, chosen.size > 0);
}

// ---- addresses ---------------------------------------------------------------------------------

let lastShown = "";

/** Shows what the address names. */
async function showRoute() {
  const { view, id, params } = route();
  const isNew = lastShown !== `${view} ${id}`;
  if (view === "run") {
    const run = await runOf(id);
    if (route().id !== id) return; // the user has gone on meanwhile
    if (run === null) return;
    runPage.show(run);
  } else runPage.hide();
  const element = ELEMENTS[view] ?? `view-${view}`;
  for (const one of byId("main").querySelectorAll(".view")) {
    if (one instanceof HTMLElement) show(one, one.id === element);
  }
  await showView(view, id, params, isNew);
  if (view === "runs") {
    const query = queryOfAddress();
    if (isNew && lastShown !== "") showFilters(list);
    else if (JSON.stringify(asText(query)) !== JSON.stringify(asText(list.query))) {
      list.ask(query);
      showFilters(list);
    }
    if (params.has("prune")) openPrune();
  }
  if (isNew && lastShown !== "") goTo(view);
  lastShown = `${view} ${id}`;
  setTitle(view, id);
  markPage(view);
  showChartParams(view);
  render();
}

/** @type {Record<string, string>} the element of a view, if it is called otherwise */
const ELEMENTS = { edit: "view-new", fork: "view-new" };

/**
 * Fills a view, and empties those that are not shown.
 *
 * @param {string} view
 * @param {string} id
 * @param {URLSearchParams} params
 * @param {boolean} isNew whether another was shown before
 */
async function showView(view, id, params, isNew) {
  if (view !== "compare") comparison.hide();
  if (view !== "alerts") alertsPage.hide();
  if (view !== "sweeps") sweepList.hide();
  if (view !== "sweep") sweepPage.hide();
  if (view === "compare") await comparison.show(params);
  if (view === "alerts") alertsPage.show(alerts);
  if (view === "sweeps") sweepList.show();
  if (view === "sweep") await sweepPage.show(id);
  if (view === "new-sweep" && isNew) await newSweep.show(params);
  if ((view === "new" || view === "edit" || view === "fork") && isNew) {
    await newRun.show(view, id || params.get("from"), params);
  }
}

/** @param {import("./views/lists/query.js").Query} query */
const asText = ({ states, ...others }) => ({ ...others, states: [...states] });

/** @type {string | null} of the run whose page was left */
let cameFrom = null;

/**
 * Moves the focus to the heading of the view, or back to the run that the user came from.
 *
 * @param {string} view
 */
function goTo(view) {
  if (view === "run") cameFrom = route().id;
  const back = view === "runs" && cameFrom ? list.rows.get(cameFrom)?.name : undefined;
  if (back) {
    back.focus();
    return;
  }
  scrollTo(0, 0);
  const heading = byId("main").querySelector(`.view:not([hidden]) h1`);
  if (heading instanceof HTMLElement) {
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  }
}

/** @param {string} view */
function markPage(view) {
  for (const link of document.querySelectorAll(".masthead nav a")) {
    if (link.getAttribute("href") === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/**
 * @param {string} view
 * @param {string} id
 */
function setTitle(view, id) {
  const name = store.get(id)?.name ?? id;
  /** @type {Record<string, string>} */
  const titles = {
    run: name, edit: `Resume ${name}`, fork: `Fork ${name}`, new: "New run", compare: "Compare",
    alerts: "Alerts", sweeps: "Sweeps", sweep: id, "new-sweep": "New sweep",
  };
  document.title = view in titles ? `${titles[view]} \u2013 Lectern` : "Lectern";
}

/**
 * Returns a run, or null and says so if there is none.
 *
 * @param {string} id
 */
async function runOf(id) {
  const known = store.get(id);
  if (known) return known;
  try {
    /** @type {RunDetail} */
    const { spec, history: _history, folder, ...view } = await get(`/runs/${id}`);
    show(byId("notice"), false);
    return store.take(view);
  } catch (error) {
    if (!(error instanceof RequestFailed)) return null; // the banner says so
    const isMissing = [404, 422].includes(error.status);
    setText(byId("notice-text"), isMissing ? `There is no run ${id}.` : error.message);
    show(byId("notice"), true);
    location.replace("#/");
    return null;
  }
}

byId("notice-close").addEventListener("click", () => show(byId("notice"), false));
byId("show-all").addEventListener("click", () => {
  for (const { id } of list.order) {
    decided.add(id);
    drawn.add(id);
  }
  list.markAll();
  render();
});
byId("prune").addEventListener("click", openPrune);
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
document.addEventListener("keydown", (event) => {
  const isBusy = document.querySelector("dialog[open]") || event.defaultPrevented;
  const isTyping = event.target instanceof Element && event.target.closest("input, textarea, select");
  if (event.key === "Escape" && !isBusy && !isTyping && route().view === "run") location.hash = "#/";
});
addEventListener("hashchange", () => {
  if (route().view !== "runs") show(byId("notice"), false);
  showRoute();
});

makeCopyButtons(document);
makeFilters(list, store);
watchTeachers();
watchDisk();
stayConnected(load, (kind, data) => {
  if (kind === "run") counts.noticed(data.id);
  if (kind === "run") store.take(data);
  else if (kind === "task") runPage.takeTask(data);
  else if (kind === "deleted") {
    store.forget(data.id);
    runPage.forgetTask(data.id);
  }
  else if (kind === "alert") alerts.take(data);
});
