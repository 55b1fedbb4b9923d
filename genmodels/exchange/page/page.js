// Draws faces by onnxruntime-web from the files that model.json lists.
//
// For scripts and tests: `await genmodels.ready`, then `await genmodels.draw(vectors, n)`, where
// `vectors` are the latents (or the noise) of n images as one Float32Array. It returns the pixels,
// RGB in 0 to 255, as one Uint8Array (n, size, size, 3). `genmodels.drawing` tells whether the large
// picture is being drawn.
"use strict";

const genmodels = (() => {
  const SEEDS = 1000;
  const SECONDS_PER_FACE = 2;
  const STRIP = 8;
  const byId = (id) => document.getElementById(id);
  const sessions = {};
  let model = null; // contents of model.json
  let mode = ""; // "from_latents" or "sample"
  let length = 0; // values of one vector
  let busy = false;
  let again = false;
  let walking = false;
  let last = Promise.resolve();

  // ---- random numbers ----

  // mulberry32: uniform numbers in [0, 1) from a 32-bit seed.
  function uniformNumbers(seed) {
    let state = Math.imul(seed + 1, 0x9e3779b9) >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let x = Math.imul(state ^ (state >>> 15), state | 1);
      x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
      return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
    };
  }

  // Box and Muller.
  function normalNumbers(uniform, count) {
    const numbers = new Float32Array(count);
    for (let i = 0; i < count; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      const angle = 2 * Math.PI * uniform();
      numbers[i] = radius * Math.cos(angle);
      if (i + 1 < count) numbers[i + 1] = radius * Math.sin(angle);
    }
    return numbers;
  }

  const valuesOf = (shape) => shape.slice(1).reduce((product, side) => product * side, 1);

  // ---- model ----

  async function load() {
    if (location.protocol === "file:") {
      throw new Error("A browser reads no model from a file. Run: python -m http.server -d FOLDER");
    }
    const answer = await fetch("model.json");
    if (!answer.ok) throw new Error(`model.json is missing (status ${answer.status})`);
    model = await answer.json();
    ort.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
    if (!self.crossOriginIsolated) ort.env.wasm.numThreads = 1; // threads need headers of the server
    for (const file of Object.keys(model.files)) {
      sessions[file.replace(".onnx", "")] = await ort.InferenceSession.create(file);
    }
    mode = "from_latents" in sessions ? "from_latents" : "sample";
    length = valuesOf(inputsOf(mode)[0].shape);
  }

  // One computation at a time.
  function run(name, feeds) {
    const result = last.then(() => sessions[name].run(feeds));
    last = result.catch(() => {});
    return result;
  }

  const inputsOf = (name) => model.files[`${name}.onnx`].inputs;

  const tensorOf = (input, values, n) => new ort.Tensor(input.type, values, [n, ...input.shape.slice(1)]);

  // The vector of a seed.
  async function vectorOf(seed, temperature) {
    const uniform = uniformNumbers(seed);
    const drawn = (input) => {
      const count = valuesOf(input.shape);
      if (input.name.startsWith("uniform")) return Float32Array.from({ length: count }, uniform);
      return normalNumbers(uniform, count).map((value) => temperature * value);
    };
    if (!sessions.draw_latents) return drawn({ name: "normal", shape: inputsOf(mode)[0].shape });
    const feeds = {};
    for (const input of inputsOf("draw_latents")) feeds[input.name] = tensorOf(input, drawn(input), 1);
    return (await run("draw_latents", feeds)).latents.data;
  }

  // The images of n vectors, (n, size, size, 3) in 0 to 255.
  async function draw(vectors, n) {
    const feeds = {};
    inputsOf(mode).forEach((input, place) => {
      if (place === 0) feeds[input.name] = tensorOf(input, vectors, n);
      else if (input.name === "labels") feeds.labels = tensorOf(input, new BigInt64Array(n).fill(BigInt(label())), n);
      else feeds.attributes = tensorOf(input, repeated(attributes(), n), n);
    });
    const { images } = await run(mode, feeds);
    const [, , height, width] = images.dims;
    const plane = height * width;
    const pixels = new Uint8Array(n * plane * 3);
    for (let i = 0; i < n; i++) {
      for (let channel = 0; channel < 3; channel++) {
        const from = (i * 3 + channel) * plane;
        for (let p = 0; p < plane; p++) {
          const level = Math.round((images.data[from + p] + 1) * 127.5);
          pixels[(i * plane + p) * 3 + channel] = Math.min(255, Math.max(0, level));
        }
      }
    }
    images.dispose();
    return pixels;
  }

  function repeated(row, n) {
    const rows = new Float32Array(n * row.length);
    for (let i = 0; i < n; i++) rows.set(row, i * row.length);
    return rows;
  }

  // Between vectors: along an arc if they are normal noise, else along a line.
  function between(first, second, weight) {
    let a = 1 - weight;
    let b = weight;
    if (!sessions.draw_latents) {
      let dot = 0, one = 0, two = 0;
      for (let i = 0; i < first.length; i++) {
        dot += first[i] * second[i];
        one += first[i] ** 2;
        two += second[i] ** 2;
      }
      const angle = Math.acos(Math.min(1, Math.max(-1, dot / Math.max(Math.sqrt(one * two), 1e-12))));
      if (angle > 1e-4) {
        a = Math.sin(a * angle) / Math.sin(angle);
        b = Math.sin(b * angle) / Math.sin(angle);
      }
    }
    return first.map((value, i) => a * value + b * second[i]);
  }

  function moved(vector) {
    const result = Float32Array.from(vector);
    model.directions.forEach((direction, place) => {
      const amount = Number(byId(`direction-${place}`).value);
      if (amount) direction.vector.forEach((value, i) => { result[i] += amount * value; });
    });
    return result;
  }

  // ---- controls ----

  const number = (id) => Number(byId(id).value);
  // The number of the class, -1 for any. An empty field of an unnamed class is any.
  function label() {
    const control = byId("label");
    if (!control || (control.value === "" && !control.validity.badInput)) return -1;
    if (!control.checkValidity()) throw new Error(`Class: a number from 0 to ${control.max}, or empty for any`);
    return Number(control.value);
  }

  const attributes = () => Array.from(document.querySelectorAll("[data-attribute]"), (part) => Number(part.value));

  function row(id, text, control) {
    const line = document.createElement("div");
    line.className = "row";
    const name = document.createElement("label");
    name.htmlFor = control.id = id;
    name.textContent = text;
    line.append(name, control);
    return line;
  }

  function slider(id, text, reach) {
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: -reach, max: reach, step: reach / 30 });
    input.value = 0;
    const line = row(id, text, input);
    const shown = document.createElement("output");
    shown.htmlFor = id;
    line.append(shown);
    return line;
  }

  function choice(id, text, options) {
    const select = document.createElement("select");
    for (const [value, name] of options) select.add(new Option(name, value));
    return row(id, text, select);
  }

  function addControls() {
    model.directions.forEach((direction, place) => {
      byId("directions").append(slider(`direction-${place}`, direction.name, direction.reach));
    });
    byId("directions").hidden = !model.directions.length;
    for (const input of inputsOf(mode)) {
      if (input.name === "attributes") {
        input.names.forEach((name, place) => {
          const line = choice(`attribute-${place}`, name.replaceAll("_", " "), [[0, "any"], [1, "yes"], [-1, "no"]]);
          line.querySelector("select").dataset.attribute = name;
          byId("condition").append(line);
        });
      } else if (input.name === "labels" && input.names) {
        byId("condition").append(choice("label", "Class", [[-1, "any"], ...input.names.entries()]));
      } else if (input.name === "labels") {
        const field = document.createElement("input");
        Object.assign(field, { type: "number", min: 0, max: input.classes - 1, step: 1, placeholder: "any" });
        byId("condition").append(row("label", "Class", field));
      }
    }
    byId("condition").hidden = !byId("condition").querySelector("select, input");
    for (const part of document.querySelectorAll("fieldset, button")) part.disabled = false;
    byId("about").textContent =
      `A ${model.kind} of ${model.size} px that runs in this browser. Nothing is sent anywhere.`;
  }

  function showValues() {
    for (const shown of document.querySelectorAll("output")) {
      const value = number(shown.htmlFor.value);
      shown.textContent = Number.isInteger(value) ? value : value.toFixed(2);
    }
  }

  // ---- pictures ----

  function paint(canvas, pixels, place = 0) {
    const size = model.size;
    const picture = new ImageData(size, size);
    const from = place * size * size * 3;
    for (let p = 0; p < size * size; p++) {
      for (let channel = 0; channel < 3; channel++) picture.data[4 * p + channel] = pixels[from + 3 * p + channel];
      picture.data[4 * p + 3] = 255;
    }
    canvas.width = canvas.height = size;
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  async function current() {
    const temperature = number("temperature");
    const first = await vectorOf(number("seed"), temperature);
    const weight = number("weight");
    if (!weight) return moved(first);
    return moved(between(first, await vectorOf(number("second"), temperature), weight));
  }

  // Draws the face of the controls. Changes while it draws are drawn afterwards, the last one only.
  async function update() {
    showValues();
    again = true;
    if (busy) return;
    busy = true;
    try {
      while (again) {
        again = false;
        const began = performance.now();
        paint(byId("face"), await draw(await current(), 1));
        byId("status").textContent = "";
        if (!walking) byId("speed").textContent = `${(performance.now() - began).toFixed(0)} ms for this face`;
        byId("face").setAttribute("aria-label", `Generated face of seed ${number("seed")}`);
      }
    } catch (error) {
      report(error);
    } finally {
      busy = false;
    }
  }

  let stripTimer = 0;

  // The faces of the next seeds, after a pause in the changes.
  function updateStrip() {
    clearTimeout(stripTimer);
    stripTimer = setTimeout(() => {
      if (walking || busy) updateStrip();
      else drawStrip().catch(report);
    }, 300);
  }

  async function drawStrip() {
    const first = number("seed");
    const seeds = Array.from({ length: STRIP }, (_, i) => (first + 1 + i) % SEEDS);
    const vectors = new Float32Array(STRIP * length);
    for (const [i, seed] of seeds.entries()) {
      vectors.set(moved(await vectorOf(seed, number("temperature"))), i * length);
    }
    const pixels = await draw(vectors, STRIP);
    byId("strip").replaceChildren(...seeds.map((seed, i) => {
      const button = document.createElement("button");
      const canvas = document.createElement("canvas");
      button.type = "button";
      button.setAttribute("aria-label", `Show the face of seed ${seed}`);
      button.addEventListener("click", () => choose(seed));
      paint(canvas, pixels, i);
      button.append(canvas);
      return button;
    }));
  }

  function choose(seed) {
    byId("seed").value = seed;
    byId("weight").value = 0;
    update();
    updateStrip();
  }

  // ---- latent walk ----

  async function walk() {
    let temperature = number("temperature");
    let seed = number("seed");
    let faces = 0;
    const began = performance.now();
    let first = await vectorOf(seed, temperature);
    while (walking) {
      const next = (seed + 1) % SEEDS;
      let second = await vectorOf(next, temperature);
      const start = performance.now();
      for (let weight = 0; walking && weight < 1;) {
        weight = Math.min(1, (performance.now() - start) / 1000 / SECONDS_PER_FACE);
        if (number("temperature") !== temperature) {
          temperature = number("temperature");
          [first, second] = [await vectorOf(seed, temperature), await vectorOf(next, temperature)];
        }
        const smooth = weight * weight * (3 - 2 * weight);
        paint(byId("face"), await draw(moved(between(first, second, smooth)), 1));
        faces += 1;
        byId("second").value = next;
        byId("weight").value = smooth;
        showValues();
        byId("speed").textContent = `${(1000 * faces / (performance.now() - began)).toFixed(1)} faces per second`;
        await new Promise(requestAnimationFrame);
      }
      if (walking) {
        [seed, first] = [next, second];
        byId("seed").value = seed;
        byId("weight").value = 0;
      }
    }
  }

  async function toggleWalk() {
    if (walking) {
      walking = false;
      return;
    }
    walking = true;
    while (busy) await new Promise(requestAnimationFrame); // a face is being drawn
    busy = true;
    byId("walk").setAttribute("aria-pressed", "true");
    byId("walk").textContent = "Stop";
    try {
      await walk();
    } catch (error) {
      report(error);
    }
    walking = busy = false;
    byId("walk").setAttribute("aria-pressed", "false");
    byId("walk").textContent = "Walk";
    if (again) update(); // a control was moved during the walk
    updateStrip();
  }

  // ---- start ----

  function report(error) {
    byId("status").textContent = `Error: ${error.message || error}`;
  }

  async function start() {
    await load();
    addControls();
    byId("status").textContent = "";
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("controls").addEventListener("input", () => { update(); updateStrip(); });
    byId("walk").addEventListener("click", toggleWalk);
    byId("another").addEventListener("click", () => choose(Math.floor(SEEDS * Math.random())));
    byId("save").addEventListener("click", (event) => { event.currentTarget.href = byId("face").toDataURL("image/png"); });
    await update();
    updateStrip();
  }

  const ready = start();
  ready.catch(report);
  return { ready, draw, get drawing() { return busy; } };
})();
