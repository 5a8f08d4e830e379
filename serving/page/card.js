/* One image: a line that tells its decision, and what is behind it when it is opened. */
const SIGNS = { positive: "▲", negative: "●", review: "◆", error: "✕", waiting: "…", working: "…" };

function newNode(row) {
  row.node = make("li", "card");
  row.head = make("button", "head");
  row.head.type = "button";
  row.head.tabIndex = -1;
  row.head.addEventListener("click", () => toggle(row));
  row.body = make("div", "body");
  row.body.id = "body-" + row.order;
  row.head.setAttribute("aria-controls", row.body.id);
  row.node.append(row.head, row.body);
  row.node.row = row;
  return row.node;
}
function drawCard(row) {
  row.node.className = ["card", row.state, isUnlike(row) ? "unlike" : ""].join(" ").trim();
  row.node.dataset.notice = say("notice");
  row.head.replaceChildren(thumbnail(row), headline(row), ...(hasMeter(row) ? [meter(row)] : []));
  row.head.setAttribute("aria-expanded", String(row.isOpen));
  row.body.hidden = !row.isOpen;
  drawBody(row);
}
const isUnlike = (row) => Boolean(row.answer && row.answer.is_ood);
/* Beyond which distance a model says so; null: it never does. */
const unlikeLimit = (model) => model.ood?.threshold ?? null;
const hasMeter = (row) => Boolean(row.answer && row.answer.decision);

function thumbnail(row) {
  const box = make("span", "thumb");
  if (row.thumb) {
    const image = make("img");
    image.alt = "";
    image.src = row.thumb;
    box.classList.add("drawn");
    box.append(image);
  } else if (row.isUndrawable) box.append(say("no_thumbnail", { kind: kindOf(row) }));
  return box;
}
/* The warning comes before the answer that it makes doubtful. */
function headline(row) {
  const text = make("span", "who", make("span", "name", row.name));
  if (isUnlike(row)) text.append(make("span", "warning", "⚠ " + say("unlike")));
  const verdict = make("span", "verdict", make("b", "", title(row)));
  if (row.answer) verdict.append(make("span", "", say(row.answer.decision ? "probability.disease" : "probability.class", { p: percent(row.answer.probability) })));
  if (row.failure) verdict.append(make("span", "", told(row.failure)));
  text.append(verdict);
  return text;
}
function title(row) {
  if (row.state === "classified") return row.answer.class_name;
  return SIGNS[row.state] + " " + say("decision." + row.state);
}
function meter(row) {
  const { probability, threshold, model } = row.answer;
  const track = make("span", "meter"), fill = make("i", "fill"), mark = make("i", "mark");
  fill.style.width = 100 * probability + "%";
  mark.style.left = 100 * threshold + "%";
  track.append(fill);
  if (model.review_band) {
    const [low, high] = model.review_band, band = make("i", "band");
    band.style.left = 100 * low + "%";
    band.style.width = 100 * (high - low) + "%";
    track.append(band);
  }
  track.append(mark);
  track.setAttribute("role", "img");
  const review = model.review_band ? ", " + say("band", { low: level(model.review_band[0]), high: level(model.review_band[1]) }) : "";
  track.setAttribute("aria-label", say("meter", { p: percent(probability), t: level(threshold) }) + review);
  return track;
}

function drawBody(row) {
  if (!row.isOpen) return row.body.replaceChildren();
  const about = make("div", "about");
  if (isUnlike(row)) about.append(unlikeNote(row.answer));
  if (row.failure) about.append(...failureBody(row));
  if (row.answer) about.append(...answerBody(row));
  return row.body.replaceChildren(picture(row), about);
}
function unlikeNote(answer) {
  const limit = unlikeLimit(answer.model);
  const distance = answer.ood_score === null || limit === null ? null : " " + say("unlike.distance", { score: number(answer.ood_score, 1), limit: number(limit, 1) });
  return make("p", "unlike-note", "⚠ " + say("unlike.long"), distance);
}
function failureBody(row) {
  const failure = row.failure, line = make("div", "row");
  line.append(button(say("retry"), () => again([row])));
  return [
    facts([
      ["fact.code", failure.code],
      ["fact.says", failure.message ? english("span", "", failure.message) : null],
      ["fact.request", failure.requestId],
    ]),
    line,
  ];
}
function answerBody(row) {
  const { answer } = row, model = answer.model, image = answer.image;
  const limit = unlikeLimit(model), distance = answer.ood_score === null ? null : number(answer.ood_score, 1);
  const band = model.review_band ? ", " + say("band", { low: level(model.review_band[0]), high: level(model.review_band[1]) }) : "";
  return [
    ...(hasMeter(row) ? [make("p", "", say("threshold", { t: level(answer.threshold) }) + band)] : []),
    ...(model.task === "multiclass" ? [classes(answer)] : []),
    facts([
      ["fact.remarks", answer.remarks.length ? english("span", "", answer.remarks.join("; ")) : null],
      ["fact.ood", distance === null || limit === null ? distance : say("fact.ood.value", { score: distance, limit: number(limit, 1) })],
      ["fact.format", image.format.toUpperCase()],
      ["fact.pixels", image.width + " × " + image.height],
      ["fact.bytes", bytes(image.size_bytes)],
      ["fact.time", say("fact.time.value", { server: number(answer.elapsed_ms), total: number(row.total_ms) })],
      ["fact.model", model.name + " " + model.version],
      ["fact.request", answer.request_id],
    ]),
  ];
}
function classes(answer) {
  const list = make("dl", "classes");
  list.setAttribute("aria-label", say("classes"));
  for (const [name, value] of Object.entries(answer.classes)) {
    const most = name === answer.class_name ? "most" : "", bar = make("i");
    bar.style.width = 100 * value + "%";
    list.append(make("dt", most, name), make("dd", most, bar, make("b", "", percent(value))));
  }
  return list;
}

/* What an opened row holds is let go of when it is closed. */
function toggle(row, isOpen = !row.isOpen) {
  row.isOpen = isOpen;
  if (!isOpen) { if (row.mapping) row.mapping.abort(new Error("closed")); dropPicture(row); }
  showRow(row);
}
