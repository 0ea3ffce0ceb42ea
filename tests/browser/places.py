"""JavaScript that finds what a test names, reads it, says where to click, and fills fields in.

FIND and SAID are in scope of all that a tab evaluates, as `find` and `said`.
"""

from __future__ import annotations

FIND = r"""(path) => path.split(' ').reduce((roots, part) => {
  const [, name, nth] = part.match(/^([\w-]+)(?:\[(-?\d+)\])?$/);
  const found = roots.flatMap((root) => [...root.querySelectorAll(`[data-test="${name}"]`)])
    .filter((element) => element.checkVisibility({visibilityProperty: true}));
  return nth === undefined ? found : [found.at(nth)].filter((element) => element);
}, [document])"""
"""All elements at a place, of those that are shown."""

SAID = """(element) => element.matches('input, textarea, select')
  ? element.value : element.innerText || element.textContent"""
"""What is written in an element; one that is yet to be laid out, far from what is seen, has no innerText."""

SPOT = """async (path) => {
  let before = '';
  for (;;) {
    const element = find(path)[0];
    if (element && !element.matches(':disabled, [aria-disabled=true]')) {
      element.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});
      const {x, y, width, height} = element.getClientRects()[0] ?? element.getBoundingClientRect();
      const middle = [x + width / 2, y + height / 2];
      const top = document.elementFromPoint(...middle);
      const reached = top && (element.contains(top) || top.closest('label')?.control === element);
      if (reached && width && height && `${middle}` === before) return middle;
      before = `${middle}`;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}"""
"""The middle of a place, once it can be clicked: two looks in a row find it at rest, and uncovered."""

FILL = """(path, value) => {
  const element = find(path)[0];
  element.focus();
  if (element.matches('textarea, input:not([type=range], [type=checkbox], [type=radio])')) {
    element.select();
    return true;
  }
  element.value = value;
  if (String(element.value) !== value) throw new Error(`${path} does not take ${value}`);
  element.dispatchEvent(new Event('input', {bubbles: true}));
  element.dispatchEvent(new Event('change', {bubbles: true}));
  return false;
}"""
"""Whether the place now waits for text; otherwise it is a choice, and the value is chosen."""
