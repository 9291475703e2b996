"use strict";
// The page of `python -m generate inspect`. What is selected stands in the address: #stack=1&layer=2&head=3&token=4
// (attention), &label=1 (decision), &row=5&column=2 (prediction); all counted from 1.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, root = document) => root.querySelector(selector);
const NAMES = ["stack", "layer", "head", "token", "label", "row", "column"];
const chosen = {};
let bytes, colours;

const word = (id) => data.words[id];
const short = (id) => (word(id).length > 12 ? word(id).slice(0, 11) + "\u2026" : word(id));
const percent = (share) => (share < 0.0005 ? "< 0.1 %" : (share * 100).toFixed(1) + " %");
// One byte holds a weight to about 0.1 points below 10 %, 0.4 above.
const weight = (share) => (share * 100).toFixed(share < 0.0995 ? 1 : 0) + " %";
const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3);
const clamp = (value, count) => Math.min(Math.max(value || 0, 0), count - 1);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function shade(node, share) {
  node.style.setProperty("--share", share.toFixed(3));
  node.classList.toggle("strong", share > 0.55);
}

// ---- What is selected -------------------------------------------------------------------------------------------
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of NAMES) chosen[name] = Number.parseInt(given.get(name), 10) - 1 || 0;
  chosen.stack = clamp(chosen.stack, data.maps.length);
  const [layers, heads, queries] = stack().shape;
  if (!given.has("token")) chosen.token = queries - 1;
  chosen.layer = clamp(chosen.layer, layers);
  chosen.head = clamp(chosen.head, heads);
  chosen.token = clamp(chosen.token, queries);
  if (data.decision) chosen.label = clamp(chosen.label, data.decision.labels.length);
  if (data.lens) {
    chosen.row = clamp(chosen.row, data.lens.positions.length);
    chosen.column = given.has("column") ? clamp(chosen.column, data.lens.ids.length) : data.lens.ids.length - 1;
  }
}

function choose(changes) {
  Object.assign(chosen, changes);
  const shown = { stack: true, layer: true, head: true, token: true, label: data.decision, row: data.lens, column: data.lens };
  const fields = NAMES.filter((name) => shown[name]).map((name) => `${name}=${chosen[name] + 1}`);
  history.replaceState(null, "", "#" + fields.join("&"));
}

// Arrow keys move among `nodes`, laid out in rows of `columns`; Tab passes over all but one.
function arrows(nodes, columns = 1) {
  const keys = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity };
  nodes.forEach((node, at) => {
    node.tabIndex = -1;
    node.addEventListener("focus", () => {
      nodes.forEach((other) => (other.tabIndex = -1));
      node.tabIndex = 0;
    });
    node.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const next = at + keys[event.key];
      if (Number.isFinite(next) && (next < 0 || next >= nodes.length)) return;
      nodes[clamp(next, nodes.length)].focus();
    });
  });
}

function press(nodes, at) {
  nodes.forEach((node, i) => {
    node.setAttribute("aria-pressed", i === at);
    node.tabIndex = i === at ? 0 : -1;
  });
}

// Scroll `box`, and only it, until `node` is in sight below `margin` pixels.
function reveal(node, box, margin = 0) {
  const [inner, outer] = [node, box].map((one) => one.getBoundingClientRect());
  if (inner.top < outer.top + margin || inner.bottom > outer.bottom) box.scrollTop += inner.top - outer.top - outer.height / 2;
}

// ---- Weights ----------------------------------------------------------------------------------------------------
const stack = () => data.maps[chosen.stack];

async function unpack() {
  const packed = atob(find("#weights").textContent);
  const raw = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) raw[i] = packed.charCodeAt(i);
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let start = 0;
  for (const maps of data.maps) {
    maps.start = start;
    start += maps.shape.reduce((a, b) => a * b);
  }
  if (start !== bytes.length) throw new Error("the weights of this page are damaged");
}

// The square roots of one head's weights, times 255: T rows of S bytes.
function headBytes(maps, layer, head) {
  const [, heads, queries, keys] = maps.shape;
  const from = maps.start + (layer * heads + head) * queries * keys;
  return bytes.subarray(from, from + queries * keys);
}

// The weights of one query; they sum to 1.
function rowWeights(maps, layer, head, query) {
  const keys = maps.shape[3];
  const row = Array.from(headBytes(maps, layer, head).subarray(query * keys, (query + 1) * keys), (b) => b * b);
  const sum = row.reduce((a, b) => a + b, 0);
  return row.map((b) => b / sum);
}

function mixColours() {
  const style = getComputedStyle(document.documentElement);
  const [from, to] = ["--panel", "--series-1"].map((name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16));
  });
  // 0xAABBGGRR: image data, read as 32-bit numbers.
  colours = Uint32Array.from({ length: 256 }, (_, b) =>
    from.reduce((all, low, i) => all + (Math.round(low + ((to[i] - low) * b) / 255) << (8 * i)), 0) + 0xff000000);
}

// A head's map as an image, at most `size` pixels wide and high: of the weights in one pixel the largest counts.
function paint(canvas, maps, layer, head, size) {
  const [, , queries, keys] = maps.shape;
  const values = headBytes(maps, layer, head);
  const height = (canvas.height = Math.min(queries, size));
  const width = (canvas.width = Math.min(keys, size));
  const largest = new Uint8Array(width * height);
  for (let q = 0, i = 0; q < queries; q++) {
    const line = Math.floor((q * height) / queries) * width;
    for (let k = 0; k < keys; k++, i++) {
      const at = line + Math.floor((k * width) / keys);
      if (values[i] > largest[at]) largest[at] = values[i];
    }
  }
  const image = new ImageData(width, height);
  new Uint32Array(image.data.buffer).set(Uint32Array.from(largest, (value) => colours[value]));
  canvas.getContext("2d").putImageData(image, 0, 0);
}
