// The OpenAI SDK for Node, a whole reply and a streamed one: `npm install openai`, then `node openai.mjs`.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.CAUSERIE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.CAUSERIE_API_KEY ?? "unused",
});
const request = {
  model: "default",
  messages: [{ role: "user", content: "what is a token?" }],
  max_tokens: 32,
};

const completion = await client.chat.completions.create(request);
console.log(completion.choices[0].message.content);
console.log(completion.choices[0].finish_reason, completion.usage.completion_tokens, "tokens");

const stream = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
  if (chunk.usage) console.log(`\n${chunk.usage.completion_tokens} tokens`);
}
