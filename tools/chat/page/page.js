// Chat and comparison. What a model says becomes text nodes, never HTML.

const $ = (id) => document.getElementById(id);
const STORE = "chat";
const state = { messages: [], system: "" }; // and, once chosen here, checkpoint and temperature

const NOTES = {
  stopped: "أُوقف الجواب",
  length: "بلغ الجواب أقصى طول",
  empty: "جواب فارغ",
  forgotten: "لم تعد ذاكرة النموذج تتسع لأقدم الرسائل",
  unreachable: "تعذر الوصول إلى الخادم. أعد تشغيله ثم حاول ثانية.",
  ready: "اكتمل الجواب",
  lone: "الموازنة بين نموذجين، ولا يوجد إلا نموذج واحد: درب نموذجا آخر أولا.",
  same: "اختر نموذجين مختلفين.",
  undecidable: { equal: "تطابق الجوابان، فلا تصويت عليهما.", empty: "أحد الجوابين فارغ، فلا تصويت عليهما." },
  thanks: "شكرا، حُفظ صوتك.",
};

// --- text with code in it, as elements

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function blocks(text) {
  const found = [];
  let code = null;
  for (const line of text.split("\n")) {
    if (/^\s*```/.test(line)) {
      code = code ? null : element("code");
      if (code) found.push(element("pre", { dir: "ltr", tabindex: 0 }, code));
    } else if (code) code.append(line + "\n");
    else if (line.trim()) found.push(element("p", { dir: "auto" }, ...inline(line)));
  }
  return found;
}

const inline = (line) =>
  line.split(/(`[^`]+`)/).map((part) => (/^`[^`]+`$/.test(part) ? element("code", { dir: "ltr" }, part.slice(1, -1)) : part));

// --- the server

async function post(path, body, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error(NOTES.unreachable);
  });
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

async function* events(path, body, signal) {
  const reader = (await post(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error(NOTES.unreachable);
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const event of lines.map((line) => JSON.parse(line))) {
      if (event.error) throw new Error(event.error);
      yield event;
    }
  }
}

const temperature = () => Number($("temperature").value);

const withSystem = (messages) =>
  state.system.trim() ? [{ role: "system", content: state.system.trim() }, ...messages] : messages;

// --- a form that asks, streams and can be stopped

function asking(form, ask) {
  const [input, stop] = [form.querySelector("textarea"), form.querySelector(".stop")];
  const send = form.querySelector("[type=submit]");
  let running = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (!text || running) return;
    running = new AbortController();
    [send.hidden, stop.hidden] = [true, false];
    input.value = "";
    grow(input);
    const kept = await ask(text, running.signal);
    running = null;
    [send.hidden, stop.hidden] = [false, true];
    if (!kept && !input.value) input.value = text;
    grow(input);
  });
  stop.addEventListener("click", () => running?.abort());
  input.addEventListener("input", () => grow(input));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.closest("main").addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  return { stop: () => running?.abort(), busy: () => Boolean(running) };
}

function grow(input) {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function following(panel, change) {
  const scroll = panel.querySelector(".scroll");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

// --- chat

function turn(message) {
  if (message.role === "user") return element("article", { class: "turn user", "aria-label": "أنت" }, ...blocks(message.content));
  const made = element("article", { class: "turn", "aria-label": message.checkpoint });
  made.append(element("div", { class: "text" }, ...blocks(message.content)));
  made.append(element("p", { class: "note" }, ...note(message)));
  return made;
}

const note = (message) => [element("bdi", {}, message.checkpoint), ...message.notes.map((name) => ` · ${NOTES[name]}`)];

let pending = null; // the question being answered and its answer so far

async function chat(text, signal) {
  const answer = { role: "assistant", content: "", checkpoint: $("checkpoint").value, notes: [] };
  pending = [{ role: "user", content: text }, answer];
  const [question, shown] = pending.map(turn);
  shown.setAttribute("aria-busy", "true");
  $("greeting").hidden = true;
  $("log").append(question, shown);
  shown.scrollIntoView({ block: "end" });
  const show = () =>
    following($("chat"), () => {
      shown.firstChild.replaceChildren(...blocks(answer.content));
      shown.lastChild.replaceChildren(...note(answer));
    });
  try {
    const asked = withSystem([...state.messages, pending[0]].map(({ role, content }) => ({ role, content })));
    const body = { checkpoint: answer.checkpoint, messages: asked, temperature: temperature() };
    for await (const event of events("/api/chat", body, signal)) {
      if (event.piece) answer.content += event.piece;
      else answer.notes = chatNotes(event, answer);
      show();
    }
    $("status").textContent = NOTES.ready;
  } catch (error) {
    if (error.name === "AbortError") answer.notes = ["stopped"];
    else $("log").append(element("p", { class: "note fault", role: "alert", dir: "auto" }, error.message));
    if (!answer.content) {
      question.remove();
      shown.remove();
      pending = null;
      return false;
    }
    show();
  }
  shown.removeAttribute("aria-busy");
  commit();
  return true;
}

function chatNotes(event, answer) {
  const found = event.stopped ? [] : ["length"];
  if (!answer.content.trim()) found.push("empty");
  if (event.forgotten) found.push("forgotten");
  return found;
}

function commit() {
  if (pending?.[1].content || pending?.[1].notes.length) state.messages.push(...pending);
  pending = null;
  save();
}

function clear() {
  chatForm.stop();
  state.messages = [];
  pending = null;
  save();
  $("log").replaceChildren();
  $("greeting").hidden = false;
  $("message").focus();
}

// --- comparison

let battle = null;

async function compare(text, signal) {
  const names = [$("rival").value, $("other").value];
  if (names[0] === names[1]) {
    verdict(NOTES.same, true);
    return false;
  }
  battle = null;
  $("invitation").hidden = $("votes").hidden = true;
  $("asked").hidden = $("duel").hidden = false;
  $("asked").replaceChildren(...blocks(text));
  verdict("");
  const answers = { first: "", second: "" };
  for (const side of Object.keys(answers)) draw(side, "");
  $("duel").setAttribute("aria-busy", "true");
  try {
    const body = { checkpoints: names, messages: withSystem([{ role: "user", content: text }]), temperature: temperature() };
    for await (const event of events("/api/battles", body, signal)) {
      for (const side of Object.keys(answers)) {
        if (event[side]) following($("arena"), () => draw(side, (answers[side] += event[side])));
      }
      if (event.battle) following($("arena"), () => ready(event.battle));
      if (event.undecidable) reveal(event.names, NOTES.undecidable[event.undecidable]);
    }
  } catch (error) {
    if (error.name === "AbortError") verdict(NOTES.stopped);
    else verdict(error.message, true);
    return false;
  } finally {
    $("duel").removeAttribute("aria-busy");
  }
  return true;
}

function draw(side, text) {
  $(side).replaceChildren(...blocks(text));
  if (!text) $(`${side}-title`).textContent = side === "first" ? "أ" : "ب";
  if (!text) $(side).parentElement.classList.remove("best");
}

function ready(id) {
  battle = id;
  $("votes").hidden = false;
  $("status").textContent = NOTES.ready;
}

async function vote(event) {
  const choice = event.target.value;
  if (!choice || !battle) return;
  const [id, buttons] = [battle, $("votes").querySelectorAll("button")];
  battle = null;
  buttons.forEach((button) => (button.disabled = true));
  try {
    const names = await (await post("/api/votes", { battle: id, vote: choice })).json();
    $("votes").hidden = true;
    $(choice)?.parentElement.classList.add("best");
    reveal(names, NOTES.thanks);
    $("prompt").focus();
  } catch (error) {
    battle = id;
    verdict(error.message, true);
  }
  buttons.forEach((button) => (button.disabled = false));
}

function reveal(names, text) {
  for (const [side, name] of Object.entries(names)) $(`${side}-title`).append(" · ", element("bdi", {}, name));
  verdict(text);
}

function verdict(text, fault = false) {
  $("verdict").textContent = text;
  $("verdict").classList.toggle("fault", fault);
}

// --- what stays in this browser, and the start

function save() {
  localStorage.setItem(STORE, JSON.stringify(state));
}

function restore() {
  try {
    Object.assign(state, JSON.parse(localStorage.getItem(STORE)));
  } catch {
    localStorage.removeItem(STORE);
  }
}

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  select.value = chosen;
}

function show(name) {
  for (const tab of ["chat", "arena"]) {
    $(tab).hidden = tab !== name;
    $(`${tab}-tab`).setAttribute("aria-selected", tab === name);
    $(`${tab}-tab`).tabIndex = tab === name ? 0 : -1;
  }
  history.replaceState(null, "", name === "chat" ? location.pathname : `#${name}`);
}

function settings(server) {
  $("temperature").value = state.temperature ?? server.temperature;
  $("temperature-value").textContent = temperature();
  $("temperature").addEventListener("input", () => {
    state.temperature = $("temperature-value").textContent = temperature();
    save();
  });
  $("system").value = state.system;
  $("system").addEventListener("input", (event) => {
    state.system = event.target.value;
    save();
  });
  $("checkpoint").addEventListener("change", (event) => {
    state.checkpoint = event.target.value;
    save();
  });
}

function tabs() {
  for (const [tab, other] of [["chat", "arena"], ["arena", "chat"]]) {
    $(`${tab}-tab`).addEventListener("click", () => show(tab));
    $(`${tab}-tab`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      show(other);
      $(`${other}-tab`).focus();
    });
  }
  show(location.hash === "#arena" ? "arena" : "chat");
}

const chatForm = asking($("chat-form"), chat);
asking($("arena-form"), compare);
$("clear").addEventListener("click", clear);
$("votes").addEventListener("click", vote);
addEventListener("pagehide", commit);

restore();
$("log").append(...state.messages.map(turn));
$("greeting").hidden = state.messages.length > 0;
$("log").lastElementChild?.scrollIntoView({ block: "end" });
const server = await (await fetch("/api/state")).json();
options($("checkpoint"), server.checkpoints, server.checkpoints.includes(state.checkpoint) ? state.checkpoint : server.checkpoint);
options($("rival"), server.checkpoints, server.rivals[0]);
options($("other"), server.checkpoints, server.rivals.at(-1));
$("system").placeholder = server.system;
if (server.checkpoints.length < 2) $("invitation").textContent = NOTES.lone;
settings(server);
tabs();
