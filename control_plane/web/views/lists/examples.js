// @ts-check
// What an empty page shows: how to make a first run from a terminal.

import { get, hasToken } from "../../api.js";
import { byId, setText } from "../../dom.js";

/** @import { Models } from "../../types.d.ts" */

/** Shows the commands, with a model that there is. */
export async function showExamples() {
  /** @type {Models} */
  const { models } = await get("/models");
  const model = models.find((entry) => entry.problem === null);
  const student = model?.has_weights ? { init: model.path } : { config: model?.path ?? "MODEL" };
  const spec = {
    name: "first", student, data: { kind: "synthetic", seq_len: 128 },
    objective: { alpha: 1 }, schedule: { steps: 100, warmup_steps: 10 },
  };
  const { origin } = location;
  const body = JSON.stringify(spec);
  const token = hasToken()
    ? "-H \"authorization: Bearer $(cat ~/.lectern/secrets/control-plane)\" \\\n  "
    : "";
  setText(byId("cli-line"), `lectern runs create run.yaml --url ${origin}`);
  setText(
    byId("curl-line"),
    `curl ${origin}/runs ${token}-H 'content-type: application/json' \\\n  -d '${body}'`,
  );
}
