/* Thumbnails as the browser draws them, and an opened image with the service's heat map over it. */
const THUMB = 160, DRAWN_AT_ONCE = 2;
const thumbnails = { waiting: [], drawing: 0 };

/* Small copies, so that hundreds of large images do not stay decoded. Only of files whose size the service took. */
function drawThumbnail(row) {
  thumbnails.waiting.push(row);
  nextThumbnail();
}
function nextThumbnail() {
  if (thumbnails.drawing >= DRAWN_AT_ONCE || !thumbnails.waiting.length) return;
  const row = thumbnails.waiting.shift();
  thumbnails.drawing += 1;
  smallCopy(row.file)
    .then((blob) => { if (!row.isGone) { dropThumbnail(row); row.thumb = URL.createObjectURL(blob); } }, () => { row.isUndrawable = true; })
    .finally(() => { thumbnails.drawing -= 1; if (!row.isGone) showThumbnail(row); nextThumbnail(); });
}
async function smallCopy(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas");
  canvas.width = Math.max(1, Math.round(scale * bitmap.width));
  canvas.height = Math.max(1, Math.round(scale * bitmap.height));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";  // transparent images lie on white for the model too
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("not drawn"))), "image/jpeg", .88));
}
function dropThumbnail(row) {
  if (row.thumb) URL.revokeObjectURL(row.thumb);
  row.thumb = null;
}
/* Let go of all that a row holds in memory. */
function forget(row) {
  row.isGone = true;
  dropThumbnail(row);
  dropPicture(row);
  if (row.mapping) row.mapping.abort(new Error("closed"));
}
function dropPicture(row) {
  for (const name of ["own", "map"]) if (row[name]) { URL.revokeObjectURL(row[name]); row[name] = null; }
}

/* TIFF, DICOM: what the service says it is, else how the name ends. */
function kindOf(row) {
  const ending = (row.name.match(/\.([a-z0-9]{1,5})$/i) || [])[1];
  return ((row.answer && row.answer.image.format) || ending || "?").toUpperCase();
}

/* The image of an opened row; its map lies over it, as strong as the slider says. */
function picture(row) {
  const figure = make("figure", "picture"), stack = make("div", "stack"), below = make("div");
  figure.append(stack, below);
  if (row.isUndrawable) stack.append(make("p", "", say(row.answer ? "picture.none" : "no_thumbnail", { kind: kindOf(row) })));
  else stack.append(ownImage(row));
  if (row.map) addMap(row, stack, below);
  else if (row.answer) below.append(mapControl(row));
  return figure;
}
function ownImage(row) {
  row.own ??= URL.createObjectURL(row.file);
  const image = make("img", "own");
  image.alt = say("picture.alt", { name: row.name });
  image.onerror = () => { if (!row.isUndrawable && !row.isGone) { row.isUndrawable = true; showRow(row); } };
  image.src = row.own;
  return image;
}
function mapControl(row) {
  const line = make("div", "row");
  if (service && service.noMap === row.answer.model.sha256) line.append(make("span", "hint", say("map.none")));
  else if (row.mapping) line.append(make("span", "hint", say("map.loading")));
  else line.append(button(say("map"), () => fetchMap(row)));
  if (row.mapFailure) line.append(make("span", "hint", told(row.mapFailure)));
  return line;
}
function addMap(row, stack, below) {
  const image = make("img", row.isUndrawable ? "map alone" : "map"), of = row.mapSays.map_of;
  image.alt = say("map.alt", { name: row.name, of });
  image.src = row.map;
  if (row.isUndrawable) stack.replaceChildren(image);
  else {
    stack.append(image);
    const slider = make("input");
    Object.assign(slider, { type: "range", min: 0, max: 100, value: row.strength });
    slider.addEventListener("input", () => { row.strength = Number(slider.value); image.style.opacity = row.strength / 100; });
    image.style.opacity = row.strength / 100;
    below.append(make("label", "slider", say("map.slider"), slider));
  }
  const isOfAnother = row.mapSays.sha256 !== row.answer.model.sha256;
  const caption = make("figcaption", "", isOfAnother ? say("map.other_model", { model: row.mapSays.model }) + " " : "", row.isUndrawable ? say("map.only", { kind: kindOf(row) }) + " " : "", say(row.mapSays.peak > 0 ? "map.caption" : "map.nothing", { of }));
  below.append(caption);
}
/* The picture of /explain: gray, square as the model sees it, which is the whole image stretched. */
async function fetchMap(row) {
  if (row.mapping || row.map || !row.answer || (service && service.noMap === row.answer.model.sha256)) return;
  const mapping = new AbortController();
  Object.assign(row, { mapping, mapFailure: null });
  showRow(row);
  try {
    const headers = { Accept: "image/png", "X-Request-ID": row.answer.request_id };  // of two models the one that answered
    const answer = await post("explain", await read(row.file), mapping.signal, headers);
    const about = describedIn(await answer.blob.arrayBuffer());
    if (row.isGone || !row.isOpen) return;
    Object.assign(row, { map: URL.createObjectURL(answer.blob), mapSays: about, strength: row.strength ?? 70 });
    if (row.isUndrawable && !row.thumb) smallCopy(answer.blob).then((blob) => { if (!row.isGone) { row.thumb = URL.createObjectURL(blob); showThumbnail(row); } }, () => {});
  } catch (error) {
    row.mapFailure = failureFrom(error, mapping.signal);
    if (row.mapFailure.code === "no_map" && service) service.noMap = row.answer.model.sha256;
    if (row.mapFailure.code === "cancelled") row.mapFailure = null;
  } finally {
    row.mapping = null;
    if (!row.isGone) showRow(row);
  }
}
/* What a PNG of the service says of itself: JSON in its text `Description` (PNG, third edition, section 11.3.3). */
function describedIn(buffer) {
  const view = new DataView(buffer), latin = new TextDecoder("latin1");
  for (let place = 8; place + 8 <= view.byteLength;) {
    const size = view.getUint32(place), kind = latin.decode(new Uint8Array(buffer, place + 4, 4));
    if (kind === "tEXt") {
      const [name, text] = latin.decode(new Uint8Array(buffer, place + 8, size)).split("\0");
      if (name === "Description") return JSON.parse(text);
    }
    place += 12 + size;
  }
  throw new Failure("bad_answer");
}
