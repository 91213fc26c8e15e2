// From the page's compact data to what a canvas draws. The text of an outline is written by chexseg/evaluation/outlines.py.
"use strict";

const DIGITS = new Map([..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"].map((c, i) => [c, i]));

/** Polygons of an outline: {path, top: the highest corner of the largest one}, in pixels of the film. */
function decodeOutline(text) {
  const path = new Path2D();
  let top = null, most = 0;
  for (const part of text.split(" ")) {
    const numbers = [];
    let value = 0, place = 0;
    for (const character of part) {
      const digit = DIGITS.get(character);
      value |= (digit & 31) << place;
      place += 5;
      if (digit < 32) {
        numbers.push(value & 1 ? -(value >> 1) : value >> 1);
        value = place = 0;
      }
    }
    let x = 0, y = 0, highest = null, left = Infinity, right = -Infinity;
    for (let i = 0; i + 1 < numbers.length; i += 2) {
      x += numbers[i] / 2;
      y += numbers[i + 1] / 2;
      if (i) path.lineTo(x, y); else path.moveTo(x, y);
      if (highest === null || y < highest.y) highest = {x, y};
      left = Math.min(left, x);
      right = Math.max(right, x);
    }
    path.closePath();
    if (highest && right - left > most) {
      most = right - left;
      top = highest;
    }
  }
  return {path, top};
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** The grey values of a film whose JPEG stands in the page: {width, height, grey: Uint8Array}. */
async function decodeFilm(text) {
  const bitmap = await createImageBitmap(new Blob([bytesOf(text)], {type: "image/jpeg"}));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const grey = new Uint8Array(bitmap.width * bitmap.height);
  for (let i = 0; i < grey.length; i++) grey[i] = pixels[4 * i];
  return {width: bitmap.width, height: bitmap.height, grey};
}

/** Film through a window: grey values from level - width / 2 (black) to level + width / 2 (white). */
function windowed(film, {level, width, invert}) {
  const table = new Uint8ClampedArray(256);
  for (let i = 0; i < 256; i++) {
    const value = ((i - (level - width / 2)) * 255) / Math.max(width, 1);
    table[i] = invert ? 255 - value : value;
  }
  const canvas = new OffscreenCanvas(film.width, film.height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(film.width, film.height);
  const words = new Uint32Array(image.data.buffer);
  const colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) colours[i] = 0xff000000 | (table[i] << 16) | (table[i] << 8) | table[i];
  for (let i = 0; i < film.grey.length; i++) words[i] = colours[film.grey[i]];
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Level and width from the 1st to the 99th percentile. */
function automaticWindow(film) {
  const counts = new Uint32Array(256);
  for (const value of film.grey) counts[value]++;
  const at = (share) => {
    let sum = 0;
    for (let i = 0; i < 256; i++) {
      sum += counts[i];
      if (sum >= share * film.grey.length) return i;
    }
    return 255;
  };
  const low = at(0.01), high = Math.max(at(0.99), low + 1);
  return {level: Math.round((low + high) / 2), width: high - low};
}

// Inferno, matplotlib's, at eleven places: dark violet, red, yellow. Ordered in lightness, so that it reads in grey too.
const INFERNO = [
  [0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84], [221, 81, 58], [243, 120, 25],
  [252, 165, 10], [246, 215, 70], [252, 255, 164],
];

function infernoAt(share) {
  const place = Math.min(Math.max(share, 0), 1) * (INFERNO.length - 1), i = Math.min(Math.floor(place), INFERNO.length - 2);
  return INFERNO[i].map((value, k) => value + (INFERNO[i + 1][k] - value) * (place - i));
}

/** A saliency map (bytes, rows by columns) as a tinted layer; where it is low the film shows. Bilinear, as when scored. */
function heatLayer(levels, [rows, columns], scale) {
  const side = 192, canvas = new OffscreenCanvas(side, side), context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  const along = (count) => Array.from({length: side}, (_, i) => {
    const at = Math.max(((i + 0.5) * count) / side - 0.5, 0), low = Math.min(Math.floor(at), count - 1);
    return [low, Math.min(low + 1, count - 1), at - low];
  });
  const ys = along(rows), xs = along(columns);
  for (let y = 0; y < side; y++) {
    const [y0, y1, fy] = ys[y];
    for (let x = 0; x < side; x++) {
      const [x0, x1, fx] = xs[x];
      const upper = levels[y0 * columns + x0] * (1 - fx) + levels[y0 * columns + x1] * fx;
      const lower = levels[y1 * columns + x0] * (1 - fx) + levels[y1 * columns + x1] * fx;
      const share = Math.min(((upper * (1 - fy) + lower * fy) / 255) * scale, 1);
      const colour = infernoAt(0.15 + 0.85 * share), at = 4 * (y * side + x);
      image.data.set([...colour, 255 * 0.6 * share], at);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
