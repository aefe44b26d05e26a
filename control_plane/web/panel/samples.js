// What student and teacher wrote on: the newest evaluation first, its prompts in their order.

import { make } from "../dom.js";
import { count, isLive } from "../format.js";

export function sampleItems(samples, run) {
  if (samples.length === 0) {
    return [make("li", { textContent: "None. The prompts are evaluation.prompts of the spec." })];
  }
  const bySteps = new Map();
  for (const sample of samples) {
    if (!bySteps.has(sample.step)) bySteps.set(sample.step, []);
    bySteps.get(sample.step).push(sample);
  }
  return [...bySteps].reverse().map(([step, written]) => make(
    "li",
    {},
    make("h3", { textContent: `Step ${count(step)}` }),
    ...written.map((sample) => make(
      "dl",
      {},
      ...part("Prompt", sample.prompt),
      ...part("Student", sample.student),
      ...teacherPart(sample, run),
    )),
  ));
}

const part = (name, text) => [make("dt", { textContent: name }), textOf(text)];

// White space alone would look as if nothing had been written.
function textOf(text) {
  if (text === "") return make("dd", { className: "not-yet", textContent: "Nothing." });
  if (text.trim() !== "") return make("dd", { textContent: text });
  const marked = text.replace(/\s/g, (space) => MARKS[space] ?? "\u2423");
  return make("dd", { className: "blank", title: "White space alone", textContent: marked });
}

const MARKS = { "\n": "\u21b5\n", "\r": "\u240d", "\t": "\u21e5" };

function teacherPart(sample, run) {
  if (sample.teacher !== null) return part("Teacher", sample.teacher);
  if (run.representation === null) return [];
  const text = isLive(run) ? "Comes with the last evaluation." : "Has not answered.";
  return [make("dt", { textContent: "Teacher" }), make("dd", { className: "not-yet", textContent: text })];
}
