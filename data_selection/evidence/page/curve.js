"use strict";
// The loss of every iteration, if the selection wrote it beside its subset.

function drawCurve(subset) {
  byId("curve-section").hidden = !subset.losses.length;
  byId("curve").replaceChildren();
  const known = subset.losses.map((loss, iteration) => [iteration, loss]).filter(([, loss]) => loss !== null);
  if (!known.length) return;
  const width = byId("curve").clientWidth, height = 220;
  const left = 52, right = 16, top = 12, bottom = 40;
  const losses = known.map(([, loss]) => loss);
  const [low, high] = [losses.reduce((a, b) => Math.min(a, b)), losses.reduce((a, b) => Math.max(a, b))];
  const last = Math.max(1, subset.losses.length - 1);
  const x = (iteration) => left + ((width - left - right) * iteration) / last;
  const y = (loss) => top + (height - top - bottom) * (high > low ? (high - loss) / (high - low) : 0.5);
  const colour = seriesColour(report.subsets.indexOf(subset));
  const svg = makeSvg("svg", { width, height, role: "img", "aria-label":
    `Loss from ${losses[0].toFixed(3)} to ${losses.at(-1).toFixed(3)} in ${subset.losses.length} iterations` });
  for (const value of ticks(low, high, 6)) {
    svg.append(makeSvg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "var(--line)" }));
    svg.append(makeSvg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, plain(value)));
  }
  for (const value of ticks(0, last, width < 480 ? 4 : 8)) {
    svg.append(makeSvg("text", { x: x(value), y: height - bottom + 18, "text-anchor": "middle" }, plain(value)));
  }
  svg.append(makeSvg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "iteration"));
  const path = known.map(([iteration, loss], place) => `${place ? "L" : "M"}${x(iteration).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  svg.append(makeSvg("path", { d: path, fill: "none", style: `stroke: ${colour}`, "stroke-width": 2, "stroke-linejoin": "round" }));
  byId("curve").append(svg, make("p", { class: "note" },
    `From ${losses[0].toFixed(4)} to ${losses.at(-1).toFixed(4)} in ${count(subset.losses.length)} iterations. ` +
    "If the curve still falls steeply at its end, raise ", make("code", {}, "--max_iter"), "."));
}

// Round numbers between low and high, about so many.
function ticks(low, high, about) {
  if (!(high > low)) return [low];
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let place = Math.ceil(low / step); place * step <= high * (1 + 1e-9); place++) found.push(place * step);
  return found;
}

const plain = (value) => String(Number(value.toPrecision(6)));
