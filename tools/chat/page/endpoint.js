// The server: one way to ask it, OpenAI's chat completions as server-sent events.

const KEY = "chat-key";
let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // forbidden: it is asked for again
}

export function useKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // it holds for this page
  }
}

function failure(message, code) {
  return Object.assign(new Error(message), { code });
}

const unlessAborted = (error) => {
  throw error.name === "AbortError" ? error : failure("unreachable");
};

async function asked(path, options = {}) {
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  const response = await fetch(path, { ...options, headers }).catch(unlessAborted);
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw failure(error?.message ?? response.statusText, error?.code);
}

export const get = async (path) => (await asked(path)).json();

export const post = (path, body, signal) =>
  asked(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

// The objects of a stream, as they come. One that ends without saying so has broken off.
export async function* events(path, body, signal) {
  const response = await post(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(unlessAborted);
    if (done) throw failure("unreachable");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((one) => one.startsWith("data: "))) {
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw failure(event.error.message, event.error.code);
      yield event;
    }
  }
}
