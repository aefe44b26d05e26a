// @ts-check
// The dialog that deletes old runs: first what would go, with its names and sizes; then it goes.

import { RequestFailed, post } from "../../api.js";
import { byId, make, setText, show } from "../../dom.js";
import { STATES, ago, count, size } from "../../format.js";
import { pathOfRun, setParams } from "../../state/router.js";

/** @import { Pruned, RunState } from "../../types.d.ts" */

/** @type {RunState[]} */
const PRUNABLE = ["succeeded", "stopped", "failed", "interrupted"];
const AT_FIRST = new Set(["failed", "stopped"]);

/** @type {{name: string, label: string, hint: string}[]} */
const FIELDS = [
  {
    name: "older_than_days",
    label: "Ended more than so many days ago",
    hint: "Empty: at any time.",
  },
  { name: "keep_newest", label: "Keep the newest", hint: "So many of them stay." },
  { name: "group", label: "Only of the group", hint: "Empty: of any, or none." },
];

class Prune {
  constructor() {
    this.dialog = byId("prune-dialog", HTMLDialogElement);
    /** @type {string} what the plan was made of */
    this.planned = "";
    this.states = PRUNABLE.map((value) =>
      make("input", { type: "checkbox", value, checked: AT_FIRST.has(value) }),
    );
    this.fields = FIELDS.map(newField);
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.plan = make("div", { className: "plan" });
    this.plan.setAttribute("aria-live", "polite");
    this.show = make("button", { className: "strong", textContent: "Show what would go" });
    this.delete = make("button", { type: "button", className: "danger", hidden: true });
    const close = make("button", { type: "button", className: "quiet", textContent: "Close" });
    this.form = make(
      "form",
      { method: "dialog", noValidate: true },
      make("h2", { id: "prune-title", textContent: "Prune runs" }),
      make("p", {
        className: "muted",
        textContent:
          "Deletes runs with their folders: checkpoints, metrics, log and export. Nothing goes before you have seen the list.",
      }),
      make(
        "fieldset",
        { className: "in-line" },
        make("legend", { textContent: "In these states" }),
        ...this.states.map((box, place) => make("label", {}, box, STATES[PRUNABLE[place]])),
      ),
      make("div", { className: "fields" }, ...this.fields.map(({ element }) => element)),
      this.problem,
      this.plan,
      make("div", { className: "actions" }, close, this.show, this.delete),
    );
    this.dialog.append(this.form);
    close.addEventListener("click", () => this.dialog.close());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask(true);
    });
    this.form.addEventListener("input", () => this.forget());
    this.delete.addEventListener("click", () => this.ask(false));
    this.dialog.addEventListener("close", () => setParams({ prune: null }));
  }

  open() {
    this.forget();
    this.plan.replaceChildren();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** A plan of other conditions is no plan any more. */
  forget() {
    show(this.delete, false);
    show(this.problem, false);
    this.plan.classList.add("old");
  }

  conditions() {
    const [days, keep, group] = this.fields.map(({ control }) => control.value.trim());
    return {
      states: this.states.filter(({ checked }) => checked).map(({ value }) => value),
      ...(days !== "" && { older_than_days: numberIn(days) }),
      ...(keep !== "" && { keep_newest: numberIn(keep) }),
      ...(group !== "" && { group }),
    };
  }

  /** @param {boolean} isPlan whether nothing is deleted yet */
  async ask(isPlan) {
    this.show.disabled = this.delete.disabled = true;
    this.mark([]);
    try {
      /** @type {Pruned} */
      const answer = await post("/runs/prune", { ...this.conditions(), dry_run: isPlan });
      this.fill(answer, isPlan);
    } catch (error) {
      const errors = error instanceof RequestFailed ? error.errors : [];
      const left = this.mark(errors);
      const text = error instanceof Error ? error.message : String(error);
      this.say(errors.length === 0 ? text : left.map(({ message }) => message).join(" "));
    } finally {
      this.show.disabled = this.delete.disabled = false;
    }
  }

  /**
   * @param {Pruned} answer
   * @param {boolean} isPlan
   */
  fill({ runs, bytes, left_out: leftOut }, isPlan) {
    const now = Date.now() / 1000;
    const number = runs.length === 1 ? "1 run" : `${count(runs.length)} runs`;
    const head = isPlan
      ? `${number}, ${size(bytes)}, would go:`
      : `Deleted ${number}, ${size(bytes)}.`;
    this.plan.classList.remove("old");
    this.plan.replaceChildren(
      make("p", { textContent: runs.length === 0 ? "No run is like that." : head }),
      ...(runs.length === 0
        ? []
        : [
            make(
              "div",
              { className: "scroll", tabIndex: 0 },
              make(
                "table",
                { className: "plain" },
                make(
                  "tbody",
                  {},
                  ...runs.map((run) =>
                    make(
                      "tr",
                      {},
                      make(
                        "th",
                        { scope: "row" },
                        isPlan
                          ? make("a", {
                              href: pathOfRun(run.run_id),
                              target: "_blank",
                              textContent: run.run_id,
                            })
                          : run.run_id,
                      ),
                      make("td", { textContent: STATES[run.state] }),
                      make("td", { textContent: ago(run.since, now) }),
                      make("td", { className: "number", textContent: size(run.disk_bytes) }),
                    ),
                  ),
                ),
              ),
            ),
          ]),
      ...leftOut.map(({ run_id: id, detail }) =>
        make("p", { className: "bad", textContent: `${id} stays: ${detail}` }),
      ),
    );
    setText(
      this.delete,
      `Delete ${runs.length === 1 ? "this run" : `these ${count(runs.length)} runs`}`,
    );
    show(this.delete, isPlan && runs.length > 0);
  }

  /** @param {import("../../types.d.ts").FieldProblem[]} errors */
  mark(errors) {
    show(this.problem, false);
    const names = new Set(FIELDS.map(({ name }) => name));
    for (const { name, control, error } of this.fields) {
      const own = errors
        .filter(({ field }) => field === name)
        .map(({ message }) => message)
        .join(" ");
      setText(error, own);
      show(error, own !== "");
      control.setAttribute("aria-invalid", String(own !== ""));
    }
    return errors.filter(({ field }) => !names.has(field));
  }

  /** @param {string} problem */
  say(problem) {
    setText(this.problem, problem);
    show(this.problem, problem !== "");
  }
}

/** @param {string} text what is no number is sent as it is: the control plane says what is wrong */
const numberIn = (text) => (Number.isFinite(Number(text)) ? Number(text) : text);

/** @param {typeof FIELDS[number]} about */
function newField({ name, label, hint }) {
  const id = `prune-${name}`;
  const control = make("input", { id, type: "text", autocomplete: "off", spellcheck: false });
  if (name !== "group") control.inputMode = "decimal";
  const error = make("p", { className: "bad", id: `${id}-error`, hidden: true });
  const help = make("p", { className: "hint", id: `${id}-hint`, textContent: hint });
  control.setAttribute("aria-describedby", `${help.id} ${error.id}`);
  const element = make(
    "div",
    { className: "field" },
    make("label", { htmlFor: id, textContent: label }),
    control,
    error,
    help,
  );
  return { name, control, error, element };
}

/** @type {Prune | null} */
let prune = null;

/** Opens the dialog. */
export function openPrune() {
  prune ??= new Prune();
  prune.open();
}
