// Continues texts with llama.cpp: one JSON object on standard input, one list on standard output.
// {installed, model, prompts, tokens, special} -> [{ids, made}], and the file's chat template.

import {readFileSync} from "node:fs";

const asked = JSON.parse(readFileSync(0, "utf8"));
const home = `${asked.installed}/node_modules/node-llama-cpp/dist/index.js`;
const {getLlama, LlamaLogLevel} = await import(home);
const llama = await getLlama({
  gpu: false, build: "never", skipDownload: true, maxThreads: 1, logLevel: LlamaLogLevel.error
});
const model = await llama.loadModel({modelPath: asked.model});
const answers = [];
for (const prompt of asked.prompts) {
  const ids = model.tokenize(prompt, asked.special);
  const made = [];
  if (asked.tokens > 0) {
    const context = await model.createContext({contextSize: ids.length + asked.tokens + 8});
    const options = {temperature: 0, yieldEogToken: true};
    const start = asked.begins === null ? ids : [asked.begins, ...ids];
    for await (const token of context.getSequence().evaluate(start, options)) {
      made.push(token);
      if (made.length === asked.tokens) break;
    }
    await context.dispose();
  }
  answers.push({ids, made});
}
const {tokenizer} = model.fileInfo.metadata;
process.stdout.write(JSON.stringify({answers, chat_template: tokenizer.chat_template ?? null}));
process.exit(0);
