// What happened on one lead, newest first, by day.
import { foreign, freshen, h, say, set } from './dom.js';
import { clock, day, exact, isFailed, titleOf, word } from './format.js';
import { Code, call } from './rpc.js';

const PAGE = 50;

/** Newest first; at the same time by descending id: as ListActivities has them. */
const isBefore = (a, b) => a.completeTime > b.completeTime || (a.completeTime === b.completeTime && a.actionId > b.actionId);

export class Timeline {
  constructor(leadId, signal, filenameOf) {
    this.leadId = leadId;
    this.signal = signal;
    this.filenameOf = filenameOf;
    this.items = new Map(); // What is shown of each action: `{activity, element}`.
    this.days = new Map(); // The start of a day and what is shown of it.
    this.nextPage = null;
    this.content = h('div', { class: 'days' });
    this.more = h('button', { type: 'button', class: 'more' }, 'Show older');
    this.more.addEventListener('click', () => this.load(this.nextPage));
    this.note = h('p', { class: 'note' }, 'Loading…');
    this.element = h('section', { class: 'timeline', 'aria-labelledby': 'timeline-title' }, h('h3', { id: 'timeline-title', tabindex: -1 }, 'Timeline'), this.content, this.note, this.more);
    this.more.hidden = true;
    this.load('');
  }

  /** Takes what messages of the watch told (`null`: the lead was read instead); if that is not all, asks. */
  follow(updates) {
    const fresh = updates.flatMap((update) => update?.changes.map((change) => change.activity).filter(Boolean) ?? []);
    for (const activity of fresh) this.put(activity, true);
    if (updates.some((update) => update === null || update.changesTruncated)) this.load('');
    this.settle();
    return fresh;
  }

  async load(pageToken) {
    this.more.disabled = true;
    let page;
    try {
      page = await call('ListActivities', { leadId: this.leadId, pageSize: PAGE, pageToken }, this.signal);
    } catch (error) {
      if (this.signal.aborted) return;
      // A lead that nobody has heard of has no timeline; it is asked for again once the lead is there.
      this.isLoaded ||= error.code === Code.NOT_FOUND;
      this.failed = error.code === Code.NOT_FOUND ? null : `The timeline could not be read: ${error.message}`;
      this.nextPage ??= '';
      this.settle();
      return;
    }
    this.failed = null;
    const known = this.items.size;
    const overlaps = page.activities.some((activity) => this.items.has(activity.actionId));
    if (pageToken === '' && known > 0 && !overlaps && page.nextPageToken !== '') this.clear();
    // Of a first page that was asked for again, what comes after it is known already.
    if (pageToken !== '' || known === 0 || this.items.size === 0) this.nextPage = page.nextPageToken;
    for (const activity of page.activities) this.put(activity, pageToken === '' && known > 0);
    this.isLoaded = true;
    this.settle();
  }

  clear() {
    this.items.clear();
    this.days.clear();
    this.content.replaceChildren();
  }

  settle() {
    this.more.disabled = false;
    this.more.hidden = !this.nextPage && !this.failed;
    say(this.more, this.failed ? 'Try again' : 'Show older');
    say(this.note, this.failed ?? (this.isLoaded && this.items.size === 0 ? 'Nothing has happened yet.' : this.isLoaded ? '' : 'Loading…'));
    this.note.hidden = this.note.textContent === '';
  }

  put(activity, isNews) {
    const known = this.items.get(activity.actionId);
    if (known !== undefined) {
      if (known.activity.version >= activity.version) return;
      known.element.remove();
    }
    const element = this.item(activity);
    this.items.set(activity.actionId, { activity, element });
    element.activity = activity;
    const list = this.dayOf(activity.completeTime);
    // News belongs near the top, older pages at the end.
    const last = list.lastElementChild;
    if (last === null || isBefore(last.activity, activity)) list.append(element);
    else list.insertBefore(element, [...list.children].find((other) => isBefore(activity, other.activity)) ?? null);
    if (isNews) freshen(element);
    for (const [start, shown] of this.days) {
      if (shown.list.childElementCount > 0) continue;
      shown.element.remove();
      this.days.delete(start);
    }
  }

  /** The list of a day, which is made if it is not there. */
  dayOf(time) {
    const start = new Date(time).setHours(0, 0, 0, 0);
    const known = this.days.get(start);
    if (known !== undefined) return known.list;
    const shown = { list: h('ol', {}), title: h('h4', {}, day(time)), start, time };
    shown.element = h('div', { class: 'day' }, shown.title, shown.list);
    const later = [...this.days.values()].filter((other) => other.start < start).sort((a, b) => b.start - a.start)[0];
    this.content.insertBefore(shown.element, later?.element ?? null);
    this.days.set(start, shown);
    return shown.list;
  }

  item(activity) {
    const failed = isFailed(activity);
    const state = failed ? 'failed' : activity.status === 'COMPLETED' ? 'done' : 'other';
    const documents = activity.documentIds.map((id) => foreign('li', { class: 'file', 'data-id': id }, this.filenameOf(id) ?? id));
    return h('li', { class: 'event', 'data-state': state, 'data-way': activity.direction || null },
      h('span', { class: 'mark', 'aria-hidden': 'true' }),
      h('div', { class: 'event-body' },
        h('p', { class: 'event-head' },
          foreign('span', { class: 'event-title' }, titleOf(activity)),
          state === 'done' ? null : foreign('span', { class: `tag ${state}` }, word(activity.status)),
          activity.messageCount > 1 ? h('span', { class: 'tag' }, `${activity.messageCount} messages`) : null,
          h('time', { datetime: new Date(activity.completeTime).toISOString(), title: exact(activity.completeTime) }, clock(activity.completeTime))),
        activity.summary ? foreign('p', { class: 'event-summary' }, activity.summary) : null,
        activity.error ? foreign('p', { class: 'event-error' }, activity.error) : null,
        documents.length > 0 ? h('ul', { class: 'files', 'aria-label': 'Documents' }, ...documents) : null,
        activity.agentId ? foreign('p', { class: 'event-by' }, `by ${activity.agentId}`) : null));
  }

  tick() {
    for (const { title, time } of this.days.values()) say(title, day(time));
    // A document's name may become known later than what it came with.
    for (const file of this.content.querySelectorAll('.file')) say(file, this.filenameOf(file.dataset.id) ?? file.dataset.id);
    set(this.element, 'aria-busy', this.isLoaded ? null : 'true');
  }
}
