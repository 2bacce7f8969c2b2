// The list: rows of one height, of which only those that can be seen exist.
import { ChannelBars, Pips, Progress, documentsInWords, messagesInWords } from './bars.js';
import { freshen, h, isTyping, say, set } from './dom.js';
import { ago, bylineOf, exact, isFailed, nameOf, progressOf, titleOf } from './format.js';

/** Rows kept above and below what is seen. */
const OVERSCAN = 6;
const GLIDE_MS = 280;
/** A change that is older than this is no news. */
const SHINE_MS = 1500;
/** Changes of order within a second beyond which rows jump instead of gliding. */
const BUSY = 6;
/** After the pointer or a key moved over the list, rows stay where they are: nobody likes to miss one. */
const HOLD_MS = 1200;
/** How long the order must rest before the document's order follows it. */
const SETTLE_MS = 600;

const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)');

class Row {
  constructor() {
    this.name = h('span', { class: 'name', dir: 'auto' });
    this.badge = h('span', { class: 'badge', hidden: true }, 'Complete');
    this.byline = h('span', { class: 'byline', dir: 'auto' });
    this.title = h('span', { class: 'title', dir: 'auto' });
    this.summary = h('span', { class: 'summary', dir: 'auto' });
    this.channels = new ChannelBars(3);
    this.messages = h('span', { class: 'hidden' });
    this.pips = new Pips(5);
    this.documents = h('span', { class: 'hidden' });
    this.progress = new Progress();
    this.done = h('span', { class: 'n' });
    this.time = h('time', {});
    const gap = () => h('span', { class: 'hidden' }, '. ');
    this.cells = {
      lead: h('span', { class: 'cell who' }, h('span', { class: 'names' }, this.name, this.badge), gap(), this.byline),
      activity: h('span', { class: 'cell what' }, gap(), this.title, gap(), this.summary),
      messages: h('span', { class: 'cell messages' }, gap(), this.channels.element, this.messages),
      documents: h('span', { class: 'cell documents' }, gap(), this.pips.element, this.pips.text, this.documents),
      checklist: h('span', { class: 'cell checklist' }, gap(), this.done, this.progress.element),
    };
    this.link = h('a', { class: 'row-link', tabindex: -1 }, ...Object.values(this.cells), gap(), this.time);
    this.element = h('li', { class: 'row' }, this.link);
    this.entry = null;
    this.y = null; // Where it stands, in pixels.
  }

  /** Shows an entry; what changed since it was last shown shines. */
  update(entry, greatest, now) {
    const isChanged = this.entry !== entry || this.stamp !== entry.stamp;
    if (!isChanged && this.greatest === greatest) {
      this.tick(now);
      return;
    }
    [this.entry, this.stamp, this.greatest] = [entry, entry.stamp, greatest];
    const { lead } = entry;
    const activity = lead.latestActivity;
    const progress = progressOf(lead);
    say(this.name, nameOf(lead));
    this.badge.hidden = lead.applicationCompleteTime === undefined;
    say(this.byline, bylineOf(lead));
    say(this.title, activity ? titleOf(activity) + (isFailed(activity) ? ' · failed' : '') : 'No activity yet');
    say(this.summary, (activity && (isFailed(activity) ? activity.error || activity.summary : activity.summary)) || '');
    set(this.cells.activity, 'data-failed', activity !== undefined && isFailed(activity));
    this.channels.update(lead, greatest);
    say(this.messages, messagesInWords(lead));
    this.pips.update(lead);
    say(this.documents, documentsInWords(lead));
    say(this.done, progress.all === 0 ? '' : `${progress.done}/${progress.all}`);
    set(this.cells.checklist, 'data-none', progress.all === 0);
    set(this.cells.checklist, 'data-full', progress.all > 0 && progress.done === progress.all);
    this.progress.update(progress);
    this.time.hidden = lead.latestActivityTime === undefined;
    if (lead.latestActivityTime !== undefined) {
      set(this.time, 'datetime', new Date(lead.latestActivityTime).toISOString());
      set(this.time, 'title', exact(lead.latestActivityTime));
    }
    this.tick(now);
    if (isChanged && now - entry.changed < SHINE_MS) for (const part of entry.parts) freshen(this.cells[part] ?? this.link);
  }

  /** Forgets what it showed. */
  clear() {
    [this.entry, this.y] = [null, null];
    for (const element of [this.link, ...Object.values(this.cells)]) element.classList.remove('fresh');
  }

  tick(now) {
    const time = this.entry.lead.latestActivityTime;
    if (time !== undefined) say(this.time, ago(time, now));
  }
}

export class LeadList {
  /** `href` makes a link of an id, `open` opens one. */
  constructor(scroller, rows, { href, open }) {
    this.scroller = scroller;
    this.container = rows;
    this.href = href;
    this.entries = [];
    this.places = new Map(); // The index of each id.
    this.shown = new Map(); // The row of each id.
    this.spare = [];
    this.active = null; // The id that the Tab key comes to.
    this.opened = null;
    this.height = 64;
    this.greatest = 1;
    this.heldUntil = 0;
    this.changes = []; // When the order lately changed.
    this.settling = 0;
    scroller.addEventListener('scroll', () => this.render(), { passive: true });
    scroller.addEventListener('pointermove', () => this.hold(), { passive: true });
    scroller.addEventListener('pointerleave', () => { this.heldUntil = 0; });
    rows.addEventListener('keydown', (event) => this.onKey(event));
    rows.addEventListener('focusin', (event) => this.activate(this.idOf(event.target)));
    rows.addEventListener('click', (event) => {
      const id = this.idOf(event.target);
      if (id === null || event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
      event.preventDefault();
      this.activate(id);
      open(id);
    });
    new ResizeObserver(() => this.measure()).observe(scroller);
  }

  idOf(target) {
    for (const row of this.shown.values()) if (row.element.contains(target)) return row.entry.id;
    return null;
  }

  hold() {
    this.heldUntil = performance.now() + HOLD_MS;
  }

  /** How long the order has to stay as it is, in ms. */
  get held() {
    return Math.max(0, this.heldUntil - performance.now());
  }

  measure() {
    const probe = Number.parseFloat(getComputedStyle(this.container).getPropertyValue('line-height'));
    if (!(probe > 0) || this.scroller.clientHeight === 0) return;
    // The row height is a number of lines: it grows with the reader's font.
    const rows = Number(getComputedStyle(this.container).getPropertyValue('--row-lines'));
    const height = Math.round(probe * rows);
    if (height !== this.height) {
      this.height = height;
      for (const row of this.shown.values()) row.y = null;
    }
    this.render();
  }

  /** Shows these entries in this order. */
  show(entries, greatest) {
    const before = this.entries;
    const anchor = this.anchor();
    this.entries = entries;
    this.greatest = greatest;
    this.places = new Map(entries.map((entry, index) => [entry.id, index]));
    let glide = false;
    if (before.length !== entries.length || before.some((entry, index) => entry !== entries[index])) {
      const now = performance.now();
      this.changes = [...this.changes.filter((at) => now - at < 1000), now];
      glide = anchor === null && !reducedMotion.matches && this.changes.length <= BUSY && before.length > 0;
    }
    this.container.style.height = `${entries.length * this.height}px`;
    if (anchor !== null) {
      const place = this.places.get(anchor.id);
      if (place !== undefined) this.scroller.scrollTop = place * this.height + anchor.offset;
    }
    this.render(glide);
  }

  /** What a reader who has scrolled down looks at: it stays where it is. */
  anchor() {
    const top = this.scroller.scrollTop;
    if (top < this.height / 2) return null;
    const index = Math.min(Math.floor(top / this.height), this.entries.length - 1);
    return index < 0 ? null : { id: this.entries[index].id, offset: top - index * this.height };
  }

  render(glide = false) {
    const { height, entries, scroller } = this;
    const first = Math.max(0, Math.floor(scroller.scrollTop / height) - OVERSCAN);
    const last = Math.min(entries.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / height) + OVERSCAN);
    const focused = this.focusedId();
    const wanted = new Set();
    for (let index = first; index < last; index++) wanted.add(entries[index].id);
    if (focused !== null && this.places.has(focused)) wanted.add(focused);
    const lost = focused !== null && !this.places.has(focused) ? Math.round(this.shown.get(focused).y / height) : null;
    for (const [id, row] of this.shown) {
      if (wanted.has(id)) continue;
      this.shown.delete(id);
      row.element.remove();
      row.clear();
      this.spare.push(row);
    }
    if (!this.places.has(this.active)) this.active = entries[0]?.id ?? null;
    const now = Date.now();
    for (const id of wanted) this.place(id, glide, now);
    if (lost !== null && entries.length > 0) this.focus(Math.min(lost, entries.length - 1));
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.settle(), SETTLE_MS);
  }

  place(id, glide, now) {
    const index = this.places.get(id);
    const entry = this.entries[index];
    let row = this.shown.get(id);
    if (row === undefined) {
      row = this.spare.pop() ?? new Row();
      this.shown.set(id, row);
      this.container.append(row.element);
      row.link.href = this.href(id);
    }
    row.update(entry, this.greatest, now);
    const y = index * this.height;
    if (row.y !== y) {
      if (glide && row.y !== null) {
        set(row.element, 'data-rising', y < row.y);
        row.element.animate([{ transform: `translateY(${row.y}px)` }, { transform: `translateY(${y}px)` }], { duration: GLIDE_MS, easing: 'cubic-bezier(.2,.7,.2,1)' });
      }
      row.element.style.transform = `translateY(${y}px)`;
      row.y = y;
    }
    set(row.element, 'aria-setsize', this.entries.length);
    set(row.element, 'aria-posinset', index + 1);
    set(row.link, 'tabindex', id === this.active ? 0 : -1);
    set(row.link, 'aria-current', id === this.opened ? 'true' : null);
  }

  /** Readers of the document meet the rows in the order in which they are seen. */
  settle() {
    const focused = this.shown.get(this.focusedId())?.element ?? null;
    const rows = [...this.shown.values()].sort((a, b) => a.y - b.y).map((row) => row.element);
    // What has the focus must stay in the document all the time: its neighbours move around it.
    const pivot = focused === null ? -1 : rows.indexOf(focused);
    rows.slice(0, Math.max(pivot, 0)).forEach((element, at) => {
      if (this.container.children[at] !== element) this.container.insertBefore(element, this.container.children[at]);
    });
    rows.slice(pivot + 1).forEach((element) => {
      const expected = element === rows[0] ? this.container.firstElementChild : rows[rows.indexOf(element) - 1].nextElementSibling;
      if (expected !== element) this.container.insertBefore(element, expected);
    });
    for (const row of this.shown.values()) set(row.element, 'data-rising', null);
  }

  /** Lets time pass. */
  tick() {
    const now = Date.now();
    for (const row of this.shown.values()) row.tick(now);
  }

  focusedId() {
    const focused = document.activeElement;
    return this.container.contains(focused) ? this.idOf(focused) : null;
  }

  activate(id) {
    if (id === null || id === this.active) return;
    const before = this.shown.get(this.active);
    if (before !== undefined) set(before.link, 'tabindex', -1);
    this.active = id;
    const row = this.shown.get(id);
    if (row !== undefined) set(row.link, 'tabindex', 0);
  }

  /** Marks the lead that is open beside the list. */
  mark(id) {
    this.opened = id;
    if (id !== null && this.places.has(id)) this.activate(id);
    for (const [shown, row] of this.shown) set(row.link, 'aria-current', shown === id ? 'true' : null);
  }

  /** The id some places after another one; the nearest that there is. */
  neighbour(id, step) {
    const place = this.places.get(id);
    if (place === undefined) return this.entries[0]?.id ?? null;
    return this.entries[Math.max(0, Math.min(this.entries.length - 1, place + step))]?.id ?? null;
  }

  /** Scrolls a row into view, and gives it the focus. */
  focus(index) {
    const entry = this.entries[index];
    if (entry === undefined) return;
    this.hold();
    this.reveal(index);
    this.activate(entry.id);
    this.place(entry.id, false, Date.now());
    this.shown.get(entry.id).link.focus({ preventScroll: true });
  }

  focusId(id) {
    const index = this.places.get(id);
    if (index !== undefined) this.focus(index);
    return index !== undefined;
  }

  reveal(index) {
    const { scroller, height } = this;
    const [top, bottom] = [index * height, (index + 1) * height];
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (bottom > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = bottom - scroller.clientHeight;
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || isTyping(event.target)) return;
    const place = this.places.get(this.active) ?? 0;
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.height) - 1);
    const to = { ArrowDown: place + 1, j: place + 1, ArrowUp: place - 1, k: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: this.entries.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.focus(Math.max(0, Math.min(this.entries.length - 1, to)));
  }
}
