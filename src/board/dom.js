// Elements. Text goes in as text, always: what leads are called and what they write is never markup.

/** An element with attributes (`class`, `title`, …; `null` leaves one out) and children: elements or text. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) set(element, name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) set(element, name, value);
  element.append(...children);
  return element;
}

/** Text of a lead, in an element of its own: neither its direction nor its overrides reach its neighbours. */
export function foreign(tag, attributes, text) {
  return h(tag, { dir: 'auto', ...attributes }, text);
}

/** Sets an attribute, or takes it away. Touches the document only if that changes something. */
export function set(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else {
    const text = value === true ? '' : String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

/** Sets the text of an element that holds nothing else. */
export function say(element, text) {
  const node = element.firstChild;
  if (node === null) element.append(text);
  else if (node.data !== text) node.data = text;
}

/** Shows or hides. */
export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

/** Whether keys are meant for what has the focus. */
export function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** Makes an element shine for a moment, because what it shows is new. */
export function freshen(element) {
  element.classList.add('fresh');
  const until = performance.now() + FRESH_MS;
  fresh.set(element, until);
  if (!sweeping) {
    sweeping = true;
    setTimeout(sweep, FRESH_MS / 2);
  }
}

const FRESH_MS = 1400;
const fresh = new Map();
let sweeping = false;

function sweep() {
  const now = performance.now();
  for (const [element, until] of fresh) {
    if (until > now) continue;
    element.classList.remove('fresh');
    fresh.delete(element);
  }
  sweeping = fresh.size > 0;
  if (sweeping) setTimeout(sweep, FRESH_MS / 2);
}
