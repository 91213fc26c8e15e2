// Which films are listed, in which order, and what is said of each. Pure functions of the page's data.
"use strict";

const ALL = -1;
const number = (thousandths) => (thousandths === null || thousandths === undefined ? "–" : (thousandths / 1000).toFixed(2));

function mean(values) {
  const found = values.filter((value) => value !== null && value !== undefined);
  return found.length ? found.reduce((a, b) => a + b, 0) / found.length : null;
}

function expertOf(room) {
  return room.sources.findIndex((source) => source.kind === "expert");
}

function isKnown(film, task) {
  return !film.known || film.known.includes(task);
}

function marks(film, source, task) {
  const has = source >= 0 ? film.has[source] : null;
  return has !== null && (task === ALL ? has.length > 0 : has.includes(task));
}

/** IoU of a source with the expert in thousandths: of a finding, or the mean of those that the expert marked. */
function iouOf(room, film, source, task) {
  const values = film.iou[source];
  if (!values) return null;
  if (task !== ALL) return values[task];
  return mean((film.has[expertOf(room)] || []).map((one) => values[one]));
}

function apartOf(film, task) {
  return task === ALL ? mean(film.apart) : film.apart[task];
}

/** Whether a film is among those that `show` names, for a finding or for all. */
function isShown(room, film, show, task) {
  const expert = expertOf(room), tasks = task === ALL ? room.tasks.map((_, i) => i) : [task];
  const methods = room.sources.map((_, i) => i).filter((i) => room.sources[i].kind === "method");
  const some = (test) => tasks.some((one) => methods.some((method) => film.has[method] && test(one, method)));
  switch (show) {
    case "marked": return marks(film, expert, task);
    case "anyone": return room.sources.some((_, i) => marks(film, i, task));
    case "false": return some((one, method) => isKnown(film, one) && !marks(film, expert, one) && marks(film, method, one));
    case "missed": return some((one, method) => marks(film, expert, one) && !marks(film, method, one));
    default: return true;
  }
}

/** Numbers of the films to list. `sort`: "file", "apart", or the number of a source whose IoU counts; none comes last. */
function arranged(room, {show, task, sort, descending}) {
  const value = (film) => (sort === "apart" ? apartOf(film, task) : iouOf(room, film, Number(sort), task));
  const found = room.films.map((_, i) => i).filter((i) => isShown(room, room.films[i], show, task));
  if (sort === "file") return descending ? found.reverse() : found;
  const values = new Map(found.map((i) => [i, value(room.films[i])]));
  const missing = (i) => values.get(i) === null || values.get(i) === undefined;
  return found.sort((a, b) => missing(a) - missing(b)
    || (missing(a) ? a - b : (values.get(a) - values.get(b)) * (descending ? -1 : 1)) || a - b);
}

/** What a source says of a finding, in a word. */
function verdict(room, film, source, task) {
  const expert = expertOf(room), marked = marks(film, source, task);
  if (film.has[source] === null) return "no mask";
  if (source === expert) return isKnown(film, task) ? (marked ? "marked" : "–") : "not judged";
  if (expert < 0 || film.has[expert] === null || !isKnown(film, task)) return marked ? "marked" : "–";
  const truth = marks(film, expert, task);
  if (truth && marked) return number(film.iou[source][task]);
  return truth ? "missed" : marked ? "false" : "–";
}

/** Rows of the table beside a film: the findings that anybody marks. */
function verdicts(room, film) {
  return room.tasks.map((task, i) => i)
    .filter((task) => room.sources.some((_, source) => marks(film, source, task)))
    .map((task) => ({task, cells: room.sources.map((_, source) => verdict(room, film, source, task))}));
}
