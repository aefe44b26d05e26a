// @ts-check
// A new run: a form made of the schema of a spec. It can begin as a copy of a run, be checked
// before the start, and change what a resume may change.

import { RequestFailed, get, post } from "../../api.js";
import { find, make, setText, show } from "../../dom.js";
import { loadSchemas } from "../lists/settings.js";
import { pathOfRun } from "../../state/router.js";
import { checkParts } from "./checks.js";
import { Field, fieldsOf, nested } from "./fields.js";
import { loadSuggestions } from "./suggestions.js";

/** @import { FieldProblem, Run, RunDetail, SpecCheck } from "../../types.d.ts" */

// Shown at once; the others are folded away, section by section.
const FIRST = new Set([
  "name", "teacher.address", "teacher.representation", "student.init", "student.config",
  "data.kind", "data.path", "data.seq_len", "objective.alpha", "objective.temperature",
  "optimizer.learning_rate", "schedule.steps", "batch.sequences_per_step",
]);

export class NewRun {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    /** @type {Map<string, Field>} */
    this.fields = new Map();
    /** @type {RunDetail | null} the run that is edited */
    this.edited = null;
    this.title = make("h1");
    this.lead = make("p", { className: "muted" });
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.sections = make("div", { className: "form-sections" });
    this.check = make("button", { type: "button", className: "quiet", textContent: "Check" });
    this.start = make("button", { className: "strong" });
    this.result = make("section", { className: "card part", hidden: true });
    this.result.setAttribute("aria-live", "polite");
    const form = make("form", { className: "run-form", noValidate: true }, this.problem, this.sections,
      make("div", { className: "actions" }, this.start, this.check), this.result);
    const trail = make("p", { className: "trail" }, make("a", { href: "#/", textContent: "All runs" }));
    element.append(trail, this.title, this.lead, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.check.addEventListener("click", () => this.ask());
  }

  /**
   * @param {string} view "new", or "edit" to change a run and resume it
   * @param {string | null} id of the run that it begins with
   * @param {URLSearchParams} params `twin` makes it the cross-entropy twin of that run
   */
  async show(view, id, params) {
    this.edited = null;
    show(this.result, false);
    this.say("");
    setText(this.title, view === "edit" ? "Edit and resume" : "New run");
    setText(this.start, view === "edit" ? "Resume the run" : "Start the run");
    show(this.check, view === "new");
    try {
      const { schemas, mayChange } = await loadSchemas();
      /** @type {RunDetail | null} */
      const run = id ? await get(`/runs/${encodeURIComponent(id)}`) : null;
      this.build(schemas, view === "edit" ? mayChange : null);
      if (run !== null) this.fill(run, view === "edit", params.has("twin"));
      setText(this.lead, leadOf(view, run));
      loadSuggestions().catch(() => {});
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * @param {Record<string, any>} schemas
   * @param {string[] | null} changeable paths that a resume may change; null means all of a new run
   */
  build(schemas, changeable) {
    this.fields.clear();
    /** @type {Map<string, Field[]>} */
    const sections = new Map();
    for (const { path, schema, isRequired, isOfOptional } of fieldsOf(schemas, schemas.RunSpec)) {
      const isShown = changeable === null
        || changeable.some((one) => path === one || path.startsWith(`${one}.`));
      if (!isShown) continue;
      const field = new Field(path, schema, isRequired, isOfOptional);
      this.fields.set(path, field);
      const section = path.includes(".") ? path.split(".")[0] : "run";
      sections.set(section, [...(sections.get(section) ?? []), field]);
    }
    this.sections.replaceChildren(...[...sections].map(([name, fields]) =>
      newSection(name, fields, changeable !== null)));
  }

  /**
   * @param {RunDetail} run
   * @param {boolean} isEdited
   * @param {boolean} isTwin
   */
  fill(run, isEdited, isTwin) {
    if (isEdited) this.edited = run;
    for (const [path, field] of this.fields) {
      const isLeftOut = isTwin && /^(teacher|objective)\./.test(path);
      if (path in run.settings && !isLeftOut) field.set(run.settings[path]);
    }
    if (isEdited) return;
    // A section that is not there by default is not left out, even if all in it is as usual.
    if (!isTwin && run.teacher !== null) this.fields.get("teacher.address")?.set(run.teacher);
    if (run.lora_rank !== null) this.fields.get("student.lora.rank")?.set(run.lora_rank);
    this.fields.get("name")?.set(isTwin ? `${run.name}-twin`.slice(0, 63) : run.name);
    if (isTwin) this.fields.get("objective.alpha")?.set(1);
    for (const box of this.sections.querySelectorAll("details")) {
      const isUsed = [...this.fields.values()].some((field) =>
        box.contains(field.element) && field.control.value !== "");
      if (isUsed) box.open = true;
    }
  }

  /** Returns the spec that the form describes, with only what the user has set. */
  spec() {
    const set = [...this.fields].map(([path, field]) =>
      /** @type {[string, any]} */ ([path, field.value()]));
    return nested(set.filter(([, value]) => value !== undefined));
  }

  /** Returns what differs from the run that is edited; an emptied field goes back to its default. */
  changes() {
    /** @type {[string, any][]} */
    const found = [];
    for (const [path, field] of this.fields) {
      const before = this.edited?.settings[path];
      const value = field.value() ?? (before === undefined ? undefined : field.schema.default ?? null);
      if (value !== undefined && JSON.stringify(value) !== JSON.stringify(before)) {
        found.push([path, value]);
      }
    }
    return nested(found);
  }

  /** Checks the spec; creates nothing. */
  async ask() {
    await this.sending("Checking \u2026", async () => {
      /** @type {SpecCheck} */
      const answer = await post("/runs/check", this.spec());
      this.result.replaceChildren(...checkParts(answer));
      show(this.result, true);
      this.result.scrollIntoView({ block: "nearest" });
      const faults = answer.checks.flatMap(({ field, message }) => (field ? [{ field, message }] : []));
      this.mark(faults);
    });
  }

  /** Starts the run, or resumes it, and shows it. */
  async submit() {
    await this.sending("Starting \u2026", async () => {
      const path = this.edited ? `/runs/${this.edited.id}/resume` : "/runs";
      /** @type {Run} */
      const run = await post(path, this.edited ? this.changes() : this.spec());
      location.hash = pathOfRun(run.id);
    });
  }

  /**
   * @param {string} words
   * @param {() => Promise<void>} send
   */
  async sending(words, send) {
    const label = this.start.textContent;
    this.say("");
    this.mark([]);
    this.start.disabled = this.check.disabled = true;
    setText(this.start, words);
    try {
      await send();
    } catch (error) {
      const errors = error instanceof RequestFailed ? error.errors : [];
      const left = this.mark(errors);
      const text = error instanceof Error ? error.message : String(error);
      if (errors.length === 0) this.say(text);
      else if (left.length > 0) this.say(left.map(inWords).join(" "));
      show(this.result, false);
    } finally {
      this.start.disabled = this.check.disabled = false;
      setText(this.start, label);
    }
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
      if (isFirst) field.control.focus();
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

  /** @param {string} problem */
  say(problem) {
    setText(this.problem, problem);
    show(this.problem, problem !== "");
  }
}

/** @param {FieldProblem} error */
const inWords = ({ field, message }) => (field ? `${field}: ${message}` : message);

/**
 * @param {string} name
 * @param {Field[]} fields
 * @param {boolean} isAllOpen
 */
function newSection(name, fields, isAllOpen) {
  const first = fields.filter(({ path }) => FIRST.has(path) || isAllOpen);
  const others = fields.filter(({ path }) => !FIRST.has(path) && !isAllOpen);
  const section = make("fieldset", { className: "card part" },
    make("legend", { textContent: name === "run" ? "The run" : name }));
  section.append(make("div", { className: "fields" }, ...first.map(({ element }) => element)));
  if (others.length > 0) {
    section.append(make("details", {},
      make("summary", { textContent: `${first.length > 0 ? "More" : "All"} settings (${others.length})` }),
      make("div", { className: "fields" }, ...others.map(({ element }) => element))));
  }
  if (first.length === 0) find(section, ".fields").remove();
  return section;
}

/**
 * @param {string} view
 * @param {RunDetail | null} run
 */
function leadOf(view, run) {
  if (view === "edit" && run) return `What a resume of ${run.id} may change. Empty means the default.`;
  const begun = run ? `It begins as a copy of ${run.id}. ` : "";
  return `${begun}An empty field has its default, which it shows.`;
}
