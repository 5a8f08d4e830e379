/* Requests to the service: few at a time, tried again while it is busy or gone, ended when the reader wants it. */
const PATIENCE_S = 120, CONNECTIONS = 4, SILENCE_MS = 120_000, LONGEST_PAUSE_S = 8, WORTH_SAYING_S = 3;
const PASSING = new Set([408, 429, 502, 503, 504]);

class Failure extends Error {
  constructor(code, message = "", { status = null, requestId = null, values = {} } = {}) {
    super(message);
    Object.assign(this, { code, status, requestId, values });
  }
}
/* What is wrong and what to do, in the reader's words; codes that are not known go by their status. */
function told(failure) {
  const values = { status: failure.status ?? "?", ...said(failure.values) };
  const key = "error." + failure.code + (failure.code === "too_large" && !values.limit ? ".unknown" : "");
  const text = say(WORDS[language][key] ? key : "error.other", values);
  return values.minutes === undefined ? text : text + " " + say("error.wait", { minutes: number(values.minutes) });
}
function said(values) {
  const size = (name) => (values[name] === undefined ? {} : { [name]: bytes(values[name]) });
  return { ...values, ...size("size"), ...size("limit") };
}

function sleep(ms, signal) {
  return new Promise((wake, fail) => {
    const end = () => { clearTimeout(timer); fail(signal.reason); };
    const timer = setTimeout(() => { signal.removeEventListener("abort", end); wake(); }, ms);
    if (signal.aborted) end();
    signal.addEventListener("abort", end, { once: true });
  });
}

/* All requests wait here while the service is gone, or as long as it asked one of them to wait. */
const gate = {
  until: 0,
  back: null,
  async pass(signal) {
    for (;;) {
      if (signal.aborted) throw signal.reason;
      const rest = this.back ? 200 : this.until - performance.now();
      if (rest <= 0) return;
      await sleep(Math.min(rest, 1000), signal);
    }
  },
  hold(seconds) {
    this.until = Math.max(this.until, performance.now() + 1000 * seconds);
    if (!this.back && seconds >= WORTH_SAYING_S) this.show("busy", { seconds: number(Math.ceil(seconds)) });
    setTimeout(() => { if (!this.back && performance.now() >= this.until - 50) this.show(null); }, 1000 * seconds);
  },
  lost() {
    this.back ??= this.ask().finally(() => { this.back = null; this.show(null); });
    return this.back;
  },
  async ask() {
    this.show("lost");
    for (let pause = 1; ; pause = Math.min(2 * pause, LONGEST_PAUSE_S)) {
      await sleep(1000 * pause, new AbortController().signal);
      if (await loadState()) return;
    }
  },
  show(key, values) {
    this.said = key && [key, values];
    $("lost").hidden = !key;
    $("lost").textContent = key ? say(key, values) : "";
  },
};

/* POST of `body`; gives the answer where it is good. Raises Failure, or what ended `signal`. */
async function post(path, body, signal, headers = {}) {
  const key = $("key").value.trim();
  if (/[^\x21-\x7e]/.test(key)) throw new Failure("key_not_ascii");
  const sent = { ...headers, ...(key ? { "X-API-Key": key } : {}) };
  let broken = 0, waited = 0;
  for (let attempt = 0; ; attempt += 1) {
    await gate.pass(signal);
    let answer;
    try {
      answer = await once(path, { method: "POST", headers: sent, body }, signal);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      broken += 1;
      if (broken >= CONNECTIONS) throw new Failure("unreachable", error.message);
      await Promise.race([gate.lost(), untilAborted(signal)]);
      continue;
    }
    if (answer.ok) return answer;
    const failure = await failureOf(answer);
    const pause = retryAfter(answer) || Math.min(2 ** attempt, LONGEST_PAUSE_S);  // asked again at once it would be for ever
    if (failure.code === "too_large") throw await withLimit(failure, body);
    if (!isPassing(answer, failure)) throw failure;
    if (waited + pause > PATIENCE_S) throw pause > PATIENCE_S ? asksToWait(failure, pause) : failure;
    waited += pause;
    gate.hold(pause);
  }
}
/* One request with its whole answer, that does not wait for ever for a service that stands still. */
async function once(path, options, signal, silence_ms = SILENCE_MS) {
  const silence = new AbortController();
  const end = () => silence.abort(signal.reason);
  signal.addEventListener("abort", end);
  const timer = setTimeout(() => silence.abort(new Error("no answer")), silence_ms);
  try {
    const answer = await fetch(path, { ...options, signal: silence.signal, cache: "no-store", credentials: "same-origin" });
    const whole = await answer.blob();
    return { ok: answer.ok, status: answer.status, headers: answer.headers, blob: whole, json: async () => JSON.parse(await whole.text()) };
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
  }
}
function untilAborted(signal) {
  return new Promise((_, fail) => {
    if (signal.aborted) fail(signal.reason);
    signal.addEventListener("abort", () => fail(signal.reason), { once: true });
  });
}
/* 500 in other words than ours is from what stands before the service while a part of it is replaced. */
const isPassing = (answer, failure) => PASSING.has(answer.status) || (answer.status === 500 && failure.code === "other");

/* The service may have other limits than it had when it told them. */
async function withLimit(failure, body) {
  await loadState();
  const sizes = (body instanceof FormData ? Array.from(body.values()) : [body]).map((part) => part.size ?? part.byteLength ?? 0);
  const most = Math.max(...sizes), sum = sizes.reduce((all, size) => all + size, 0);
  if (service && most > service.max_bytes) return Object.assign(failure, { values: { size: most, limit: service.max_bytes } });
  if (service && sum > service.max_request_bytes) return Object.assign(failure, { values: { size: sum, limit: service.max_request_bytes } });
  return failure;
}
function asksToWait(failure, seconds) {
  return Object.assign(failure, { values: { minutes: Math.ceil(seconds / 60) } });
}
/* Seconds (RFC 9110, section 10.2.3: a number or a date); null where it does not say. */
function retryAfter(answer) {
  const text = answer.headers.get("Retry-After");
  if (!text) return null;
  const seconds = /^\d+$/.test(text.trim()) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}
async function failureOf(answer) {
  const about = { status: answer.status, requestId: answer.headers.get("X-Request-ID") };
  try {
    const body = await answer.json();
    if (body.error && body.error.code) return new Failure(body.error.code, body.error.message, about);
    const issue = body.issue && body.issue[0];  // FHIR: an OperationOutcome
    if (issue) return new Failure(issue.details.text, issue.diagnostics, about);
  } catch { /* not from the service: what stands before it speaks plain text */ }
  return new Failure("other", "", about);
}
