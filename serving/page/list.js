/* The list of results: what is shown, in which order, how many of what, and moving in it by keys. */
const KINDS = ["positive", "review", "negative", "classified", "unlike", "error", "waiting"];
const ORDERS = {
  added: (a, b) => b.batch - a.batch,
  name: (a, b) => a.name.localeCompare(b.name, language, { numeric: true }),
  high: (a, b) => (b.answer?.probability ?? -1) - (a.answer?.probability ?? -1),
  low: (a, b) => (a.answer?.probability ?? 2) - (b.answer?.probability ?? 2),
  unlike: (a, b) => (b.answer?.ood_score ?? -1) - (a.answer?.ood_score ?? -1),
};
let kindShown = "all", current = null, arranging = null, wasBusy = false;

function isKind(row, kind) {
  if (kind === "all") return true;
  if (kind === "unlike") return isUnlike(row);
  return kind === "waiting" ? OPEN_STATES.has(row.state) : row.state === kind;
}
function isShown(row) {
  const searched = $("search").value.trim().toLowerCase();
  return isKind(row, kindShown) && (!searched || row.name.toLowerCase().includes(searched));
}
const shownRows = () => rows.filter(isShown).sort((a, b) => ORDERS[$("sort").value](a, b) || a.order - b.order);

function showAdded(added) {
  for (const row of added) { newNode(row); drawCard(row); }
  const opened = rows.length === 1 ? added : [];
  opened.forEach((row) => toggle(row, true));
  showAll();
}
/* One row anew; the rest of the list follows in a moment, once for many. */
function showRow(row) {
  if (row.isGone) return;
  const hadFocus = row.node.contains(document.activeElement) && document.activeElement !== row.head;
  drawCard(row);
  if (hadFocus) refocus(row);
  arranging ??= setTimeout(showAll, 250);
}
/* A redrawn body lost what had the focus: to the slider of a map that came, else to the row. */
function refocus(row) {
  (row.body.querySelector("input[type=range]") || row.head).focus({ preventScroll: true });
}
function showThumbnail(row) {
  row.head.querySelector(".thumb").replaceWith(thumbnail(row));
  if (row.isOpen) showRow(row);
}
function showAll() {
  clearTimeout(arranging);
  arranging = null;
  const shown = shownRows();
  arrange(shown);
  if (!shown.includes(current)) current = shown[0] ?? null;
  for (const row of rows) row.head.tabIndex = row === current ? 0 : -1;
  $("found").hidden = !rows.length;
  $("drop").classList.toggle("small", rows.length > 0);
  $("none-shown").hidden = shown.length > 0;
  $("summary").textContent = say("count", { n: rows.length }) + (shown.length < rows.length ? " · " + say("shown", { n: shown.length, all: number(rows.length) }) : "");
  showFilters();
  showLegend();
  showModelsUsed();
  showSubject(shown);
  showProgress();
}
/* Nodes move only where the order is another, so that focus and scrolling stay. */
function arrange(shown) {
  const list = $("results"), focused = document.activeElement, nodes = shown.map((row) => row.node);
  if (nodes.length === list.childNodes.length && nodes.every((node, place) => list.childNodes[place] === node)) return;
  list.replaceChildren(...nodes);
  if (list.contains(focused)) focused.focus({ preventScroll: true });
}
function showFilters() {
  const counted = KINDS.map((kind) => [kind, rows.filter((row) => isKind(row, kind)).length]).filter(([kind, count]) => count || kind === kindShown);
  const buttons = [["all", rows.length], ...counted].map(([kind, count]) => {
    const node = button("", () => { kindShown = kind; showAll(); $("filters").querySelector("[aria-pressed=true]").focus(); });
    const sign = kind === "unlike" ? "⚠ " : SIGNS[kind] ? SIGNS[kind] + " " : "";
    node.append(sign + say("filter." + kind) + " ", make("b", "", number(count)));
    node.dataset.kind = kind;
    node.setAttribute("aria-pressed", String(kind === kindShown));
    return node;
  });
  const hadFocus = $("filters").contains(document.activeElement) && document.activeElement.dataset.kind;
  $("filters").replaceChildren(...buttons);
  if (hadFocus) (buttons.find((node) => node.dataset.kind === hadFocus) || buttons[0]).focus();
  const failed = rows.filter((row) => row.state === "error");
  $("retry-all").hidden = !failed.length;
  $("retry-all").textContent = say("retry.all", { n: failed.length });
}
function showLegend() {
  const model = service && service.model, line = [];
  if (rows.some(hasMeter) && model) {
    line.push(make("span", "", make("i", "line"), say("legend.threshold", { t: level(model.threshold) })));
    if (model.review_band) line.push(make("span", "", make("i", "band"), say("legend.band", { low: level(model.review_band[0]), high: level(model.review_band[1]) })));
  }
  $("legend").replaceChildren(...line);
}
function showModelsUsed() {
  const used = new Set(rows.filter((row) => row.answer).map((row) => row.answer.model.sha256));
  $("two-models").hidden = used.size < 2;
  $("two-models").textContent = used.size < 2 ? "" : say("two_models", { n: used.size });
}
function showProgress() {
  const open = rows.filter((row) => OPEN_STATES.has(row.state)).length, done = rows.length - open;
  $("progress").hidden = !open;
  $("progress-bar").max = rows.length || 1;
  $("progress-bar").value = done;
  $("progress-text").textContent = say("progress", { done: number(done), all: number(rows.length) });
  if (wasBusy && !open && rows.length) $("announce").textContent = say("done", { n: done });
  if (open) $("announce").textContent = "";
  wasBusy = open > 0;
}

/* ---- keys ---- */
function step(by) {
  const shown = shownRows();
  if (!shown.length) return;
  const inList = document.activeElement.closest?.(".card");
  const place = inList ? shown.indexOf(inList.row) + by : shown.indexOf(current);
  moveTo(shown[Math.min(Math.max(place, 0), shown.length - 1)]);
}
function moveTo(row) {
  if (!row) return;
  if (current) current.head.tabIndex = -1;
  current = row;
  row.head.tabIndex = 0;
  row.head.focus({ preventScroll: true });
  row.node.scrollIntoView({ block: "nearest" });
}
const KEYS = {
  j: () => step(1), k: () => step(-1),
  m: () => { if (current) { moveTo(current); toggle(current, true); fetchMap(current); } },
  r: () => { if (current && current.failure) again([current]); },
  "/": () => $("search").focus(),
  "?": () => $("help").showModal(),
};
const LIST_KEYS = {
  ArrowDown: () => step(1), ArrowUp: () => step(-1),
  Home: () => moveTo(shownRows()[0]), End: () => moveTo(shownRows().at(-1)),
};
function onKey(event) {
  const target = event.target, typing = target.matches?.("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") return onEscape(target);
  const inHead = target.classList?.contains("head");  // elsewhere these keys scroll
  const act = (inHead && LIST_KEYS[event.key]) || (!typing && $("letters").checked && KEYS[event.key.toLowerCase()]);
  if (!act || (!rows.length && event.key !== "?")) return;
  event.preventDefault();
  act();
}
function onEscape(target) {
  const row = target.closest?.(".card")?.row;
  if (target === $("search")) { $("search").value = ""; showAll(); moveTo(current); }
  else if (row && row.isOpen) { toggle(row, false); row.head.focus(); }
}
