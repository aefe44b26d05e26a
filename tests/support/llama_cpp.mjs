// Continues texts with llama.cpp: a JSON object on standard input, a list on standard output.
// {installed, jobs: [{model, prompts, tokens, begins, special}]} ->
// [{answers: [{ids, made}], chat_template}]

import {readFileSync} from "node:fs";

const {installed, jobs} = JSON.parse(readFileSync(0, "utf8"));
const home = `${installed}/node_modules/node-llama-cpp/dist/index.js`;
const {getLlama, LlamaLogLevel} = await import(home);
const llama = await getLlama({
  gpu: false, build: "never", skipDownload: true, maxThreads: 1, logLevel: LlamaLogLevel.error
});

async function made(model, start, tokens) {
  const context = await model.createContext({contextSize: start.length + tokens + 8});
  const found = [];
  const options = {temperature: 0, yieldEogToken: true};
  for await (const token of context.getSequence().evaluate(start, options)) {
    found.push(token);
    if (found.length === tokens) break;
  }
  await context.dispose();
  return found;
}

const said = [];
for (const job of jobs) {
  const model = await llama.loadModel({modelPath: job.model, vocabOnly: job.tokens === 0});
  const answers = [];
  for (const prompt of job.prompts) {
    const ids = model.tokenize(prompt, job.special);
    const start = job.begins === null ? ids : [job.begins, ...ids];
    answers.push({ids, made: job.tokens > 0 ? await made(model, start, job.tokens) : []});
  }
  const {chat_template: template} = model.fileInfo.metadata.tokenizer;
  said.push({answers, chat_template: template ?? null});
  await model.dispose();
}
process.stdout.write(JSON.stringify(said));
process.exit(0);
