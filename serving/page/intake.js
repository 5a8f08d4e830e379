/* Ways in: chosen and dropped files and folders, the clipboard, a camera. */
const hasImageName = (name) => SUFFIXES.some((suffix) => name.toLowerCase().endsWith(suffix));
const isHidden = (name) => /(^|\/)\./.test(name);
let folderSaid = null;  // what the last folder was told of, to be said again in another language

/* Of folders only what is an image by its name: their other files would all be refused. */
function addFolder(files, nameOf) {
  const visible = files.filter((file) => !isHidden(nameOf(file))), images = visible.filter((file) => hasImageName(file.name));
  sayOfFolder(images.length ? (visible.length > images.length ? ["left_out", { n: visible.length - images.length }] : null) : ["nothing_found", {}]);
  add(images, nameOf);
}
function sayOfFolder(said) {
  folderSaid = said;
  $("said").textContent = said ? say(...said) : "";
}
/* A folder comes as an entry that cannot be sent; what lies in it is taken, however deep. */
async function addDropped(transfer) {
  const entries = Array.from(transfer.items || [], (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) { sayOfFolder(null); return add(transfer.files); }
  const paths = new Map(), alone = [], failed = [];
  for (const entry of entries) await walk(entry, (file, path) => { if (entry.isFile) alone.push(file); else paths.set(file, path.replace(/^\//, "")); }, failed);
  addFolder([...paths.keys()], (file) => paths.get(file));
  if (failed.length) sayOfFolder(["unreadable", { n: failed.length, why: failed[0] }]);
  return add(alone);
}
/* What cannot be read does not keep the rest from being taken. */
async function walk(entry, take, failed) {
  try {
    if (entry.isFile) return take(await new Promise((done, fail) => entry.file(done, fail)), entry.fullPath);
    const reader = entry.createReader();
    const some = () => new Promise((done, fail) => reader.readEntries(done, fail));  // at most a hundred at a time
    for (let found = await some(); found.length; found = await some()) for (const inner of found) await walk(inner, take, failed);
  } catch (error) {
    failed.push(entry.fullPath + ": " + error.message);
  }
}

/* ---- camera ---- */
const camera = { stream: null, said: null, asked: 0 };

async function openCamera() {
  $("camera").showModal();
  sayOfCamera(null);
  if (!window.isSecureContext || !navigator.mediaDevices) return sayOfCamera(["camera.insecure", {}]);
  await startCamera({ facingMode: "environment" });
  if (camera.stream) await listCameras();
}
/* One that is given late, when another was asked for or the dialog is closed, goes off at once: nobody would end it. */
async function startCamera(which) {
  stopCamera();
  const asked = camera.asked;
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { ...which, width: { ideal: 4096 }, height: { ideal: 2160 } }, audio: false });
    if (asked !== camera.asked) return stream.getTracks().forEach((track) => track.stop());
    camera.stream = stream;
    $("video").srcObject = stream;
    sayOfCamera(null);  // the one before may have failed
    await $("video").play();
    if (asked === camera.asked) $("take").disabled = false;
  } catch (error) {
    if (asked !== camera.asked) return;
    const key = { NotAllowedError: "camera.denied", NotFoundError: "camera.none" }[error.name];
    sayOfCamera(key ? [key, {}] : ["camera.failed", { why: error.message }]);
  }
}
async function listCameras() {
  const found = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
  if (!camera.stream) return;
  const now = camera.stream.getVideoTracks()[0].getSettings().deviceId;
  $("which-row").hidden = found.length < 2;
  $("which").replaceChildren(...found.map((device, place) => new Option(device.label || say("camera.number", { n: place + 1 }), device.deviceId, false, device.deviceId === now)));
}
function takePicture() {
  const video = $("video"), canvas = make("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => {  // PNG: nothing is lost once more
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
    if (blob) add([new File([blob], say("taken", { time }), { type: "image/png" })]);
  }, "image/png");
}
function stopCamera() {
  camera.asked += 1;
  $("take").disabled = true;
  if (camera.stream) camera.stream.getTracks().forEach((track) => track.stop());
  camera.stream = $("video").srcObject = null;
}
function sayOfCamera(said) {
  camera.said = said;
  $("camera-said").textContent = said ? say(...said) : "";
  $("video").hidden = Boolean(said);
}
