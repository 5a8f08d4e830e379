/* The images shown as of one subject: what counts, how small a share would go unseen, and the service's own report. */
let reportShown = null;  // { answer, isOf }: what the service said, and of which images and whom

/* What each model's classes are, by its SHA-256, as the service said: leukocyte, blast, or beside. Empty: not known. */
const rolesOf = new Map();

/* As serving/protocols/fhir/tally.py counts: no image that is for a person, unlike training, or without an answer, and
   shares are of leukocytes (blasts among them) where the classes are kinds of cells. */
function tally(shown) {
  const answered = shown.filter((row) => row.answer);
  const left = {
    review: answered.filter((row) => row.state === "review" && !isUnlike(row)).length,
    unlike: answered.filter(isUnlike).length,
    error: shown.length - answered.length,
  };
  const scored = answered.filter((row) => row.state !== "review" && !isUnlike(row));
  const counted = scored.filter((row) => roleOf(row.answer) !== "beside");
  const isPositive = (row) => row.state === "positive";
  const digests = shown.map((row) => row.digest).filter(Boolean);
  return {
    all: shown.length,
    scored: scored.length,
    counted: counted.length,
    positive: counted.filter(isPositive).length,
    beside: scored.length - counted.length,
    isNonePositive: !scored.some(isPositive),
    isOfLeukocytes: scored.length > 0 && scored.every((row) => roleOf(row.answer)),
    isKnown: scored.every((row) => rolesOf.has(row.answer.model.sha256)),
    left: Object.entries(left).filter(([, count]) => count),
    unlooked: [
      ...(answered.some((row) => !row.answer.model.review_band) ? [say("subject.unlooked.review")] : []),
      ...(answered.some((row) => unlikeLimit(row.answer.model) === null) ? [say("subject.unlooked.unlike")] : []),
    ],
    again: digests.length - new Set(digests).size,
  };
}
const roleOf = (answer) => (rolesOf.get(answer.model.sha256) || {})[countsAs(answer)];

/* The most probable class on the side of the decision, which can be another than the most probable of all. */
function countsAs(answer) {
  const isPositive = answer.decision === "positive";
  const side = answer.model.classes.filter((name) => answer.model.positive_classes.includes(name) === isPositive);
  if (!answer.decision || !side.length || side.includes(answer.class_name)) return answer.class_name;
  return side.reduce((best, name) => (answer.classes[name] > answer.classes[best] ? name : best));
}
/* No event in n: upper limit of the exact one-sided 95 % interval (Clopper and Pearson 1934), as the report has it. */
const detectionLimit = (n) => 1 - .05 ** (1 / n);

function showSubject(shown) {
  $("subject").hidden = !rows.length;
  const isOpen = shown.some((row) => OPEN_STATES.has(row.state)), said = $("subject-said");
  if (isOpen) said.textContent = say("subject.wait");
  else said.replaceChildren(...subjectSentences(shown).map((text) => make("span", "", text + " ")));
  const problem = reportProblem(shown, isOpen), ask = $("subject-form").querySelector("button");
  ask.disabled = Boolean(problem);
  ask.title = problem;
  if (reportShown && reportShown.isOf !== keyOf(shown)) reportShown = null;
  showReport(problem);
}
/* A report of the same images under another id is another one: it would tell of the wrong person. */
const subjectId = () => $("subject-id").value.trim();
const keyOf = (shown) => [subjectId(), ...shown.map((row) => row.order + row.state)].join(" ");

function subjectSentences(shown) {
  const found = tally(shown);
  if (shown.some((row) => row.state === "classified")) return [say("subject.no_disease")];
  const left = found.left.map(([kind, count]) => say("subject.left." + kind, { n: count })).join(", ") || say("subject.left.none");
  const lines = [say("subject.counted", { counted: number(found.scored), all: number(found.all), left })];
  if (found.unlooked.length) lines.push(say("subject.unlooked", { what: found.unlooked.join(", ") }));
  if (found.beside) lines.push(say("subject.beside", { n: found.beside }));
  if (!found.counted) return lines;
  const units = new Set(shown.filter((row) => row.answer).map((row) => row.answer.model.unit));
  if (units.size !== 1 || !units.has("cell")) return [...lines, say("subject.no_cells")];
  if (!found.isKnown) return [...lines, say("subject.other_model")];
  const share = { positive: number(found.positive), counted: number(found.counted), share: percent(found.positive / found.counted) };
  lines.push(say(found.isOfLeukocytes ? "subject.share.leukocytes" : "subject.share", share));
  if (found.left.length) lines.push(say("subject.no_limit.left"));
  else if (found.again) lines.push(say("subject.no_limit.again", { n: found.again }));
  else lines.push(say(found.isNonePositive ? "subject.limit" : "subject.limit.some", { limit: percent(detectionLimit(found.counted)) }));
  return lines;
}
/* Why the service would not make a report of these; empty: it would. */
function reportProblem(shown, isOpen) {
  const size = shown.reduce((sum, row) => sum + row.file.size, 0);
  if (isOpen || !service) return say("subject.wait");
  if (shown.length > service.max_files || size > service.max_request_bytes) return say("subject.too_many", { most: number(service.max_files), bytes: bytes(service.max_request_bytes) });
  return "";
}
function showReport(problem) {
  const box = $("subject-report");
  if (problem) return box.replaceChildren(make("p", "hint", problem));
  if (!reportShown) return box.replaceChildren();
  if (reportShown.says) return box.replaceChildren(make("p", "", reportShown.says));
  const resources = reportShown.answer.entry.map((entry) => entry.resource);
  const report = resources.find((resource) => resource.resourceType === "DiagnosticReport") || { conclusion: "" };
  const shares = resources.filter((resource) => resource.valueQuantity && resource.component?.some((part) => part.code.coding[0].code === "denominator"));
  const table = make("table", "", make("tbody", "", ...shares.map(shareLine)));
  return box.replaceChildren(
    make("p", "", say("subject.report")), english("p", "", report.conclusion || WORDS.en.notice), ...(shares.length ? [table] : []),
    make("div", "row", button(say("subject.save"), () => save(JSON.stringify(reportShown.answer, null, 1), "application/fhir+json", "leukoray.fhir.json"))),
  );
}
function shareLine(observation) {
  const count = (code) => observation.component.find((part) => part.code.coding[0].code === code).valueInteger;
  const { value, unit } = observation.valueQuantity;
  const cells = [english("th", "", observation.code.text), make("td", "n", count("count") + " / " + count("denominator")), make("td", "n", number(value, 2) + "\u00a0" + unit)];
  cells[0].scope = "row";
  return make("tr", "", ...cells);
}
async function askReport(event) {
  event.preventDefault();
  const shown = shownRows(), isOf = keyOf(shown), id = subjectId();
  if (id && !new RegExp(SUBJECT_ID).test(id)) return sayReport(isOf, say("subject.bad_id"));
  sayReport(isOf, say("subject.asking"));
  const form = new FormData();
  shown.forEach((row, place) => form.append("files", row.file, "image-" + (place + 1)));
  const query = "format=fhir" + (id ? "&subject=" + encodeURIComponent(id) : "");
  const { signal } = run;
  let found;
  try {
    const answer = await (await post("predict?" + query, form, signal)).json();
    if (!Array.isArray(answer?.entry)) throw new Failure("bad_answer");
    found = { answer, isOf };
  } catch (error) {
    found = { says: told(failureFrom(error, signal)), isOf };
  }
  if (isOf === keyOf(shownRows())) reportShown = found;
  return showSubject(shownRows());
}
function sayReport(isOf, says) {
  reportShown = { says, isOf };
  showReport("");
}
