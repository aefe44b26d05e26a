// @ts-check
// The address of what the page shows: #/PATH?PARAMETERS, so that a view can be shared and gone
// back to.

/**
 * @typedef {object} Route
 * @property {"runs" | "run" | "new" | "edit" | "fork" | "compare" | "alerts" | "sweeps" | "sweep" | "new-sweep"} view
 * @property {string} id of the run or the sweep, if the view is of one
 * @property {URLSearchParams} params
 */

const RUN = /^\/runs\/([\w-]+)(?:\/(edit|fork))?$/;
const SWEEP = /^\/sweeps\/([\w-]+)$/;
/** @type {Record<string, Route["view"]>} by path */
const OTHERS = {
  "/new": "new", "/compare": "compare", "/alerts": "alerts", "/sweeps": "sweeps", "/sweeps/new": "new-sweep",
};

/** @returns {Route} */
export function route() {
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  const params = new URLSearchParams(query ?? "");
  const run = RUN.exec(path);
  if (run) return { view: /** @type {Route["view"]} */ (run[2] ?? "run"), id: run[1], params };
  if (path in OTHERS) return { view: OTHERS[path], id: "", params };
  const sweep = SWEEP.exec(path);
  return sweep ? { view: "sweep", id: sweep[1], params } : { view: "runs", id: "", params };
}

/**
 * Changes parameters of the address, without a new entry in the history. "" and null remove one.
 *
 * @param {Record<string, string | null>} changes
 */
export function setParams(changes) {
  const path = location.hash.replace(/^#/, "").split("?")[0] || "/";
  const { params } = route();
  for (const [name, value] of Object.entries(changes)) {
    params.delete(name); // so that equal views have equal addresses, whatever came first
    if (value) params.set(name, value);
  }
  const query = String(params).replaceAll("%2C", ",").replaceAll("%2F", "/");
  const hash = query ? `#${path}?${query}` : `#${path}`;
  if (hash !== location.hash) history.replaceState(history.state, "", hash);
}

/** @param {string} id */
export const pathOfSweep = (id) => `#/sweeps/${encodeURIComponent(id)}`;

/** @param {string} id */
export const pathOfRun = (id) => `#/runs/${encodeURIComponent(id)}`;
