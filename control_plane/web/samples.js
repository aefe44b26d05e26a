// What student and teacher wrote on: the newest evaluation first, its prompts in their order.

import { make } from "./dom.js";
import { count, isLive } from "./format.js";

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

const part = (name, text) => [make("dt", { textContent: name }), make("dd", { textContent: text })];

function teacherPart(sample, run) {
  if (sample.teacher !== null) return part("Teacher", sample.teacher);
  if (run.representation === null) return [];
  const text = isLive(run) ? "Comes with the last evaluation." : "Has not answered.";
  return [make("dt", { textContent: "Teacher" }), make("dd", { className: "not-yet", textContent: text })];
}
