// What came out: a classifier's decision with the tokens that carried it, and the prediction layer by layer.
const decision = find("#decision");
const masks = find("#masks");
const lens = find("#lens");
let labels = [], decisionTokens = [], guesses = [];

function buildDecision() {
  labels = data.decision.labels.map((label, at) => {
    const bar = element("i");
    bar.style.setProperty("--share", label.probability);
    return element("button", { onclick: () => openLabel(at) },
      element("span", { textContent: label.name }), element("span", { className: "bar" }, bar),
      element("span", { textContent: data.decision.single ? "" : percent(label.probability) }));
  });
  find(".labels").append(...labels);
  arrows(labels);
  decisionTokens = tokenButtons(find(".tokens", decision), data.decision.sequence);
  decisionTokens.forEach((token, at) => {
    token.onpointerenter = () => tellScore(at);
    token.addEventListener("focus", () => tellScore(at));
  });
  find(".tokens", decision).onpointerleave = () => tellScores();
  arrows(decisionTokens);
  decisionTokens[0].tabIndex = 0;
}

function openLabel(at) {
  choose({ label: at });
  drawDecision();
}

function drawDecision() {
  press(labels, chosen.label);
  const { scores } = data.decision.labels[chosen.label];
  const largest = Math.max(...scores.map(Math.abs)) || 1;
  decisionTokens.forEach((token, i) => {
    shade(token, Math.abs(scores[i]) / largest);
    token.classList.toggle("minus", scores[i] < 0);
    token.title = signed(scores[i]);
  });
  const order = scores.map((_, i) => i).sort((a, b) => Math.abs(scores[b]) - Math.abs(scores[a])).slice(0, 5);
  listBest(find(".best", decision), order.map((i) =>
    [word(data.sequences[data.decision.sequence][i]), scores[i] / largest, signed(scores[i]), `token ${i + 1}`]));
  tellScores();
}

function tellScores() {
  const { name, scores, value } = data.decision.labels[chosen.label];
  const sum = scores.reduce((a, b) => a + b, 0);
  find(".readout", decision).replaceChildren(
    element("b", { textContent: name }), `: ${data.decision.single ? "output" : "log-odds"} ${signed(value)}; the scores add up to ${signed(sum)}.`);
}

function tellScore(at) {
  const id = data.sequences[data.decision.sequence][at];
  find(".readout", decision).replaceChildren(
    element("b", { textContent: word(id) }), ` (${at + 1}): ${signed(data.decision.labels[chosen.label].scores[at])}`);
}

// The text with the masks filled in, and the candidates for each.
function buildMasks() {
  const { positions, ids, probabilities, sequence } = data.lens;
  const last = ids.length - 1;
  find(".tokens", masks).append(...data.sequences[sequence].map((id, at) => {
    const row = positions.indexOf(at);
    if (row < 0) return element("span", { className: "token", textContent: word(id) });
    const share = probabilities[last][row][0];
    const button = element("button", { className: "token filled", textContent: word(ids[last][row][0]), onclick: () => openGuess(row, last) });
    button.title = `${word(id)}: ${percent(share)}`;
    shade(button, share);
    return button;
  }));
  find(".cards", masks).append(...positions.map((position, row) => {
    const list = element("ol", { className: "best" });
    listBest(list, ids[last][row].map((id, i) => [word(id), probabilities[last][row][i], percent(probabilities[last][row][i])]));
    return element("div", {}, element("h3", { textContent: `${word(data.sequences[sequence][position])}, token ${position + 1}` }), list);
  }));
}

function buildLens() {
  const { positions, ids, probabilities, chances, expected, truth, sequence } = data.lens;
  const names = ids.map((_, column) => (column ? `${column}` : "input"));
  const head = element("tr", {}, element("th", { className: "side", textContent: "layer" }),
    ...names.map((name) => element("th", { textContent: name })));
  if (truth) head.append(element("th", { textContent: truth }));
  const body = element("tbody");
  positions.forEach((position, row) => {
    const line = element("tr", {}, element("th", { className: "side", textContent: short(data.sequences[sequence][position]), title: `token ${position + 1}` }));
    names.forEach((_, column) => {
      const best = ids[column][row][0];
      const cell = element("td", { textContent: short(best), onclick: () => openGuess(row, column) });
      cell.addEventListener("focus", () => openGuess(row, column));
      cell.addEventListener("pointerenter", () => tellGuess(row, column));
      cell.classList.toggle("true", best === expected[row]);
      shade(cell, probabilities[column][row][0]);
      guesses.push(cell);
      line.append(cell);
    });
    if (truth) line.append(element("td", { className: "truth", textContent: expected[row] === null ? "" : short(expected[row]) }));
    body.append(line);
  });
  find("table", lens).append(element("thead", {}, head));
  const known = expected.map((id, row) => (id === null ? -1 : row)).filter((row) => row >= 0);
  if (known.length) {
    const means = chances.map((layer) => percent(known.reduce((sum, row) => sum + layer[row], 0) / known.length));
    find("thead", lens).append(element("tr", { className: "means", title: "Mean probability of the true token" },
      element("th", { className: "side", textContent: "true token" }), ...means.map((mean) => element("th", { textContent: mean }))));
  }
  find("table", lens).append(body);
  find("table", lens).onpointerleave = () => tellGuess(chosen.row, chosen.column);
  arrows(guesses, names.length);
}

function openGuess(row, column) {
  choose({ row, column });
  drawLens();
}

function drawLens() {
  const at = chosen.row * data.lens.ids.length + chosen.column;
  guesses.forEach((cell, i) => {
    cell.setAttribute("aria-selected", i === at);
    cell.tabIndex = i === at ? 0 : -1;
  });
  reveal(guesses[at], find(".tall", lens), find("thead", lens).offsetHeight);
  tellGuess(chosen.row, chosen.column);
}

function tellGuess(row, column) {
  const { positions, ids, probabilities, chances, expected, sequence, truth } = data.lens;
  const state = column ? `After layer ${column}` : "Before the first layer";
  const parts = [`${state}, ${truth ? "for the token after" : "at"} `, element("b", { textContent: word(data.sequences[sequence][positions[row]]) }),
    ` (${positions[row] + 1})`];
  if (expected[row] !== null) {
    parts.push("; the true token ", element("b", { textContent: word(expected[row]) }), ` has ${percent(chances[column][row])}`);
  }
  find(".readout", lens).replaceChildren(...parts);
  listBest(find(".best", lens), ids[column][row].map((id, i) => {
    const share = probabilities[column][row][i];
    return [word(id), share, percent(share)];
  }));
}

function drawAll() {
  readAddress();
  drawStack();
  if (decision) drawDecision();
  if (lens) drawLens();
}

async function start() {
  mixColours();
  await unpack();
  buildStacks();
  if (decision) buildDecision();
  if (masks) buildMasks();
  if (lens) buildLens();
  drawAll();
  listenToMap();
  window.addEventListener("hashchange", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    mixColours();
    drawAll();
  });
  document.documentElement.dataset.state = "drawn";
}

start().catch((error) => {
  const problem = find("#problem");
  problem.textContent = `This page cannot be drawn here (${error.message}). It needs a browser of 2023 or newer.`;
  problem.hidden = false;
  document.documentElement.dataset.state = "failed";
});
