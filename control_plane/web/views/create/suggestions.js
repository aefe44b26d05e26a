// @ts-check
// What there is to choose from: models, datasets, teachers and records that the control plane knows.

import { get } from "../../api.js";
import { make } from "../../dom.js";

/** @import { SpecForm } from "./spec_form.js" */
/** @import { Datasets, Models, Records, Teachers } from "../../types.d.ts" */

/**
 * Gives the fields that name one of them a list of those that there are.
 *
 * @param {SpecForm} form
 */
export async function loadSuggestions(form) {
  const suggest = (/** @type {string} */ path, /** @type {string[]} */ values) =>
    suggestAt(form, path, values);
  /** @type {[Models, Datasets, Teachers, Records]} */
  const [{ models }, { datasets }, { teachers }, { records }] = await Promise.all(
    [get("/models"), get("/datasets"), get("/teachers"), get("/records")],
  );
  const usable = models.filter(({ problem }) => problem === null);
  suggest("student.init", usable.filter((model) => model.has_weights).map(({ path }) => path));
  suggest("student.config", usable.map(({ path }) => path));
  const readable = datasets.filter(({ problem }) => problem === null);
  const [prompts, texts] = [true, false].map((are) =>
    readable.filter(({ holds }) => (holds === "prompts") === are).map(({ path }) => path));
  suggest("data.path", texts);
  suggest("data.validation_path", texts);
  suggest("rollout.prompts", prompts);
  suggest("teacher.address", teachers.map(({ address }) => address));
  const whole = records.filter(({ problem }) => problem === null);
  suggest("teacher.record", whole.map(({ path }) => path));
}

/**
 * @param {SpecForm} form
 * @param {string} path of a field; nothing happens if the form does not have it
 * @param {string[]} values
 */
function suggestAt(form, path, values) {
  const input = form.fields.get(path)?.control;
  if (!(input instanceof HTMLInputElement)) return;
  const id = `${form.prefix}known-${path}`;
  input.setAttribute("list", id);
  input.parentElement?.append(make("datalist", { id }, ...values.map((value) =>
    make("option", { value }))));
}
