"use strict";
const find = (id) => document.getElementById(id);
const stage = find("stage");
const SILENT = "The server does not answer. Is jaxseg serve still running?";

let model = null; // what /model says
let result = null; // {width, height, classes, ids, confidences, byId}
let chosen = null; // the class that is shown alone, or null
let point = null; // the pixel that is read, {x, y}, or null
let request = null; // the AbortController of the upload under way

// --- Upload -------------------------------------------------------------------------------------

async function segment(file) {
  request?.abort();
  const own = request = new AbortController();
  say("");
  if (model && file.size > model.most_bytes) {
    finish();
    say(`${named(file)} is larger than ${model.most_bytes / 1e6} MB, the limit of this server.`);
    return;
  }
  document.body.classList.add("busy");
  const patience = result ? "" : " The first image takes longer.";
  find("status").textContent = `Segmenting ${named(file)} …${patience}`;
  try {
    const answer = await fetch("segment", {
      method: "POST",
      body: file,
      headers: { Accept: "application/json", "Content-Type": "application/octet-stream" },
      signal: own.signal,
    }).catch(() => { throw new Error(SILENT); });
    const facts = await answer.json();
    if (!answer.ok) throw new Error(`${named(file)}: ${facts.error}`);
    const loaded = await load(facts, file);
    if (request === own) show(loaded, file);
  } catch (error) {
    if (own.signal.aborted) return;
    say(error.message);
  }
  if (request === own) finish();
}

async function load(facts, file) {
  const [ids, confidences, image] = await Promise.all([
    gray(facts.class_map),
    facts.confidence_map && gray(facts.confidence_map),
    createImageBitmap(file).catch(() => null), // browsers do not know TIFF, for example
  ]);
  const byId = new Map(facts.classes.map((entry) => [entry.id, entry]));
  return { ...facts, ids, confidences, image, byId };
}

// The values of a gray PNG, one byte for each pixel.
async function gray(uri) {
  const bytes = Uint8Array.from(atob(uri.split(",")[1]), (c) => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), {
    colorSpaceConversion: "none",
  });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const colors = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const values = new Uint8Array(colors.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = colors[4 * i];
  return values;
}

function finish() {
  document.body.classList.remove("busy");
  find("status").textContent = "";
}

function say(message) {
  find("error").textContent = message;
  find("error").hidden = !message;
}

const named = (file) => file.name || "The image";

// --- Result -------------------------------------------------------------------------------------

function show(loaded, file) {
  result = loaded;
  chosen = point = null;
  document.body.classList.add("shown");
  find("result").hidden = false;
  stage.style.setProperty("--aspect", result.width / result.height);
  for (const canvas of stage.querySelectorAll("canvas")) {
    canvas.width = result.width;
    canvas.height = result.height;
  }
  if (result.image) {
    find("image").getContext("2d").drawImage(result.image, 0, 0, result.width, result.height);
  }
  drawMask();
  fillLegend();
  read();
  const without = result.image ? "" : " This browser cannot show the image itself.";
  find("facts").textContent =
    `${named(file)}: ${result.width} × ${result.height} pixels, ` +
    `${result.seconds.toFixed(1)} s.${without}`;
  const save = find("save");
  save.href = result.class_map;
  save.download = `${(file.name || "image").replace(/\.[^.]*$/, "")}_classes.png`;
}

function drawMask() {
  const colors = result.classes.map(({ id, color }) => [id, [...color, 255]]);
  paint(find("mask"), colors);
}

// Darkens all classes but the chosen one.
function drawOthers() {
  const dark = result.classes.filter(({ id }) => chosen !== null && id !== chosen);
  paint(find("others"), dark.map(({ id }) => [id, [0, 0, 0, 200]]));
}

// Paints the pixels of some classes in RGBA colors; the others become transparent.
function paint(canvas, colors) {
  const table = new Uint32Array(256);
  const bytes = new Uint8Array(table.buffer);
  for (const [id, color] of colors) bytes.set(color, 4 * id);
  const image = new ImageData(result.width, result.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[result.ids[i]];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function fillLegend() {
  const rows = result.classes.map((entry) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.style.setProperty("--share", `${100 * entry.share}%`);
    button.append(swatch(entry), text("name", entry.name), text("share", percent(entry.share)));
    button.addEventListener("click", () => {
      chosen = chosen === entry.id ? null : entry.id;
      for (const other of find("legend").querySelectorAll("button")) {
        other.setAttribute("aria-pressed", other === button && chosen !== null);
      }
      drawOthers();
    });
    const row = document.createElement("li");
    row.append(button);
    return row;
  });
  find("legend").replaceChildren(...rows);
}

function swatch({ color }) {
  const chip = text("swatch", "");
  chip.style.setProperty("--c", `rgb(${color.join(" ")})`);
  return chip;
}

function text(className, content) {
  const span = document.createElement("span");
  span.className = className;
  span.textContent = content;
  return span;
}

function percent(share) {
  return share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

// --- One pixel ----------------------------------------------------------------------------------

function read() {
  const marker = find("point");
  marker.hidden = !point;
  if (!point) {
    find("readout").replaceChildren(text("faint", "Click on the image to read a pixel."));
    return;
  }
  marker.style.left = `${(100 * (point.x + 0.5)) / result.width}%`;
  marker.style.top = `${(100 * (point.y + 0.5)) / result.height}%`;
  const i = point.y * result.width + point.x;
  const entry = result.byId.get(result.ids[i]);
  const confidence = result.confidences
    ? `confidence ${Math.round(result.confidences[i] / 2.55)} %`
    : "no confidence, because the image is too large for it";
  find("readout").replaceChildren(
    swatch(entry), text("", `${entry.name}, ${confidence} (x ${point.x}, y ${point.y})`),
  );
}

function moveTo(x, y) {
  const within = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
  point = { x: within(x, result.width), y: within(y, result.height) };
  read();
}

stage.addEventListener("click", (event) => {
  const box = stage.getBoundingClientRect();
  moveTo(
    ((event.clientX - box.left) / box.width) * result.width,
    ((event.clientY - box.top) / box.height) * result.height,
  );
});
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
stage.addEventListener("keydown", (event) => {
  if (!(event.key in ARROWS)) return;
  event.preventDefault();
  const [x, y] = ARROWS[event.key];
  const step = event.shiftKey ? Math.max(1, Math.round(result.width / 20)) : 1;
  const from = point || { x: result.width / 2, y: result.height / 2 };
  moveTo(from.x + step * x, from.y + step * y);
});

// --- Controls -----------------------------------------------------------------------------------

function fade() {
  find("mask").style.opacity = find("opacity").value / 100;
  find("opacity").setAttribute("aria-valuetext", `${find("opacity").value} %`);
}
find("opacity").addEventListener("input", fade);
fade();

function take(files) {
  if (files.length) segment(files[0]);
}
find("choose").addEventListener("click", () => find("file").click());
find("file").addEventListener("change", () => {
  take(find("file").files);
  find("file").value = ""; // the same file can be chosen again
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  take(event.dataTransfer.files);
});

fetch("model").then((answer) => answer.json()).then((facts) => {
  model = facts;
  find("model").textContent = `${model.name}, ${model.classes.length} classes`;
  find("hint").textContent += `, up to ${model.most_bytes / 1e6} MB`;
  document.title = `jaxseg: ${model.name}`;
}).catch(() => say(SILENT));
