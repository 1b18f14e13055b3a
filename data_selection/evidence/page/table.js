"use strict";
// The table: every measure of every subset, beside random subsets of the same size.

function drawTable() {
  const sizes = report.random.map((random) => ({
    random,
    members: report.subsets.map((subset, position) => ({ subset, position })).filter(({ subset }) => subset.k === random.k),
  }));
  const columns = 1 + sizes.reduce((sum, { members }) => sum + members.length + 2, 0);
  byId("table").append(make("thead", {}, ...headRows(sizes)));
  const body = make("tbody");
  let group = null;
  for (const measure of report.measures) {
    if (measure.group !== group) {
      group = measure.group;
      body.append(make("tr", { class: "group" }, make("th", { colspan: columns, scope: "rowgroup" }, group)));
    }
    const aim = make("span", { class: "aim", title: `${measure.better} is better` }, measure.better === "lower" ? "↓" : "↑");
    const row = make("tr", {}, make("th", { scope: "row" }, measure.title, aim));
    for (const { random, members } of sizes) {
      for (const { subset } of members) row.append(valueCell(subset, measure));
      row.append(randomCell(random, measure), make("td", { class: "spread" }, spreadPlot(random, members, measure)));
    }
    body.append(row);
  }
  byId("table").append(body);
  const seeds = report.options.random_seeds;
  byId("table-note").textContent =
    `↓ lower is better, ↑ higher is better. Random is the mean ± standard deviation of ${seeds} random subsets of the same size; ` +
    `better and worse mean by more than two standard deviations, which happens by chance in about ${Math.round(100 * report.marked_by_chance)}% of the rows. ` +
    "In the plots each ring is a random subset; further right is better. " +
    "The Earth Mover's Distance of finite samples is biased upwards, more for smaller ones: compare it between equal sizes only.";
}

function headRows(sizes) {
  const first = make("tr", {}, make("th"));
  const second = make("tr", {}, make("th", { scope: "col" }, ""));
  for (const { random, members } of sizes) {
    first.append(make("th", { colspan: members.length + 2, scope: "colgroup" }, `${count(random.k)} of ${count(report.n)} images`));
    for (const { subset, position } of members) {
      const long = subset.name.length > 20 ? "long" : "";
      second.append(make("th", { scope: "col", class: `name ${long}` }, swatch(position), subset.name));
    }
    second.append(make("th", { scope: "col" }, "random"), make("th", { scope: "col", class: "spread" }, "worse → better"));
  }
  if (sizes.length > 1) return [first, second];
  byId("table-title").textContent += ` of ${count(sizes[0].random.k)} of ${count(report.n)} images`;
  return [second];
}

function valueCell(subset, measure) {
  const outcome = subset.against_random[measure.key];
  const sign = { better: "▲", worse: "▼" }[outcome];
  const mark = sign ? make("span", { class: `mark ${outcome}` }, sign, make("span", {}, ` ${outcome}`)) : "";
  return make("td", {}, mark, shown(subset.values[measure.key], measure.format));
}

function randomCell(random, measure) {
  const [mean, std] = [random.mean[measure.key], random.std[measure.key]];
  const text = mean === null ? "–" : `${shown(mean, measure.format)} ± ${shown(std, measure.format)}`;
  return make("td", { class: "random" }, text);
}

function spreadPlot(random, members, measure) {
  const width = 128, height = 22, margin = 7;
  const each = random.each.map((values) => values[measure.key]);
  const theirs = members.map(({ subset }) => subset.values[measure.key]);
  const all = [...each, ...theirs].filter((value) => value !== null);
  if (!all.length) return "";
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const at = (value) => {
    const part = high > low ? (value - low) / (high - low) : 0.5;
    return margin + (width - 2 * margin) * (measure.better === "lower" ? 1 - part : part);
  };
  const middle = height / 2;
  const svg = makeSvg("svg", { width, height, "aria-hidden": "true" },
    makeSvg("line", { x1: 0, x2: width, y1: middle, y2: middle, stroke: "var(--line)" }));
  for (const value of each) {
    if (value !== null) svg.append(makeSvg("circle", { cx: at(value), cy: middle, r: 3.5, fill: "none", stroke: "var(--quiet)" }));
  }
  members.forEach(({ subset, position }) => {
    const value = subset.values[measure.key];
    if (value !== null) svg.append(makeSvg("circle", { cx: at(value), cy: middle, r: 4.5, style: `fill: ${seriesColour(position)}` }));
  });
  return svg;
}
