"use strict";
// Pointing at the map: what is there, what represents it, and zooming, by pointer and by keyboard.

// The chosen image under the pointer, or the one that represents the pool image there; the nearest of those in reach.
function pick(event) {
  const box = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const { subset } = view;
  let found = null, reach = 12;
  subset.ids.forEach((index, chosen) => {
    const place = placeOf.get(index);
    const away = Math.max(0, Math.hypot(view.px[place] - x, view.py[place] - y) - radiusOf(subset, chosen));
    if (away < reach) [found, reach] = [{ chosen, place }, away];
  });
  if (reach < 2) return found;
  subset.map_nearest.forEach((chosen, place) => {
    const away = Math.hypot(view.px[place] - x, view.py[place] - y);
    if (away < reach) [found, reach] = [{ chosen, place }, away];
  });
  return found;
}

function describe(found) {
  const tip = byId("tip");
  tip.replaceChildren();
  if (!found) return;
  const { subset } = view;
  const index = subset.ids[found.chosen];
  const represents = `represents ${count(subset.represents[found.chosen])} of ${count(report.n)} pool images`;
  const own = map.index[found.place];
  const lines = own === index
    ? [nameOf(index), `chosen, ${represents}`]
    : [nameOf(own), `represented by ${nameOf(index)}`, `at distance ${distanceOf(subset.map_similarity[found.place]).toFixed(3)}`];
  const picture = pictureOf(current, found.chosen);
  if (picture) tip.append(picture);
  tip.append(lines.join("\n"));
  const { clientWidth: width, clientHeight: height } = canvas;
  const [x, y] = [view.px[found.place], view.py[found.place]];
  tip.style.left = x > width / 2 ? "" : `${Math.max(0, x + 14)}px`;
  tip.style.right = x > width / 2 ? `${Math.max(0, width - x + 14)}px` : "";
  tip.style.top = y > height / 2 ? "" : `${Math.max(0, y)}px`;
  tip.style.bottom = y > height / 2 ? `${Math.max(0, height - y)}px` : "";
}

function activate(found) {
  const chosen = found ? found.chosen : null;
  if (chosen !== view.active) {
    view.active = chosen;
    drawMap(current, true);
  }
  describe(found);
}

function zoom(factor) {
  const wanted = Math.min(40, Math.max(1, view.zoom * factor));
  [view.x, view.y] = wanted === 1 ? [0, 0] : [(view.x * wanted) / view.zoom, (view.y * wanted) / view.zoom];
  view.zoom = wanted;
  canvas.style.touchAction = wanted > 1 ? "none" : "";
  describe(null);
  drawMap(current, true);
}

canvas.addEventListener("pointermove", (event) => {
  if (view.drag && view.zoom > 1) {
    view.x += event.clientX - view.drag.x;
    view.y += event.clientY - view.drag.y;
    view.drag = { x: event.clientX, y: event.clientY, moved: true };
    describe(null);
    drawMap(current, true);
  } else activate(pick(event));
});
canvas.addEventListener("pointerdown", (event) => (view.drag = { x: event.clientX, y: event.clientY, moved: false }));
for (const end of ["pointerleave", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    view.drag = null;
    activate(null);
  });
}
canvas.addEventListener("pointerup", (event) => {
  const moved = view.drag?.moved;
  view.drag = null;
  const found = moved ? null : pick(event);
  if (found) openDetails(found.chosen);
});
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) {
    const order = galleryOrder();
    const next = (order.indexOf(view.active) + step + order.length) % order.length;
    activate({ chosen: order[next], place: placeOf.get(view.subset.ids[order[next]]) });
  } else if (event.key === "Enter" && view.active !== null) openDetails(view.active);
  else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else return;
  event.preventDefault();
});
byId("zoom-in").addEventListener("click", () => zoom(1.5));
byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
