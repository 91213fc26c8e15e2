// The reading room: what is chosen, the controls, the keys. Drawing is in draw.js, the list of films in list.js.
"use strict";

const $ = (id) => document.getElementById(id);
const readJson = (id) => JSON.parse($(id).textContent);

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** An id that may break after a low line, nowhere else first. */
function idSpan(id) {
  const span = make("span", "", {class: "id"});
  id.split(/(?<=_)/).forEach((part) => span.append(part, document.createElement("wbr")));
  return span;
}

class ReadingRoom {
  constructor() {
    this.room = readJson("room-data");
    this.here = readJson("page-data");
    this.canvas = $("film");
    this.context = this.canvas.getContext("2d");
    this.cache = new Map();
    this.view = {zoom: 1, x: 0.5, y: 0.5};
    this.window = {level: 128, width: 255, invert: false};
    this.order = [];
    this.shown = -1;
    this.painting = 0;
    this.wire();
    this.follow() || this.arrange(true);
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  }

  get task() { return Number($("finding").value); }
  get on() { return this.room.sources.map((_, i) => i).filter((i) => $(`source-${i}`).checked); }
  /** The source whose right, missed and false areas are shown; -1: nobody's. */
  get areas() { return $("areas") ? Number($("areas").value) : -1; }
  get film() { return this.room.films[this.shown]; }

  // ---- The list ----------------------------------------------------------------------------------------------------
  arrange(first = false) {
    this.order = arranged(this.room, {
      show: $("show").value, task: this.task, sort: $("sort").value, descending: $("descending").checked,
    });
    const rows = this.order.map((i) => this.row(i));
    $("list").replaceChildren(...rows);
    const count = this.order.length, all = this.room.films.length;
    $("count").textContent = count === all ? `${all} films` : `${count} of ${all} films`;
    if (first || !this.order.includes(this.shown)) {
      const here = this.order.find((i) => this.room.films[i].page === this.here.number);
      if (here !== undefined) this.open(here);
      else this.showNothing(count);
    } else this.select();
    this.describe();
    this.paint();
  }

  row(i) {
    const film = this.room.films[i], item = make("li"), button = make("button", "", {type: "button"});
    const value = this.valueOf(film, $("sort").value);
    button.append(idSpan(film.id), make("span", value, {class: "value"}));
    if (film.page !== this.here.number) button.append(make("span", `on page ${film.page + 1}`, {class: "elsewhere"}));
    button.dataset.film = i;
    button.addEventListener("click", () => this.open(i));
    item.append(button);
    return item;
  }

  /** What the list is sorted by, in words. */
  valueOf(film, sort) {
    if (sort === "file") return "";
    if (sort === "apart") return number(apartOf(film, this.task));
    return this.task === ALL ? number(iouOf(this.room, film, Number(sort), ALL)) : verdict(this.room, film, Number(sort), this.task);
  }

  select() {
    for (const button of $("list").querySelectorAll("button")) {
      const chosen = Number(button.dataset.film) === this.shown;
      if (chosen) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      if (chosen) this.reveal(button);
    }
    const place = this.order.indexOf(this.shown);
    $("place").textContent = place < 0 ? "" : `${place + 1} / ${this.order.length}`;
  }

  /** Scroll the list, never the page. */
  reveal(button) {
    const list = $("list"), top = button.offsetTop - list.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + button.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = top + button.offsetHeight - list.clientHeight;
    }
  }

  step(by) {
    if (!this.order.length) return;
    const place = this.order.indexOf(this.shown);
    this.open(this.order[Math.min(Math.max(place + by, 0), this.order.length - 1)]);
  }

  /** What the address asks for: #film=ID&finding=NUMBER&on=KEY,KEY */
  follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const i = this.room.films.findIndex((film) => film.id === asked.get("film"));
    if (i < 0 || this.room.films[i].page !== this.here.number) return false;
    if (asked.has("finding")) $("finding").value = asked.get("finding");
    if ($("finding").selectedIndex < 0) $("finding").value = ALL;
    $("show").value = "every";
    if (asked.has("on")) {
      const keys = asked.get("on").split(",");
      this.room.sources.forEach((source, k) => { $(`source-${k}`).checked = keys.includes(source.key); });
    }
    this.shown = i;
    this.arrange();
    this.open(i);
    $("room").scrollIntoView();
    this.canvas.focus({preventScroll: true});
    return true;
  }

  // ---- A film ------------------------------------------------------------------------------------------------------
  async open(i) {
    const film = this.room.films[i], started = performance.now();
    if (film.page !== this.here.number) {
      const keys = this.on.map((k) => this.room.sources[k].key).join(",");
      location.href = `${this.room.pages[film.page]}#${new URLSearchParams({film: film.id, finding: this.task, on: keys})}`;
      return;
    }
    this.shown = i;
    this.select();
    const loaded = await this.load(i);
    if (this.shown !== i) return;
    this.loaded = loaded;
    this.applyWindow();
    this.describe();
    this.paint(() => {
      performance.measure("film-switch", {start: started, end: performance.now(), detail: film.id});
      for (const next of [1, -1, 2]) {
        const near = this.order[this.order.indexOf(i) + next];
        if (near !== undefined && this.room.films[near].page === this.here.number) setTimeout(() => this.load(near), 0);
      }
    });
  }

  /** A film's grey values and outlines; the last sixteen are kept, so that its neighbours are there at once. */
  load(i) {
    if (!this.cache.has(i)) {
      const content = this.here.films[this.room.films[i].id], text = $(`film-${i}`).textContent;
      this.cache.set(i, decodeFilm(text).then((film) => ({
        ...content, film,
        paths: content.outlines.map((tasks) => tasks && new Map(Object.entries(tasks).map(([k, v]) => [Number(k), decodeOutline(v)]))),
        levels: new Map(Object.entries(content.maps || {}).map(([k, v]) => [Number(k), bytesOf(v)])),
      })));
      if (this.cache.size > 16) this.cache.delete(this.cache.keys().next().value);
    }
    return this.cache.get(i);
  }

  applyWindow() {
    if (!this.loaded) return;
    const settings = $("automatic").checked ? {...automaticWindow(this.loaded.film), invert: this.window.invert} : this.window;
    if ($("automatic").checked) Object.assign(this.window, settings);
    $("level").value = settings.level;
    $("width").value = settings.width;
    $("window-text").textContent = `level ${settings.level}, width ${settings.width}`;
    this.windowed = windowed(this.loaded.film, settings);
  }

  showNothing(count) {
    this.shown = -1;
    this.loaded = null;
    this.select();
    $("caption").textContent = count ? "These films are on other pages." : "No film answers to this choice.";
    $("verdicts").replaceChildren();
    this.paint();
  }

  // ---- The picture -------------------------------------------------------------------------------------------------
  paint(after) {
    if (after) this.after = after;
    if (!this.painting) this.painting = requestAnimationFrame(() => {
      this.painting = 0;
      this.draw();
      const done = this.after;
      this.after = null;
      if (done) done();
    });
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, {canvas, context, loaded} = this;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    context.clearRect(0, 0, width, height);
    if (!loaded) return;
    const sources = this.on, side = $("side").checked && sources.length > 1;
    const scenes = side ? sources.map((k) => this.scene([k], true)) : [this.scene(sources, false)];
    const places = panels(width, height, scenes.length, loaded.size);
    const options = {filled: $("fill").checked, labelled: $("labels").checked, ratio};
    this.panel = places[0];
    scenes.forEach((scene, i) => drawPanel(context, places[i], scene, this.view, options));
  }

  scene(sources, side) {
    const {loaded, task} = this, one = task !== ALL, drawn = [];
    for (const k of sources) {
      for (const [number, outline] of loaded.paths[k] || []) {
        if (one && number !== task) continue;
        const name = this.room.tasks[number], source = this.room.sources[k];
        drawn.push({
          outline, wide: source.kind === "expert",
          // One source's findings: dashed from the second on, so that one that coincides with another shows both.
          dash: one || sources.length > 1 ? DASHES[k % DASHES.length] : drawn.length ? [8, 6] : [],
          colour: one ? SOURCE_COLOURS[k % SOURCE_COLOURS.length] : this.room.colours[number],
          label: one && !side ? source.title : side || sources.length === 1 ? name : `${name} (${k + 1})`,
        });
      }
    }
    return {
      film: this.windowed, size: loaded.size, drawn: $("outlines").checked ? drawn : [],
      heat: $("map").checked && one ? this.heat() : null, pairs: this.areas < 0 ? null : this.pairs(side ? sources[0] : this.areas),
      title: side ? this.room.sources[sources[0]].title : "",
    };
  }

  heat() {
    const {loaded, task} = this, levels = loaded.levels.get(task);
    if (!levels) return null;
    const stretch = $("stretch").checked, most = levels.reduce((a, b) => Math.max(a, b), 1);
    if (this.heated?.levels !== levels || this.heated.stretch !== stretch) {
      this.heated = {levels, stretch, layer: heatLayer(levels, loaded.map_size, stretch ? 255 / most : 1)};
    }
    return this.heated.layer;
  }

  /** Outlines of the expert and of a source, for the areas; null where none are asked for. */
  pairs(source) {
    const expert = expertOf(this.room), {loaded, task} = this;
    if (source === expert || !loaded.paths[source] || !loaded.paths[expert]) return null;
    const tasks = task === ALL ? this.room.tasks.map((_, i) => i) : [task];
    return tasks.filter((i) => isKnown(this.film, i)).map((i) => [loaded.paths[expert].get(i), loaded.paths[source].get(i)]);
  }
}
