"use strict";
// The map: pool images as small points, stronger the farther they are from a chosen image; chosen images as large ones.

const LEVELS = 24;
const canvas = byId("map");
const map = report.map;
const placeOf = new Map(map.index.map((index, place) => [index, place]));
const view = { zoom: 1, x: 0, y: 0, active: null, subset: null, drag: null };

function drawMap(position, sameView = false) {
  const subset = report.subsets[position];
  view.subset = subset;
  if (!sameView) {
    view.active = null;
    describe(null);
  }
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  locate(width, height);
  const style = getComputedStyle(document.documentElement);
  const names = { "--chosen": `--series-${position % 6}` };
  const colour = (name) => style.getPropertyValue(names[name] ?? name).trim();
  const [low, high] = rangeOf(subset);
  drawPool(pen, subset, low, high, colour);
  if (view.active !== null) drawRepresented(pen, subset, colour);
  drawChosen(pen, subset, colour);
  drawAxes(pen, width, height, colour);
  if (!sameView) drawLegend(subset, low, high);
}

// Where everything is on the canvas: one scale for both axes, since distances are what the map is about.
function locate(width, height) {
  const margin = 34;
  const [left, right, bottom, top] = view.extent ??= [least(map.x), most(map.x), least(map.y), most(map.y)];
  const fit = Math.min((width - 2 * margin) / (right - left || 1), (height - 2 * margin) / (top - bottom || 1));
  const scale = fit * view.zoom;
  view.px = map.x.map((x) => width / 2 + (x - (left + right) / 2) * scale + view.x);
  view.py = map.y.map((y) => height / 2 - (y - (bottom + top) / 2) * scale + view.y);
}

const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

function rangeOf(subset) {
  const others = subset.map_similarity.filter((_, place) => map.index[place] !== subset.ids[subset.map_nearest[place]]);
  const sorted = (others.length ? others : [1]).map(distanceOf).sort((a, b) => a - b);
  return [sorted[Math.floor(0.02 * (sorted.length - 1))], sorted[Math.ceil(0.98 * (sorted.length - 1))]];
}

function drawPool(pen, subset, low, high, colour) {
  const [near, far] = ["--near", "--far"].map((name) => colour(name).match(/\w\w/g).map((part) => parseInt(part, 16)));
  const levels = Array.from({ length: LEVELS }, () => []);
  subset.map_similarity.forEach((similarity, place) => {
    const part = high > low ? (distanceOf(similarity) - low) / (high - low) : 0;
    levels[Math.round(Math.min(1, Math.max(0, part)) * (LEVELS - 1))].push(place);
  });
  const radius = map.pool > 2000 ? 1.7 : 2.4;
  levels.forEach((places, level) => {
    const mixed = near.map((value, channel) => Math.round(value + ((far[channel] - value) * level) / (LEVELS - 1)));
    pen.fillStyle = `rgb(${mixed})`;
    pen.beginPath();
    for (const place of places) disc(pen, view.px[place], view.py[place], radius);
    pen.fill();
  });
}

function drawRepresented(pen, subset, colour) {
  const centre = placeOf.get(subset.ids[view.active]);
  pen.strokeStyle = colour("--chosen");
  pen.lineWidth = 0.8;
  pen.beginPath();
  subset.map_nearest.forEach((chosen, place) => {
    if (chosen !== view.active) return;
    pen.moveTo(view.px[centre], view.py[centre]);
    pen.lineTo(view.px[place], view.py[place]);
  });
  pen.stroke();
}

function radiusOf(subset, chosen) {
  const usual = subset.k <= 150 ? 5 : subset.k <= 1000 ? 3.2 : 1.8;
  const weight = Math.sqrt((subset.represents[chosen] * subset.k) / report.n);
  return usual * Math.min(2, Math.max(0.6, weight));
}

function drawChosen(pen, subset, colour) {
  pen.lineWidth = subset.k > 1000 ? 0.5 : 1.2;
  pen.strokeStyle = colour("--ring");
  pen.fillStyle = colour("--chosen");
  subset.ids.forEach((index, chosen) => {
    const place = placeOf.get(index);
    pen.beginPath();
    disc(pen, view.px[place], view.py[place], radiusOf(subset, chosen));
    pen.fill();
    pen.stroke();
  });
  if (view.active === null) return;
  const place = placeOf.get(subset.ids[view.active]);
  pen.lineWidth = 2;
  pen.strokeStyle = colour("--ink");
  pen.beginPath();
  disc(pen, view.px[place], view.py[place], radiusOf(subset, view.active) + 3);
  pen.stroke();
}

function disc(pen, x, y, radius) {
  pen.moveTo(x + radius, y);
  pen.arc(x, y, radius, 0, 2 * Math.PI);
}

function drawAxes(pen, width, height, colour) {
  pen.fillStyle = colour("--quiet");
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillText(`${map.axes[0]} →`, width / 2, height - 10);
  pen.save();
  pen.translate(18, height / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(`${map.axes[1]} →`, 0, 0);
  pen.restore();
}

function drawLegend(subset, low, high) {
  const numbers = [low, high].map((value) => value.toFixed(2));
  byId("map-legend").replaceChildren(
    make("span", {}, swatch(current), "chosen image, larger where it represents more"),
    make("span", {}, "pool image, coloured by its distance to the chosen image that represents it: ", numbers[0], make("span", { class: "ramp" }), numbers[1]),
  );
  canvas.setAttribute("aria-label", `Map of ${count(map.pool)} pool images and the ${count(subset.k)} chosen ones of ${subset.name}`);
  const part = map.pool < report.n ? `${count(map.pool)} random images of the pool, and the chosen ones` : `All ${count(report.n)} images of the pool`;
  byId("map-help").textContent =
    `${part}. Point at an image to see what it represents, or what represents it; click to see the images. ` +
    "With the keyboard: left and right go through the chosen ones, Enter opens one, + and − zoom.";
}
