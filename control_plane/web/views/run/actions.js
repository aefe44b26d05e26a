// @ts-check
// What can be done with a run: stop, resume, edit and resume, clone, fork, delete.

import { post, remove } from "../../api.js";
import { byId, make, setText, show } from "../../dom.js";
import { count, isActive, isActiveOrQueued, resumesItself } from "../../format.js";
import { pathOfRun } from "../../state/router.js";

/** @import { ShownRun } from "../../types.d.ts" */

const STOPPABLE = new Set(["queued", "starting", "running", "waiting_for_teacher"]);

/** @param {() => ShownRun | null} shown returns the run that the buttons are about */
export function makeActions(shown) {
  for (const [id, action] of Object.entries({ stop, resume, delete: deleteRun })) {
    byId(id).addEventListener("click", () => {
      const run = shown();
      if (run) action(run);
    });
  }
}

/** @param {ShownRun} run */
export function showActions(run) {
  show(byId("stop"), STOPPABLE.has(run.state) || resumesItself(run));
  show(byId("resume"), run.resumable);
  setText(byId("resume"), resumesItself(run) ? "Resume now" : "Resume");
  const isIdle = !isActiveOrQueued(run);
  show(byId("edit"), isIdle);
  show(byId("delete"), isIdle && !resumesItself(run));  // which is stopped first
  show(byId("fork"), run.checkpoint_step !== null);
  byId("fork", HTMLAnchorElement).href = `${pathOfRun(run.id)}/fork`;
  byId("edit", HTMLAnchorElement).href = `${pathOfRun(run.id)}/edit`;
  byId("sweep", HTMLAnchorElement).href = `#/sweeps/new?from=${encodeURIComponent(run.id)}`;
  byId("clone", HTMLAnchorElement).href = `#/new?from=${encodeURIComponent(run.id)}`;
}

/** Removes what was said of the last action: it was about a state that has passed. */
export const clearNote = () => setText(byId("action-note"), "");

/** @param {ShownRun} run */
async function stop(run) {
  const text = isActive(run)
    ? "You can resume the run from the checkpoint that it stops with."
    : "The run will not start on its own. You can resume it later.";
  const when = newStopChoice(run);
  const isWanted = await isConfirmed(`Stop ${run.name}?`, text, "Stop the run", isActive(run) ? when.element : null);
  if (!isWanted) return;
  const at = isActive(run) && when.later.checked ? "checkpoint" : "now";
  await act(
    () => post(`/runs/${run.id}/stop`, { at }),
    isActive(run) && at === "now" ? "Asked to stop; it saves a checkpoint first." : "",
  );
}

/**
 * Returns the choice between a stop now and one at the next checkpoint.
 *
 * @param {ShownRun} run
 */
function newStopChoice(run) {
  const now = make("input", { type: "radio", name: "stop-at", checked: true });
  const later = make("input", { type: "radio", name: "stop-at" });
  later.checked = run.stop_at === "checkpoint";
  const element = make("fieldset", { className: "stop-at" },
    make("legend", { className: "unseen", textContent: "When" }),
    make("label", {}, now, make("span", {}, "Now: it saves a checkpoint first")),
    make("label", {}, later, make("span", {}, "At its next checkpoint, when that is due anyway")));
  return { element, later };
}

/** @param {ShownRun} run */
async function resume(run) {
  const step = run.checkpoint_step;
  const from = step === null
    ? "The run has no checkpoint, so it starts from the beginning."
    : `The run continues from step ${count(step)}.`;
  const advice = run.state === "failed" ? " It failed; without a change it may fail again." : "";
  if (await isConfirmed(`Resume ${run.name}?`, from + advice, "Resume the run")) {
    await act(() => post(`/runs/${run.id}/resume`), "");
  }
}

/** @param {ShownRun} run */
async function deleteRun(run) {
  const text = "Its folder goes with it: checkpoints, metrics, samples, log and export. "
    + "This cannot be undone.";
  if (await isConfirmed(`Delete ${run.name}?`, text, "Delete the run")) {
    await act(() => remove(`/runs/${run.id}`), "");
  }
}

/**
 * Sends a request. Shows the note if it is accepted, otherwise why it is not.
 *
 * @param {() => Promise<any>} send
 * @param {string} note
 */
async function act(send, note) {
  clearNote();
  const state = byId("view-run").dataset.state;
  try {
    await send();
    // The state may have changed before the answer came; then the note is already wrong.
    if (byId("view-run").dataset.state === state) setText(byId("action-note"), note);
  } catch (error) {
    setText(byId("action-note"), error instanceof Error ? error.message : String(error));
  }
}

/**
 * Asks the user. Resolves to whether they agreed.
 *
 * @param {string} title
 * @param {string} text
 * @param {string} yes the label of the button
 * @param {HTMLElement | null} [more] what else there is to choose
 * @returns {Promise<boolean>}
 */
export function isConfirmed(title, text, yes, more = null) {
  const dialog = byId("confirm", HTMLDialogElement);
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  byId("confirm-more").replaceChildren(...(more === null ? [] : [more]));
  dialog.returnValue = "no";
  dialog.showModal();
  byId("confirm-yes").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
