// @ts-check
// The settings of a run: what it sets, and the defaults of the others, from the schema of a spec.

import { get } from "../../api.js";

/** @import { Run } from "../../types.d.ts" */

/** @typedef {Record<string, any>} Schema of JSON Schema's kind */

/** @type {Promise<Schema> | null} */
let api = null;
/** @type {Map<string, any>} by dotted path; empty until the schema is here */
const defaults = new Map();

/**
 * Loads the description of the REST interface, once.
 *
 * @returns {Promise<{schemas: Record<string, Schema>, mayChange: string[]}>} the schemas by name,
 *   and the paths of a spec that a resume may change, each with everything below it
 */
export async function loadSchemas() {
  api ??= get("/openapi.json");
  try {
    const { paths, components: { schemas } } = await api;
    if (defaults.size === 0) {
      for (const [path, field] of leavesOf(schemas, schemas.RunSpec, "")) {
        defaults.set(path, field.default ?? null);
      }
    }
    const { content } = paths["/runs/{run_id}/resume"].post.requestBody;
    return { schemas, mayChange: content["application/json"].schema["x-may-change"] };
  } catch (error) {
    api = null; // the next caller asks again
    throw error;
  }
}

/**
 * Yields each setting below a section, with its dotted path.
 *
 * @param {Record<string, Schema>} schemas
 * @param {Schema} section
 * @param {string} above
 * @returns {Generator<[path: string, field: Schema]>}
 */
export function* leavesOf(schemas, section, above) {
  for (const [name, field] of Object.entries(section.properties)) {
    const inner = sectionOf(schemas, field);
    if (inner) yield* leavesOf(schemas, inner, `${above}${name}.`);
    else yield [`${above}${name}`, field];
  }
}

/**
 * Returns the schema of a field that is a section, maybe or null.
 *
 * @param {Record<string, Schema>} schemas
 * @param {Schema} field
 * @returns {Schema | undefined}
 */
export function sectionOf(schemas, field) {
  const options = field.anyOf ?? field.allOf ?? [field];
  const reference = options.find((/** @type {Schema} */ option) => option.$ref)?.$ref;
  const found = reference && schemas[reference.split("/").at(-1)];
  return found?.properties ? found : undefined;
}

export const settingNames = () => [...defaults.keys()];

/** @param {string} path */
export const defaultOf = (path) => defaults.get(path) ?? null;

/**
 * Returns a run's value of a setting; null if it has none.
 *
 * @param {Run} run
 * @param {string} path
 */
export function settingOf(run, path) {
  if (path in run.settings) return run.settings[path];
  if (path.startsWith("teacher.") && run.representation === null) return null;
  if (path.startsWith("student.lora.") && run.lora_rank === null) return null;
  return defaultOf(path);
}

/**
 * Returns what a run has for each setting that one of the runs sets: what it does not set is the
 * default.
 *
 * @param {Run} run
 * @param {Run[]} runs
 * @returns {Record<string, any>}
 */
export function settingsAmong(run, runs) {
  const paths = new Set(runs.flatMap(({ settings }) => Object.keys(settings)));
  return Object.fromEntries([...paths].map((path) => [path, settingOf(run, path)]));
}

/**
 * Returns a setting's value as a person would write it.
 *
 * @param {any} value
 */
export function settingText(value) {
  if (value === null || value === undefined) return "\u2013";
  if (typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3) {
    return value.toExponential();
  }
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
