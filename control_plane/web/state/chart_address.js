// @ts-check
// What the charts keep in the address, before the #: always the choices of the charts that are
// shown, so that a copied address draws what its reader sees.

import { route } from "./router.js";

/** @typedef {Record<string, string>} Params */

/** @typedef {"runs" | "run" | "compare" | "sweep"} View those with charts */

const first = route().view;
/** @type {Map<string, Params>} by view */
const kept = new Map([[first, Object.fromEntries(new URLSearchParams(location.search))]]);

/**
 * Returns what the charts of a view take from the address and what they call with their choices.
 *
 * @param {View} view
 */
export function chartOptions(view) {
  return {
    params: kept.get(view) ?? {},
    onParams: (/** @type {Params} */ params) => {
      kept.set(view, params);
      if (route().view === view) showChartParams(view);
    },
  };
}

/**
 * Puts the choices of this view's charts into the address; a view without charts has none.
 *
 * @param {string} view
 */
export function showChartParams(view) {
  const query = String(new URLSearchParams(kept.get(view) ?? {}));
  const search = query && `?${query}`;
  if (search === location.search) return;
  history.replaceState(history.state, "", `${location.pathname}${search}${location.hash}`);
}
