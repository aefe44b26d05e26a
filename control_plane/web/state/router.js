// @ts-check
// The address of what the page shows: #/PATH?PARAMETERS, so that a view can be shared and gone
// back to.

/**
 * @typedef {object} Route
 * @property {"runs" | "run" | "new" | "edit" | "compare"} view
 * @property {string} id of the run, if the view is of one
 * @property {URLSearchParams} params
 */

const RUN = /^\/runs\/([\w-]+)(\/edit)?$/;

/** @returns {Route} */
export function route() {
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  const params = new URLSearchParams(query ?? "");
  const run = RUN.exec(path);
  if (run) return { view: run[2] ? "edit" : "run", id: run[1], params };
  if (path === "/new") return { view: "new", id: "", params };
  if (path === "/compare") return { view: "compare", id: "", params };
  return { view: "runs", id: "", params };
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
export const pathOfRun = (id) => `#/runs/${encodeURIComponent(id)}`;
