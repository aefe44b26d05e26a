// @ts-check
// A new sweep: the form of a run in which settings may have several values, or combinations as
// JSON. It says how many runs that makes, and can be checked before the start.

import { RequestFailed, get, newKey, post } from "../../api.js";
import { make, setText, show } from "../../dom.js";
import { count } from "../../format.js";
import { pathOfSweep } from "../../state/router.js";
import { SpecForm, inWords } from "../create/spec_form.js";
import { loadSuggestions } from "../create/suggestions.js";
import { loadSchemas } from "../lists/settings.js";
import { sweepCheckParts } from "./checks.js";

/** @import { FieldProblem, RunDetail, Sweep, SweepCheck } from "../../types.d.ts" */

const LABELS = ["priority", "tags", "notes"];
const EXAMPLE = '{"optimizer.learning_rate": [1e-4, 3e-4], "seed": [0, 1]}';
const OWN = /** @type {const} */ (["name", "metric", "goal", "json"]);

export class NewSweep {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.form = new SpecForm("sweep-field-");
    this.key = "";
    this.lead = make("p", { className: "muted" });
    this.problem = make("p", { className: "bad", hidden: true });
    this.problem.setAttribute("role", "alert");
    this.name = make("input", { type: "text", autocomplete: "off", spellcheck: false });
    this.metric = make("input", {
      type: "text",
      autocomplete: "off",
      spellcheck: false,
      placeholder: "loss/val",
    });
    this.goal = make(
      "select",
      {},
      new Option("the lowest", "min"),
      new Option("the highest", "max"),
    );
    this.json = make("textarea", { rows: 5, spellcheck: false, placeholder: EXAMPLE });
    /** @type {Record<typeof OWN[number], HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement>} */
    this.own = { name: this.name, metric: this.metric, goal: this.goal, json: this.json };
    this.size = make("p", { className: "sweep-size" });
    this.size.setAttribute("role", "status");
    this.start = make("button", { className: "strong", textContent: "Start the sweep" });
    this.check = make("button", { type: "button", className: "quiet", textContent: "Check" });
    this.result = make("section", { className: "card part", hidden: true });
    this.result.setAttribute("aria-live", "polite");
    this.combinations = make(
      "details",
      {},
      make("summary", { textContent: "Combinations as JSON" }),
      make(
        "div",
        { className: "fields" },
        ownField(
          "combinations",
          this.json,
          "Instead of several values at the fields: an object with a list of values for each setting, of which all combinations are made; or a list of combinations, each an object with a value for each setting.",
        ),
      ),
    );
    const form = make(
      "form",
      { className: "sweep-form", noValidate: true },
      this.problem,
      make(
        "fieldset",
        { className: "card part" },
        make("legend", { textContent: "The sweep" }),
        make(
          "div",
          { className: "fields" },
          ownField("name", this.name, "Named like a run; its runs carry it too."),
          ownField("metric", this.metric, "What the runs are compared by, as it is logged."),
          ownField("goal", this.goal, "Which value is the best."),
        ),
        this.combinations,
      ),
      this.form.element,
      this.size,
      make("div", { className: "actions" }, this.start, this.check),
      this.result,
    );
    element.append(
      make("p", { className: "trail" }, make("a", { href: "#/sweeps", textContent: "All sweeps" })),
      make("h1", { textContent: "New sweep" }),
      this.lead,
      form,
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    form.addEventListener("input", () => this.count());
    form.addEventListener("change", () => this.count());
    this.check.addEventListener("click", () => this.ask());
  }

  /** @param {URLSearchParams} params `from`: the run that the base is a copy of */
  async show(params) {
    this.key = newKey();
    show(this.result, false);
    this.say("");
    for (const control of [this.name, this.metric, this.json]) control.value = "";
    this.mark([]);
    try {
      const { schemas } = await loadSchemas();
      const id = params.get("from");
      /** @type {RunDetail | null} */
      const run = id ? await get(`/runs/${encodeURIComponent(id)}`) : null;
      this.form.build(schemas, {
        isLeftOut: (path) => path === "name" || path === "group",
        mayVary: (path) => !LABELS.includes(path),
      });
      if (run !== null) {
        this.form.fill(run, true);
        this.form.openUsed();
        this.name.value = run.name.slice(0, 57) + "-sweep";
      }
      const begun = run === null ? "" : `The settings are those of ${run.id}. `;
      setText(
        this.lead,
        `${begun}Tick "several" at a setting to give it a value per line. Each combination becomes a run.`,
      );
      loadSuggestions(this.form).catch(() => {});
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
    this.count();
  }

  /**
   * Returns the combinations as the request has them. Throws SyntaxError if they are no JSON.
   *
   * @returns {{grid: Record<string, any[]>} | {list: any[]}}
   */
  settings() {
    const text = this.json.value.trim();
    if (text === "") return { grid: this.form.grid() };
    const value = JSON.parse(text);
    return Array.isArray(value) ? { list: value } : { grid: value };
  }

  body() {
    return {
      name: this.name.value.trim(),
      base: this.form.spec(),
      metric: this.metric.value.trim() || "loss/val",
      goal: this.goal.value,
      ...this.settings(),
    };
  }

  /** Says how many runs there would be. */
  count() {
    setText(this.size, this.sizeText());
  }

  sizeText() {
    try {
      const settings = this.settings();
      if ("list" in settings)
        return `${count(settings.list.length)} runs, one for each combination.`;
      const numbers = Object.values(settings.grid).map((values) =>
        Array.isArray(values) ? values.length : 0,
      );
      if (numbers.length === 0) return "No setting has several values yet.";
      const runs = numbers.reduce((product, number) => product * number, 1);
      const how = numbers.length > 1 ? ` (${numbers.join(" \u00d7 ")})` : "";
      return `${runs === 1 ? "1 run" : `${count(runs)} runs`}${how}.`;
    } catch {
      return "The combinations are not JSON yet.";
    }
  }

  async ask() {
    await this.sending("Checking \u2026", async () => {
      /** @type {SweepCheck} */
      const answer = await post("/sweeps/check", this.body());
      this.result.replaceChildren(...sweepCheckParts(answer));
      show(this.result, true);
      this.result.scrollIntoView({ block: "nearest" });
      this.mark(answer.checks.flatMap(({ field, message }) => (field ? [{ field, message }] : [])));
    });
  }

  async submit() {
    await this.sending("Starting \u2026", async () => {
      /** @type {Sweep} */
      const sweep = await post("/sweeps", this.body(), this.key);
      location.hash = pathOfSweep(sweep.id);
    });
  }

  /**
   * @param {string} words
   * @param {() => Promise<void>} send
   */
  async sending(words, send) {
    this.say("");
    this.mark([]);
    this.start.disabled = this.check.disabled = true;
    const label = this.start.textContent;
    setText(this.start, words);
    try {
      await send();
    } catch (error) {
      const isJson = error instanceof SyntaxError;
      const errors = error instanceof RequestFailed ? error.errors : [];
      if (isJson) errors.push({ field: "json", message: `This is not JSON: ${error.message}` });
      const left = this.mark(errors);
      const text = error instanceof Error ? error.message : String(error);
      if (errors.length === 0) this.say(text);
      else if (left.length > 0) this.say(left.map(inWords).join(" "));
      if (error instanceof RequestFailed) this.key = newKey(); // it made no sweep
      show(this.result, false);
    } finally {
      this.start.disabled = this.check.disabled = false;
      setText(this.start, label);
    }
  }

  /**
   * Says at each field what is wrong with it, with the value or combination that it is about.
   * Returns what is of no field.
   *
   * @param {FieldProblem[]} errors
   */
  mark(errors) {
    /** @type {Map<string, string[]>} */
    const own = new Map(OWN.map((name) => [name, []]));
    /** @type {FieldProblem[]} */
    const others = [];
    const hasJson = this.json.value.trim() !== "";
    for (const { field, message } of errors) {
      const inGrid = /^grid\.(.+?)(?:\[(\d+)\])?$/.exec(field);
      const inList = /^list\[(\d+)\](?:\.(.+))?$/.exec(field);
      if (own.has(field)) own.get(field)?.push(message);
      else if (inList)
        own
          .get("json")
          ?.push(
            `Combination ${Number(inList[1]) + 1}: ${inList[2] ? `${inList[2]} ` : ""}${message}.`,
          );
      else if (inGrid && !hasJson && this.form.fields.has(inGrid[1])) {
        const value = this.form.fields.get(inGrid[1])?.values()[Number(inGrid[2])];
        others.push({
          field: inGrid[1],
          message: inGrid[2] ? `${JSON.stringify(value)}: ${message}` : message,
        });
      } else if (inGrid || /^(grid|list)$/.test(field)) {
        own
          .get("json")
          ?.push(
            `${inGrid ? `${inGrid[1]}${inGrid[2] ? `, value ${Number(inGrid[2]) + 1}` : ""}: ` : ""}${message}.`,
          );
      } else others.push({ field: field.replace(/^base\./, ""), message });
    }
    if ((own.get("json")?.length ?? 0) > 0) this.combinations.open = true;
    const left = this.form.mark(others);
    for (const name of [...OWN].reverse()) {
      const text = (own.get(name) ?? []).join(" ");
      const control = this.own[name];
      const error = control.parentElement?.querySelector(".bad");
      if (error instanceof HTMLElement) {
        setText(error, text);
        show(error, text !== "");
      }
      control.setAttribute("aria-invalid", String(text !== ""));
      if (text !== "") control.focus();
    }
    return left;
  }

  /** @param {string} problem */
  say(problem) {
    setText(this.problem, problem);
    show(this.problem, problem !== "");
  }
}

/**
 * @param {string} label
 * @param {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} control
 * @param {string} hint
 */
function ownField(label, control, hint) {
  control.id = `sweep-${label}`;
  control.setAttribute("aria-describedby", `${control.id}-hint ${control.id}-error`);
  return make(
    "div",
    { className: "field", dataset: { own: label } },
    make("label", { htmlFor: control.id, textContent: label }),
    control,
    make("p", { className: "bad", id: `${control.id}-error`, hidden: true }),
    make("p", { className: "hint", id: `${control.id}-hint`, textContent: hint }),
  );
}
