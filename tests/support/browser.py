"""Chromium, if any: pages are measured and photographed.

As a script, this file makes the picture of docs/report.md:
``python tests/support/browser.py RUN/report.html``.
"""

import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

from PIL import Image

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

MEASURE = """<!DOCTYPE html><meta charset="utf-8">
<iframe id="frame" src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
<pre id="out"></pre>
<script>
const frame = document.getElementById("frame");
const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
function rgb(colour) {{  // also of color-mix(), which is given as color(srgb ...)
  const [r, g, b, a = 1] = parts(colour);
  return colour.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
}}
function over([r, g, b, a], [s, t, u]) {{
  return [r * a + s * (1 - a), g * a + t * (1 - a), b * a + u * (1 - a)];
}}
function luminance(colour) {{
  const [r, g, b] = colour.map((c) => c / 255).map(
    (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}}
function background(element, style) {{
  if (!element) return [255, 255, 255];
  const {{backgroundColor, backgroundImage}} = style(element);
  const below = background(element.parentElement, style);
  const gradient = backgroundImage.match(/(rgba?|color)\\([^)]*\\)/);
  return over(rgb(gradient ? gradient[0] : backgroundColor), below);
}}
frame.onload = () => {{
  const inside = frame.contentDocument, view = frame.contentWindow;
  const style = (element) => view.getComputedStyle(element);
  const pale = [], small = [];
  const walk = inside.createTreeWalker(inside.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {{
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    const box = element.getBoundingClientRect();
    if (!text || !box.width || ["STYLE", "SCRIPT", "style"].includes(element.tagName)) continue;
    const svg = element.ownerSVGElement, own = style(element);
    const behind = background(element, style);
    const ink = over(rgb(svg ? own.fill : own.color), behind);
    const [dark, light] = [luminance(ink), luminance(behind)].sort((a, b) => a - b);
    if ((light + 0.05) / (dark + 0.05) < 4.5) pale.push(text);
    const {{a, b}} = svg ? element.getScreenCTM() : {{a: 1, b: 0}};
    if (parseFloat(own.fontSize) * Math.hypot(a, b) < 9) small.push(text);
  }}
  document.getElementById("out").textContent = JSON.stringify({{
    width: inside.documentElement.scrollWidth,
    scripts: inside.querySelectorAll("script").length,
    broken: [...inside.images].filter((image) => !image.naturalWidth).map((image) => image.alt),
    tall: [...inside.querySelectorAll(".answers li")]
      .filter((item) => item.getBoundingClientRect().height > 80).map((item) => item.textContent),
    pale, small,
  }});
}};
</script>
"""


@functools.cache
def browser():
    """Return the path of a Chromium, None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def chromium(folder, url, *options, dark=False):
    """Let Chromium open a page; return what it prints, and the URLs it asked the network for."""
    log = Path(folder, "net.json")
    command = [
        browser(),
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--allow-file-access-from-files", "--virtual-time-budget=5000"),
        f"--user-data-dir={Path(folder, 'profile')}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--log-net-log={log}",
        *options,
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    events = json.loads(log.read_text())["events"]
    return done.stdout, {e["params"]["url"] for e in events if "url" in e.get("params", {})}


def measured(page, folder, width=360, dark=False):
    """Return what a page is like in a window: width, text that is pale, small or tall, requests."""
    outside = Path(folder, "outside.html")
    outside.write_text(MEASURE.format(page=Path(page).as_uri(), width=width))
    shown, requests = chromium(folder, outside.as_uri(), "--dump-dom", dark=dark)
    found = json.loads(unescape(re.search(r'<pre id="out">(.*?)</pre>', shown, re.DOTALL)[1]))
    return {**found, "requests": requests}


def photographed(page, size, dark=False):
    """Return the upper part of a page in a window of a size."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "page.png")
        options = f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}"
        chromium(folder, Path(page).absolute().as_uri(), *options, dark=dark)
        with Image.open(picture) as image:
            return image.convert("RGB")


def picture_of(page):
    """Return a page in light on a desk, and in the dark on a telephone."""
    wide, narrow = (960, 1500), (360, 1500)
    sheet = Image.new("RGB", (wide[0] + narrow[0] + 30, wide[1] + 20), "#777777")
    sheet.paste(photographed(page, wide), (10, 10))
    sheet.paste(photographed(page, narrow, dark=True), (wide[0] + 20, 10))
    return sheet


if __name__ == "__main__":
    out = Path(__file__).parents[2] / "docs/images/report.png"
    picture_of(sys.argv[1]).quantize(128).save(out, optimize=True)
