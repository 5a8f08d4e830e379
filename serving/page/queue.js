/* Images that were added, and the work on them: a few requests at a time, whatever their number. */
const AT_ONCE = 4;
const OPEN_STATES = new Set(["waiting", "working"]);
let rows = [], working = 0, run = new AbortController(), order = 0, batch = 0;

/* Files by the name they are shown with. `file` is the browser's handle: its bytes are in memory only while sent. */
function add(files, nameOf = (file) => file.webkitRelativePath || file.name || say("pasted")) {
  batch += 1;
  const added = Array.from(files, (file) => newRow(file, nameOf(file)));
  if (!added.length) return;
  rows.push(...added);
  showAdded(added);
  pump();
}
function newRow(file, name) {
  order += 1;
  return { file, name, order, batch, state: "waiting", answer: null, failure: null, isOpen: false, thumb: null, digest: null };
}
function pump() {
  const next = rows.filter((row) => row.state === "waiting");
  while (working < AT_ONCE && next.length) {
    const row = next.shift();
    working += 1;
    row.state = "working";
    showRow(row);
    work(row, run.signal).finally(() => { working -= 1; showRow(row); pump(); });
  }
  showProgress();
}
async function work(row, signal) {
  const started = performance.now();
  try {
    const data = await read(row.file);
    row.digest = digestOf(data);
    const answer = await (await post("predict", data, signal)).json();
    if (!isPrediction(answer)) throw new Failure("bad_answer");
    row.answer = answer;
    row.total_ms = performance.now() - started;
    row.state = row.answer.decision || "classified";
    noticeModel(row.answer.model.sha256);
  } catch (error) {
    row.state = "error";
    row.failure = failureFrom(error, signal);
  }
  if (row.answer || ["truncated", "corrupt"].includes(row.failure.code)) drawThumbnail(row);
}
/* What stands between may answer in the place of the service. */
const isPrediction = (answer) => typeof answer?.probability === "number" && Boolean(answer.model?.sha256 && answer.classes && answer.image);
function failureFrom(error, signal) {
  if (signal.aborted) return new Failure("cancelled");
  return error instanceof Failure ? error : new Failure("bad_answer", String(error));
}
/* Raises Failure where it is too large to be sent, or gone. */
async function read(file) {
  if (service && file.size > service.max_bytes) throw new Failure("too_large", "", { values: { size: file.size, limit: service.max_bytes } });
  try {
    return await file.arrayBuffer();
  } catch (error) {
    throw new Failure("not_readable", error.message);
  }
}
/* Tells the same bytes again; 64 bits, and no cryptography, which browsers give to secure pages only. */
function digestOf(buffer) {
  const words = new Uint32Array(buffer, 0, buffer.byteLength >> 2), rest = new Uint8Array(buffer, words.byteLength);
  let a = 0xdeadbeef ^ buffer.byteLength, b = 0x41c6ce57;
  const take = (value) => { a = Math.imul(a ^ value, 2654435761); b = Math.imul(b ^ value, 1597334677); a ^= a >>> 15; b ^= b >>> 13; };
  for (let place = 0; place < words.length; place += 1) take(words[place]);
  for (let place = 0; place < rest.length; place += 1) take(rest[place]);
  return buffer.byteLength + ":" + (a >>> 0) + ":" + (b >>> 0);
}
function again(failed) {
  for (const row of failed) {
    Object.assign(row, { state: "waiting", failure: null, answer: null });
    showRow(row);
  }
  pump();
}
function cancel() {
  const ended = run;
  run = new AbortController();
  for (const row of rows.filter((row) => row.state === "waiting")) {
    Object.assign(row, { state: "error", failure: new Failure("cancelled") });
    showRow(row);
  }
  ended.abort(new Error("cancelled"));
  showProgress();
}
function clearAll() {
  run.abort(new Error("cleared"));
  run = new AbortController();
  rows.forEach(forget);
  rows = [];
  showAll();
}
