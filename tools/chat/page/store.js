// Conversations in this browser: each under a key of its own, merged with what another tab has stored of it meanwhile.
//
// A conversation is {id, title, titled, touched, messages, removed}: `titled` and `touched` are times, `removed` the ids of messages that
// were taken out. A message is {id, at, role, content}, an answer also {checkpoint, cut, forgotten}; `cut` says why it is no whole one:
// stopped (by a person), length, empty or failed, which it is while it comes; `seen` is when it last came. A store that is full, forbidden
// or foreign costs the keeping, never the page.

const PREFIX = "chat/";
const SETTINGS = "chat-settings";
const SHOWN = "chat-shown";

const isText = (value) => typeof value === "string";

function parsed(key, store = () => localStorage) {
  try {
    return JSON.parse(store().getItem(key));
  } catch {
    return null;
  }
}

// false where it could not be kept
function kept(key, value, store = () => localStorage) {
  try {
    store().setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// --- conversations

export function fresh() {
  return { id: crypto.randomUUID(), title: "", titled: 0, touched: Date.now(), messages: [], removed: [] };
}

export function message(role, content, more = {}) {
  return { id: crypto.randomUUID(), at: Date.now(), role, content, ...more };
}

const isMessage = (one) => isText(one?.id) && isText(one.content) && ["user", "assistant"].includes(one.role) && Number.isFinite(one.at);

function checked(value, id) {
  if (value?.id !== id || !Array.isArray(value.messages)) return null;
  const removed = Array.isArray(value.removed) ? value.removed.filter(isText) : [];
  const title = isText(value.title) ? value.title : "";
  const times = { titled: Number(value.titled) || 0, touched: Number(value.touched) || 0 };
  return { id, title, ...times, messages: value.messages.filter(isMessage), removed };
}

export const load = (id) => checked(parsed(PREFIX + id), id);

export function all() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    // no store at all
  }
  const found = keys.map((key) => load(key.slice(PREFIX.length))).filter((one) => one?.messages.length);
  return found.sort((one, other) => other.touched - one.touched);
}

// Of a message that both have, the one that is further: the other tab may have seen half of an answer.
const further = (one, other) => one.content.length - other.content.length || (other.cut === "failed") - (one.cut === "failed");

export function merged(ours, theirs) {
  if (!theirs) return ours;
  const removed = [...new Set([...ours.removed, ...theirs.removed])];
  const messages = new Map(theirs.messages.map((one) => [one.id, one]));
  for (const one of ours.messages) {
    const theirs = messages.get(one.id);
    if (!theirs || further(one, theirs) >= 0) messages.set(one.id, one);
  }
  for (const id of removed) messages.delete(id);
  const named = theirs.titled > ours.titled ? theirs : ours;
  return Object.assign(ours, {
    title: named.title,
    titled: named.titled,
    touched: Math.max(ours.touched, theirs.touched),
    messages: [...messages.values()].sort((one, other) => one.at - other.at),
    removed,
  });
}

export const save = (conversation) => kept(PREFIX + conversation.id, merged(conversation, load(conversation.id)));

export function forget(id) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // it is not there either
  }
}

export function takeOut(conversation, messages) {
  const ids = messages.map((one) => one.id);
  conversation.removed.push(...ids);
  conversation.messages = conversation.messages.filter((one) => !ids.includes(one.id));
}

// Under new ids: the other tabs know that the old ones are gone.
export function putBack(conversation, messages) {
  conversation.messages.push(...messages.map((one) => ({ ...one, id: crypto.randomUUID() })));
}

// When another tab changes one: its id.
export function watch(changed) {
  addEventListener("storage", ({ key }) => key?.startsWith(PREFIX) && changed(key.slice(PREFIX.length)));
}

// What the model is told of a conversation: not an answer that failed, nor the question that it did not answer.
export function sent(conversation) {
  const turns = [];
  for (const one of conversation.messages) {
    if (one.role === "user" && turns.at(-1)?.role === "user") turns.pop();
    if (one.role === "user" || one.cut !== "failed") turns.push({ role: one.role, content: one.content });
  }
  return turns;
}

// The one that this tab shows, also after it is loaded again; another tab begins with the latest.
export const show = ({ id }) => kept(SHOWN, id, () => sessionStorage);

export function shown() {
  const [id, known] = [parsed(SHOWN, () => sessionStorage), all()];
  return (id ? known.find((one) => one.id === id) : known[0]) ?? fresh();
}

export const titleOf = ({ title, messages }) => title || (messages[0]?.content ?? "").split("\n")[0].slice(0, 60);

// --- settings

export function settings() {
  const found = parsed(SETTINGS);
  return found && typeof found === "object" && !Array.isArray(found) ? found : {};
}

export const saveSettings = (value) => kept(SETTINGS, value);
