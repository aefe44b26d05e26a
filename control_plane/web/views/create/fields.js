// @ts-check
// The fields of a form that is made of the schema of a run spec: one per setting.

import { make, setText, show, withCode } from "../../dom.js";
import { sectionOf, settingText } from "../lists/settings.js";

/** @import { Schema } from "../lists/settings.js" */

/** @typedef {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} Control */

/**
 * @typedef {object} About
 * @property {Schema} schema
 * @property {boolean} isRequired
 * @property {boolean} isOfOptional whether its section is left out unless one of its fields is set
 * @property {string} prefix of the id of its control
 * @property {boolean} mayVary whether it can have several values
 */

/** One setting: its label, its control, what it does, and what is wrong with it. */
export class Field {
  /**
   * @param {string} path
   * @param {About} about
   */
  constructor(path, { schema, isRequired, isOfOptional, prefix, mayVary }) {
    this.path = path;
    this.schema = schema;
    this.kind = kindOf(schema);
    this.control = newControl(this.kind, schema, isOfOptional);
    const id = `${prefix}${path}`;
    this.control.id = id;
    this.control.required = isRequired;
    this.control.dataset.path = path;
    this.error = make("p", { className: "bad", id: `${id}-error`, hidden: true });
    const hint = make("p", { className: "hint", id: `${id}-hint` });
    hint.append(...withCode(schema.description ?? ""));
    this.control.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
    const parts = path.split(".");
    // Within the card of its section: "steps", but "lora.alpha" beside "alpha".
    const textContent = parts.slice(parts.length > 1 ? 1 : 0).join(".");
    const label = make("label", { htmlFor: id, textContent });
    this.vary = make("input", { type: "checkbox" });
    this.several = make("textarea", { rows: 3, placeholder: "one value per line", hidden: true });
    this.several.setAttribute("aria-label", `${path}: one value per line`);
    this.several.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
    this.vary.setAttribute("aria-label", `${path} has several values`);
    const head = make("div", { className: "field-head" }, label);
    if (mayVary) head.append(make("label", { className: "vary" }, this.vary, "several"));
    this.element = make("div", { className: "field", dataset: { path } }, head, this.control,
      ...(mayVary ? [this.several] : []), this.error, hint);
    this.control.addEventListener("input", () => this.say(""));
    this.several.addEventListener("input", () => this.say(""));
    this.vary.addEventListener("change", () => {
      show(this.several, this.vary.checked);
      show(this.control, !this.vary.checked);
      if (this.vary.checked && this.several.value === "") this.several.value = this.control.value;
      this.focus();
    });
  }

  isVaried() {
    return this.vary.checked;
  }

  isSet() {
    return this.isVaried() || this.control.value !== "";
  }

  focus() {
    (this.isVaried() ? this.several : this.control).focus();
  }

  /** Returns the values of a field that has several. */
  values() {
    const lines = this.several.value.split("\n").map((line) => line.trim());
    return lines.filter((line) => line !== "").map((line) => this.parse(line));
  }

  /** Returns the value that the user has set; undefined for the default, and if it has several. */
  value() {
    const text = this.control.value;
    if (text.trim() === "" || this.isVaried()) return undefined;
    return this.parse(this.kind.type === "lines" ? text : text.trim()); // a prompt may end in a blank
  }

  /**
   * @param {string} text
   * @returns {any}
   */
  parse(text) {
    if (this.kind.type === "number") return Number.isFinite(Number(text)) ? Number(text) : text;
    if (this.kind.type === "boolean") return text === "true";
    if (this.kind.type === "lines" && !this.isVaried()) return text.split("\n").filter((line) => line !== "");
    if (this.kind.type === "lines") return text.split(/\s*,\s*/);
    if (this.kind.type === "json") return parsed(text);
    return this.kind.takesNumbers && /^-?[\d.]+(e-?\d+)?$/.test(text) ? Number(text) : text;
  }

  /** @param {any} value null and undefined clear it */
  set(value) {
    const isSet = value !== null && value !== undefined;
    if (!isSet) this.control.value = "";
    else if (this.kind.type === "lines") this.control.value = value.join("\n");
    else this.control.value = typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  /** @param {string} problem "" for none */
  say(problem) {
    setText(this.error, problem);
    show(this.error, problem !== "");
    for (const control of [this.control, this.several]) {
      control.setAttribute("aria-invalid", String(problem !== ""));
    }
  }
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text; // the control plane says what is wrong with it
  }
}

/**
 * @typedef {object} Kind
 * @property {"text" | "number" | "boolean" | "choice" | "lines" | "json"} type
 * @property {string[]} [choices]
 * @property {boolean} [takesNumbers] a text that may be a number too
 */

/**
 * @param {Schema} schema
 * @returns {Kind}
 */
function kindOf(schema) {
  const options = schema.anyOf ?? [schema];
  const known = options.filter((/** @type {Schema} */ option) => option.type !== "null");
  const types = known.map((/** @type {Schema} */ option) => option.type);
  const choices = known.flatMap((/** @type {Schema} */ option) =>
    option.enum ?? (option.const === undefined ? [] : [option.const]));
  const isNumber = types.some((/** @type {string} */ type) => ["integer", "number"].includes(type));
  if (choices.length > 0) return isNumber ? { type: "text", takesNumbers: true } : { type: "choice", choices };
  if (types.includes("array")) {
    const isText = known.some((/** @type {Schema} */ option) => option.items?.type === "string");
    return { type: isText ? "lines" : "json" };
  }
  if (types.includes("boolean")) return { type: "boolean" };
  if (types.includes("string")) return { type: "text", takesNumbers: isNumber };
  return { type: isNumber ? "number" : "json" };
}

/**
 * Returns the control. Empty stands for the default, which it shows.
 *
 * @param {Kind} kind
 * @param {Schema} schema
 * @param {boolean} isOfOptional
 * @returns {Control}
 */
function newControl({ type, choices }, schema, isOfOptional) {
  const usual = schema.default === undefined || schema.default === null
    ? ""
    : settingText(schema.default);
  if (type === "choice" || type === "boolean") {
    const empty = make("option", { value: "", textContent: usual ? `${usual} (default)` : "" });
    const values = type === "boolean" ? ["true", "false"] : choices ?? [];
    return make("select", {}, empty, ...values.map((value) =>
      make("option", { value, textContent: value })));
  }
  if (type === "lines") return make("textarea", { rows: 2, placeholder: "one per line" });
  return make("input", {
    type: "text", placeholder: usual && isOfOptional ? `such as ${usual}` : usual, autocomplete: "off", spellcheck: false,
    inputMode: type === "number" ? "decimal" : "text",
  });
}

/**
 * Yields each setting, in the schema's order.
 *
 * @param {Record<string, Schema>} schemas
 * @param {Schema} section
 * @param {string} above
 * @param {boolean} isOfOptional
 * @returns {Generator<{path: string, schema: Schema, isRequired: boolean, isOfOptional: boolean}>}
 */
export function* fieldsOf(schemas, section, above = "", isOfOptional = false) {
  for (const [name, schema] of Object.entries(section.properties)) {
    const inner = sectionOf(schemas, schema);
    if (inner) {
      const isOptional = schema.default === null && schema.anyOf !== undefined;
      yield* fieldsOf(schemas, inner, `${above}${name}.`, isOptional);
    } else {
      const isRequired = (section.required ?? []).includes(name);
      yield { path: `${above}${name}`, schema, isRequired, isOfOptional };
    }
  }
}

/**
 * Puts values at dotted paths into one nested object.
 *
 * @param {[path: string, value: any][]} entries
 */
export function nested(entries) {
  /** @type {Record<string, any>} */
  const spec = {};
  for (const [path, value] of entries) {
    const names = path.split(".");
    const last = names.pop() ?? path;
    let place = spec;
    for (const name of names) place = place[name] ??= {};
    place[last] = value;
  }
  return spec;
}
