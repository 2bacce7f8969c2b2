// Small pictures: messages by channel and direction, documents by the state of their extraction, progress.
import { h, say, set, svg } from './dom.js';
import { count, extractionOf, extractionWords, plural, word } from './format.js';

/** Message counts by channel: `{channel, in, out, other}`, the busiest first. */
export function channelsOf(lead) {
  const channels = new Map();
  for (const { channel, direction, count: messages } of lead.messageCounts) {
    const of = channels.get(channel) ?? { channel, in: 0, out: 0, other: 0 };
    of[{ INBOUND: 'in', OUTBOUND: 'out' }[direction] ?? 'other'] += messages;
    channels.set(channel, of);
  }
  const all = (of) => of.in + of.out + of.other;
  return [...channels.values()].sort((a, b) => all(b) - all(a) || (a.channel < b.channel ? -1 : 1));
}

/** Counts in words, for those who do not see the bars. */
export function messagesInWords(lead) {
  if (lead.messageCount === 0) return 'No messages';
  const ways = (of) => [of.in && `${of.in} in`, of.out && `${of.out} out`, of.other && `${of.other} of unknown direction`].filter(Boolean).join(' ');
  return `${plural(lead.messageCount, 'message')}: ${channelsOf(lead).map((of) => `${word(of.channel)} ${ways(of)}`).join(', ')}`;
}

/** A line of bars: what came in grows to the left of the middle, what went out to the right. */
export class Butterfly {
  constructor() {
    this.in = svg('rect', { class: 'in', y: 0, height: 8, rx: 1 });
    this.out = svg('rect', { class: 'out', y: 0, height: 8, rx: 1 });
    this.other = svg('rect', { class: 'other', y: 0, height: 8, rx: 1 });
    this.picture = svg('svg', { class: 'butterfly', viewBox: '-50 0 100 8', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, this.in, this.out, this.other);
  }

  /** Square roots, so that one busy lead does not flatten all others: beside the bars stands the number. */
  update(of, greatest) {
    const length = (messages) => (messages === 0 ? 0 : Math.max(2, 48 * Math.sqrt(Math.min(messages / greatest, 1))));
    const [inward, outward, other] = [length(of.in), length(of.out), length(of.other)];
    for (const [rect, x, width] of [[this.in, -1 - inward, inward], [this.out, 1, outward], [this.other, 2 + outward, Math.min(other, 47 - outward)]]) {
      set(rect, 'x', x.toFixed(1));
      set(rect, 'width', Math.max(width, 0).toFixed(1));
    }
  }
}

/** A name, bars, and the numbers beside them. */
class Line {
  constructor(kind) {
    this.name = h('span', { class: 'name' });
    this.in = h('span', { class: 'n' });
    this.out = h('span', { class: 'n' });
    this.bars = new Butterfly();
    this.element = h('span', { class: kind }, this.name, this.in, this.bars.picture, this.out);
  }

  update(name, of, greatest) {
    say(this.name, name);
    say(this.in, of.in === 0 ? '' : count(of.in));
    say(this.out, [of.out === 0 ? '' : count(of.out), of.other === 0 ? '' : `${count(of.other)}?`].filter(Boolean).join(' '));
    this.bars.update(of, greatest);
  }
}

/** One line a channel, as many as there is room for; and one for all, where there is room for one only. */
export class ChannelBars {
  constructor(most) {
    this.most = most;
    this.lines = [];
    this.total = new Line('channel total');
    this.element = h('span', { class: 'channels', 'aria-hidden': 'true' }, this.total.element);
  }

  update(lead, greatest) {
    const channels = channelsOf(lead);
    const shown = channels.slice(0, this.most);
    while (this.lines.length > shown.length) this.lines.pop().element.remove();
    shown.forEach((of, at) => {
      if (this.lines.length === at) {
        this.lines.push(new Line('channel'));
        this.element.append(this.lines[at].element);
      }
      const more = at === shown.length - 1 && channels.length > shown.length ? ` +${channels.length - shown.length}` : '';
      this.lines[at].update(word(of.channel) + more, of, greatest);
    });
    const sum = (way) => channels.reduce((all, of) => all + of[way], 0);
    this.total.update('Messages', { in: sum('in'), out: sum('out'), other: sum('other') }, 2 * greatest);
    set(this.element, 'data-none', channels.length === 0);
  }
}

const PAGE = 'M1.5.75h4l3 3v7.5h-7z';

/** A page: filled when it was read, crossed when that failed, empty while it was not tried. */
export function pip(state) {
  return svg('svg', { class: `pip ${state}`, viewBox: '0 0 10 12', 'aria-hidden': 'true' }, svg('path', { d: PAGE }), ...(state === 'failed' ? [svg('path', { class: 'cross', d: 'm3.2 5.6 3.6 3.6m0-3.6L3.2 9.2' })] : []));
}

/** The documents of a row. */
export class Pips {
  constructor(most) {
    this.most = most;
    this.shown = '';
    this.element = h('span', { class: 'pips', 'aria-hidden': 'true' });
    this.text = h('span', { class: 'n' });
  }

  update(lead) {
    const states = lead.documents.slice(0, this.most).map(extractionOf);
    if (states.join() !== this.shown) {
      this.shown = states.join();
      this.element.replaceChildren(...states.map(pip));
    }
    say(this.text, lead.documentCount > states.length ? `+${count(lead.documentCount - states.length)}` : '');
  }
}

export function documentsInWords(lead) {
  if (lead.documentCount === 0) return 'No documents';
  const states = lead.documents.map(extractionOf);
  const of = (state) => states.filter((is) => is === state).length;
  const told = Object.keys(extractionWords).filter((state) => of(state) > 0).map((state) => `${of(state)} ${extractionWords[state].toLowerCase()}`);
  return `${plural(lead.documentCount, 'document')}: ${told.join(', ')}`;
}

/** How much of a whole is done. */
export class Progress {
  constructor() {
    this.bar = svg('rect', { class: 'done', height: 4, rx: 2, width: 0 });
    this.element = svg('svg', { class: 'progress', viewBox: '0 0 100 4', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, svg('rect', { class: 'all', width: 100, height: 4, rx: 2 }), this.bar);
  }

  update({ done, all }) {
    set(this.bar, 'width', all === 0 ? 0 : Math.round((100 * done) / all));
    set(this.element, 'data-none', all === 0);
  }
}
