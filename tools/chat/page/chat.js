// The conversation on the page, and the list of those that are kept.

import { events } from "./endpoint.js";
import { asking, following, paced, toast } from "./form.js";
import * as markdown from "./markdown.js";
import { request, settings } from "./settings.js";
import * as store from "./store.js";
import { $, element, told, word } from "./words.js";

let current = store.shown();
let running = null; // {conversation, answer} while one comes
let editing = null; // the message that the next one replaces
const nodes = new Map(); // by a message's id

// --- one message

function turn(message) {
  const mine = message.role === "user";
  const label = mine ? word("you") : message.checkpoint ?? "";
  const text = element("div", { class: mine ? "said" : "text" });
  const made = element("article", { class: mine ? "turn user" : "turn", "aria-label": label }, text);
  if (mine) text.append(...markdown.plain(message.content));
  else made.append(element("p", { class: "note" }));
  made.append(actions(message));
  nodes.set(message.id, made);
  if (!mine) draw(message, false);
  return made;
}

function draw(message, live) {
  const made = nodes.get(message.id);
  if (!made) return;
  markdown.show(made.querySelector(".text"), message.content, live);
  made.querySelector(".note").replaceChildren(...note(message, live));
  made.toggleAttribute("aria-busy", live);
  if (live) made.setAttribute("aria-busy", "true");
}

function note(message, live) {
  const comes = live || (message.cut === "failed" && Date.now() - (message.seen ?? 0) < 3000); // here, or in another tab
  const notes = [comes ? null : message.cut, message.forgotten ? "forgotten" : null].filter(Boolean);
  return [element("bdi", {}, message.checkpoint ?? ""), ...notes.map((name) => ` · ${word(name)}`)];
}

function actions(message) {
  const button = (name, act) => {
    const made = element("button", { type: "button", class: "quiet", "data-act": name }, word(name));
    made.addEventListener("click", () => act(made));
    return made;
  };
  const own =
    message.role === "user"
      ? [button("edit", () => edit(message))]
      : [button("copy", (made) => copy(message.content, made)), button("again", () => again(message))];
  return element("p", { class: "actions" }, ...own);
}

export async function copy(text, button) {
  await navigator.clipboard.writeText(text);
  button.textContent = word("copied");
  setTimeout(() => (button.textContent = word("copy")), 1500);
}

// --- a question and its answer

let failed = null; // what went wrong with the last one

async function ask(text, signal) {
  const conversation = current;
  const replaced = editing ? from(editing) : [];
  store.takeOut(conversation, replaced);
  store.show(conversation);
  stopEditing();
  conversation.messages.push(store.message("user", text));
  if (await answered(conversation, signal)) return true;
  store.putBack(conversation, replaced);
  keep(conversation);
  if (conversation === current && replaced.length) render();
  if (failed) fault(failed);
  return replaced.length > 0;
}

// Ask for an answer to the last message. What came of it is stored as it comes, and marked where it is not whole.
async function answered(conversation, signal) {
  const answer = store.message("assistant", "", { checkpoint: $("checkpoint").value, cut: "failed" });
  answer.at = Math.max(answer.at, conversation.messages.at(-1).at + 1);
  const body = { ...request(), model: answer.checkpoint, messages: withSystem(store.sent(conversation)) };
  conversation.messages.push(answer);
  running = { conversation, answer };
  render();
  nodes.get(answer.id)?.scrollIntoView({ block: "end" });
  const pace = paced((live) => following($("chat"), () => draw(answer, live)));
  const saving = setInterval(() => ((answer.seen = Date.now()), keep(conversation)), 1000);
  keep(conversation);
  let error = null;
  try {
    draw(answer, true);
    for await (const { choices, forgotten } of events("/v1/chat/completions", body, signal)) {
      answer.content += choices[0]?.delta.content ?? "";
      if (choices[0]?.finish_reason) finish(answer, choices[0].finish_reason, forgotten);
      pace.soon();
    }
    $("status").textContent = word("ready");
  } catch (caught) {
    error = caught;
    if (error.name === "AbortError") answer.cut = "stopped";
  }
  clearInterval(saving);
  delete answer.seen;
  running = null;
  const nothing = Boolean(error) && !answer.content;
  if (nothing) store.takeOut(conversation, [answer, conversation.messages.at(-2)]);
  conversation.touched = Date.now();
  keep(conversation);
  if (nothing) render();
  else pace.now();
  failed = error?.name === "AbortError" ? null : error;
  if (failed && !nothing) fault(failed);
  list();
  return !nothing;
}

function finish(answer, reason, forgotten) {
  if (reason === "stop") delete answer.cut;
  else answer.cut = "length";
  if (!answer.content.trim()) answer.cut = "empty";
  if (forgotten) answer.forgotten = forgotten;
}

function fault(error) {
  $("log").append(element("p", { class: "note fault", role: "alert", dir: "auto" }, told(error)));
  $("log").lastElementChild.scrollIntoView({ block: "end" });
  if (error.code === "invalid_api_key") $("settings").showPopover();
}

export const withSystem = (messages) =>
  settings.system?.trim() ? [{ role: "system", content: settings.system.trim() }, ...messages] : messages;

// --- edit, resend, another answer

const from = (message) => current.messages.slice(current.messages.findIndex((one) => one.id === message.id));

function edit(message) {
  if (form.busy()) return;
  editing = message;
  $("editing").hidden = false;
  form.write(message.content);
}

function stopEditing() {
  editing = null;
  $("editing").hidden = true;
}

function again(message) {
  const question = current.messages[current.messages.findIndex((one) => one.id === message.id) - 1];
  if (form.busy() || question?.role !== "user") return;
  if (Number(request().temperature) === 0 && message.checkpoint === $("checkpoint").value && !message.cut) toast(word("same_again"));
  editing = question;
  form.submit(question.content);
}

// --- the conversation shown, and the list

function keep(conversation) {
  if (!store.save(conversation)) toast(word("not_kept"));
}

export function render() {
  nodes.clear();
  $("log").replaceChildren(...current.messages.map(turn));
  if (running?.conversation === current) draw(running.answer, true);
  $("greeting").hidden = current.messages.length > 0;
  list();
}

function open(conversation) {
  stopEditing();
  current = conversation;
  store.show(current);
  render();
  $("log").lastElementChild?.scrollIntoView({ block: "end" });
  closeDrawer();
  if (matchMedia("(pointer: fine)").matches) $("message").focus();
}

export function begin() {
  if (current.messages.length) open(store.fresh());
  else open(current);
}

function list() {
  $("conversations").replaceChildren(...store.all().map(entry));
}

function entry(conversation) {
  const button = (name, act, label) => {
    const made = element("button", { type: "button", class: "quiet", "data-act": name, ...(label && { "aria-label": `${word(name)}: ${label}` }) });
    made.textContent = word(name);
    made.addEventListener("click", act);
    return made;
  };
  const title = store.titleOf(conversation) || word("untitled");
  const chosen = element("button", { type: "button", class: "quiet title", dir: "auto" }, title);
  chosen.addEventListener("click", () => open(running?.conversation.id === conversation.id ? running.conversation : conversation));
  const more = element("details", {}, element("summary", { "aria-label": `⋯ ${title}` }, "⋯"));
  more.append(
    button("rename", () => rename(conversation), title),
    button("save_json", () => download(conversation, "json"), title),
    button("save_markdown", () => download(conversation, "md"), title),
    button("remove", () => remove(conversation), title),
  );
  const made = element("li", {}, chosen, more);
  if (conversation.id === current.id) chosen.setAttribute("aria-current", "true");
  return made;
}

function rename(conversation) {
  const item = [...$("conversations").children].find((_, place) => store.all()[place]?.id === conversation.id);
  const input = element("input", { "aria-label": word("new_name"), dir: "auto", value: store.titleOf(conversation) });
  let done = false;
  const end = (take) => {
    if (done) return;
    done = true;
    if (take && input.value.trim()) {
      const own = conversation.id === current.id ? current : conversation;
      Object.assign(own, { title: input.value.trim(), titled: Date.now() });
      keep(own);
    }
    list();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") end(event.key === "Enter");
  });
  input.addEventListener("blur", () => end(true));
  item.replaceChildren(input);
  input.select();
}

function remove(conversation) {
  if (running?.conversation.id === conversation.id) return;
  store.forget(conversation.id);
  if (conversation.id === current.id) open(store.fresh());
  list();
  toast(word("removed"), "undo", () => {
    keep(conversation);
    open(conversation);
  });
}

function download(conversation, kind) {
  const text =
    kind === "json"
      ? JSON.stringify({ title: store.titleOf(conversation), system: settings.system ?? "", messages: conversation.messages }, null, 2)
      : conversation.messages.map(({ role, content, checkpoint }) => `## ${role === "user" ? word("you") : checkpoint}\n\n${content}\n`).join("\n");
  const url = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/markdown" }));
  const name = store.titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "chat";
  element("a", { href: url, download: `${name}.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function closeDrawer() {
  delete document.body.dataset.drawer;
  $("drawer").setAttribute("aria-expanded", "false");
}

// --- the start

export const form = asking($("chat-form"), ask);

export function start(samples, about) {
  $("samples").replaceChildren(
    ...samples.map((text) => {
      const made = element("button", { type: "button", dir: "auto" }, text);
      made.addEventListener("click", () => form.submit(text));
      return made;
    }),
  );
  $("welcome").hidden = Boolean(about);
  $("about").hidden = !about;
  $("about").textContent = about ?? "";
  render();
}

$("fresh").addEventListener("click", begin);
$("cancel").addEventListener("click", () => (stopEditing(), form.write("")));
$("drawer").addEventListener("click", () => {
  const opens = !("drawer" in document.body.dataset);
  if (opens) document.body.dataset.drawer = "";
  else closeDrawer();
  $("drawer").setAttribute("aria-expanded", String(opens));
  if (opens) $("fresh").focus();
});
$("side").addEventListener("keydown", (event) => {
  if (event.key === "Escape" && "drawer" in document.body.dataset) closeDrawer(), $("drawer").focus();
});
document.addEventListener("click", async ({ target }) => {
  if (target.matches?.(".copy-code")) await copy(target.parentElement.querySelector("pre").textContent, target);
});
addEventListener("pagehide", () => {
  if (!running) return;
  delete running.answer.seen;
  keep(running.conversation);
});
store.watch((id) => {
  const stored = store.load(id);
  if (id === current.id && stored && running?.conversation !== current) {
    store.merged(current, stored);
    render();
  } else list();
});
