// @ts-check
// Which runs the list shows, in which order and with which columns: from the address, and back.

import { STATES } from "../../format.js";
import { route, setParams } from "../../state/router.js";
import { SHOWN_AT_FIRST, columnOf } from "./columns.js";

/** @import { Run, RunState, ShownRun } from "../../types.d.ts" */

const COLUMNS_KEY = "lectern-columns";

/**
 * @typedef {object} Query
 * @property {string} text a part of the name
 * @property {Set<RunState>} states empty means all
 * @property {string} sort as GET /runs has it; "" means newest first
 * @property {string[]} columns
 */

/** @returns {Query} what the address says, else what was remembered, else the usual */
export function queryOfAddress() {
  const { params } = route();
  const known = Object.keys(STATES);
  const states = (params.get("state") ?? "").split(",").filter((state) => known.includes(state));
  const remembered = params.get("cols") ?? localStorage.getItem(COLUMNS_KEY);
  const columns = (remembered?.split(",") ?? SHOWN_AT_FIRST).filter((key) => columnOf(key));
  const sort = params.get("sort") ?? "";
  return {
    text: (params.get("q") ?? "").slice(0, 100),
    states: new Set(/** @type {RunState[]} */ (states)),
    sort: columnOf(sort.replace(/^-/, "")) ? sort : "",
    columns: columns.length > 0 ? columns : SHOWN_AT_FIRST,
  };
}

/** @param {Query} query */
export function saveQuery({ text, states, sort, columns }) {
  const joined = columns.join();
  const isUsual = joined === SHOWN_AT_FIRST.join();
  if (isUsual) localStorage.removeItem(COLUMNS_KEY);
  else localStorage.setItem(COLUMNS_KEY, joined);
  setParams({ q: text, state: [...states].join(), sort, cols: isUsual ? null : joined });
}

/**
 * Returns the path that lists the runs.
 *
 * @param {Query} query
 * @param {number} limit
 * @param {string | null} cursor
 */
export function pathOf({ text, states, sort }, limit, cursor) {
  const params = new URLSearchParams({ limit: String(limit) });
  if (text) params.set("q", text);
  if (sort) params.set("sort", sort);
  if (cursor !== null) params.set("cursor", cursor);
  for (const state of states) params.append("state", state);
  return `/runs?${params}`;
}

/**
 * @param {Query} query
 * @param {Run} run
 */
export function matches({ text, states }, run) {
  if (states.size > 0 && !states.has(run.state)) return false;
  return run.id.toLowerCase().includes(text.toLowerCase());
}

/**
 * Returns the order of the list, as the control plane has it: runs without a value come last, equal
 * ones newest first.
 *
 * @param {string} sort
 * @returns {(a: ShownRun, b: ShownRun) => number}
 */
export function comparison(sort) {
  const newest = (/** @type {Run} */ a, /** @type {Run} */ b) =>
    b.created_at - a.created_at || (a.id < b.id ? 1 : -1);
  const column = columnOf(sort.replace(/^-/, ""));
  if (sort === "" || column === undefined) return newest;
  const sign = sort.startsWith("-") ? -1 : 1;
  return (a, b) => {
    const [left, right] = [column.value(a), column.value(b)];
    if (left === right) return newest(a, b);
    if (left === null || right === null) return left === null ? 1 : -1;
    return (left < right ? -1 : 1) * sign;
  };
}
