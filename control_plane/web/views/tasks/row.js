// @ts-check
// One task: what it is, how far it is, and what can be done with it.

import { getText, post, remove } from "../../api.js";
import { make, setText, show } from "../../dom.js";
import { STATES, count, dateTime, joined, roughly, sentence } from "../../format.js";
import { isConfirmed } from "../run/actions.js";

/** @import { Task } from "../../types.d.ts" */

const ACTIVE = new Set(["queued", "starting", "running", "stopping"]);

/** @param {Task} task */
export const isAtWork = (task) => ACTIVE.has(task.state) || task.resumes_at !== null;

export class TaskRow {
  /** @param {Task} task */
  constructor(task) {
    this.task = task;
    this.pill = make("span", { className: "pill" });
    this.text = make("p", { className: "muted" });
    this.problem = make("p", { className: "bad", hidden: true });
    this.bar = make("span", { className: "bar" }, make("i"));
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", "Progress");
    this.said = make("ul", { className: "hint" });
    this.log = make("pre", { className: "text log", hidden: true });
    const button = (/** @type {string} */ textContent, /** @type {() => void} */ act) => {
      const made = make("button", { type: "button", className: "quiet small", textContent });
      made.setAttribute("aria-label", `${textContent}: ${task.id}`);
      made.addEventListener("click", act);
      return made;
    };
    this.stop = button("Stop", () => this.act(() => post(`/tasks/${task.id}/stop`)));
    this.resume = button("Resume", () => this.act(() => post(`/tasks/${task.id}/resume`)));
    this.delete = button("Delete", async () => {
      const text = "Its result and its log go with it. This cannot be undone.";
      if (await isConfirmed(`Delete ${task.id}?`, text, "Delete the task")) {
        this.act(() => remove(`/tasks/${task.id}`));
      }
    });
    const log = button("Log", () => this.act(async () => {
      if (this.log.hidden === true) setText(this.log, (await getText(`/tasks/${task.id}/log`)) || "Empty so far");
      show(this.log, this.log.hidden === true);
    }));
    this.element = make("li", { className: "task", dataset: { id: task.id } },
      make("div", { className: "toolbar" },
        make("span", {}, make("b", { textContent: task.id }), " ", this.pill),
        make("span", { className: "actions" }, this.stop, this.resume, log, this.delete)),
      this.text, this.problem, this.bar, this.said, this.log);
    this.fill(task);
  }

  /** @param {Task} task */
  fill(task) {
    this.task = task;
    setText(this.pill, STATES[task.state]);
    this.pill.dataset.state = task.state;
    const isAt = isAtWork(task);
    const left = task.eta_seconds === null ? "" : `${roughly(task.eta_seconds)} left`;
    const done = task.doing === null ? "" : `${count(task.done)} of ${count(task.of)} ${task.doing}`;
    const place = task.queue_position === null ? "" : `Number ${task.queue_position} in the queue`;
    setText(this.text, joined(
      `${whatOf(task)}, ${dateTime(task.created_at)}`, place, isAt ? done : "", isAt ? left : "",
      task.state === "failed" ? "" : sentence(task.message),
    ));
    setText(this.problem, task.state === "failed" ? sentence(task.message) : "");
    show(this.problem, task.state === "failed");
    show(this.bar, isAt && task.of > 0);
    this.bar.setAttribute("aria-valuemax", String(task.of));
    this.bar.setAttribute("aria-valuenow", String(task.done));
    const inner = this.bar.firstElementChild;
    if (inner instanceof HTMLElement) {
      inner.style.width = `${Math.min(100, (100 * task.done) / (task.of || 1))}%`;
    }
    if (this.said.childElementCount !== task.said.length || this.said.textContent !== task.said.join("")) {
      this.said.replaceChildren(...task.said.map((textContent) => make("li", { textContent })));
    }
    show(this.said, task.said.length > 0);
    show(this.stop, isAt && task.state !== "stopping");
    show(this.resume, task.resumable);
    show(this.delete, !isAt);
  }

  /** @param {() => Promise<any>} send */
  async act(send) {
    try {
      await send();
    } catch (error) {
      setText(this.problem, error instanceof Error ? error.message : String(error));
      show(this.problem, true);
    }
  }
}

/** @param {Task} task */
function whatOf({ stage, asked }) {
  if (stage === "evaluate") {
    const weights = asked.weights ?? "export";
    const of = typeof weights === "number" ? `step ${weights}` : weights;
    return `${(asked.suites ?? []).join(", ")} of the ${of}`;
  }
  if (stage === "export") return [asked.format, asked.type].filter(Boolean).join(" ");
  if (stage === "publish") return `${asked.upload ? "Upload to" : "Plan for"} ${asked.to}`;
  return stage;
}
