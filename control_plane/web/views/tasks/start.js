// @ts-check
// The forms that start an evaluation, an export or a publication of a run.

import { RequestFailed, newKey, post } from "../../api.js";
import { make, setText, show } from "../../dom.js";
import { SpecForm, inWords } from "../create/spec_form.js";
import { loadSchemas } from "../lists/settings.js";

/** @import { Task } from "../../types.d.ts" */

/** @typedef {{path: string, schema: string, label: string, first: string[]}} Kind */

/** @type {Record<string, Kind>} */
export const KINDS = {
  evaluate: {
    path: "evaluations", schema: "EvaluationBody", label: "Evaluate",
    first: ["suites", "weights", "against", "text.data"],
  },
  export: { path: "exports", schema: "ExportBody", label: "Export", first: ["format", "type", "output"] },
  publish: {
    path: "publications", schema: "PublicationBody", label: "Publish",
    first: ["to", "private", "license", "upload"],
  },
};

export class StartForm {
  /**
   * @param {string} stage
   * @param {(task: Task) => void} onStarted
   */
  constructor(stage, onStarted) {
    this.kind = KINDS[stage];
    this.runId = "";
    this.key = ""; // of the request, so that a repeated one makes no second task
    this.onStarted = onStarted;
    this.form = new SpecForm(`${stage}-`);
    this.isBuilt = false;
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    const start = make("button", { className: "strong", textContent: this.kind.label });
    const cancel = make("button", { type: "button", className: "quiet", textContent: "Cancel" });
    this.element = make("form", { className: "task-form", noValidate: true, hidden: true },
      this.problem, this.form.element, make("div", { className: "actions" }, start, cancel));
    this.element.setAttribute("aria-label", this.kind.label);
    cancel.addEventListener("click", () => show(this.element, false));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
  }

  /** @param {string} runId */
  async open(runId) {
    this.runId = runId;
    this.key = newKey();
    this.say("");
    if (!this.isBuilt) {
      const { schemas } = await loadSchemas();
      this.form.build(schemas, {
        schema: schemas[this.kind.schema], first: new Set(this.kind.first), title: this.kind.label,
      });
      this.isBuilt = true;
    }
    show(this.element, true);
    this.form.fields.get(this.kind.first[0])?.focus();
  }

  async submit() {
    this.say("");
    try {
      /** @type {Task} */
      const task = await post(`/runs/${this.runId}/${this.kind.path}`, this.form.spec(), this.key);
      show(this.element, false);
      this.onStarted(task);
    } catch (error) {
      if (error instanceof RequestFailed) this.key = newKey(); // it made no task
      if (error instanceof RequestFailed && error.errors.length > 0) {
        this.say(this.form.mark(error.errors).map(inWords).join("; "));
      } else this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {string} text "" for none */
  say(text) {
    setText(this.problem, text);
    show(this.problem, text !== "");
  }
}
