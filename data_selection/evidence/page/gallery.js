"use strict";
// The chosen images, a few hundred at a time as one scrolls, and one of them in detail.

const AT_A_TIME = 240;
const SMALL = 48; // images up to this size are enlarged pixel by pixel
const dataUri = (base64) => `data:image/webp;base64,${base64}`;
const slots = gallery.map(({ positions }) => new Map(positions.map((position, slot) => [position, slot])));
const listing = { order: [], drawn: 0 };

function pictureOf(subset, chosen) {
  const tile = gallery[subset]?.tiles[slots[subset].get(chosen)];
  if (!tile) return null;
  const image = make("img", { class: "picture", alt: nameOf(report.subsets[subset].ids[chosen]), src: dataUri(tile) });
  image.addEventListener("load", () => image.classList.toggle("pixelated", image.naturalWidth <= SMALL));
  return image;
}

// Positions of the chosen images that the page can show, in the order asked for; all of them where it shows none.
function galleryOrder() {
  const subset = report.subsets[current];
  const all = gallery[current]?.positions ?? subset.ids.map((_, position) => position);
  const by = {
    most: (a, b) => subset.represents[b] - subset.represents[a] || a - b,
    least: (a, b) => subset.represents[a] - subset.represents[b] || a - b,
    class: (a, b) => classOf(subset.ids[a]) - classOf(subset.ids[b]) || subset.represents[b] - subset.represents[a],
    index: (a, b) => a - b,
  };
  return [...all].sort(by[byId("sort").value]);
}

function showGallery() {
  const subset = report.subsets[current];
  byId("gallery").replaceChildren();
  byId("sorting").hidden = !gallery.length;
  if (!gallery.length) {
    byId("gallery-note").textContent =
      "Images are shown where their files are known: extract features of a folder of images (--dataset Folder or ImageNet).";
    return;
  }
  const some = gallery[current].positions.length;
  const part = some < subset.k ? `The ${count(some)} of ${count(subset.k)} chosen images that represent most` : `All ${count(subset.k)} chosen images`;
  byId("gallery-note").textContent = `${part}, each with the number of pool images that it represents${labeled.size ? `; ${count(labeled.size)} of them, dashed, had labels before` : ""}. Click one to see the nearest of those.`;
  listing.order = galleryOrder();
  listing.drawn = 0;
  drawMore();
}

function drawMore() {
  const subset = report.subsets[current];
  const tiles = listing.order.slice(listing.drawn, listing.drawn + AT_A_TIME).map((chosen) => {
    const index = subset.ids[chosen];
    const label = [nameOf(index), ...knownOf(index), `represents ${subset.represents[chosen]}`].join(", ");
    const picture = pictureOf(current, chosen) ?? make("span", { class: "picture absent" }, "no image");
    const tile = make("button", { type: "button", class: labeled.has(index) ? "tile labeled" : "tile", "aria-label": label, title: label },
      picture, make("span", {}, `× ${count(subset.represents[chosen])}`));
    tile.addEventListener("click", () => openDetails(chosen));
    return tile;
  });
  listing.drawn += tiles.length;
  byId("gallery").append(...tiles);
  atEnd.unobserve(byId("gallery-end")); // observing anew reports whether the end is still in sight
  atEnd.observe(byId("gallery-end"));
}

function openDetails(chosen) {
  const subset = report.subsets[current];
  const index = subset.ids[chosen];
  const order = galleryOrder();
  const at = order.indexOf(chosen);
  const turn = (step, sign, name) => {
    const button = make("button", { type: "button", "aria-label": name }, sign);
    button.disabled = at < 0 || !(at + step in order);
    button.addEventListener("click", () => openDetails(order[at + step]));
    return button;
  };
  const close = make("button", { type: "button", "aria-label": "Close" }, "✕");
  close.addEventListener("click", () => byId("details").close());
  const others = subset.nearest[chosen];
  const facts = [
    classOf(index) === null ? `Image ${count(index)} of the pool.` : `Image ${count(index)} of the pool, of class ${classNameOf(index)}.`,
    `It represents ${count(subset.represents[chosen])} of ${count(report.n)} images, itself included (${FORMATS.share(subset.represents[chosen] / report.n)}).`,
    ...knownOf(index).map((text) => `${text[0].toUpperCase()}${text.slice(1)}.`),
  ];
  const lead = others.length ? "The nearest of them, and their cosine similarity:" : "No other image of the pool is nearest to it.";
  const buttons = [turn(-1, "←", "Previous"), turn(1, "→", "Next"), close];
  const dialog = byId("details");
  const focused = [...dialog.querySelectorAll("button")].indexOf(document.activeElement);
  dialog.replaceChildren(
    make("div", { class: "top" }, make("h3", { id: "details-title" }, nameOf(index)), make("div", { class: "turn" }, ...buttons)),
    make("div", { class: "about" },
      pictureOf(current, chosen) ?? make("span", { class: "picture absent" }, "no image"),
      make("div", {}, ...facts.map((text) => make("p", {}, text)))),
    make("p", { class: "lead" }, lead),
    make("div", { class: "cells" }, ...others.map((other, cell) => cellOf(chosen, other, cell))),
  );
  if (!dialog.open) dialog.showModal();
  const enabled = buttons[focused]?.disabled === false ? buttons[focused] : buttons.find((button) => !button.disabled);
  enabled.focus();
}

function cellOf(chosen, other, cell) {
  const subset = report.subsets[current];
  const strip = gallery[current]?.strips[slots[current].get(chosen)];
  const picture = make("div", { class: "cell absent", role: "img", "aria-label": nameOf(other) }, strip ? "" : "no image");
  if (strip) {
    const cells = subset.nearest[chosen].length;
    picture.style.backgroundImage = `url(${dataUri(strip)})`;
    picture.style.backgroundSize = `${100 * cells}% 100%`;
    picture.style.backgroundPosition = `${cells > 1 ? (100 * cell) / (cells - 1) : 0}% 0`;
    const probe = new Image();
    probe.onload = () => picture.classList.toggle("pixelated", probe.naturalHeight <= SMALL);
    probe.src = dataUri(strip);
  }
  const similarity = subset.nearest_similarity[chosen][cell].toFixed(3);
  return make("figure", {}, picture, make("figcaption", {}, nameOf(other), make("br"), [similarity, ...knownOf(other)].join(", ")));
}

const sortings = {
  most: "most images represented",
  least: "fewest images represented",
  ...(Object.keys(report.labels).length ? { class: "class" } : {}),
  index: "index in the pool",
};
byId("sort").append(...Object.entries(sortings).map(([value, text]) => make("option", { value }, text)));
byId("sort").addEventListener("change", showGallery);
const atEnd = new IntersectionObserver(([end]) => {
  if (end.isIntersecting && listing.drawn < listing.order.length) drawMore();
}, { rootMargin: "800px" });
byId("details").addEventListener("keydown", (event) => {
  const place = { ArrowLeft: 0, ArrowRight: 1 }[event.key];
  if (place !== undefined) byId("details").querySelectorAll(".turn button")[place].click();
});
byId("details").addEventListener("click", (event) => event.target === byId("details") && byId("details").close());
