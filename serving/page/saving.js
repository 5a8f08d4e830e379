/* What is shown as files: CSV that no spreadsheet runs, JSON with all that the service said. */
const HEAD = ["file", "decision", "probability", "threshold", "class", "is_ood", "ood_score", "error_code", "error_message", "model", "version", "sha256", "synthetic_model", "request_id", "notice"];

/* As pipeline/base/csv_text.py: a text that a spreadsheet would run gets a ' before it, but for numbers, and where it
   would be run by one that parts cells at ; or tabs. Signs of full width are run as well. */
const RISKY = /^'*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r]/, NUMBER = /^\s*[+-]?(inf(inity)?|nan|(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)(e[+-]?\d+(_\d+)*)?)\s*$/i;
const PARTED = /(?<=[;\t\r\n])(?=[ \t\r\n']*[=+\-@\uff1d\uff0b\uff0d\uff20])/g;
const guarded = (cell) => (NUMBER.test(cell) ? cell : (RISKY.test(cell) ? "'" : "") + cell.replace(PARTED, "'"));

function csvCell(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" ? guarded(value) : String(value);
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}
function csvRow(row) {
  const a = row.answer || {}, m = a.model || {}, e = row.failure || {};
  return [row.name, a.decision, a.probability, a.threshold, a.class_name, a.is_ood, a.ood_score, e.code, e.message, m.name, m.version, m.sha256, m.synthetic, a.request_id || e.requestId, WORDS.en.notice];
}
const finished = () => shownRows().filter((row) => !OPEN_STATES.has(row.state));
const toCsv = () => [HEAD, ...finished().map(csvRow)].map((line) => line.map(csvCell).join(",") + "\n").join("");

function toJson() {
  const results = finished().map((row) => ({
    file: row.name,
    ...(row.answer ? { prediction: row.answer } : {}),
    ...(row.failure ? { error: { code: row.failure.code, message: row.failure.message, status: row.failure.status, request_id: row.failure.requestId } } : {}),
  }));
  return JSON.stringify({ notice: WORDS.en.notice, saved_at: new Date().toISOString(), results }, null, 1) + "\n";
}
function save(text, type, name) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
