// @ts-check
// A new run: a form made of the schema of a spec. It can begin as a copy of a run, be checked
// before the start, change what a resume may change, and fork a run from one of its checkpoints.

import { RequestFailed, get, newKey, post } from "../../api.js";
import { make, setText, show } from "../../dom.js";
import { count, loss, size } from "../../format.js";
import { loadSchemas } from "../lists/settings.js";
import { pathOfRun } from "../../state/router.js";
import { checkParts } from "./checks.js";
import { SpecForm, inWords } from "./spec_form.js";
import { loadSuggestions } from "./suggestions.js";

/** @import { Checkpoint, Checkpoints, Run, RunDetail, SpecCheck } from "../../types.d.ts" */

/** @typedef {"new" | "edit" | "fork"} Kind */

/** @type {Record<Kind, {title: string, start: string}>} */
const WORDS = {
  new: { title: "New run", start: "Start the run" },
  edit: { title: "Edit and resume", start: "Resume the run" },
  fork: { title: "Fork", start: "Start the fork" },
};

// The student of a fork is that of the checkpoint.
const NOT_OF_A_FORK = /^student\.(?!dtype$)/;

export class NewRun {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.form = new SpecForm("field-");
    /** @type {Kind} */
    this.kind = "new";
    /** @type {RunDetail | null} the run that is edited or forked */
    this.before = null;
    this.key = ""; // of the request, so that a repeated one makes no second run
    this.title = make("h1");
    this.lead = make("p", { className: "muted" });
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.from = make("select", { id: "fork-checkpoint" });
    this.fromError = make("p", { className: "bad", id: "fork-checkpoint-error", hidden: true });
    this.from.setAttribute("aria-describedby", this.fromError.id);
    this.fromBox = make(
      "fieldset",
      { className: "card part" },
      make("legend", { textContent: "Fork from" }),
      make(
        "div",
        { className: "fields" },
        make(
          "div",
          { className: "field" },
          make("label", { htmlFor: this.from.id, textContent: "checkpoint" }),
          this.from,
          this.fromError,
          make("p", {
            className: "hint",
            textContent:
              "The fork starts with the student, the optimizer and the place in the data that this checkpoint has.",
          }),
        ),
      ),
    );
    this.check = make("button", { type: "button", className: "quiet", textContent: "Check" });
    this.start = make("button", { className: "strong" });
    this.result = make("section", { className: "card part", hidden: true });
    this.result.setAttribute("aria-live", "polite");
    const form = make(
      "form",
      { className: "run-form", noValidate: true },
      this.problem,
      this.fromBox,
      this.form.element,
      make("div", { className: "actions" }, this.start, this.check),
      this.result,
    );
    const trail = make(
      "p",
      { className: "trail" },
      make("a", { href: "#/", textContent: "All runs" }),
    );
    element.append(trail, this.title, this.lead, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.check.addEventListener("click", () => this.ask());
  }

  /**
   * @param {Kind} kind
   * @param {string | null} id of the run that it begins with
   * @param {URLSearchParams} params `twin` makes it the cross-entropy twin of that run;
   *   `checkpoint` is the step of the one to fork from
   */
  async show(kind, id, params) {
    this.kind = kind;
    this.before = null;
    this.key = newKey();
    show(this.result, false);
    this.say("");
    setText(this.title, WORDS[kind].title);
    setText(this.start, WORDS[kind].start);
    setText(this.lead, "");
    show(this.check, kind === "new");
    show(this.fromBox, kind === "fork");
    try {
      const { schemas, mayChange } = await loadSchemas();
      /** @type {RunDetail | null} */
      const run = id ? await get(`/runs/${encodeURIComponent(id)}`) : null;
      this.form.build(schemas, {
        changeable: kind === "edit" ? mayChange : null,
        isLeftOut: (path) => kind === "fork" && NOT_OF_A_FORK.test(path),
      });
      if (run !== null) this.fill(run, params.has("twin"));
      if (run !== null && kind === "fork")
        await this.offerCheckpoints(run, params.get("checkpoint"));
      setText(this.lead, leadOf(kind, run));
      loadSuggestions(this.form).catch(() => {});
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * @param {RunDetail} run
   * @param {boolean} isTwin
   */
  fill(run, isTwin) {
    if (this.kind !== "new") this.before = run;
    const isLeftOut = (/** @type {string} */ path) => isTwin && /^(teacher|objective)\./.test(path);
    this.form.fill(run, this.kind !== "edit", isLeftOut);
    if (this.kind === "edit") return;
    const ending = { new: isTwin ? "-twin" : "", fork: "-fork", edit: "" }[this.kind];
    this.form.fields.get("name")?.set(`${run.name.slice(0, 63 - ending.length)}${ending}`);
    if (isTwin) this.form.fields.get("objective.alpha")?.set(1);
    this.form.openUsed();
  }

  /**
   * Offers the checkpoints of the run, newest first.
   *
   * @param {RunDetail} run
   * @param {string | null} step
   */
  async offerCheckpoints(run, step) {
    /** @type {Checkpoints} */
    const { checkpoints } = await get(`/runs/${run.id}/checkpoints`);
    this.from.replaceChildren(
      ...checkpoints.toReversed().map((one) =>
        make("option", {
          value: String(one.step),
          textContent: checkpointWords(one),
          selected: String(one.step) === step,
        }),
      ),
    );
    this.start.disabled = checkpoints.length === 0;
    if (checkpoints.length === 0) this.say(`${run.id} has no checkpoint yet to fork from.`);
  }

  /** Checks the spec; creates nothing. */
  async ask() {
    await this.sending("Checking \u2026", async () => {
      /** @type {SpecCheck} */
      const answer = await post("/runs/check", this.form.spec());
      this.result.replaceChildren(...checkParts(answer));
      show(this.result, true);
      this.result.scrollIntoView({ block: "nearest" });
      const faults = answer.checks.flatMap(({ field, message }) =>
        field ? [{ field, message }] : [],
      );
      this.form.mark(faults);
    });
  }

  /** Starts the run, resumes it or forks it, and shows it. */
  async submit() {
    await this.sending("Starting \u2026", async () => {
      /** @type {Run} */
      const run = await this.send();
      location.hash = pathOfRun(run.id);
    });
  }

  send() {
    const { before, key } = this;
    if (before === null) return post("/runs", this.form.spec(), key);
    const changes = this.form.changes(before.settings);
    if (this.kind === "edit") return post(`/runs/${before.id}/resume`, changes);
    const checkpoint = this.from.value === "" ? null : Number(this.from.value);
    return post(`/runs/${before.id}/fork`, { checkpoint, changes }, key);
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
      if (error instanceof RequestFailed) this.key = newKey(); // it made no run
      show(this.result, false);
    } finally {
      this.start.disabled = this.check.disabled = false;
      setText(this.start, label);
    }
  }

  /** @param {import("../../types.d.ts").FieldProblem[]} errors */
  mark(errors) {
    const ofFrom = errors.find(({ field }) => field === "checkpoint" && this.kind === "fork");
    setText(this.fromError, ofFrom?.message ?? "");
    show(this.fromError, ofFrom !== undefined);
    this.from.setAttribute("aria-invalid", String(ofFrom !== undefined));
    return this.form.mark(
      errors
        .filter((error) => error !== ofFrom)
        .map(({ field, message }) => ({ field: field.replace(/^changes\./, ""), message })),
    );
  }

  /** @param {string} problem */
  say(problem) {
    setText(this.problem, problem);
    show(this.problem, problem !== "");
  }
}

/** @param {Checkpoint} checkpoint */
function checkpointWords({ step, bytes, validation_loss: measured }) {
  const words = `step ${count(step)}, ${size(bytes)}`;
  return measured === null ? words : `${words}, validation loss ${loss(measured)}`;
}

/**
 * @param {Kind} kind
 * @param {RunDetail | null} run
 */
function leadOf(kind, run) {
  if (kind === "edit" && run)
    return `What a resume of ${run.id} may change. Empty means the default.`;
  if (kind === "fork" && run)
    return `A new run that goes on from a checkpoint of ${run.id}, which stays as it is. Change what it should do differently.`;
  const begun = run ? `It begins as a copy of ${run.id}. ` : "";
  return `${begun}An empty field has its default, which it shows.`;
}
