"use strict";
// Builds the page and shows one subset at a time.

const MOST_SENTENCES = 6; // more are folded
let current = 0;

function show(position) {
  current = position;
  const subset = report.subsets[position];
  byId("tabs").querySelectorAll("button").forEach((tab, place) => {
    tab.setAttribute("aria-selected", String(place === position));
    tab.tabIndex = place === position ? 0 : -1;
  });
  drawMap(position);
  showGallery();
  drawCurve(subset);
}

function drawHead() {
  byId("verdict").textContent = report.verdict;
  byId("about").textContent = `Subset report · ${count(report.n)} images, ${count(report.d)} features each` +
    (labeled.size ? ` · every subset, and every random one, holds the ${count(labeled.size)} images labelled before` : "");
  document.title = `Subset report: ${report.subsets.map((subset) => subset.name).join(", ")}`;
  const list = byId("verdicts");
  if (report.subsets.length === 1) {
    list.remove();
    return;
  }
  report.subsets.forEach((subset, position) => list.append(make("li", {}, swatch(position), subset.verdict)));
  if (report.subsets.length > MOST_SENTENCES) {
    const folded = make("details", { class: "method" }, make("summary", {}, "Subset by subset"));
    list.replaceWith(folded);
    folded.append(list);
  }
}

function drawTabs() {
  if (report.subsets.length === 1) return;
  byId("panel").setAttribute("role", "tabpanel");
  report.subsets.forEach((subset, position) => {
    const tab = make("button", { type: "button", role: "tab", "aria-controls": "panel" }, swatch(position), subset.name);
    tab.addEventListener("click", () => show(position));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = (position + step + report.subsets.length) % report.subsets.length;
      show(next);
      byId("tabs").children[next].focus();
    });
    byId("tabs").append(tab);
  });
}

function drawMethod() {
  const sizes = [...new Set(report.subsets.map((subset) => `${count(subset.emd_samples)} of ${count(subset.k)} chosen images`))];
  const paragraphs = [
    "Features are scaled to unit length; distances are Euclidean, √(2 − 2 cos). Each pool image is represented by the chosen image nearest to it, a chosen image by itself.",
    `Earth Mover's Distance: exact, between ${sizes.join(", or ")} and ${count(report.emd_pool_samples)} random images of the pool, the same for all subsets, all equally weighted.`,
    `Near-duplicates are chosen images whose cosine similarity is ${report.options.duplicate_similarity} or more. Evenness is the exponential of the entropy of the shares, divided by their number.`,
    `The sentences at the top claim a difference when it exceeds three standard deviations of the ${report.options.random_seeds} random subsets; by chance that happens in about ${Math.round(100 * report.claimed_by_chance)} of 100 comparisons.`,
    report.features ? `Features: ${report.features.model}, ${report.features.feature}, images of ${report.features.input_size} pixels; weights ${report.features.weights}.` : "",
    report.held_out ? `Accuracy is measured on ${count(report.held_out)} held-out images, by readouts that know the labels of the chosen images only.` : "",
  ];
  const options = Object.entries(report.options).filter(([, value]) => value !== null).flatMap(([name, value]) => [
    make("dt", {}, `--${name}`), make("dd", {}, Array.isArray(value) ? value.join(" ") : String(value)),
  ]);
  byId("method").append(...paragraphs.filter(Boolean).map((text) => make("p", {}, text)), make("dl", {}, ...options));
}

drawHead();
drawTable();
drawPixels();
drawTabs();
drawMethod();
show(0);
let width = innerWidth;
addEventListener("resize", () => {
  drawMap(current, true);
  if (innerWidth !== width) drawCurve(report.subsets[current]);
  width = innerWidth;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMap(current, true));
