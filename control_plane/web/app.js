// @ts-check
// The page: a list of runs that an event stream keeps up to date, a chart of them, the teachers,
// and the panel of one run.

import { RequestFailed, follow, get, hasToken } from "./api.js";
import { Overview } from "./charts/charts.js";
import { byId, setText, show } from "./dom.js";
import { clockTime, isActive } from "./format.js";
import { RunList } from "./lists/runs.js";
import { watchTeachers } from "./lists/teachers.js";
import { Panel } from "./panel/panel.js";

/** @import { Models, Run, RunsPage, RunDetail, ShownRun } from "./types.d.ts" */

const PAGE_SIZE = 100;
const DRAWN_AT_FIRST = 8;
const MAX_SHOW_ALL = 40; // the chart cannot be read with more lines
const BANNER_AFTER_MS = 1500;
const RETRY_MS = [500, 1000, 2000, 5000];

/** @type {Map<string, ShownRun>} */
const runs = new Map();
/** @type {Set<string>} ids of the runs in the chart */
const drawn = new Set();
/** @type {Set<string>} ids of the runs that the user put into the chart or took out */
const chosen = new Set();
let nextIndex = 0;
/** @type {string | null} where the next older page begins */
let cursor = null;
let lastHeard = Date.now() / 1000;
let hasLoaded = false;
let frame = 0;

const params = Object.fromEntries(new URLSearchParams(location.search));
const overview = new Overview(byId("curves"), { params, onParams: keepInAddress });
const panel = new Panel(() => { location.hash = ""; });
const list = new RunList(drawn, toggle, (id) => { location.hash = `#/runs/${id}`; });

// ---- what the control plane sends --------------------------------------------------------------

/**
 * @param {Run} view
 * @returns {ShownRun}
 */
function take(view) {
  const index = runs.get(view.id)?.index ?? nextIndex++;
  const run = { ...view, received: Date.now() / 1000, index };
  runs.set(run.id, run);
  panel.update(run);
  return run;
}

/** @param {string} id */
function forget(id) {
  runs.delete(id);
  drawn.delete(id);
  if (panel.id === id) location.hash = "";
}

/**
 * Forgets runs that were deleted while no stream was open: those that belong on the newest page
 * and are not there.
 *
 * @param {RunsPage} page
 */
function forgetMissing(page) {
  const last = page.runs.at(-1);
  const oldest = page.next_cursor === null || !last ? -Infinity : last.created_at;
  const present = new Set(page.runs.map((run) => run.id));
  for (const run of runs.values()) {
    if (!present.has(run.id) && run.created_at > oldest) forget(run.id);
  }
}

/** Loads the newest runs. Returns the revision from which a stream continues. */
async function load() {
  /** @type {RunsPage} */
  const page = await get(`/runs?limit=${PAGE_SIZE}`);
  forgetMissing(page);
  for (const run of page.runs.toReversed()) take(run);
  if (cursor === null) cursor = page.next_cursor;
  show(byId("older"), cursor !== null);
  drawNewest();
  if (page.runs.length === 0) showExamples().catch(() => {});
  hasLoaded = true;
  return page.revision;
}

async function loadOlder() {
  /** @type {RunsPage} */
  const page = await get(`/runs?limit=${PAGE_SIZE}&cursor=${cursor}`);
  for (const run of page.runs) take(run);
  cursor = page.next_cursor;
  show(byId("older"), cursor !== null);
  render();
}

async function stayConnected() {
  let failures = 0;
  let warning = 0;
  for (;;) {
    try {
      const revision = await load();
      render();
      await openPanel();
      await follow(`/events?after=${revision}`, () => {
        failures = 0;
        clearTimeout(warning);
        warning = 0;
        show(byId("banner"), false);
      }, (kind, data) => {
        lastHeard = Date.now() / 1000;
        if (kind === "run") take(data);
        else if (kind === "deleted") forget(data.id);
        drawNewest();
        render();
      });
    } catch {
      // The banner says so if it lasts.
    }
    warning ||= setTimeout(showBanner, BANNER_AFTER_MS);
    const pause = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
    await new Promise((resolve) => setTimeout(resolve, pause));
    failures += 1;
  }
}

function showBanner() {
  setText(byId("banner"), hasLoaded
    ? `Connection lost. The page shows the state at ${clockTime(lastHeard)}. Reconnecting \u2026`
    : "The control plane is not answering. Retrying \u2026");
  show(byId("banner"), true);
}

// ---- what is drawn -----------------------------------------------------------------------------

function newestFirst() {
  return [...runs.values()].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
}

/** Puts active runs and the newest of the others into the chart, except where the user chose. */
function drawNewest() {
  const newest = newestFirst().slice(0, DRAWN_AT_FIRST);
  for (const run of runs.values()) {
    if (chosen.has(run.id)) continue;
    if (isActive(run) || newest.includes(run)) drawn.add(run.id);
    else drawn.delete(run.id);
  }
}

/** @param {string} id */
function toggle(id) {
  chosen.add(id);
  if (!drawn.delete(id)) drawn.add(id);
  render();
}

/** @param {Record<string, string>} chosen what the charts want kept in the address */
function keepInAddress(chosen) {
  const query = new URLSearchParams(chosen).toString();
  history.replaceState(null, "", `${location.pathname}${query && `?${query}`}${location.hash}`);
}

/** Draws everything at the next frame. */
function render() {
  if (frame === 0) frame = requestAnimationFrame(() => {
    frame = 0;
    renderNow();
  });
}

function renderNow() {
  const all = newestFirst();
  const shown = all.filter((run) => drawn.has(run.id));
  show(byId("empty"), hasLoaded && all.length === 0);
  show(byId("curves"), all.length > 0);
  show(byId("runs"), all.length > 0);
  list.render(all, panel.id);

  overview.update(shown.toReversed().map((run) => ({ run, name: label(run, all) })));
  const numHidden = all.length - shown.length;
  setText(byId("show-all"), numHidden > 0 ? `Show all ${all.length} in the chart` : "");
  show(byId("show-all"), numHidden > 0 && all.length <= MAX_SHOW_ALL);
  setText(byId("summary"), summary(all));
}

/** Returns the run that the panel shows, if the page still has it. */
function openRun() {
  return panel.id === null ? undefined : runs.get(panel.id);
}

/**
 * Returns the run's name, or its id if other runs have the same name.
 *
 * @param {Run} run
 * @param {Run[]} all
 */
function label(run, all) {
  return all.filter((other) => other.name === run.name).length === 1 ? run.name : run.id;
}

/** @param {Run[]} all */
function summary(all) {
  if (!hasLoaded) return "Connecting \u2026";
  const numActive = all.filter(isActive).length;
  const numQueued = all.filter((run) => run.state === "queued").length;
  const active = numActive === 1 ? "1 active run" : `${numActive || "No"} active runs`;
  return numQueued > 0 ? `${active}, ${numQueued} queued` : active;
}

// ---- what the user does ------------------------------------------------------------------------

/** Opens the panel of the run in the address, or closes it. */
async function openPanel() {
  const id = /^#\/runs\/([\w-]+)$/.exec(location.hash)?.[1];
  if (!id) panel.close();
  else {
    show(byId("notice"), false);
    try {
      panel.open(runs.get(id) ?? take(await getRun(id)));
    } catch (error) {
      if (!(error instanceof RequestFailed)) return; // the banner says so; asked again on reconnect
      const isMissing = [404, 422].includes(error.status);
      setText(byId("notice-text"), isMissing ? `There is no run ${id}.` : error.message);
      show(byId("notice"), true);
      location.hash = "";
    }
  }
  render();
}

/**
 * @param {string} id
 * @returns {Promise<Run>}
 */
async function getRun(id) {
  /** @type {RunDetail} */
  const { spec, history, folder, ...view } = await get(`/runs/${id}`);
  return view;
}

async function showExamples() {
  /** @type {Models} */
  const { models } = await get("/models");
  const model = models.find((entry) => entry.problem === null);
  const student = model?.has_weights ? { init: model.path } : { config: model?.path ?? "MODEL" };
  const spec = {
    name: "first", student, data: { kind: "synthetic", seq_len: 128 },
    objective: { alpha: 1 }, schedule: { steps: 100, warmup_steps: 10 },
  };
  const { origin } = location;
  const body = JSON.stringify(spec);
  const token = hasToken()
    ? "-H \"authorization: Bearer $(cat ~/.lectern/secrets/control-plane)\" \\\n  "
    : "";
  setText(byId("cli-line"), `lectern runs create run.yaml --url ${origin}`);
  setText(
    byId("curl-line"),
    `curl ${origin}/runs ${token}-H 'content-type: application/json' \\\n  -d '${body}'`,
  );
}

function makeCopyButtons() {
  for (const button of document.querySelectorAll("button")) {
    const { copies } = button.dataset;
    if (copies === undefined) continue;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(byId(copies).textContent);
      setText(button, "Copied");
      setTimeout(() => setText(button, "Copy"), 1500);
    });
  }
}

byId("notice-close").addEventListener("click", () => show(byId("notice"), false));
byId("older").addEventListener("click", loadOlder);
byId("show-all").addEventListener("click", () => {
  for (const id of runs.keys()) {
    chosen.add(id);
    drawn.add(id);
  }
  render();
});
addEventListener("hashchange", openPanel);
setInterval(() => {
  list.tickAll();
  const open = openRun();
  if (open) panel.fill(open);
}, 1000);

makeCopyButtons();
watchTeachers();
stayConnected();
