"use strict";
// Each class's share of the pixels, in the pool and in every subset, where the pool has masks.

function drawPixels() {
  if (!report.pixels) {
    byId("pixels-section").remove();
    return;
  }
  const { classes, pool } = report.pixels;
  const names = report.subsets.map((subset, position) => make("th", { scope: "col", class: "name" }, swatch(position), subset.name));
  byId("pixels").append(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, ""), make("th", { scope: "col" }, "pool"), ...names)));
  const body = make("tbody");
  const frequentFirst = [...classes.keys()].sort((a, b) => pool[b] - pool[a]);
  for (const index of frequentFirst) {
    const shares = [pool, ...report.subsets.map((subset) => subset.pixels)].map((each) => each[index]);
    body.append(make("tr", {}, make("th", { scope: "row" }, classes[index]), ...shares.map((share) => make("td", {}, shown(share, "share")))));
  }
  byId("pixels").append(body);
}
