// @ts-check
// The cross-entropy twin of a run: the same in everything but what it learns from.

import { get } from "../../api.js";

/** @import { Run, RunsPage } from "../../types.d.ts" */

const MAX_PAGES = 10;
const ABOUT_THE_TEACHER = /^(teacher|objective)(\.|$)/;

/**
 * Returns the newest run that learns from labels only and is otherwise set as this one, or null.
 *
 * @param {Run} run
 * @returns {Promise<Run | null>}
 */
export async function findTwin(run) {
  const wanted = others(run);
  let cursor = "";
  for (let page = 0; page < MAX_PAGES; page += 1) {
    /** @type {RunsPage} */
    const { runs, next_cursor: next } = await get(
      `/runs?limit=200&sort=-spec.objective.alpha${cursor}`,
    );
    const twin = runs.find((one) => one.alpha === 1 && others(one) === wanted);
    if (twin) return twin;
    if (next === null || runs.at(-1)?.alpha !== 1) return null;
    cursor = `&cursor=${next}`;
  }
  return null;
}

/** @param {Run} run */
function others({ settings }) {
  const kept = Object.entries(settings).filter(([path]) => !ABOUT_THE_TEACHER.test(path));
  return JSON.stringify(kept.sort(([a], [b]) => (a < b ? -1 : 1)));
}
