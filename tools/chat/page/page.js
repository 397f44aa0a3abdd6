// The start: the server's state, the language, the two panels. Plain modules: the browser loads them as they stand, so that nothing is
// built and what is read here is what runs; the libraries they need stand in vendor/.

import * as arena from "./arena.js";
import * as chat from "./chat.js";
import * as settings from "./settings.js";
import { get, useKey } from "./endpoint.js";
import { $, element, languages, speak, told, word } from "./words.js";

function options(select, names) {
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
}

function show(name) {
  for (const tab of ["chat", "arena"]) {
    $(tab).hidden = tab !== name;
    $(`${tab}-tab`).setAttribute("aria-selected", tab === name);
    $(`${tab}-tab`).tabIndex = tab === name ? 0 : -1;
  }
  document.body.dataset.panel = name;
  history.replaceState(null, "", name === "chat" ? location.pathname : `#${name}`);
  if (matchMedia("(pointer: fine)").matches) $(name === "chat" ? "message" : "prompt").focus();
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

function aboutOf(server) {
  if (server.checkpoint === "base" && server.checkpoints.length === 1) return word("base");
  return server.model === "nano" ? word("nano") : null;
}

async function start() {
  const server = await get("/api/state");
  for (const id of ["checkpoint", "rival", "other"]) options($(id), server.checkpoints);
  settings.start(server);
  chat.start(server.samples, aboutOf(server));
  arena.start(server);
  $("log").lastElementChild?.scrollIntoView({ block: "end" });
  $("language").addEventListener("click", () => {
    const wanted = languages.find((one) => one !== document.documentElement.lang);
    settings.setLanguage(wanted);
    speak(wanted);
    chat.start(server.samples, aboutOf(server));
    arena.start(server);
  });
  tabs();
}

const [, given] = /^#key=(.+)$/.exec(location.hash) ?? [];
if (given) {
  useKey(decodeURIComponent(given));
  history.replaceState(null, "", location.pathname);
}
speak(settings.language());
addEventListener("hashchange", () => location.hash.startsWith("#key=") && location.reload());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  location.reload();
});
try {
  await start();
} catch (error) {
  $("log").replaceChildren(element("p", { class: "note fault", role: "alert" }, told(error)));
  $("key-form").hidden = error.code !== "invalid_api_key";
  if (error.code === "invalid_api_key") $("settings").showPopover();
  else if (error.message !== "unreachable") throw error;
}
