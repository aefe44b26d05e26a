// @ts-check
// The labels of a run: group, tags, priority and notes, shown as links into the list and edited in
// place.

import { RequestFailed, patch } from "../../api.js";
import { make, setText, show } from "../../dom.js";

/** @import { Run, ShownRun } from "../../types.d.ts" */
/** @import { RunStore } from "../../state/store.js" */

/** @typedef {"priority" | "group" | "tags" | "notes"} Name */

/** @type {{name: Name, label: string, hint: string}[]} */
const FIELDS = [
  { name: "group", label: "Group", hint: "Runs that belong together; named like a run." },
  { name: "tags", label: "Tags", hint: "Words to find the run by, separated by commas." },
  {
    name: "priority",
    label: "Priority",
    hint: "-100 to 100; of the runs that wait, the highest starts first.",
  },
  { name: "notes", label: "Notes", hint: "What you want to remember about the run." },
];

export class Labels {
  /**
   * @param {HTMLElement} element
   * @param {RunStore} store
   */
  constructor(element, store) {
    this.store = store;
    /** @type {ShownRun | null} */
    this.run = null;
    this.shown = "";
    this.chips = make("p", { className: "chips" });
    this.notes = make("p", { className: "run-notes" });
    this.edit = make("button", { type: "button", className: "quiet small" });
    this.view = make("div", { className: "labels-view" }, this.chips, this.edit, this.notes);
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.fields = FIELDS.map(newField);
    const cancel = make("button", { type: "button", className: "quiet", textContent: "Cancel" });
    this.form = make(
      "form",
      { className: "labels-form card", noValidate: true, hidden: true },
      make("div", { className: "fields" }, ...this.fields.map(({ element: field }) => field)),
      this.problem,
      make(
        "div",
        { className: "actions" },
        make("button", { className: "strong", textContent: "Save the labels" }),
        cancel,
      ),
    );
    this.form.setAttribute("aria-label", "Labels");
    element.append(this.view, this.form);
    this.edit.addEventListener("click", () => this.open());
    cancel.addEventListener("click", () => this.close());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
  }

  /** @param {ShownRun} run */
  fill(run) {
    if (this.run?.id !== run.id) this.close(false);
    this.run = run;
    const text = JSON.stringify([run.id, run.priority, run.group, run.tags, run.notes]);
    if (text === this.shown) return;
    this.shown = text;
    const chips = [
      ...(run.group === null
        ? []
        : [newChip(`group ${run.group}`, `#/?group=${encodeURIComponent(run.group)}`)]),
      ...run.tags.map((tag) => newChip(tag, `#/?tag=${encodeURIComponent(tag)}`)),
      ...(run.priority === 0
        ? []
        : [make("span", { className: "chip", textContent: `priority ${run.priority}` })]),
    ];
    this.chips.replaceChildren(...chips);
    setText(this.notes, run.notes);
    show(this.notes, run.notes !== "");
    const isBare = chips.length === 0 && run.notes === "";
    setText(this.edit, isBare ? "Add labels" : "Edit labels");
  }

  open() {
    const { run } = this;
    if (run === null) return;
    for (const { name, control } of this.fields) {
      control.value = name === "tags" ? run.tags.join(", ") : String(run[name] ?? "");
    }
    this.mark([]);
    show(this.form, true);
    show(this.view, false);
    this.fields[0].control.focus();
  }

  /** @param {boolean} [returnsFocus] */
  close(returnsFocus = true) {
    if (this.form.hidden) return;
    show(this.form, false);
    show(this.view, true);
    if (returnsFocus) this.edit.focus();
  }

  async save() {
    const { run } = this;
    if (run === null) return;
    this.mark([]);
    try {
      /** @type {Run} */
      const view = await patch(`/runs/${run.id}`, this.values());
      this.store.take(view);
      if (this.run?.id === run.id) this.close();
    } catch (error) {
      const errors = error instanceof RequestFailed ? error.errors : [];
      const left = this.mark(errors);
      const text = error instanceof Error ? error.message : String(error);
      setText(
        this.problem,
        errors.length === 0 ? text : left.map(({ message }) => message).join(" "),
      );
      show(this.problem, this.problem.textContent !== "");
    }
  }

  values() {
    const text = Object.fromEntries(
      this.fields.map(({ name, control }) => [name, control.value.trim()]),
    );
    const isNumber = /^-?\d+$/.test(text.priority);
    return {
      group: text.group || null,
      tags: text.tags.split(/[\s,]+/).filter((tag) => tag !== ""),
      priority: isNumber ? Number(text.priority) : text.priority || 0,
      notes: text.notes,
    };
  }

  /**
   * Says at each field what is wrong with it. Returns what is of no field.
   *
   * @param {import("../../types.d.ts").FieldProblem[]} errors
   */
  mark(errors) {
    show(this.problem, false);
    const names = new Set();
    for (const { name, control, error } of this.fields) {
      const own = errors.filter(({ field }) => field.split(".")[0] === name);
      if (own.length > 0) {
        if (names.size === 0) control.focus();
        names.add(name);
      }
      setText(error, own.map(({ message }) => message).join(" "));
      show(error, own.length > 0);
      control.setAttribute("aria-invalid", String(own.length > 0));
    }
    return errors.filter(({ field }) => !names.has(field.split(".")[0]));
  }
}

/**
 * @param {string} text
 * @param {string} href
 */
const newChip = (text, href) =>
  make("a", { className: "chip", href, textContent: text, title: `All runs with ${text}` });

/** @param {typeof FIELDS[number]} about */
function newField({ name, label, hint }) {
  const id = `label-${name}`;
  const control =
    name === "notes"
      ? make("textarea", { id, rows: 3 })
      : make("input", { id, type: "text", autocomplete: "off", spellcheck: false });
  const error = make("p", { className: "bad", id: `${id}-error`, hidden: true });
  const help = make("p", { className: "hint", id: `${id}-hint`, textContent: hint });
  control.setAttribute("aria-describedby", `${help.id} ${error.id}`);
  const element = make(
    "div",
    { className: "field", dataset: { label: name } },
    make("label", { htmlFor: id, textContent: label }),
    control,
    error,
    help,
  );
  return { name, control, error, element };
}
