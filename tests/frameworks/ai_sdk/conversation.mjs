// The AI SDK against the server at CAUSERIE_URL. `node conversation.mjs STEP` runs one function.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  embedMany,
  generateObject,
  generateText,
  Output,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from "ai";
import { z } from "zod";
import * as steps from "./conversation.mjs";

const provider = createOpenAICompatible({
  name: "causerie",
  baseURL: process.env.CAUSERIE_URL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const fixed = { model: provider("default"), temperature: 0, seed: 7, maxRetries: 0 };
const prompt = "what is a token?";
const judgement = z.object({
  subject: z.enum(["token", "cache", "server"]),
  score: z.number().int().min(0).max(9),
  certain: z.boolean(),
});
const stop = z.object({ city: z.enum(["Paris", "Lyon", "Nice"]), note: z.string().max(12).nullable() });
const journey = z.object({ title: z.string().max(16), stops: z.array(stop).min(1).max(2), home: stop });
const weather = tool({
  description: "The weather of the next days in a city.",
  inputSchema: z.object({ city: z.enum(["Paris", "Lyon", "Nice"]), days: z.number().int().min(1).max(5) }),
  execute: async ({ city, days }) => ({ city, days, sky: "sun" }),
});
// A model this small calls a tool for ever if it must: it must in the first step, and may not in the second.
const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });

export async function text() {
  const { text, finishReason, usage, response } = await generateText({ ...fixed, prompt });
  assert.ok(text.length > 0);
  assert.equal(finishReason, "stop");
  assert.equal(response.modelId, "causette");
  assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
  assert.equal(usage.totalTokens, usage.inputTokens + usage.outputTokens);
}

export async function turns() {
  const system = "You answer questions briefly.";
  const first = await generateText({ ...fixed, system, prompt });
  const messages = [
    { role: "user", content: prompt },
    ...first.response.messages,
    { role: "user", content: [{ type: "text", text: "and what is a KV cache?" }] },
  ];
  const second = await generateText({ ...fixed, system, messages });
  assert.ok(second.text);
  assert.ok(second.usage.inputTokens > first.usage.totalTokens);
}

export async function cutOff() {
  const { finishReason, usage } = await generateText({ ...fixed, prompt, maxOutputTokens: 3 });
  assert.equal(finishReason, "length");
  assert.equal(usage.outputTokens, 3);
}

export async function stream() {
  const whole = await generateText({ ...fixed, prompt });
  const streamed = streamText({ ...fixed, prompt });
  const pieces = [];
  for await (const piece of streamed.textStream) pieces.push(piece);
  assert.ok(pieces.length > 3);
  assert.equal(pieces.join(""), whole.text);
  assert.equal(await streamed.finishReason, "stop");
  const usage = await streamed.usage;
  assert.equal(usage.outputTokens, whole.usage.outputTokens);
  assert.equal(usage.inputTokens, whole.usage.inputTokens);
}

export async function object() {
  const asked = { ...fixed, schema: judgement, prompt: "judge a token" };
  const { object, finishReason } = await generateObject(asked);
  judgement.parse(object);
  assert.equal(finishReason, "stop");
}

export async function nestedObject() {
  const asked = { ...fixed, schema: journey, prompt: "plan a journey", maxOutputTokens: 320 };
  const { object } = await generateObject(asked);
  journey.parse(object);
}

export async function outputOfGenerateText() {
  const { output } = await generateText({
    ...fixed,
    output: Output.object({ schema: judgement }),
    prompt: "judge a token",
  });
  judgement.parse(output);
}

export async function objectStreamed() {
  const asked = { ...fixed, schema: judgement, prompt: "judge a token" };
  const whole = await generateObject(asked);
  const streamed = streamObject(asked);
  const parts = [];
  for await (const part of streamed.partialObjectStream) parts.push(part);
  assert.ok(parts.length > 1);
  assert.deepEqual(await streamed.object, whole.object);
}

export async function choiceOfAFew() {
  const words = ["yes", "no"];
  const { object } = await generateObject({ ...fixed, output: "enum", enum: words, prompt: "yes or no?" });
  assert.ok(words.includes(object));
}

export async function toolRoundTrip() {
  const { text, steps } = await generateText({
    ...fixed,
    tools: { weather },
    prompt: "what is the weather?",
    stopWhen: stepCountIs(2),
    prepareStep,
  });
  assert.equal(steps.length, 2);
  assert.equal(steps[0].finishReason, "tool-calls");
  assert.ok(steps[0].toolCalls.length >= 1);
  assert.equal(steps[0].toolResults.length, steps[0].toolCalls.length);
  assert.equal(steps[0].toolResults[0].output.sky, "sun");
  assert.equal(steps[1].toolCalls.length, 0);
  assert.ok(text.length > 0);
}

export async function toolRoundTripStreamed() {
  const streamed = streamText({
    ...fixed,
    tools: { weather },
    prompt: "what is the weather?",
    stopWhen: stepCountIs(2),
    prepareStep,
  });
  const kinds = new Set();
  for await (const part of streamed.fullStream) {
    assert.notEqual(part.type, "error", String(part.error));
    kinds.add(part.type);
  }
  const expected = ["tool-input-start", "tool-input-delta", "tool-call", "tool-result", "text-delta"];
  for (const kind of expected)
    assert.ok(kinds.has(kind), `${kind} is not among ${[...kinds]}`);
  const steps = await streamed.steps;
  assert.equal(steps.length, 2);
  assert.equal(steps[0].finishReason, "tool-calls");
}

export async function namedTool() {
  const toolChoice = { type: "tool", toolName: "weather" };
  const { toolCalls } = await generateText({ ...fixed, tools: { weather }, toolChoice, prompt: "hello" });
  assert.deepEqual(toolCalls.map((call) => call.toolName), ["weather"]);
}

export async function completionModel() {
  const model = provider.completionModel("default");
  const asked = { ...fixed, model, prompt: "A token is", maxOutputTokens: 12 };
  const { text, usage } = await generateText(asked);
  assert.ok(text.length > 0 && usage.inputTokens > 0);
  const pieces = [];
  for await (const piece of streamText(asked).textStream) pieces.push(piece);
  assert.equal(pieces.join(""), text);
}

export async function embeddings() {
  const model = provider.embeddingModel("default");
  const { embeddings, usage } = await embedMany({ model, values: ["a token", "a cache"], maxRetries: 0 });
  assert.equal(embeddings.length, 2);
  assert.equal(embeddings[0].length, embeddings[1].length);
  assert.notDeepEqual(embeddings[0], embeddings[1]);
  assert.ok(usage.tokens > 0);
}

export async function errors() {
  const missing = generateText({ ...fixed, model: provider("no-such-model"), prompt });
  await assert.rejects(missing, (error) => {
    return APICallError.isInstance(error) && error.statusCode === 404 && !error.isRetryable;
  });
  const long = generateText({ ...fixed, prompt: "word ".repeat(700) });
  await assert.rejects(long, (error) => error.data.error.code === "context_length_exceeded");
  const refused = [];
  const onError = ({ error }) => refused.push(error);
  const streamed = streamText({ ...fixed, prompt: "word ".repeat(700), onError });
  await streamed.consumeStream();
  assert.equal(refused[0].statusCode, 400);
}

await steps[process.argv[2]]();
