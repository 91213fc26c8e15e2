// The reading room's controls, keys and words: the rest of ReadingRoom.
"use strict";

Object.assign(ReadingRoom.prototype, {
  wire() {
    for (const id of ["finding", "show"]) $(id).addEventListener("change", () => this.arrange());
    for (const id of ["sort", "descending"]) $(id).addEventListener("change", () => this.arrange(true));
    for (const id of ["outlines", "fill", "labels", "side", "map", "stretch", "areas"]) {
      if ($(id)) $(id).addEventListener("change", () => this.changed());
    }
    this.room.sources.forEach((_, i) => $(`source-${i}`).addEventListener("change", () => this.changed()));
    for (const name of ["level", "width"]) $(name).addEventListener("input", () => this.setWindow({[name]: Number($(name).value)}));
    $("automatic").addEventListener("change", () => this.setWindow({}, true));
    $("invert").addEventListener("change", () => this.setWindow({invert: $("invert").checked}, true));
    $("previous").addEventListener("click", () => this.step(-1));
    $("next").addEventListener("click", () => this.step(1));
    $("closer").addEventListener("click", () => this.zoom(1.25));
    $("wider").addEventListener("click", () => this.zoom(0.8));
    $("reset").addEventListener("click", () => this.reset());
    $("room").addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.follow());
    this.wireMouse();
    this.swatches();
  },

  changed() {
    this.describe();
    this.paint();
  },

  setWindow(values, keep = false) {
    if (!keep) $("automatic").checked = false;
    else if (!$("automatic").checked && !("invert" in values)) Object.assign(values, {level: 128, width: 255});
    Object.assign(this.window, values);
    this.applyWindow();
    this.paint();
  },

  zoom(by, x = 0.5, y = 0.5) {
    const before = this.view.zoom, zoom = Math.min(Math.max(before * by, 1), 16);
    this.view.x += (x - this.view.x) * (1 - before / zoom);
    this.view.y += (y - this.view.y) * (1 - before / zoom);
    if (zoom === 1) this.view.x = this.view.y = 0.5;
    this.view.zoom = zoom;
    $("zoom-text").textContent = `${Math.round(zoom * 100)}%`;
    this.paint();
  },

  reset() {
    this.view = {zoom: 1, x: 0.5, y: 0.5};
    $("invert").checked = $("automatic").checked = false;
    this.window = {level: 128, width: 255, invert: false};
    this.applyWindow();
    this.zoom(1);
  },

  /** Drag moves the film, with Shift it sets window and level; the wheel zooms once the film was clicked. */
  wireMouse() {
    const canvas = this.canvas, size = () => {
      const scale = placement(this.panel, this.loaded.size, this.view).a / (window.devicePixelRatio || 1);
      return [this.loaded.size[1] * scale, this.loaded.size[0] * scale];
    };
    canvas.addEventListener("pointermove", (event) => {
      if (!(event.buttons & 1) || !this.loaded) return;
      if (event.shiftKey) {
        const clamp = (value, low) => Math.min(Math.max(Math.round(value), low), 255);
        this.setWindow({level: clamp(this.window.level - event.movementY, 0), width: clamp(this.window.width + event.movementX, 1)});
      } else if (this.view.zoom > 1) {
        const [width, height] = size();
        this.view.x = Math.min(Math.max(this.view.x - event.movementX / width, 0), 1);
        this.view.y = Math.min(Math.max(this.view.y - event.movementY / height, 0), 1);
        this.paint();
      }
    });
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      if (!this.loaded || document.activeElement !== canvas) return;
      event.preventDefault();
      const ratio = window.devicePixelRatio || 1, inverse = placement(this.panel, this.loaded.size, this.view).inverse();
      const at = new DOMPoint(event.offsetX * ratio, event.offsetY * ratio).matrixTransform(inverse);
      this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, at.x / this.loaded.size[1], at.y / this.loaded.size[0]);
    }, {passive: false});
  },

  key(event) {
    const target = event.target, typing = target.matches("select, input:not([type=checkbox])");
    if (event.ctrlKey || event.altKey || event.metaKey || typing) return;
    const toggle = (id) => () => {
      if ($(id) && !$(id).disabled) $(id).click();
    };
    const found = {
      ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1), n: () => this.step(1), p: () => this.step(-1),
      Home: () => this.step(-Infinity), End: () => this.step(Infinity),
      f: () => this.nextFinding(1), F: () => this.nextFinding(-1), o: toggle("outlines"), a: toggle("fill"),
      l: toggle("labels"), s: toggle("side"), m: toggle("map"), e: () => this.nextArea(), i: toggle("invert"),
      w: toggle("automatic"), "+": () => this.zoom(1.25), "=": () => this.zoom(1.25), "-": () => this.zoom(0.8),
      r: () => this.reset(),
    }[event.key] || (/^[1-9]$/.test(event.key) ? toggle(`source-${event.key - 1}`) : null);
    if (!found) return;
    event.preventDefault();
    found();
  },

  nextFinding(by) {
    const options = $("finding").options;
    $("finding").selectedIndex = ($("finding").selectedIndex + by + options.length) % options.length;
    this.arrange();
  },

  nextArea() {
    if (!$("areas")) return;
    $("areas").selectedIndex = ($("areas").selectedIndex + 1) % $("areas").options.length;
    this.changed();
  },

  /** Samples beside the names: each source's stroke, each finding's colour, each area's fill. */
  swatches() {
    for (const canvas of document.querySelectorAll("canvas[data-stroke]")) {
      const context = canvas.getContext("2d"), k = Number(canvas.dataset.stroke);
      context.strokeStyle = SOURCE_COLOURS[k % SOURCE_COLOURS.length];
      context.lineWidth = 3;
      context.setLineDash(DASHES[k % DASHES.length]);
      context.beginPath();
      context.moveTo(1, 7);
      context.lineTo(43, 7);
      context.stroke();
    }
    for (const canvas of document.querySelectorAll("canvas[data-area]")) {
      const context = canvas.getContext("2d");
      context.fillStyle = areaFill(context, AREAS[Number(canvas.dataset.area)]);
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
  },

  /** What is shown, in words and numbers: no information by colour alone. */
  describe() {
    const {film, task, room} = this;
    const one = task !== ALL, map = $("map");
    map.disabled = $("stretch").disabled = !one || !(String(task) in (room.peaks || {}));
    $("map-text").textContent = map.disabled
      ? (one ? "no map of this finding" : "choose a finding to see its map")
      : $("stretch").checked ? "0 to the film's own maximum" : `0 to ${room.peaks[task].toPrecision(2)}, the largest of all films`;
    $("legend").replaceChildren(...(one ? [] : room.tasks.map((name, i) => this.legendItem(name, i))));
    if (!film || !this.loaded) return;
    const words = [film.id, one ? room.tasks[task] : "all findings"];
    this.on.forEach((k) => {
      const value = iouOf(room, film, k, task);
      if (film.has[k] === null) words.push(`${room.sources[k].title}: no mask of this film`);
      else if (value !== null && room.sources[k].kind !== "expert") words.push(`${room.sources[k].title}: IoU ${number(value)}`);
    });
    if (this.areas >= 0) words.push(`areas: ${this.shares(this.areas)}`);
    $("caption").textContent = words.join(" · ");
    this.canvas.setAttribute("aria-label", `X-ray ${words.join(", ")}`);
    this.describeFindings();
  },

  legendItem(name, i) {
    const item = make("li", name), sample = make("span", "", {class: "colour", "aria-hidden": "true"});
    sample.style.background = this.room.colours[i];
    item.prepend(sample);
    return item;
  },

  /** Right, missed and false area of a source as shares of the union with the expert. */
  shares(source) {
    const {film, task, room} = this, title = room.sources[source].title;
    if (task === ALL) return `${title} against the expert`;
    const iou = film.iou[source] && film.iou[source][task], missed = film.missed[source] && film.missed[source][task];
    if (iou === null || missed === null) return `${title}: neither marks it`;
    const share = (value) => `${Math.round(value / 10)}%`;
    return `${title}: right ${share(iou)}, missed ${share(missed)}, false ${share(1000 - iou - missed)} of the area that either marks`;
  },

  describeFindings() {
    const body = verdicts(this.room, this.film).map(({task, cells}) => {
      const row = make("tr"), head = make("th", "", {scope: "row"});
      const button = make("button", this.room.tasks[task], {type: "button"});
      button.addEventListener("click", () => {
        $("finding").value = task;
        this.arrange();
      });
      if (task === this.task) row.className = "chosen";
      head.append(button);
      row.append(head, ...cells.map((cell) => make("td", cell, {class: /^[a-z]/.test(cell) ? cell.split(" ")[0] : "number"})));
      return row;
    });
    $("verdicts").replaceChildren(...body);
    $("nothing").hidden = body.length > 0;
  },
});

/** Small pictures elsewhere in the page: drawn when they come into sight, and a way into the reading room. */
function startThumbnails(reading) {
  const draw = async (canvas) => {
    const {film, finding, on} = canvas.dataset, i = reading.room.films.findIndex((one) => one.id === film);
    if (i < 0 || reading.room.films[i].page !== reading.here.number) return;
    const loaded = await reading.load(i), task = Number(finding), keys = on.split(",");
    const drawn = reading.room.sources.map((source, k) => [source, k]).filter(([source]) => keys.includes(source.key))
      .map(([source, k]) => ({
        outline: loaded.paths[k] && loaded.paths[k].get(task), wide: false, dash: [], label: "",
        colour: source.kind === "expert" ? SOURCE_COLOURS[0] : SOURCE_COLOURS[2],
      })).filter((one) => one.outline);
    const view = {zoom: 1, x: 0.5, y: 0.5}, panel = {x: 0, y: 0, width: canvas.width, height: canvas.height};
    const scene = {film: windowed(loaded.film, {level: 128, width: 255, invert: false}), size: loaded.size, drawn};
    drawPanel(canvas.getContext("2d"), panel, scene, view, {filled: false, labelled: false, ratio: 1});
  };
  const watch = new IntersectionObserver((entries) => entries.filter((one) => one.isIntersecting).forEach((one) => {
    watch.unobserve(one.target);
    draw(one.target);
  }), {rootMargin: "200px"});
  document.querySelectorAll("canvas[data-film]").forEach((canvas) => watch.observe(canvas));
}

if ($("room-data")) {
  const reading = new ReadingRoom();
  startThumbnails(reading);
  window.chexseg = reading;
  performance.mark("room-ready");
}
