/**
 * Conversations: trees of messages, where they are kept, and the files they come from and go to. Refuses to
 * know the page and the server.
 *
 * A message's children are its alternatives: two replies to one question, two wordings of one question. Of
 * each message's children one is chosen; the chosen ones from the root on are the path that is shown.
 */

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string | null} parent null for the first
 * @property {"user" | "assistant"} role
 * @property {string} text
 * @property {"streaming" | "done" | "stopped" | "error"} state
 * @property {string} [model] who wrote it
 * @property {number[]} [ids] its tokens
 * @property {number} [given] how many of them were given, not drawn: a branch begins with those before it
 * @property {number} [dropped] messages that were left out before it
 * @property {string | null} [seed]
 * @property {string} [finish]
 * @property {object | null} [timings]
 * @property {{message: string, code: string, retryAfter: number | null}} [error]
 *
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} updated
 * @property {string} system
 * @property {Record<string, Message>} messages
 * @property {Record<string, string>} chosen by parent, `ROOT` for the first
 */

const ROOT = "root";
const TITLE_LENGTH = 60;
const FORMAT = "causerie-conversations";
export const LIMITS = { conversations: 500, messages: 2000, characters: 1 << 20, fileBytes: 32 << 20 };

/** @returns {Conversation} */
export function newConversation(system = "") {
  return { id: newId(), title: "", updated: Date.now(), system, messages: {}, chosen: {} };
}

const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");

/** The messages that are shown, the first one first. @returns {Message[]} */
export function pathOf(conversation) {
  const path = [];
  let next = conversation.chosen[ROOT];
  while (next) {
    path.push(conversation.messages[next]);
    next = conversation.chosen[next];
  }
  return path;
}

/** A message and all before it. @returns {Message[]} */
export function pathTo(conversation, message) {
  const path = [];
  for (let one = message; one; one = conversation.messages[one.parent]) path.unshift(one);
  return path;
}

/** A message's alternatives, itself among them, oldest first. @returns {Message[]} */
export function siblingsOf(conversation, message) {
  return Object.values(conversation.messages).filter((one) => one.parent === message.parent);
}

/** A new message below another, chosen. @param {string | null} parent @returns {Message} */
export function addMessage(conversation, parent, role, fields = {}) {
  const message = { id: newId(), parent, role, text: "", state: "done", ...fields };
  conversation.messages[message.id] = message;
  choose(conversation, message);
  if (!conversation.title && role === "user") conversation.title = titleOf(message.text);
  conversation.updated = Date.now();
  return message;
}

/** Show the path that goes through this message. */
export function choose(conversation, message) {
  conversation.chosen[message.parent ?? ROOT] = message.id;
}

/** What a title is until a person writes one. */
export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}

/**
 * Messages as the API takes them: without replies that never came, nor the oldest ones that were left out.
 * @param {Message[]} path
 */
export function toRequest(system, path, dropped = 0) {
  const said = path.filter(({ role, text }) => role === "user" || text);
  const turns = said.slice(dropped).map(({ role, text }) => ({ role, content: text }));
  return system ? [{ role: "system", content: system }, ...turns] : turns;
}

/** All of it, alternatives included. @param {Conversation[]} conversations */
export function toJson(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** A line for each conversation with a reply, its shown path: what `causerie train sft` reads. */
export function toJsonl(conversations) {
  const lines = [];
  for (const conversation of conversations) {
    const path = pathOf(conversation);
    while (path.length && path.at(-1).role === "user") path.pop();
    const messages = toRequest(conversation.system, path);
    if (path.some((one) => one.role === "assistant" && one.text)) lines.push(`${JSON.stringify({ messages })}\n`);
  }
  return lines.join("");
}

/** Conversations of a file's text, in either form. @throws {Error} in one line, if it is neither */
export function fromText(text) {
  const whole = parse(text);
  if (whole?.format === FORMAT) return list(whole.conversations, "conversations").map(readConversation);
  const lines = text.split("\n").filter((line) => line.trim());
  return lines.map((line, i) => {
    const value = parse(line);
    if (value === null) throw new Error(`line ${i + 1}: the file is neither JSON nor JSONL`);
    return readTraining(value, `line ${i + 1}`);
  });
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function list(value, what) {
  if (Array.isArray(value) && value.length <= LIMITS.messages) return value;
  throw new Error(`${what}: expected a list of up to ${LIMITS.messages}`);
}

function string(value, what) {
  if (typeof value === "string" && value.length <= LIMITS.characters) return value;
  throw new Error(`${what}: expected a text of up to ${LIMITS.characters} characters`);
}

function readTraining(value, where) {
  const conversation = newConversation();
  let parent = null;
  for (const [i, turn] of list(value?.messages, `${where}: messages`).entries()) {
    const text = string(turn?.content, `${where}: messages[${i}].content`);
    if (i === 0 && turn.role === "system") conversation.system = text;
    else if (turn.role !== "user" && turn.role !== "assistant") {
      throw new Error(`${where}: messages[${i}].role must be user or assistant`);
    } else parent = addMessage(conversation, parent, turn.role, { text }).id;
  }
  return conversation;
}

/** Only what is known is taken over, under new ids; parents come before their children. */
function readConversation(value, i) {
  const where = `conversations[${i}]`;
  const conversation = newConversation(string(value?.system ?? "", `${where}.system`));
  const ids = new Map([[null, null]]);
  const read = list(Object.values(value.messages ?? {}), `${where}.messages`);
  for (const one of read) {
    if (!ids.has(one?.parent) || (one.role !== "user" && one.role !== "assistant")) {
      throw new Error(`${where}: a message without its parent or its role`);
    }
    const message = addMessage(conversation, ids.get(one.parent), one.role, readFields(one, where));
    ids.set(one.id, message.id);
  }
  for (const one of read) {
    if (Object.values(value.chosen ?? {}).includes(one.id)) choose(conversation, conversation.messages[ids.get(one.id)]);
  }
  conversation.title = titleOf(string(value.title ?? "", `${where}.title`)) || conversation.title;
  return conversation;
}

function readFields(one, where) {
  const fields = { text: string(one.text, `${where}: text`) };
  const isIds = Array.isArray(one.ids) && one.ids.every((id) => Number.isSafeInteger(id) && id >= 0);
  if (isIds) Object.assign(fields, { ids: one.ids, given: count(one.given), dropped: count(one.dropped) });
  if (one.state === "stopped" || one.state === "error") fields.state = "stopped";
  if (typeof one.model === "string") fields.model = one.model.slice(0, 512);
  return fields;
}

const count = (value) => (Number.isSafeInteger(value) && value > 0 ? value : 0);

/** Where conversations are kept: this browser's IndexedDB, or this tab's memory if it lets us have none. */
export class Shelf {
  #database = null;
  #memory = new Map();

  /** @returns {Promise<boolean>} whether what is put here stays */
  async open() {
    try {
      this.#database = await new Promise((resolve, reject) => {
        const request = indexedDB.open("causerie", 1);
        request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
      });
    } catch {
      this.#database = null;
    }
    return this.#database !== null;
  }

  /** All of them, the latest first. @returns {Promise<Conversation[]>} */
  async all() {
    const all = this.#database ? await this.#run("readonly", (store) => store.getAll()) : [...this.#memory.values()];
    return all.sort((a, b) => b.updated - a.updated);
  }

  /** @param {Conversation} conversation @throws {Error} in one line, when there is no room */
  async put(conversation) {
    if (!this.#database) {
      this.#memory.set(conversation.id, conversation);
      return;
    }
    try {
      await this.#run("readwrite", (store) => store.put(conversation));
    } catch (error) {
      const reason = error?.name === "QuotaExceededError" ? "this browser's storage is full" : error?.message;
      throw new Error(`The conversation could not be kept: ${reason}. Export it, or delete others.`);
    }
  }

  /** @param {string} id */
  async remove(id) {
    this.#memory.delete(id);
    if (this.#database) await this.#run("readwrite", (store) => store.delete(id));
  }

  /** One request, settled when its transaction is. */
  #run(mode, ask) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction("conversations", mode);
      const request = ask(transaction.objectStore("conversations"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error ?? request.error);
      transaction.onerror = () => reject(transaction.error ?? request.error);
    });
  }
}
