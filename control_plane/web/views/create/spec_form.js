// @ts-check
// A form made of the schema of a run spec: its fields by section, what they describe, and what is
// wrong with them.

import { find, make } from "../../dom.js";
import { Field, fieldsOf, nested } from "./fields.js";

/** @import { FieldProblem, RunDetail } from "../../types.d.ts" */
/** @import { Schema } from "../lists/settings.js" */

// Shown at once; the others are folded away, section by section.
const FIRST = new Set([
  "name",
  "teacher.address",
  "teacher.representation",
  "student.init",
  "student.config",
  "data.kind",
  "data.path",
  "data.seq_len",
  "objective.alpha",
  "objective.temperature",
  "optimizer.learning_rate",
  "schedule.steps",
  "batch.sequences_per_step",
]);

/**
 * @typedef {object} Shape
 * @property {string[] | null} [changeable] paths of the fields that there are, each with everything
 *   below it; null means all
 * @property {(path: string) => boolean} [isLeftOut] which fields there are not
 * @property {(path: string) => boolean} [mayVary] which fields can have several values
 * @property {Schema} [schema] whose fields; that of a run spec unless given
 * @property {Set<string>} [first] paths of those that are shown at once
 * @property {string} [title] of the fields that are in no section
 */

export class SpecForm {
  /** @param {string} prefix of the ids of its controls: several forms may be in one document */
  constructor(prefix) {
    this.prefix = prefix;
    /** @type {Map<string, Field>} */
    this.fields = new Map();
    this.element = make("div", { className: "form-sections" });
  }

  /**
   * @param {Record<string, Schema>} schemas
   * @param {Shape} shape
   */
  build(schemas, {
    changeable = null, isLeftOut = () => false, mayVary = () => false, schema = schemas.RunSpec,
    first = FIRST, title = "The run",
  }) {
    this.fields.clear();
    /** @type {Map<string, Field[]>} */
    const sections = new Map();
    for (const { path, ...about } of fieldsOf(schemas, schema)) {
      const isShown =
        !isLeftOut(path) &&
        (changeable === null ||
          changeable.some((one) => path === one || path.startsWith(`${one}.`)));
      if (!isShown) continue;
      const field = new Field(path, { ...about, prefix: this.prefix, mayVary: mayVary(path) });
      this.fields.set(path, field);
      const section = path.includes(".") ? path.split(".")[0] : "";
      sections.set(section, [...(sections.get(section) ?? []), field]);
    }
    this.element.replaceChildren(
      ...[...sections].map(([name, fields]) => newSection(
        name || title,
        fields,
        changeable === null ? first : new Set(fields.map(({ path }) => path)),
      )),
    );
  }

  /**
   * Fills in the settings of a run.
   *
   * @param {RunDetail} run
   * @param {boolean} isWhole whether it begins as a copy, not only as what differs
   * @param {(path: string) => boolean} [isLeftOut]
   */
  fill(run, isWhole, isLeftOut = () => false) {
    for (const [path, field] of this.fields) {
      if (path in run.settings && !isLeftOut(path)) field.set(run.settings[path]);
    }
    if (!isWhole) return;
    // A section that is not there by default is not left out, even if all in it is as usual.
    const isRecorded = "teacher.record" in run.settings;
    if (run.teacher !== null && !isRecorded && !isLeftOut("teacher.address")) {
      this.fields.get("teacher.address")?.set(run.teacher);
    }
    if (run.lora_rank !== null) this.fields.get("student.lora.rank")?.set(run.lora_rank);
  }

  /** Unfolds what has a field that is set. */
  openUsed() {
    for (const box of this.element.querySelectorAll("details")) {
      box.open ||= [...this.fields.values()].some(
        (field) => box.contains(field.element) && field.isSet(),
      );
    }
  }

  /** Returns the spec that the form describes, with only what the user has set to one value. */
  spec() {
    const set = [...this.fields].map(
      ([path, field]) => /** @type {[string, any]} */ ([path, field.value()]),
    );
    return nested(set.filter(([, value]) => value !== undefined));
  }

  /**
   * Returns what differs from these settings; an emptied field goes back to its default.
   *
   * @param {Record<string, any>} before
   */
  changes(before) {
    /** @type {[string, any][]} */
    const found = [];
    for (const [path, field] of this.fields) {
      const old = before[path];
      const value =
        field.value() ?? (old === undefined ? undefined : (field.schema.default ?? null));
      if (value !== undefined && JSON.stringify(value) !== JSON.stringify(old)) {
        found.push([path, value]);
      }
    }
    return nested(found);
  }

  /**
   * Returns the fields with several values.
   *
   * @returns {Record<string, any[]>}
   */
  grid() {
    const varied = [...this.fields].filter(([, field]) => field.isVaried());
    return Object.fromEntries(varied.map(([path, field]) => [path, field.values()]));
  }

  /**
   * Says at each field what is wrong with it, and goes to the first. Returns those without a field.
   *
   * @param {FieldProblem[]} errors
   */
  mark(errors) {
    for (const field of this.fields.values()) field.say("");
    const left = [];
    let isFirst = true;
    for (const error of errors) {
      const field = this.fieldOf(error.field);
      if (!field) {
        left.push(error);
        continue;
      }
      field.say(error.message);
      const box = field.element.closest("details");
      if (box) box.open = true;
      if (isFirst) field.focus();
      isFirst = false;
    }
    return left;
  }

  /**
   * Returns the field with this path, of which it is an entry, or that is the first below it.
   *
   * @param {string} path
   */
  fieldOf(path) {
    const exact = this.fields.get(path) ?? this.fields.get(path.replace(/\.\d+$/, ""));
    if (exact || path === "") return exact;
    return [...this.fields.values()].find((field) => field.path.startsWith(`${path}.`));
  }
}

/** @param {FieldProblem} error */
export const inWords = ({ field, message }) => (field ? `${field}: ${message}` : message);

/**
 * @param {string} name
 * @param {Field[]} fields
 * @param {Set<string>} atOnce
 */
function newSection(name, fields, atOnce) {
  const first = fields.filter(({ path }) => atOnce.has(path));
  const others = fields.filter(({ path }) => !atOnce.has(path));
  const section = make(
    "fieldset",
    { className: "card part" },
    make("legend", { textContent: name }),
  );
  section.append(make("div", { className: "fields" }, ...first.map(({ element }) => element)));
  if (others.length > 0) {
    section.append(
      make(
        "details",
        {},
        make("summary", {
          textContent: `${first.length > 0 ? "More" : "All"} settings (${others.length})`,
        }),
        make("div", { className: "fields" }, ...others.map(({ element }) => element)),
      ),
    );
  }
  if (first.length === 0) find(section, ".fields").remove();
  return section;
}
