// @ts-check
// The rooms of the page of a run, in the order of their tabs. What else is known of runs some day
// becomes one more entry here, and nothing else has to know of it.

import { CheckpointsRoom } from "./checkpoints.js";
import { CommandsRoom } from "./commands.js";
import { LogRoom } from "./log.js";
import { RolloutsRoom } from "./rollouts.js";
import { SamplesRoom } from "./samples.js";
import { SettingsRoom } from "./settings.js";
import { TimelineRoom } from "./timeline.js";
import { TasksRoom } from "../tasks/room.js";

/** @import { RunDetail, ShownRun, Task } from "../../types.d.ts" */

/**
 * A part of the page of a run, opened by its tab.
 *
 * @typedef {object} Room
 * @property {HTMLElement} element
 * @property {() => void} clear called before another run is shown
 * @property {(run: ShownRun, detail: RunDetail | null) => void | Promise<void>} load called when it
 *   is opened, when the run has changed, and every few seconds while the run is active
 * @property {() => void} [leave] called when it is not to be seen any more
 * @property {(task: Task) => void} [takeTask] called when a task of any run has changed
 * @property {(id: string) => void} [forgetTask] called when a task or a run was deleted
 */

/**
 * @typedef {object} Entry
 * @property {string} name in the address
 * @property {string} label of its tab
 * @property {() => Room} make
 * @property {(run: ShownRun) => boolean} [isFor] which runs have it; a run without it has no tab
 */

/** @type {Entry[]} the first is shown if the address names none */
export const ROOMS = [
  { name: "timeline", label: "Timeline", make: () => new TimelineRoom() },
  { name: "tasks", label: "Tasks", make: () => new TasksRoom() },
  { name: "samples", label: "Samples", make: () => new SamplesRoom() },
  {
    name: "rollouts",
    label: "Rollouts",
    make: () => new RolloutsRoom(),
    isFor: ({ settings }) => "rollout.fraction" in settings,
  },
  { name: "checkpoints", label: "Checkpoints", make: () => new CheckpointsRoom() },
  { name: "settings", label: "Settings", make: () => new SettingsRoom() },
  { name: "log", label: "Log", make: () => new LogRoom() },
  { name: "commands", label: "Commands", make: () => new CommandsRoom() },
];
