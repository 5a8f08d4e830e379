/* The service's model and limits, its card, and what happens when the reader does something. */
let service = null;  // what /readyz says: the model and the limits; null: not known yet

/* Another model has a threshold, limits and a card of its own. Two may take turns, so it is asked for now and then. */
const STATE_EVERY_MS = 10_000, STATE_SILENCE_MS = 30_000;
let stateAsked = -STATE_EVERY_MS, stateTimer = null;
function noticeModel(sha256) {
  const isKnown = service && service.model.sha256 === sha256 && !service.refused;
  if (isKnown || stateTimer !== null) return;
  const ask = () => { stateTimer = null; stateAsked = performance.now(); loadState(); };
  stateTimer = setTimeout(ask, Math.max(0, stateAsked + STATE_EVERY_MS - performance.now()));
}
/* Whether the service is ready; what it says is shown. */
async function loadState() {
  try {
    const answer = await once("readyz", {}, new AbortController().signal, STATE_SILENCE_MS);
    if (!answer.ok) throw await failureOf(answer);
    const state = await answer.json();
    if (!state?.model?.sha256) throw new Failure("bad_answer");
    service = { noMap: service && service.noMap, ...state };
    rolesOf.set(state.model.sha256, state.roles);
  } catch (error) {
    if (!service) $("model").textContent = notReady(error);
    return false;
  }
  showService();
  showAll();
  return true;
}
/* In the service's own words where it is the service that speaks; a browser's tell a reader nothing. */
function notReady(error) {
  if (error instanceof Failure && error.message) return say("model.not_ready", { why: error.message });
  if (error instanceof Failure && error.code === "other") return say("model.not_there", { status: error.status });
  return say(error instanceof Failure || error instanceof SyntaxError ? "model.not_ours" : "model.no_answer");
}
async function start() {
  for (let pause = 1; !(await loadState()); pause = Math.min(2 * pause, LONGEST_PAUSE_S)) await sleep(1000 * pause, new AbortController().signal);
}
function showService() {
  if (!service) return;
  const model = service.model;
  $("model").replaceChildren(make("b", "", model.name), " " + model.version, make("br"), say("model.line", { architecture: model.architecture, size: model.input_size, sha: model.sha256.slice(0, 12) }));
  $("synthetic").hidden = !model.synthetic;
  $("guesses").hidden = model.better_than_chance !== false;
  $("key-row").hidden = !service.needs_api_key;
  $("refused").hidden = !service.refused;
  $("refused").textContent = service.refused ? say("refused", { why: service.refused }) : "";
  $("formats").textContent = say("formats", { size: bytes(service.max_bytes) });
  if ($("card").open) showCard();
}

/* ---- model card ---- */
async function showCard() {
  try {
    const answer = await fetch("model", { cache: "no-store" }), model = await answer.json();
    if (!answer.ok) throw new Failure(model.error.code, model.error.message, { status: answer.status });
    $("card-body").replaceChildren(cardFacts(model), ...(model.card ? [make("h3", "", say("card.text")), markdown(model.card)] : []));
  } catch (error) {
    $("card-body").replaceChildren(make("p", "", error instanceof Failure ? told(error) : say("lost")));
  }
}
function cardFacts(model) {
  const rule = model.review && !model.review.why_not ? say("card.promise.value", { p: level(model.review.error) }) : null;
  const candidate = model.candidate && model.candidate.now;
  return facts([
    ["card.name", model.name + " " + model.version],
    ["card.sha", model.sha256],
    ["card.architecture", model.architecture],
    ["card.input", say("card.input.value", { size: model.input_size })],
    ["card.unit", say("card.unit." + (model.unit || "none"))],
    ["card.classes", model.classes.join(", ")],
    ["card.positive", model.positive_classes.join(", ") || say("card.none")],
    ["card.threshold", model.positive_classes.length ? level(model.threshold) : null],
    ["card.band", model.review_band ? model.review_band.map(level).join(" – ") : say("card.none")],
    ["card.promise", rule],
    ["card.ood", unlikeLimit(model) === null ? say("card.none") : say("card.ood.value", { limit: number(unlikeLimit(model), 2) })],
    ["card.chance", model.against_chance_text ? english("span", "", model.against_chance_text) : null],
    ["card.since", model.since ? new Date(model.since).toLocaleString(language) : null],
    ["card.follows", model.follows && model.follows.uri],
    ["card.candidate", candidate && candidate.name + " " + candidate.version + ", " + say("card.candidate." + candidate.stage, { share: level(candidate.share) })],
    ["card.limits", service && say("card.limits.value", { bytes: bytes(service.max_bytes), pixels: number(service.max_pixels / 1e6, 1) })],
  ]);
}

/* ---- what the reader does ---- */
function translate() {
  translateDocument();
  showService();
  sayOfFolder(folderSaid);
  sayOfCamera(camera.said);
  if (gate.said) gate.show(...gate.said);
  rows.forEach(drawCard);
  showAll();
}
function onLanguage() {
  language = $("language").lang;
  const address = new URL(location.href);
  address.searchParams.set("lang", language);
  history.replaceState(null, "", address);
  translate();
}
function onFiles(event, take) {
  take(Array.from(event.target.files));
  event.target.value = "";
}
const on = (id, kind, act) => $(id).addEventListener(kind, act);
on("choose", "click", () => $("files").click());
on("folder", "click", () => $("folders").click());
on("files", "change", (event) => onFiles(event, (files) => { sayOfFolder(null); add(files); }));
on("folders", "change", (event) => onFiles(event, (files) => addFolder(files, (file) => file.webkitRelativePath)));
on("camera-open", "click", openCamera);
on("camera-close", "click", () => $("camera").close());
on("camera", "close", stopCamera);
on("take", "click", takePicture);
on("which", "change", () => startCamera({ deviceId: { exact: $("which").value } }));
on("language", "click", onLanguage);
on("help-open", "click", () => $("help").showModal());
on("card", "toggle", () => { if ($("card").open) showCard(); });
on("cancel", "click", cancel);
on("retry-all", "click", () => again(rows.filter((row) => row.state === "error")));
on("save-csv", "click", () => save(toCsv(), "text/csv;charset=utf-8", "leukoray.csv"));
on("save-json", "click", () => save(toJson(), "application/json", "leukoray.json"));
on("save-fhir", "click", () => { $("subject").open = true; $("subject-id").focus(); });
on("print", "click", () => print());
on("clear", "click", () => { clearAll(); $("choose").focus(); });
on("search", "input", showAll);
on("sort", "change", showAll);
on("subject-form", "submit", askReport);
on("subject-id", "input", () => showSubject(shownRows()));
for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); addDropped(event.dataTransfer); });
addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); } });
addEventListener("keydown", onKey);
addEventListener("beforeunload", (event) => { if (rows.some((row) => OPEN_STATES.has(row.state))) event.preventDefault(); });
translate();
start();
