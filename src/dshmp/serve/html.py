"""Parts of the page that gradio has no component for: sentences, timeline and objects, each as HTML with a few lines of
JavaScript. What people typed is escaped, for HTML and for gradio's templates."""

import html
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dshmp.results.show import css
from dshmp.serve.session import View, candidates, current, meant
from dshmp.video.overlay import MOTION, STATIC

if TYPE_CHECKING:
    from dshmp.model.parser import Word
    from dshmp.results.result import Result

BARS = 240  # of a timeline, at most
LISTED = 12  # objects that are listed at once; those that are shown always are
LEGEND = (
    '<p class="legend"><span class="static">static</span> · <span class="motion">motion</span> · '
    '<span class="unknown">not understood</span></p>'
)

_TEMPLATES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})


def escaped(text: str) -> str:
    return html.escape(text).translate(_TEMPLATES)


def sentences_html(view: View) -> str:
    """A card for each sentence: its words coloured, its score and how many objects are shown."""
    rows = zip(view.results, view.on, strict=True)
    cards = "".join(
        f'<button class="sentence" data-sentence="{number}" aria-pressed="{str(number == view.sentence).lower()}">'
        f"<span>{words_html(result)}</span>{_verdict(meant(result, on, view.threshold))}</button>"
        for number, (result, on) in enumerate(rows)
    )
    return cards + LEGEND


def words_html(result: "Result") -> str:
    """The sentence with its words marked as static, motion or unknown."""
    parts, end = [], 0
    for word in result.words:
        parts += [escaped(result.expression[end : word.start]), _word(word, result.unknown)]
        end = word.end
    return "".join([*parts, escaped(result.expression[end:])])


def _word(word: "Word", unknown: tuple[str, ...]) -> str:
    kind, title = word.group, f"{word.group} word"
    if word.text in unknown:
        kind, title = "unknown", "a word that nothing could check; it halves the score"  # type: ignore[assignment]
    text = escaped(word.text)
    return f'<span class="{kind}" title="{title}">{text}</span>' if kind else text


def _verdict(result: "Result") -> str:
    return f'<span class="verdict"><b>{result.score:.2f}</b> {result.verdict}</span>'


def timeline_html(view: View) -> str:
    """Evidence over time as bars; where it is clicked, the video goes."""
    result = current(view)
    times = np.asarray(result.times) - result.times[0]
    step = times[-1] / (len(times) - 1) if len(times) > 1 else 0.1
    length = float(times[-1] + step)
    groups = min(len(times), BARS)
    places = np.linspace(0, len(times), groups + 1).astype(int)
    starts = [*times[places[:-1]], length]
    heights = [max(result.evidence[a:b]) / max(result.evidence) for a, b in pairwise(places)]
    bars = "".join(
        f'<rect x="{a / length * 1000:.2f}" y="{100 - 100 * height:.1f}" width="{(b - a) / length * 800:.2f}" '
        f'height="{100 * height:.1f}"/>'
        for (a, b), height in zip(pairwise(starts), heights, strict=True)
    )
    return (
        f'<div class="timeline" data-length="{length:.4f}" tabindex="0" role="slider" aria-label="When it was seen" '
        f'aria-valuemin="0" aria-valuemax="{length:.2f}" aria-valuenow="0">'
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none">{bars}</svg><i class="playhead"></i></div>'
        f'<div class="scale"><span>0 s</span><span>when it was seen: click to go there</span>'
        f"<span>{length:.1f} s</span></div>"
    )


def objects_html(view: View) -> str:
    """A row for each candidate of the sentence: whether it is shown, its colour and its score."""
    result, on = view.results[view.sentence], view.on[view.sentence]
    items = list(enumerate(candidates(result)))
    if not items:
        return '<p class="none">No candidates in this video.</p>'
    rows = []
    for number, item in items:
        if number >= LISTED and number not in on:
            continue
        name = escaped(item.track) if item.track is not None else f"object {number + 1}"
        rows.append(
            f'<div class="object" data-number="{number}"><label><input type="checkbox" '
            f"{'checked' if number in on else ''}> {name}</label>"
            f'<input type="color" value="{css(view.colours[number])}" aria-label="Colour of {name}">'
            f'<span class="meter"><i style="width:{100 * item.score:.1f}%"></i>'
            f'<u style="left:{100 * view.threshold:.1f}%"></u></span><span class="score">{item.score:.2f}</span></div>'
        )
    left = len(items) - len(rows)
    more = f'<p class="none">and {left} with lower scores</p>' if left else ""
    return "".join(rows) + more


# `element` is gradio's, of the component; `trigger` calls what is bound to the event in Python.
SENTENCES_JS = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-sentence]');
  if (card) trigger('pick', {sentence: Number(card.dataset.sentence)});
});
"""

OBJECTS_JS = """
element.addEventListener('change', event => {
  const row = event.target.closest('[data-number]');
  if (!row) return;
  const number = Number(row.dataset.number);
  if (event.target.type === 'color') trigger('paint', {number, colour: event.target.value});
  else trigger('switch', {number, on: event.target.checked});
});
"""

TIMELINE_JS = """
const video = () => document.querySelector('#overlay video');
const line = () => element.querySelector('.timeline');
let kept = null;  // [time, length] of the video before it was drawn anew
const go = time => { const v = video(); if (v) v.currentTime = Math.min(Math.max(time, 0), v.duration || 0); };
element.addEventListener('click', event => {
  const box = line()?.getBoundingClientRect();
  if (!event.target.closest('.timeline')) return;
  go((event.clientX - box.left) / box.width * line().dataset.length);
});
element.addEventListener('keydown', event => {
  const step = {ArrowLeft: -0.1, ArrowRight: 0.1}[event.key];
  if (step && video()) { go(video().currentTime + step); event.preventDefault(); }
});
const follow = event => {
  if (event.target !== video() || !line()) return;
  const time = event.target.currentTime;
  if (event.type !== 'loadedmetadata') kept = [time, event.target.duration];
  else if (kept && Math.abs(kept[1] - event.target.duration) < 0.01) event.target.currentTime = kept[0];
  line().setAttribute('aria-valuenow', time.toFixed(2));
  element.querySelector('.playhead').style.left = `${Math.min(time / line().dataset.length, 1) * 100}%`;
};
for (const name of ['timeupdate', 'seeked', 'loadedmetadata']) document.addEventListener(name, follow, true);
"""

CSS = f"""
.gradio-container {{ --static: #0b68c4; --motion: #b25e00; --quiet: #6b7480; }}
.dark .gradio-container {{ --static: {css(STATIC)}; --motion: {css(MOTION)}; --quiet: #8f98a5; }}
.static {{ color: var(--static); font-weight: 600; }}
.motion {{ color: var(--motion); font-weight: 600; }}
.unknown {{ color: var(--quiet); text-decoration: underline dotted; }}
.sentence {{ display: flex; width: 100%; gap: 12px; justify-content: space-between; align-items: baseline;
  padding: 10px 14px; margin-bottom: 6px; text-align: left; font-size: 16px;
  font-weight: 400; cursor: pointer;
  color: var(--body-text-color); background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary); border-left: 4px solid transparent; border-radius: 8px; }}
.sentence[aria-pressed=true] {{ border-left-color: var(--color-accent); background: var(--background-fill-secondary); }}
.verdict {{ flex: none; color: var(--quiet); font-size: 13px; }}
.verdict b {{ color: var(--body-text-color); font-size: 15px; }}
.timeline {{ position: relative; height: 44px; border-radius: 8px; overflow: hidden; cursor: pointer;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }}
.timeline svg {{ display: block; width: 100%; height: 100%; fill: {css(MOTION)}; }}
.playhead {{ position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: var(--body-text-color); }}
.scale {{ display: flex; justify-content: space-between; color: var(--quiet); font-size: 12px; padding: 2px 2px 0; }}
.object {{ display: flex; gap: 12px; align-items: center; padding: 5px 2px; font-size: 15px; }}
.object label {{ display: flex; gap: 8px; align-items: center; flex: 0 0 112px; cursor: pointer; }}
.object input[type=color] {{ flex: none; width: 26px; height: 22px; padding: 0; border: none; border-radius: 4px;
  background: none; cursor: pointer; }}
.meter {{ position: relative; flex: 1; height: 6px; border-radius: 3px; background: var(--border-color-primary); }}
.meter i {{ position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--color-accent); }}
.meter u {{ position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--body-text-color); }}
.score {{ flex: 0 0 36px; text-align: right; font-variant-numeric: tabular-nums; }}
.none {{ color: var(--quiet); font-size: 14px; margin: 4px 2px; }}
.legend {{ color: var(--quiet); font-size: 13px; margin: 2px 0 0; }}
#answer .html-container {{ padding: 0; }}
#answer .prose, #answer .column {{ gap: 10px; margin: 0; }}
.empty {{ display: grid; place-items: center; min-height: 320px; padding: 24px; text-align: center; color: var(--quiet);
  border: 1px dashed var(--border-color-primary); border-radius: 8px; }}
#video video, #overlay video {{ max-height: 60vh; }}
#video button[aria-label^="Trim"] {{ display: none; }}
footer .divider {{ display: none; }}
.status {{ min-height: 24px; font-size: 15px; }}
.status .error {{ color: #c62828; }}
.dark .status .error {{ color: #ff8a80; }}
"""
