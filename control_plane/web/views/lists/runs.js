// @ts-check
// The list of runs: searched, filtered and sorted; as much of it as the user has asked for.

import { get } from "../../api.js";
import { onSchemeChange } from "../../charts/drawing/palette.js";
import { byId, make, placeRows, setText, show } from "../../dom.js";
import { count, isActiveOrQueued } from "../../format.js";
import { columnOf } from "./columns.js";
import { comparison, matches, pathOf, queryOfAddress, saveQuery } from "./query.js";
import { Row } from "./row.js";
import { loadSchemas } from "./settings.js";

/** @import { RunStore } from "../../state/store.js" */
/** @import { RunsPage, ShownRun } from "../../types.d.ts" */
/** @import { Column } from "./columns.js" */
/** @import { Query } from "./query.js" */
/** @import { Handlers } from "./row.js" */

const PAGE_SIZE = 25;
const NEXT_PAGE = 100;
const MAX_PAGE = 200; // of GET /runs

export class RunList {
  /**
   * @param {RunStore} store
   * @param {Handlers} handlers
   * @param {() => void} onOrder called when other runs are listed, or in another order
   */
  constructor(store, handlers, onOrder) {
    this.store = store;
    this.handlers = handlers;
    this.onOrder = onOrder;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    /** @type {ShownRun[]} those listed, in their order */
    this.order = [];
    this.query = queryOfAddress();
    this.compare = comparison(this.query.sort);
    /** @type {string | null} where the next page begins; null means that all are here */
    this.cursor = null;
    /** @type {ShownRun | null} the last one of the pages so far, as it was then */
    this.last = null;
    this.total = 0;
    this.numLoads = 0;
    this.numTicks = 0;
    this.newest = Infinity; // the place of the newest run known so far
    /** @type {number | undefined} */
    this.frame = undefined;
    this.columns = columnsOf(this.query);
    this.showHeads();
    store.onChange((run, before, id) => this.take(run, before, id));
    byId("more").addEventListener("click", () => this.loadMore());
    byId("rows").addEventListener("keydown", (event) => this.moveFocus(event));
    onSchemeChange(() => this.markAll());
    setInterval(() => this.tick(), 1000);
  }

  /**
   * Loads the list from its beginning, as far as it was shown. Returns the newest revision.
   *
   * @param {(page: RunsPage) => void} [onPage] called with each page before it is shown
   */
  async load(onPage) {
    const number = (this.numLoads += 1);
    if (needsSettings(this.query)) await loadSchemas();
    const wanted = Math.max(PAGE_SIZE, this.order.length);
    const limit = Math.min(MAX_PAGE, Math.ceil(wanted / PAGE_SIZE) * PAGE_SIZE);
    /** @type {RunsPage} */
    const page = await get(pathOf(this.query, limit, null));
    if (number !== this.numLoads) return page.revision; // another search has begun
    onPage?.(page);
    this.addPage(page);
    return page.revision;
  }

  async loadMore() {
    const { query, cursor } = this;
    /** @type {RunsPage} */
    const page = await get(pathOf(query, NEXT_PAGE, cursor));
    if (query !== this.query || cursor !== this.cursor) return;
    const place = this.order.length;
    this.addPage(page);
    this.rows.get(this.order[place]?.id)?.name.focus();
  }

  /** @param {RunsPage} page */
  addPage(page) {
    this.cursor = page.next_cursor;
    const taken = page.runs.toReversed().map((run) => this.store.take(run));
    this.last = taken.at(0) ?? null;
    this.total = page.total;
    this.newest = Math.max(0, ...[...this.store.runs.values()].map((run) => run.seq));
    this.place();
  }

  /** @param {Partial<Query>} changes */
  ask(changes) {
    this.query = { ...this.query, ...changes };
    saveQuery(this.query);
    this.compare = comparison(this.query.sort);
    this.columns = columnsOf(this.query);
    this.showHeads();
    this.cursor = this.last = null;
    if (changes.columns) {
      for (const row of this.rows.values()) row.setColumns(this.columns);
    }
    this.order = this.order.slice(0, PAGE_SIZE);
    this.load().catch(() => {}); // the banner says if the connection is lost
  }

  /**
   * Takes a change of one run: fills its row, and moves it only if its place is another now.
   *
   * @param {ShownRun | null} run
   * @param {ShownRun | undefined} before
   * @param {string} id
   */
  take(run, before, id) {
    const was = before !== undefined && matches(this.query, before);
    const is = run !== null && this.isListed(run);
    if (run === null) this.total -= Number(was);
    else if (before !== undefined) this.total += Number(matches(this.query, run)) - Number(was);
    else if (run.seq > this.newest) this.total += Number(is);
    const row = this.rows.get(id);
    if (run === null || row === undefined || !is) {
      if (row !== undefined || is) this.placeSoon();
      return;
    }
    const place = this.order.indexOf(row.run);
    this.order[place] = run;
    row.fill(run);
    const [above, below] = [this.order[place - 1], this.order[place + 1]];
    const isInPlace = (!above || this.compare(above, run) < 0)
      && (!below || this.compare(run, below) < 0);
    if (!isInPlace) this.placeSoon();
  }

  /** @param {ShownRun} run */
  isListed(run) {
    if (!matches(this.query, run)) return false;
    return this.cursor === null || this.last === null || this.compare(run, this.last) <= 0;
  }

  placeSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.place();
    });
  }

  /** Puts the rows in order, and removes those that are not listed. */
  place() {
    this.order = [...this.store.runs.values()].filter((run) => this.isListed(run))
      .sort(this.compare);
    placeRows(byId("rows"), this.rows, this.order, (run) => run.id, (run) =>
      new Row(run, this.columns, this.handlers));
    for (const run of this.order) {
      const row = this.rows.get(run.id);
      if (row && row.run !== run) row.fill(run);
    }
    this.total = Math.max(this.total, this.order.length);
    const left = this.total - this.order.length;
    setText(byId("more"), `Show more (${count(left)} left)`);
    show(byId("more"), this.cursor !== null);
    show(byId("no-match"), this.order.length === 0);
    setText(byId("no-match"), "No run matches.");
    setText(byId("runs-count"), left > 0
      ? `${count(this.order.length)} of ${count(this.total)}`
      : count(this.total));
    this.onOrder();
  }

  showHeads() {
    const { sort } = this.query;
    const heads = [columnOf("name"), ...this.columns].filter((column) => column !== undefined);
    byId("heads").replaceChildren(...heads.map((column) => {
      const isSorted = sort.replace(/^-/, "") === column.sort;
      const button = make("button", { type: "button", title: column.title }, column.label);
      button.addEventListener("click", () => {
        this.ask({ sort: nextSort(sort, column) });
        byId("heads").querySelectorAll("button")[heads.indexOf(column)]?.focus();
      });
      const head = make("th", { scope: "col" }, button);
      if (column.isNumber && column.key !== "progress") head.className = "number";
      if (column.key === "name") head.className = "who";
      const direction = sort.startsWith("-") ? "descending" : "ascending";
      head.setAttribute("aria-sort", isSorted ? direction : "none");
      return head;
    }));
  }

  /** @param {string} [id] of the run whose marks have changed; none means all */
  markAll(id) {
    if (id !== undefined) this.rows.get(id)?.mark();
    else for (const row of this.rows.values()) row.mark();
  }

  tick() {
    this.numTicks += 1;
    if (document.hidden) return;
    const now = Date.now() / 1000;
    const isForAll = this.numTicks % 10 === 0; // of resting runs only the ages change
    for (const row of this.rows.values()) {
      if (isForAll || isActiveOrQueued(row.run) || row.run.resumes_at !== null) row.tick(now);
    }
  }

  /**
   * Moves between the runs with the arrow keys, or j and k.
   *
   * @param {KeyboardEvent} event
   */
  moveFocus(event) {
    const offset = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (!offset || event.ctrlKey || event.metaKey || event.altKey) return;
    const present = document.activeElement?.closest(".row");
    const next = offset > 0 ? present?.nextElementSibling : present?.previousElementSibling;
    const link = next?.querySelector(".name");
    if (!(link instanceof HTMLElement)) return;
    link.focus();
    event.preventDefault();
  }
}

/**
 * @param {Query} query
 * @returns {Column[]}
 */
function columnsOf({ columns }) {
  return columns.map(columnOf).filter((column) => column !== undefined);
}

/** @param {Query} query */
const needsSettings = ({ sort, columns }) => [sort, ...columns].some((key) => /^-?spec\./.test(key));

/**
 * Returns the next order when the head of a column is clicked: one direction, the other, newest.
 *
 * @param {string} sort
 * @param {Column} column
 */
function nextSort(sort, { sort: key, isNumber }) {
  const isLossy = /loss|kl$/.test(key); // the lowest is the best
  const [first, second] = isNumber && !isLossy ? [`-${key}`, key] : [key, `-${key}`];
  if (sort === first) return second;
  return sort === second ? "" : first;
}
