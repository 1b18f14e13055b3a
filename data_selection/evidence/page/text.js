"use strict";
// The data, and how to format numbers and make elements. Whatever comes from a file becomes a text node, never HTML.

const { report, gallery } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const count = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });
const FORMATS = {
  distance: (value) => value.toFixed(4),
  count,
  share: (value) => `${(100 * value).toFixed(2)}%`,
  percent: (value) => `${value.toFixed(1)}%`,
};
const shown = (value, format) => (value === null ? "–" : FORMATS[format](value));
const distanceOf = (similarity) => Math.sqrt(Math.max(0, 2 - 2 * similarity));

const seriesColour = (position) => `var(--series-${position % 6})`;
const swatch = (position) => {
  const dot = make("span", { class: "swatch", "aria-hidden": "true" });
  dot.style.background = seriesColour(position);
  return dot;
};

// An image's name: its file and class where they are known, else its index in the pool.
const pathOf = (index) => report.paths[index] ?? null;
const classOf = (index) => report.labels[index] ?? null;
const classNameOf = (index) => report.class_names[classOf(index)] ?? classOf(index);
const nameOf = (index) => pathOf(index) ?? `image ${index}`;
const labeled = new Set(report.labeled);
// What is known of an image beside the pool's own label: in words, perhaps none.
const knownOf = (index) => [
  ...(labeled.has(index) ? ["labelled before"] : []),
  ...(report.given_labels[index] !== undefined ? [`labelled ${report.given_labels[index]}`] : []),
  ...(report.predictions[index] !== undefined ? [`predicted ${report.predictions[index]}`] : []),
];
