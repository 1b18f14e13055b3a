"use strict";
// Near-duplicates of the pool: the largest groups, a strip of pictures each.

function drawDuplicates() {
  const found = report.duplicates;
  const cosine = report.options.duplicate_similarity;
  byId("duplicates-note").textContent = !found
    ? "The pool is too large to look for them."
    : !found.groups
      ? `No two images of the pool have a cosine similarity of ${cosine} or more.`
      : `${count(found.images)} images in ${count(found.groups)} groups, each with a cosine similarity of ${cosine} or more to the first of its group` +
        `${found.shown.length < found.groups ? `; the ${found.shown.length} largest groups` : ""}. `;
  if (found?.groups) byId("duplicates-note").append(make("code", {}, "--drop_duplicates"), " chooses one of each group at most.");
  for (const { size, ids, strip } of found?.shown ?? []) {
    const names = ids.map(nameOf).join(", ") + (size > ids.length ? ", …" : "");
    const picture = strip
      ? make("img", { class: "pixelated strip", loading: "lazy", alt: names, src: dataUri(strip), style: `aspect-ratio: ${ids.length}` })
      : null;
    byId("duplicates").append(make("figure", {}, picture, make("figcaption", {}, make("b", {}, `× ${count(size)} `), names)));
  }
}
drawDuplicates();
