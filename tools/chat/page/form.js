// A form that asks, streams and can be stopped; and what both panels do while an answer comes.

import { $, word } from "./words.js";

// `ask` gets the text and a signal to stop at; what it gives back tells whether the text was taken. What stands in the field of the form is
// left there unless it is what is sent.
export function asking(form, ask) {
  const [input, stop] = [form.querySelector("textarea"), form.querySelector(".stop")];
  const send = form.querySelector("[type=submit]");
  let running = null;
  async function submit(text, typed = false) {
    if (running) return;
    running = new AbortController();
    const focused = document.activeElement === send;
    [send.hidden, stop.hidden] = [true, false];
    if (focused) stop.focus();
    if (typed) input.value = "";
    grow(input);
    const taken = await ask(text, running.signal);
    running = null;
    const stopping = document.activeElement === stop;
    [send.hidden, stop.hidden] = [false, true];
    if (stopping) input.focus();
    if (typed && !taken && !input.value) input.value = text;
    grow(input);
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.value.trim()) submit(input.value.trim(), true);
  });
  stop.addEventListener("click", () => running?.abort());
  input.addEventListener("input", () => grow(input));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.closest(".panel").addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  return { submit, busy: () => Boolean(running), write: (text) => write(input, text) };
}

function write(input, text) {
  input.value = text;
  grow(input);
  input.focus();
}

function grow(input) {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

// Keep the end in sight where it was in sight before.
export function following(panel, change) {
  const scroll = panel.querySelector(".scroll");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

// At most once a frame, and at the end.
export function paced(draw) {
  let waiting = 0;
  return {
    soon: () => (waiting ||= requestAnimationFrame(() => ((waiting = 0), draw(true)))),
    now: () => {
      cancelAnimationFrame(waiting);
      waiting = 0;
      draw(false);
    },
  };
}

let fading = 0;

// A line that goes by itself, with what can be done about it.
export function toast(text, action = null, act = null) {
  const place = $("toast");
  place.replaceChildren(text);
  if (action) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: word(action) });
    button.addEventListener("click", () => (place.replaceChildren(), act()));
    place.append(" ", button);
  }
  clearTimeout(fading);
  fading = setTimeout(() => place.replaceChildren(), 8000);
}
