"""The page on which a person chooses between two samples: one file, which works without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Which image is better?</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  color-scheme: light dark; }
#pair { display: flex; gap: 1rem; }
#pair button { flex: 1; padding: .5rem; border: 2px solid #8888; border-radius: .5rem; background: none;
  cursor: pointer; }
#pair button[aria-pressed=true] { border-color: #2a6df4; }
#pair img { width: 100%; image-rendering: pixelated; }
nav { display: flex; gap: .5rem; margin: 1rem 0; align-items: center; }
nav button { padding: .4rem .8rem; }
</style>
<h1>Which image is better?</h1>
<p id="prompt"></p>
<div id="pair">
<button id="left" aria-label="The left image"><img alt="left"></button>
<button id="right" aria-label="The right image"><img alt="right"></button>
</div>
<nav><button id="back">Back</button><button id="skip">Skip</button><span id="where" aria-live="polite"></span></nav>
<p>Click on an image, or press the left or right arrow key; the arrow down skips, the arrow up goes
back. Choices are kept in this browser. At the end, or at any time,
<button id="save">save choices.csv</button> and put it into the folder of this page.</p>
<script>
const images = __IMAGES__, prompts = __PROMPTS__, key = "genmodels-__KEY__";
const $ = (id) => document.getElementById(id);
let choices = {}, at = 0;
try { choices = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* no storage: choices last until reload */ }
function show() {
  at = Math.max(0, Math.min(at, images.length - 1));
  ["left", "right"].forEach((side, i) => {
    $(side).firstChild.src = images[at][i];
    $(side).setAttribute("aria-pressed", choices[at] === side);
  });
  $("prompt").textContent = prompts[at] || "";
  $("where").textContent = `pair ${at + 1} of ${images.length}, ${Object.keys(choices).length} chosen`;
}
function choose(side) {
  choices[at] = side;
  try { localStorage.setItem(key, JSON.stringify(choices)); } catch { /* as above */ }
  at += 1;
  show();
}
function save() {
  const rows = Object.keys(choices).map(Number).sort((a, b) => a - b).map((pair) => `${pair},${choices[pair]}`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["pair,choice", ...rows].join("\\n") + "\\n"], { type: "text/csv" }));
  link.download = "choices.csv";
  link.click();
}
const go = (step) => { at += step; show(); };
$("left").onclick = () => choose("left");
$("right").onclick = () => choose("right");
$("back").onclick = () => go(-1);
$("skip").onclick = () => go(1);
$("save").onclick = save;
document.onkeydown = (event) => {
  const action = { ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"),
    ArrowDown: () => go(1), ArrowUp: () => go(-1) }[event.key];
  if (action) { event.preventDefault(); action(); }
};
show();
</script>
</html>
"""


def page(images: Sequence[Sequence[str]], prompts: Sequence[str], key: str) -> str:
    """Return the page.

    Args:
        images: data URLs of the left and the right image of each pair.
        prompts: the prompt of each pair, or none.
        key: identifies the pairs in the storage of the browser, which all pages share.
    """
    parts = {"__IMAGES__": images, "__PROMPTS__": prompts}
    text = TEMPLATE.replace("__KEY__", key)
    for mark, value in parts.items():
        # A script element can be ended, or be confused, by "<" of a prompt.
        text = text.replace(mark, json.dumps(value).replace("<", "\\u003c"))
    return text
