// @ts-check
// What happened to a run, in words: newest first, repetitions in one line. Each line opens to the
// fields as the trainer wrote them.

import { get } from "../../api.js";
import { byId, make, setText, show } from "../../dom.js";
import {
  STATES, clockTime, count, dateTime, exportOf, joined, loss, percent, sentence, size, wait,
} from "../../format.js";

/** @import { HistoryEntry, HistoryPage, RunDetail, ShownRun } from "../../types.d.ts" */

/** @typedef {Record<string, any>} Details what the trainer wrote, so any field may be missing */

/** @typedef {[title: string, text: string]} Words what happened, and the values that matter */

/**
 * @param {unknown} value
 * @param {(value: number) => string} format
 */
const ifNumber = (value, format) => (isNumber(value) ? format(value) : "");

/**
 * @param {unknown} value
 * @returns {value is number}
 */
const isNumber = (value) => Number.isFinite(value);

/** @param {Details} details */
const stepOf = ({ step }) => `step ${isNumber(step) ? count(step) : step}`;

const NOT_FINITE = "loss or gradient was not finite";

/**
 * Kinds that follow each other closely: what several are called, and what to say of the last one.
 *
 * @type {Map<string, {plural: string, text: (details: Details) => string}>}
 */
const REPEATED = new Map([
  ["checkpoint", { plural: "checkpoints", text: (details) => `last at ${stepOf(details)}` }],
  [
    "step_skipped",
    { plural: "steps skipped", text: (details) => `last at ${stepOf(details)}; ${NOT_FINITE}` },
  ],
]);

/**
 * By kind. A kind that is missing here is shown with all its values.
 *
 * @type {Map<string, (details: Details, message: string, folder: string) => Words>}
 */
const WORDS = new Map([
  ["assembled", (details) => [
    details.step > 0 ? `Ready to resume from ${stepOf(details)}` : "Ready to train",
    assembledText(details),
  ]],
  ["checkpoint", (details) => ["Checkpoint", `at ${stepOf(details)}`]],
  ["checkpoint_set_aside", (details) => ["Broken checkpoint set aside", `${details.path}`]],
  ["exported", (details, _message, folder) => ["Exported", joined(
    stepOf(details),
    ifNumber(details.validation_loss, (value) => `validation loss ${loss(value)}`),
    exportOf(folder),
  )]],
  ["left_out", (details, message) => ["Not measured", `${details.metric}: ${message}`]],
  ["metrics_dropped", (details, message) => ["Metrics dropped", joined(
    ifNumber(details.lines, (lines) => `${count(lines)} lines`),
    message,
  )]],
  ["rank_lost", (details) => ["Process lost", joined(
    details.what,
    ifNumber(details.restart, (number) => `restart ${count(number)}`),
  )]],
  ["step_skipped", (details) => ["Step skipped", `${stepOf(details)}; ${NOT_FINITE}`]],
  ["teacher_bound", (_details, message) => ["Slowed by its teacher", sentence(message)]],
  ["writing_bound", (_details, message) => ["Slowed by writing", sentence(message)]],
  ["never_ends", (_details, message) => ["Texts never end", sentence(message)]],
]);

const PAGE = 200; // of GET /runs/ID/history, at most
const LEFT_OUT_FROM = 50; // with fewer entries, a run's recent history is all of it

export class TimelineRoom {
  constructor() {
    this.list = make("ol", { className: "events" });
    this.more = make("button", { type: "button", className: "quiet", textContent: "Show earlier" });
    this.more.addEventListener("click", () => this.loadEarlier());
    this.element = make("div", {}, this.list, make("p", { className: "more" }, this.more));
    /** @type {Map<string, HistoryEntry>} by their text, so that none is shown twice */
    this.entries = new Map();
    this.id = this.folder = "";
    /** @type {string | null} where earlier entries begin; "" before the first request for them */
    this.cursor = "";
    show(this.more, false);
  }

  /**
   * @param {ShownRun} run
   * @param {RunDetail | null} detail
   */
  load({ id }, detail) {
    if (detail === null) return;
    this.id = id;
    this.folder = detail.folder;
    this.add(detail.history);
  }

  clear() {
    this.entries.clear();
    this.id = this.cursor = "";
    this.list.replaceChildren();
    show(this.more, false);
  }

  /** Loads pages until one has something that is not shown yet. */
  async loadEarlier() {
    const { id } = this;
    this.more.disabled = true;
    try {
      for (let isNews = false; !isNews && this.cursor !== null;) {
        const rest = this.cursor && `&cursor=${this.cursor}`;
        /** @type {HistoryPage} */
        const page = await get(`/runs/${id}/history?limit=${PAGE}${rest}`);
        if (this.id !== id) return;
        this.cursor = page.next_cursor;
        isNews = this.add(page.entries.reverse());
      }
      show(this.more, this.cursor !== null);
    } catch (error) {
      setText(byId("action-note"), error instanceof Error ? error.message : String(error));
    } finally {
      this.more.disabled = false;
    }
  }

  /**
   * Adds what is not shown yet. Lines that the user has opened stay open.
   *
   * @param {HistoryEntry[]} history oldest first
   * @returns {boolean} whether there was any
   */
  add(history) {
    const before = this.entries.size;
    for (const entry of history) this.entries.set(JSON.stringify(entry), entry);
    if (this.entries.size === before) return false;
    show(this.more, this.cursor !== null && this.entries.size >= LEFT_OUT_FROM);
    const sorted = [...this.entries.values()].sort((one, other) => one.at - other.at);
    const shown = [...this.list.querySelectorAll("details")];
    const openKeys = new Set(shown.filter(({ open }) => open).map(({ dataset }) => dataset.key));
    const items = grouped(sorted).map((entries) => newItem(entries, this.folder, openKeys));
    this.list.replaceChildren(...items.reverse());
    return true;
  }
}

/**
 * Returns lists of entries, one per line of the timeline.
 *
 * @param {HistoryEntry[]} history
 */
function grouped(history) {
  /** @type {HistoryEntry[][]} */
  const lines = [];
  for (const entry of history) {
    const previous = lines.at(-1);
    if (previous?.[0].kind === entry.kind && REPEATED.has(entry.kind)) previous.push(entry);
    else lines.push([entry]);
  }
  return lines;
}

/**
 * @param {HistoryEntry[]} entries at least one
 * @param {string} folder
 * @param {Set<string | undefined>} openKeys
 */
function newItem(entries, folder, openKeys) {
  const [first, last] = [entries[0], entries[entries.length - 1]];
  const [title, text] = wordsOf(entries, folder);
  const time = make("time", { textContent: clockTime(last.at), title: dateTime(last.at) });
  const summary = make("summary", {}, make("b", { textContent: title }), text && ` \u2013 ${text}`);
  const raw = make("pre", { textContent: entries.map(rawText).join("\n") });
  // A line that grows keeps the key of its first entry.
  const key = `${first.kind} ${first.at} ${first.state ?? ""}`;
  const details = make("details", { dataset: { key }, open: openKeys.has(key) }, summary, raw);
  return make("li", { dataset: { kind: first.kind } }, time, details);
}

/**
 * @param {HistoryEntry[]} entries of one line
 * @param {string} folder
 * @returns {Words}
 */
function wordsOf(entries, folder) {
  const last = entries[entries.length - 1];
  const repeated = REPEATED.get(last.kind);
  if (entries.length > 1 && repeated) {
    return [`${count(entries.length)} ${repeated.plural}`, repeated.text(last.details)];
  }
  if (last.kind === "state" && last.state !== null) return [STATES[last.state], stateText(last)];
  return WORDS.get(last.kind)?.(last.details, last.message ?? "", folder) ?? allValues(last);
}

/** @param {HistoryEntry} entry */
function stateText({ state, attempt, message, by }) {
  const isAgain = state === "starting" && attempt !== null && attempt > 1;
  return joined(isAgain && `attempt ${count(attempt)}`, sentence(message), by && `asked for by ${by}`);
}

/** @param {Details} details */
function assembledText({ memory, ranks, ...details }) {
  const { free, warning, ...needed } = memory ?? {};
  const bytes = Object.values(needed).filter(isNumber).reduce((sum, part) => sum + part, 0);
  const place = ranks > 1 ? `${count(ranks)} processes on ${details.device}` : details.device;
  return joined(
    details.device && place,
    ifNumber(details.parameters, (number) => `${count(number)} parameters`),
    ifNumber(details.training_rows, (rows) => `${count(rows)} training rows`),
    ifNumber(details.validation_rows, (rows) => `${count(rows)} validation rows`),
    details.teacher && `teacher ${details.teacher}`,
    bytes > 0 && `needs ${size(bytes)}${ifNumber(free, (value) => ` of ${size(value)} free`)}`,
    warning,
  );
}

/**
 * @param {HistoryEntry} entry
 * @returns {Words}
 */
function allValues(entry) {
  const kind = entry.kind.replaceAll("_", " ");
  const values = Object.entries(entry.details)
    .filter(([, value]) => value !== null && typeof value !== "object")
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${formatted(name, value)}`);
  return [kind[0].toUpperCase() + kind.slice(1), joined(entry.message, ...values)];
}

/**
 * @param {string} name
 * @param {unknown} value
 */
function formatted(name, value) {
  if (!isNumber(value)) return String(value);
  if (name.endsWith("bytes")) return size(value);
  if (name.endsWith("seconds")) return wait(value);
  if (name.endsWith("share")) return percent(value);
  return Number.isInteger(value) ? count(value) : String(+value.toPrecision(4));
}

/**
 * Returns the entry as JSON, without fields that are null.
 *
 * @param {HistoryEntry} entry
 */
function rawText({ details, ...entry }) {
  const fields = Object.entries({ ...entry, ...details }).filter(([, value]) => value !== null);
  return JSON.stringify(Object.fromEntries(fields), null, fields.length > 4 ? 2 : undefined);
}
