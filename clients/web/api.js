/**
 * The server's public API: requests, streams of events, and what its errors say. Refuses to know the page:
 * nothing here touches the document, so all of it runs in Node too.
 */

/** An answer that is an error, in the server's own words. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {string} code @param {number | null} retryAfter */
  constructor(status, message, code, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** No answer, or one that broke off. */
export class ServerGone extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/**
 * What a reply brings, in this order: one `start`, any number of `text`, one `end`.
 * @typedef {{kind: "start", seed: string | null, dropped: number}
 *   | {kind: "text", text: string, ids: number[]}
 *   | {kind: "end", finish: string, timings: Timings | null, usage: object | null}} ReplyEvent
 * @typedef {{ttft_ms: number, decode_tok_s: number | null, per_token?: {ms: number, batch: number}[]}} Timings
 */

/** Asked of every reply: which ids it is made of, and when each came. */
const TOLD = {
  stream: true,
  stream_options: { include_usage: true },
  return_token_ids: true,
  timings_per_token: true,
};
const BUSY_MS = 20;
/** A reader of much that came at once lets others have their turn so often. */
const PHASES = { loading: "The model is being loaded.", warming: "The model is warming up." };

/** One server, and the key that it may want. Paths are relative to the page, so a prefix before it does no harm. */
export class Api {
  /** @param {() => string} readKey @param {() => void} onDenied called at every 401 */
  constructor(readKey, onDenied) {
    this.readKey = readKey;
    this.onDenied = onDenied;
  }

  /** The models served, the default one first. @returns {Promise<object[]>} */
  async models() {
    return (await (await this.#ask("v1/models")).json()).data;
  }

  /** What a conversation, or a text, is to a model: ids and their texts. @param {{messages: object[]} | {prompt: string}} input */
  async tokenize(model, input, signal) {
    const body = { model, ...input, return_token_strs: true };
    return (await this.#ask("tokenize", { body, signal })).json();
  }

  /** How many tokens a conversation is, and how many there may be. */
  async count(model, messages, signal) {
    return (await this.#ask("tokenize", { body: { model, messages }, signal })).json();
  }

  /** The text that ids spell. @param {number[]} ids */
  async detokenize(model, ids) {
    return (await (await this.#ask("detokenize", { body: { model, tokens: ids } })).json()).prompt;
  }

  /**
   * Each token of a sequence as the model saw it coming: its alternatives by id, and itself.
   * @param {number[]} ids
   * @param {number} top how many alternatives
   * @returns {Promise<(Record<string, {logprob: number, rank: number, decoded_token: string}> | null)[]>}
   */
  async scores(model, ids, top, signal) {
    const body = { model, prompt: ids, max_tokens: 0, echo: true, prompt_logprobs: top };
    return (await (await this.#ask("v1/completions", { body, signal })).json()).choices[0].prompt_logprobs;
  }

  /** A reply to a conversation. @returns {AsyncGenerator<ReplyEvent>} */
  chat(request, signal) {
    return this.#reply("v1/chat/completions", request, signal, (choice) => choice.delta.content ?? "");
  }

  /** What follows a prompt of ids. @returns {AsyncGenerator<ReplyEvent>} */
  complete(request, signal) {
    return this.#reply("v1/completions", request, signal, (choice) => choice.text);
  }

  /** The counters and gauges of /metrics. @returns {Promise<Map<string, number>>} */
  async metrics(signal) {
    return readMetrics(await (await this.#ask("metrics", { signal, quiet: true })).text());
  }

  /** "ready", or why not, in one sentence. */
  async readiness() {
    const answer = await this.#fetch("ready", {}).catch(() => null);
    if (!answer) return new ServerGone().message;
    const { status } = await answer.json().catch(() => ({ status: "not ready" }));
    return status === "ready" ? "ready" : (PHASES[status] ?? `The server says: ${status}.`);
  }

  async *#reply(path, request, signal, textOf) {
    const answer = await this.#ask(path, { body: { ...request, ...TOLD }, signal });
    const { headers } = answer;
    const dropped = Number(headers.get("x-truncated-messages") ?? 0);
    yield { kind: "start", seed: headers.get("x-seed"), dropped };
    let finish = "";
    let last = {};
    for await (const chunk of readEvents(answer.body)) {
      if (chunk?.error) throw new ApiError(0, chunk.error.message, chunk.error.code);
      if (!Array.isArray(chunk?.choices)) throw brokenAnswer();
      const [choice] = chunk.choices;
      if (!choice) last = chunk;
      else if (choice.finish_reason) finish = choice.finish_reason;
      if (choice && (textOf(choice) || choice.token_ids?.length)) {
        yield { kind: "text", text: textOf(choice), ids: choice.token_ids ?? [] };
      }
    }
    if (!finish) throw new ServerGone();
    yield { kind: "end", finish, timings: last.timings ?? null, usage: last.usage ?? null };
  }

  /** @param {{body?: object, signal?: AbortSignal, quiet?: boolean}} options */
  async #ask(path, { body, signal, quiet = false } = {}) {
    const answer = await this.#fetch(path, { body, signal });
    if (answer.ok) return answer;
    if (answer.status === 401 && !quiet) this.onDenied();
    throw await toError(answer);
  }

  async #fetch(path, { body, signal }) {
    const key = this.readKey();
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body) headers["content-type"] = "application/json";
    const options = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
    if (body) options.body = JSON.stringify(body);
    try {
      return await fetch(path, options);
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerGone();
    }
  }
}

async function toError(answer) {
  const wait = Number(answer.headers.get("retry-after"));
  const { error } = await answer.json().catch(() => ({}));
  const message = error?.message ?? `The server answered ${answer.status}.`;
  return new ApiError(answer.status, message, error?.code ?? "", wait > 0 ? wait : null);
}

/**
 * The JSON of each frame of a stream of server-sent events, up to `[DONE]`.
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let pending = "";
  let restedAt = performance.now();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ServerGone();
      });
      if (done) return;
      const frames = (pending + decoder.decode(value, { stream: true })).split("\n\n");
      pending = frames.pop();
      for (const frame of frames) {
        const data = dataOf(frame);
        if (data === "[DONE]") return;
        if (data) yield parse(data);
        if (performance.now() - restedAt > BUSY_MS) {
          await turn();
          restedAt = performance.now();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops reading ends the request
  }
}

/** Until everybody else has had a turn. Not a timer: those are slowed down in a page that nobody sees. */
function turn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => resolve(port1.close());
    port2.postMessage(null);
  });
}

/** Somebody answered who is no server of ours, or it was lost on the way. */
const brokenAnswer = () => new ApiError(0, "The answer is broken: it is not what a server of this page sends.", "");

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw brokenAnswer();
  }
}

function dataOf(frame) {
  const lines = frame.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

/**
 * Prometheus's text as sums over all labels: engines and models together.
 * @param {string} text
 */
export function readMetrics(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const match = /^causerie:([a-z_]+)(?:\{.*\})? ([^ ]+)/.exec(line);
    if (match) sums.set(match[1], (sums.get(match[1]) ?? 0) + Number(match[2]));
  }
  return sums;
}
