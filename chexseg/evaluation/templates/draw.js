// One film on a canvas: the X-ray, a saliency map, areas right, missed and false, outlines and their labels.
"use strict";

const DASHES = [[], [7, 4], [2, 3], [12, 4], [9, 3, 2, 3], [14, 3, 2, 3, 2, 3], [5, 2], [3, 6], [16, 6]];
const SOURCE_COLOURS = [
  "#ffffff", "#4dc9ff", "#ffb000", "#ff6fd0", "#2fe0a0", "#b892ff", "#ffe95c", "#ff7a4d", "#9fb4ff",
];
const AREAS = [
  {key: "right", title: "right", colour: "#2bd4bd", pattern: "plain"},
  {key: "missed", title: "missed", colour: "#ffb000", pattern: "stripes"},
  {key: "false", title: "false", colour: "#ff5fc4", pattern: "dots"},
];

/** A fill that can be told apart without its colour. */
function areaFill(context, {colour, pattern}) {
  const tile = new OffscreenCanvas(8, 8), inside = tile.getContext("2d");
  inside.globalAlpha = pattern === "plain" ? 0.32 : 0.18;
  inside.fillStyle = inside.strokeStyle = colour;
  inside.fillRect(0, 0, 8, 8);
  inside.globalAlpha = 0.95;
  inside.lineWidth = 1.6;
  if (pattern === "stripes") {
    inside.beginPath();
    for (const shift of [-8, 0, 8]) {
      inside.moveTo(shift, 8);
      inside.lineTo(shift + 8, 0);
    }
    inside.stroke();
  } else if (pattern === "dots") {
    for (const [x, y] of [[2, 2], [6, 6]]) {
      inside.beginPath();
      inside.arc(x, y, 1.3, 0, 7);
      inside.fill();
    }
  }
  return context.createPattern(tile, "repeat");
}

/** Where a film lies in a panel: a matrix from its pixels to the canvas's. */
function placement(panel, size, view) {
  const [height, width] = size;
  const scale = Math.min(panel.width / width, panel.height / height) * view.zoom;
  const x = panel.x + panel.width / 2 - view.x * width * scale, y = panel.y + panel.height / 2 - view.y * height * scale;
  return new DOMMatrix([scale, 0, 0, scale, x, y]);
}

function placed(path, matrix) {
  const found = new Path2D();
  found.addPath(path, matrix);
  return found;
}

/** Areas that both, only the expert and only the method mark, each in its own fill. */
function drawAreas(context, pairs, matrix) {
  const {width, height} = context.canvas;
  const layer = new OffscreenCanvas(width, height), inside = layer.getContext("2d");
  const operations = [["destination-in", 0], ["destination-out", 0], ["destination-out", 1]];
  for (const pair of pairs) {
    const paths = pair.map((outline) => outline && placed(outline.path, matrix));
    AREAS.forEach((area, number) => {
      const [operation, swapped] = operations[number], [first, second] = swapped ? [paths[1], paths[0]] : paths;
      if (!first || (!second && operation === "destination-in")) return;
      inside.clearRect(0, 0, width, height);
      inside.globalCompositeOperation = "source-over";
      inside.fillStyle = areaFill(inside, area);
      inside.fill(first, "evenodd");
      if (second) {
        inside.globalCompositeOperation = operation;
        inside.fillStyle = "#000";
        inside.fill(second, "evenodd");
      }
      context.drawImage(layer, 0, 0);
    });
  }
}

/** Outlines [{outline, colour, dash, label, wide}] with a dark rim, so that they show on white and on black. */
function drawOutlines(context, drawn, matrix, {filled, labelled, ratio, panel}) {
  const paths = drawn.map((one) => placed(one.outline.path, matrix));
  context.lineJoin = "round";
  if (filled) {
    drawn.forEach((one, i) => {
      context.globalAlpha = 0.18;
      context.fillStyle = one.colour;
      context.fill(paths[i], "evenodd");
    });
    context.globalAlpha = 1;
  }
  const wide = (one) => (one.wide ? 2.6 : 2) * ratio;
  drawn.forEach((one, i) => {  // all rims first: none hides a stroke
    context.lineWidth = wide(one) + 1.6 * ratio;
    context.strokeStyle = "rgba(0, 0, 0, 0.55)";
    context.stroke(paths[i]);
  });
  drawn.forEach((one, i) => {
    context.setLineDash(one.dash.map((n) => n * ratio));
    context.lineWidth = wide(one);
    context.strokeStyle = one.colour;
    context.stroke(paths[i]);
  });
  context.setLineDash([]);
  if (labelled) drawLabels(context, drawn, matrix, ratio, panel);
}

/** A word at the top of each outline, moved down where another word stands already. */
function drawLabels(context, drawn, matrix, ratio, panel) {
  const high = 15 * ratio, taken = [];
  context.font = `600 ${11 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const one of drawn) {
    if (!one.outline.top) continue;
    const at = new DOMPoint(one.outline.top.x, one.outline.top.y).matrixTransform(matrix);
    const wide = context.measureText(one.label).width + 8 * ratio;
    const x = Math.min(Math.max(at.x - wide / 2, panel.x), panel.x + panel.width - wide);
    let y = Math.min(Math.max(at.y - high, panel.y + 20 * ratio), panel.y + panel.height - high);
    const hit = () => taken.find((box) => x < box.x + box.wide && box.x < x + wide && Math.abs(box.y - y) < high);
    for (let tries = 0; hit() && tries < 12; tries++) y = hit().y + high;
    taken.push({x, y, wide});
    context.fillStyle = "rgba(8, 10, 13, 0.82)";
    context.fillRect(x, y, wide, high - ratio);
    context.fillStyle = one.colour;
    context.fillText(one.label, x + 4 * ratio, y + high / 2);
  }
}

function drawTitle(context, text, panel, ratio) {
  context.font = `${12 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.fillStyle = "rgba(8, 10, 13, 0.75)";
  context.fillRect(panel.x, panel.y, context.measureText(text).width + 12 * ratio, 18 * ratio);
  context.fillStyle = "#e8ebef";
  context.fillText(text, panel.x + 6 * ratio, panel.y + 9 * ratio);
}

/** One panel: {film: canvas, size, heat: canvas or null, pairs: areas or null, drawn: outlines, title}. */
function drawPanel(context, panel, scene, view, options) {
  const matrix = placement(panel, scene.size, view);
  context.save();
  context.beginPath();
  context.rect(panel.x, panel.y, panel.width, panel.height);
  context.clip();
  context.setTransform(matrix);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(scene.film, 0, 0, scene.size[1], scene.size[0]);
  if (scene.heat) context.drawImage(scene.heat, 0, 0, scene.size[1], scene.size[0]);
  context.setTransform(1, 0, 0, 1, 0, 0);
  if (scene.pairs) drawAreas(context, scene.pairs, matrix);
  drawOutlines(context, scene.drawn, matrix, {...options, panel});
  if (scene.title) drawTitle(context, scene.title, panel, options.ratio);
  context.restore();
}

/** Panels of equal size for `count` pictures, in the split that shows them largest. */
function panels(width, height, count, size) {
  let best = null;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const scale = Math.min(width / columns / size[1], height / rows / size[0]);
    if (!best || scale > best.scale) best = {scale, columns, rows};
  }
  const wide = width / best.columns, high = height / best.rows, gap = count > 1 ? 2 : 0;
  return Array.from({length: count}, (_, i) => ({
    x: (i % best.columns) * wide + gap, y: Math.floor(i / best.columns) * high + gap, width: wide - 2 * gap, height: high - 2 * gap,
  }));
}
