// The page: one list of runs, one event stream that keeps it true, one chart, one panel.

import { Refused, follow, get } from "./api.js";
import { CurveView } from "./charts/curve_view.js";
import { Curves } from "./charts/curves.js";
import { byId, setText, show } from "./dom.js";
import { clockTime, isActive } from "./format.js";
import { Panel } from "./panel/panel.js";
import { RunList } from "./lists/runs.js";
import { watchTeachers } from "./lists/teachers.js";

const PAGE = 100;
const DRAWN_AT_FIRST = 8;
const PATIENCE_MS = 1500; // a shorter cut is not worth a word
const RETRY_MS = [500, 1000, 2000, 5000];
const METRIC_KEY = "lectern-metric";

const runs = new Map(); // id -> run, as the server said, with `index` and `received`
const drawn = new Set();
const touched = new Set(); // ids that the user put into the chart or took out
let nextIndex = 0;
let cursor = null;
let lastHeard = Date.now() / 1000;
let isFresh = false;
let frame = 0;

const curves = new Curves(render);
const overview = new CurveView(
  byId("curves"),
  localStorage.getItem(METRIC_KEY),
  (width) => (width < 560 ? 240 : 350),
  (key) => {
    localStorage.setItem(METRIC_KEY, key);
    render();
  },
);
const panel = new Panel(() => { location.hash = ""; }, render);
const list = new RunList(drawn, toggle, (id) => { location.hash = `#/runs/${id}`; });

// ---- what the server says ----------------------------------------------------------------------

function take(view) {
  const before = runs.get(view.id);
  const run = { ...view, received: Date.now() / 1000, index: before?.index ?? nextIndex++ };
  runs.set(run.id, run);
  panel.update(run);
}

function forget(id) {
  runs.delete(id);
  drawn.delete(id);
  if (panel.id === id) location.hash = "";
}

// Runs that were deleted while nothing was heard: those the newest page should have, and has not.
function forgetMissing(page) {
  const oldest = page.next_cursor === null ? -Infinity : page.runs.at(-1).created_at;
  const present = new Set(page.runs.map((run) => run.id));
  for (const run of runs.values()) {
    if (!present.has(run.id) && run.created_at > oldest) forget(run.id);
  }
}

async function load() {
  const page = await get(`/runs?limit=${PAGE}`);
  forgetMissing(page);
  for (const run of page.runs.toReversed()) take(run);
  if (cursor === null) cursor = page.next_cursor;
  show(byId("older"), cursor !== null);
  drawNewest();
  if (page.runs.length === 0) showExamples().catch(() => {});
  isFresh = true;
  return page.revision;
}

async function older() {
  const page = await get(`/runs?limit=${PAGE}&cursor=${cursor}`);
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
      // Said below, where it lasts.
    }
    warning ||= setTimeout(warn, PATIENCE_MS);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
    failures += 1;
  }
}

function warn() {
  setText(byId("banner"), isFresh
    ? `Connection lost. This is how things stood at ${clockTime(lastHeard)}; trying again.`
    : "The control plane does not answer; trying again.");
  show(byId("banner"), true);
}

// ---- what is drawn -----------------------------------------------------------------------------

function newestFirst() {
  return [...runs.values()].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
}

// Every run that works is in the chart, and the newest of the others, until the user says otherwise.
function drawNewest() {
  const newest = newestFirst().slice(0, DRAWN_AT_FIRST);
  for (const run of runs.values()) {
    if (touched.has(run.id)) continue;
    if (isActive(run) || newest.includes(run)) drawn.add(run.id);
    else drawn.delete(run.id);
  }
}

function toggle(id) {
  touched.add(id);
  if (!drawn.delete(id)) drawn.add(id);
  render();
}

function render() {
  if (frame === 0) frame = requestAnimationFrame(() => {
    frame = 0;
    renderNow();
  });
}

function renderNow() {
  const all = newestFirst();
  const shown = all.filter((run) => drawn.has(run.id));
  const open = runs.get(panel.id);
  curves.want(open ? [...shown, open] : shown);
  show(byId("empty"), isFresh && all.length === 0);
  show(byId("curves"), all.length > 0);
  show(byId("runs"), all.length > 0);
  list.render(all, panel.id);

  const smoothing = Number(byId("smoothing").value);
  overview.draw(shown.toReversed().map((run) => ({ run, name: label(run, all) })), curves, smoothing);
  if (open) panel.draw(curves, smoothing);
  byId("smoothing").disabled = overview.metric.isEvaluated;
  setText(byId("smoothing-value"), smoothing === 0 ? "off" : smoothing.toFixed(2));
  const hidden = all.length - shown.length;
  setText(byId("show-all"), hidden > 0 ? `Show all ${all.length} in the chart` : "");
  show(byId("show-all"), hidden > 0 && all.length <= 40);
  setText(byId("summary"), summary(all));
}

// The name alone where it is the only one of its kind.
function label(run, all) {
  const same = all.filter((other) => other.name === run.name);
  return same.length === 1 ? run.name : run.id;
}

function summary(all) {
  if (!isFresh) return "Connecting";
  const active = all.filter(isActive).length;
  const queued = all.filter((run) => run.state === "queued").length;
  const parts = [active === 1 ? "1 run at work" : `${active || "No"} runs at work`];
  if (queued > 0) parts.push(`${queued} queued`);
  return parts.join(", ");
}

// ---- what the user does ------------------------------------------------------------------------

async function openPanel() {
  const id = /^#\/runs\/([\w-]+)$/.exec(location.hash)?.[1];
  if (!id) panel.close();
  else {
    show(byId("notice"), false);
    try {
      if (!runs.has(id)) {
        const { spec, history, folder, ...view } = await get(`/runs/${id}`);
        take(view);
      }
      panel.open(runs.get(id));
    } catch (error) {
      if (!(error instanceof Refused)) return; // the banner says so, and it is asked for again
      say([404, 422].includes(error.status) ? `There is no run ${id}.` : error.message);
      location.hash = "";
    }
  }
  render();
}

function say(text) {
  setText(byId("notice-text"), text);
  show(byId("notice"), true);
}

async function showExamples() {
  const { models } = await get("/models");
  const model = models.find((entry) => entry.problem === null);
  const student = model?.has_weights ? { init: model.path } : { config: model?.path ?? "MODEL" };
  const spec = {
    name: "first", student, data: { kind: "synthetic", seq_len: 128 },
    objective: { alpha: 1 }, schedule: { steps: 100, warmup_steps: 10 },
  };
  const { origin } = location;
  setText(byId("cli-line"), `lectern runs create run.yaml --url ${origin}`);
  setText(byId("curl-line"), `curl ${origin}/runs -H 'content-type: application/json' \\\n  -d '${JSON.stringify(spec)}'`);
}

function makeCopyButtons() {
  for (const button of document.querySelectorAll("[data-copies]")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(byId(button.dataset.copies).textContent);
      setText(button, "Copied");
      setTimeout(() => setText(button, "Copy"), 1500);
    });
  }
}

byId("smoothing").addEventListener("input", render);
byId("notice-close").addEventListener("click", () => show(byId("notice"), false));
byId("older").addEventListener("click", older);
byId("show-all").addEventListener("click", () => {
  for (const id of runs.keys()) {
    touched.add(id);
    drawn.add(id);
  }
  render();
});
addEventListener("hashchange", openPanel);
setInterval(() => {
  list.tickAll();
  if (runs.has(panel.id)) panel.fill(runs.get(panel.id));
}, 1000);

makeCopyButtons();
watchTeachers();
stayConnected();
