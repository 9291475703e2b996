// Attention: the grid of heads, the map of one, and where a token looks.
const attention = find("#attention");
const canvas = find(".map canvas");
const picture = document.createElement("canvas");
let stacks = [], thumbs = [], queryTokens = [], keyTokens = [], cells = {};

function buildStacks() {
  if (data.maps.length < 2) return;
  stacks = data.maps.map((maps, i) => element("button", { textContent: maps.name, onclick: () => openStack(i) }));
  find(".stacks").append(...stacks);
  arrows(stacks);
}

function openStack(at) {
  choose({ stack: at, layer: 0, head: 0, token: data.maps[at].shape[2] - 1 });
  drawStack();
}

function drawStack() {
  const maps = stack(), grid = find(".heads");
  const [layers, heads] = maps.shape;
  press(stacks, chosen.stack);
  const corner = element("span", { className: "name side", textContent: "layer" });
  const names = Array.from({ length: heads }, (_, h) => element("span", { className: "name", textContent: h + 1 }));
  names[0].textContent = "head 1";
  grid.replaceChildren(corner, ...names);
  grid.style.gridTemplateColumns = `max-content repeat(${heads}, minmax(2.6rem, ${layers > 6 ? 3.6 : 6}rem))`;
  thumbs = [];
  for (let layer = 0; layer < layers; layer++) {
    grid.append(element("span", { className: "name side", textContent: layer + 1 }));
    for (let head = 0; head < heads; head++) {
      const entropy = maps.entropy[layer][head].toFixed(2);
      const map = element("canvas");
      const button = element("button", { onclick: () => openHead(layer, head) }, map, element("small", { textContent: entropy }));
      button.title = `Layer ${layer + 1}, head ${head + 1}: entropy ${entropy}`;
      button.addEventListener("focus", () => openHead(layer, head));
      paint(map, maps, layer, head, 64);
      grid.append(button);
      thumbs.push(button);
    }
  }
  arrows(thumbs, heads);
  const self = maps.queries === maps.keys;
  queryTokens = tokenButtons(find(".queries"), maps.queries);
  keyTokens = self ? queryTokens : tokenButtons(find(".keys"), maps.keys);
  if (self) find(".keys").replaceChildren();
  queryTokens.forEach((button, query) => {
    button.onclick = () => pin(query);
    button.onpointerenter = () => look(query);
    button.addEventListener("focus", () => pin(query));
  });
  arrows(queryTokens);
  find("#asks").textContent = self
    ? "Point at a token to see what it looks at; click, or move with the arrow keys, to keep it."
    : `Point at a token of the ${maps.queries} to see what it looks at in the ${maps.keys}.`;
  find("#answers").textContent = self ? "" : `The ${maps.keys}:`;
  drawHead();
}

function tokenButtons(root, sequence) {
  const buttons = data.sequences[sequence].map((id) => element("button", { className: "token", textContent: word(id) }));
  const lines = buttons.map((button) => (button.textContent.endsWith("\u21b5") ? [button, element("span", { className: "break" })] : [button]));
  root.replaceChildren(...lines.flat());
  return buttons;
}

function openHead(layer, head) {
  if (layer === chosen.layer && head === chosen.head) return;
  choose({ layer, head });
  drawHead();
}

function pin(query) {
  choose({ token: query });
  look(query);
}

function drawHead() {
  const maps = stack();
  press(thumbs, chosen.layer * maps.shape[1] + chosen.head);
  find("#head").textContent = `${maps.name}: layer ${chosen.layer + 1}, head ${chosen.head + 1}`;
  find("#habits").textContent = habits(maps);
  paint(picture, maps, chosen.layer, chosen.head, Infinity);
  look(chosen.token);
}

// Where the head looks on average over the text.
function habits(maps) {
  const entropy = `Entropy ${maps.entropy[chosen.layer][chosen.head].toFixed(2)}.`;
  if (maps.queries !== maps.keys) return entropy;
  const queries = maps.shape[2];
  let itself = 0, before = 0, first = 0;
  for (let q = 0; q < queries; q++) {
    const row = rowWeights(maps, chosen.layer, chosen.head, q);
    itself += row[q] / queries;
    first += row[0] / queries;
    if (q) before += row[q - 1] / (queries - 1);
  }
  return `${entropy} On average ${weight(itself)} on the token itself, ${weight(before)} on the one before, ${weight(first)} on the first.`;
}

// Show where `query` looks; `key` is the token pointed at in the map, if any.
function look(query, key = -1) {
  const maps = stack();
  const row = rowWeights(maps, chosen.layer, chosen.head, query);
  keyTokens.forEach((token, i) => {
    shade(token, Math.sqrt(row[i]));
    token.title = weight(row[i]);
  });
  press(queryTokens, query);
  reveal(queryTokens[query], find(".queries"));
  const queries = data.sequences[maps.queries], keys = data.sequences[maps.keys];
  const order = row.map((_, i) => i).sort((a, b) => row[b] - row[a]).slice(0, 5);
  if (key < 0) key = order[0];
  find(".readout", attention).replaceChildren(
    element("b", { textContent: word(queries[query]) }), ` (${query + 1}) looks at `,
    element("b", { textContent: word(keys[key]) }), ` (${key + 1}): ${weight(row[key])}`,
  );
  listBest(find(".best", attention), order.filter((i, rank) => !rank || row[i] >= 0.0005).map((i) => [word(keys[i]), row[i], weight(row[i]), `token ${i + 1}`]));
  drawMap(query, key);
}

// Rows of [token, share from -1 to 1, number, place].
function listBest(list, rows) {
  list.replaceChildren(...rows.map(([name, share, text, place = ""]) => {
    const bar = element("i");
    bar.style.setProperty("--share", Math.abs(share).toFixed(3));
    if (share < 0) bar.style.setProperty("--hue", "var(--series-2)");
    const track = element("span", { className: "bar" }, bar);
    const texts = [text, place].map((textContent) => element("span", { textContent }));
    return element("li", {}, element("code", { textContent: name }), track, ...texts);
  }));
}

// The large map: tokens at its edges where they fit, the row that is looked at framed.
function drawMap(query, key) {
  const maps = stack();
  const [, , queries, keys] = maps.shape;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const available = find(".map").clientWidth, ratio = window.devicePixelRatio || 1;
  const context = canvas.getContext("2d");
  const font = '12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace';
  context.font = font;
  const sides = [maps.queries, maps.keys].map((name) => data.sequences[name].map(short));
  const edges = sides.map((names) => Math.max(...names.map((name) => context.measureText(name).width)) + 8);
  const labelled = Math.min((available - edges[0]) / keys, 640 / queries) >= 11;
  const left = labelled ? edges[0] : 0, top = labelled ? edges[1] : 0;
  const cell = Math.min((available - left - 2) / keys, 640 / queries, Math.max(26, 400 / Math.max(queries, keys)));
  cells = { left, top, cell };
  const width = left + keys * cell + 2, height = top + queries * cell + 2;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  canvas.setAttribute("aria-label", `${find("#head").textContent}. ${find("#habits").textContent}`);
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, left, top, keys * cell, queries * cell);
  if (labelled) {
    context.font = font;
    context.textBaseline = "middle";
    context.textAlign = "right";
    sides[0].forEach((name, q) => {
      context.fillStyle = colour(q === query ? "--ink" : "--muted");
      context.fillText(name, left - 5, top + (q + 0.5) * cell);
    });
    context.textAlign = "left";
    sides[1].forEach((name, k) => {
      context.save();
      context.translate(left + (k + 0.5) * cell, top - 5);
      context.rotate(-Math.PI / 2);
      context.fillStyle = colour(k === key ? "--ink" : "--muted");
      context.fillText(name, 0, 0);
      context.restore();
    });
  }
  context.strokeStyle = colour("--series-2");
  context.lineWidth = cell > 6 ? 2 : 1;
  // Around small cells the frame keeps its distance, so as not to hide them.
  const gap = cell > 6 ? 0 : 2;
  context.strokeRect(left + 0.5, top + query * cell + 0.5 - gap, keys * cell, cell + 2 * gap);
  context.strokeRect(left + key * cell + 0.5 - gap, top + query * cell + 0.5 - gap, cell + 2 * gap, cell + 2 * gap);
}

function pointed(event) {
  const [, , queries, keys] = stack().shape;
  const query = Math.floor((event.offsetY - cells.top) / cells.cell);
  const key = Math.floor((event.offsetX - cells.left) / cells.cell);
  return query >= 0 && query < queries && key >= 0 && key < keys ? [query, key] : null;
}

function listenToMap() {
  canvas.addEventListener("pointermove", (event) => {
    const at = pointed(event);
    if (at) look(...at);
  });
  canvas.addEventListener("click", (event) => {
    const at = pointed(event);
    if (at) choose({ token: at[0] });
  });
  for (const node of [canvas, find(".queries")]) node.addEventListener("pointerleave", () => look(chosen.token));
  new ResizeObserver(() => look(chosen.token)).observe(find(".map"));
}
