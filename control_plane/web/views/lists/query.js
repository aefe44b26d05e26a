// @ts-check
// Which runs the list shows, in which order and with which columns: from the address, and back.

import { STATES } from "../../format.js";
import { route, setParams } from "../../state/router.js";
import { SHOWN_AT_FIRST, columnOf } from "./columns.js";

/** @import { Run, RunState, ShownRun } from "../../types.d.ts" */

/** What a group may be called: as runs are. */
export const GROUP = /^[a-z0-9][a-z0-9-]{0,62}$/;

const COLUMNS_KEY = "lectern-columns";

/**
 * @typedef {object} Query
 * @property {string} text a part of the name
 * @property {Set<RunState>} states empty means all
 * @property {string} group "" means any
 * @property {string[]} tags a run has all of them
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
    group: GROUP.test(params.get("group") ?? "") ? params.get("group") ?? "" : "",
    tags: tagsIn(params.get("tag") ?? ""),
    sort: columnOf(sort.replace(/^-/, "")) ? sort : "",
    columns: columns.length > 0 ? columns : SHOWN_AT_FIRST,
  };
}

/**
 * Returns the tags in a text: words between commas or spaces. Others can be no run's.
 *
 * @param {string} text
 */
export const tagsIn = (text) => [...new Set(text.split(/[\s,]+/))]
  .filter((tag) => tag !== "" && tag.length <= 40).slice(0, 20);

/** @param {Query} query */
export function saveQuery({ text, states, group, tags, sort, columns }) {
  const joined = columns.join();
  const isUsual = joined === SHOWN_AT_FIRST.join();
  if (isUsual) localStorage.removeItem(COLUMNS_KEY);
  else localStorage.setItem(COLUMNS_KEY, joined);
  setParams({
    q: text, state: [...states].join(), group, tag: tags.join(), sort, cols: isUsual ? null : joined,
  });
}

/**
 * Returns the path that lists the runs.
 *
 * @param {Query} query
 * @param {number} limit
 * @param {string | null} cursor
 */
export function pathOf({ text, states, group, tags, sort }, limit, cursor) {
  const params = new URLSearchParams({ limit: String(limit) });
  if (text) params.set("q", text);
  if (sort) params.set("sort", sort);
  if (cursor !== null) params.set("cursor", cursor);
  for (const state of states) params.append("state", state);
  if (group) params.set("group", group);
  for (const tag of tags) params.append("tag", tag);
  return `/runs?${params}`;
}

/**
 * @param {Query} query
 * @param {Run} run
 */
export function matches({ text, states, group, tags }, run) {
  if (group !== "" && run.group !== group) return false;
  if (!tags.every((tag) => run.tags.includes(tag))) return false;
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
  const newest = (/** @type {Run} */ a, /** @type {Run} */ b) => b.seq - a.seq;
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
