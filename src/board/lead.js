// One lead, open: its timeline and all that is known of it.
import { Butterfly, Progress, channelsOf, pip } from './bars.js';
import { foreign, freshen, h, say, show } from './dom.js';
import { ago, bylineOf, count, exact, extractionOf, extractionWords, nameOf, plural, progressOf, size, word } from './format.js';
import { call } from './rpc.js';
import { Timeline } from './timeline.js';

const DOCUMENTS_PAGE = 200;
const ITEM_STATES = { COMPLETED: 'done', SKIPPED: 'skipped', INVALID: 'failed', NEEDS_REVIEW: 'review', TODO: 'todo' };
const PROFILE = { firstName: 'First name', middleName: 'Middle name', lastName: 'Last name', businessName: 'Business', email: 'Email', phoneNumber: 'Phone', website: 'Website', source: 'Source' };

export class LeadView {
  /** In `element`; `onClose` is called when its reader has had enough. */
  constructor(element, { onClose }) {
    this.element = element;
    this.onClose = onClose;
    this.id = null;
  }

  /** Opens a lead, of which nothing need be known yet. */
  open(id, lead) {
    this.close();
    this.id = id;
    this.asking = new AbortController();
    this.lead = null;
    this.allDocuments = null;
    this.drawn = new Map(); // What each part was drawn from.
    this.timeline = new Timeline(id, this.asking.signal, (documentId) => this.filenameOf(documentId));
    this.name = h('h2', { id: 'lead-name', tabindex: -1, dir: 'auto' }, lead ? nameOf(lead) : id);
    this.byline = h('p', { class: 'byline', dir: 'auto' });
    this.badges = h('p', { class: 'badges' });
    this.notice = h('p', { class: 'note', role: 'status', hidden: true });
    const close = h('button', { type: 'button', class: 'icon close', 'aria-label': 'Close this lead', title: 'Close (Esc)' }, '');
    close.addEventListener('click', () => this.onClose());
    this.parts = Object.fromEntries(['messages', 'documents', 'checklist', 'profile', 'actions'].map((part) => [part, h('section', { class: part, 'aria-labelledby': `${part}-title` })]));
    const jumps = Object.entries({ 'timeline-title': 'Timeline', 'documents-title': 'Documents', 'checklist-title': 'Checklist', 'profile-title': 'Profile' }).map(([to, text]) => {
      const button = h('button', { type: 'button' }, text);
      button.addEventListener('click', () => {
        const title = document.getElementById(to);
        title?.scrollIntoView({ block: 'start' });
        title?.focus({ preventScroll: true });
      });
      return button;
    });
    const { messages, ...facts } = this.parts;
    this.body = h('div', { class: 'lead-body' }, this.notice, messages, this.timeline.element, h('div', { class: 'facts' }, ...Object.values(facts)));
    this.element.replaceChildren(h('header', { class: 'lead-head' }, close, h('div', { class: 'lead-title' }, this.name, this.byline, this.badges)), h('nav', { class: 'jumps', 'aria-label': 'Parts of this lead' }, ...jumps), this.body);
    show(this.element, true);
    if (lead) this.draw(lead);
  }

  close() {
    this.asking?.abort();
    this.id = null;
    this.lead = null;
    show(this.element, false);
    this.element.replaceChildren();
  }

  focus() {
    this.name?.focus({ preventScroll: true });
  }

  /** There is no such lead, or not any more. */
  say(text) {
    if (this.id === null) return;
    show(this.notice, text !== '');
    say(this.notice, text);
  }

  /** The lead is gone, and its history with it. */
  end(text) {
    this.timeline.clear();
    this.timeline.settle();
    this.say(text);
  }

  /** Shows what has become of the lead, and returns the activities that are new. */
  follow(lead, updates) {
    const isFirst = this.lead === null;
    this.say('');
    this.draw(lead);
    if (!isFirst) return this.timeline.follow(updates);
    if (this.timeline.items.size === 0) this.timeline.load('');
    return [];
  }

  draw(lead) {
    const isFirst = this.lead === null;
    this.lead = lead;
    say(this.name, nameOf(lead));
    say(this.byline, bylineOf(lead));
    this.part('badges', this.badges, [lead.leadId, lead.applicationCompleteTime, lead.externalId], () => [
      lead.applicationCompleteTime === undefined ? null : h('span', { class: 'badge', title: exact(lead.applicationCompleteTime) }, 'Application complete'),
      this.copyable(lead.leadId),
    ]);
    const { messages, documents, checklist, profile, actions } = this.parts;
    const draws = [
      this.part('messages', messages, lead.messageCounts, () => this.messages(lead)),
      this.part('documents', documents, [lead.documents, lead.documentCount, this.allDocuments], () => this.documents(lead)),
      this.part('checklist', checklist, lead.checklistItems, () => this.checklist(lead)),
      this.part('profile', profile, [lead.profile, lead.externalId, lead.leadId], () => this.profile(lead)),
      this.part('actions', actions, lead.activityCounts, () => this.actions(lead)),
    ];
    if (!isFirst) for (const element of draws) if (element !== null) freshen(element);
    this.tick();
  }

  /** Draws a part anew if what it shows has changed: what is being read or selected otherwise stays. */
  part(name, element, source, draw) {
    const text = JSON.stringify(source);
    if (this.drawn.get(name) === text) return null;
    this.drawn.set(name, text);
    const children = draw().filter((child) => child !== null);
    element.replaceChildren(...children);
    return element;
  }

  title(part, text, extra = null) {
    return h('div', { class: 'part-head' }, h('h3', { id: `${part}-title`, tabindex: -1 }, text), extra);
  }

  copyable(id) {
    const button = h('button', { type: 'button', class: 'copy', title: 'Copy the id' }, foreign('code', {}, id), h('span', { class: 'copy-word' }, 'Copy'));
    button.addEventListener('click', async () => {
      const done = await navigator.clipboard?.writeText(id).then(() => true, () => false);
      say(button.lastElementChild, done ? 'Copied' : 'Select it to copy');
      setTimeout(() => say(button.lastElementChild, 'Copy'), 1500);
    });
    return button;
  }

  messages(lead) {
    const channels = channelsOf(lead);
    const most = Math.max(1, ...channels.flatMap((of) => [of.in, of.out, of.other]));
    const latest = new Map();
    for (const counted of lead.messageCounts) latest.set(counted.channel, Math.max(latest.get(counted.channel) ?? 0, counted.latestTime ?? 0));
    const rows = channels.map((of) => {
      const bars = new Butterfly();
      bars.update(of, most);
      const out = [count(of.out), of.other === 0 ? '' : `${count(of.other)}?`].filter(Boolean).join(' ');
      return h('tr', {}, foreign('th', { scope: 'row' }, word(of.channel)), h('td', { class: 'n in' }, count(of.in)), h('td', { class: 'picture' }, bars.picture), h('td', { class: 'n out' }, out), h('td', { class: 'when' }, this.time(latest.get(of.channel))));
    });
    const head = h('tr', {}, h('th', { scope: 'col' }, 'Channel'), h('th', { scope: 'col', class: 'n' }, 'In'), h('td', {}), h('th', { scope: 'col', class: 'n' }, 'Out'), h('th', { scope: 'col', class: 'when' }, 'Last'));
    const table = h('table', { class: 'counts' }, h('thead', { class: 'hidden' }, head), h('tbody', {}, ...rows));
    return [this.title('messages', 'Messages', h('span', { class: 'sum' }, count(lead.messageCount))), channels.length === 0 ? h('p', { class: 'note' }, 'No messages yet.') : table];
  }

  documents(lead) {
    const documents = this.allDocuments ?? lead.documents;
    const rest = lead.documentCount - documents.length;
    const items = documents.map((document) => {
      const state = extractionOf(document);
      const { extraction } = document;
      const words = state === 'other' ? word(extraction.status) : extractionWords[state];
      return h('li', { class: 'document', 'data-state': state }, pip(state), h('div', {},
        foreign('p', { class: 'filename' }, document.filename || document.documentId),
        h('p', { class: 'meta' }, h('span', { class: `state ${state}` }, words), foreign('span', {}, extraction?.documentType || document.mimeType), h('span', {}, size(document.sizeBytes)), this.time(document.createTime)),
        extraction?.summary ? foreign('p', { class: 'event-summary' }, extraction.summary) : null));
    });
    const more = h('button', { type: 'button', class: 'more' }, `Show ${count(rest)} more`);
    more.addEventListener('click', () => this.loadDocuments(more));
    const list = items.length === 0 ? h('p', { class: 'note' }, 'No documents yet.') : h('ul', { class: 'documents-list' }, ...items);
    return [this.title('documents', 'Documents', h('span', { class: 'sum' }, count(lead.documentCount))), list, rest > 0 ? more : null];
  }

  async loadDocuments(button) {
    button.disabled = true;
    const [id, { signal }] = [this.id, this.asking];
    try {
      const all = [];
      for (let pageToken = ''; ;) {
        const page = await call('ListDocuments', { leadId: id, pageSize: DOCUMENTS_PAGE, pageToken }, signal);
        all.push(...page.documents);
        pageToken = page.nextPageToken;
        if (pageToken === '') break;
      }
      this.allDocuments = all;
      this.draw(this.lead);
      this.allDocuments = null; // The next change shows the newest again.
    } catch (error) {
      if (!signal.aborted) say(button, `That failed: ${error.message}. Try again`);
      button.disabled = false;
    }
  }

  checklist(lead) {
    const progress = progressOf(lead);
    const bar = new Progress();
    bar.update(progress);
    const items = lead.checklistItems.map((item) => {
      const state = ITEM_STATES[item.status] ?? 'todo';
      return h('li', { class: 'item', 'data-state': state }, h('span', { class: 'mark', 'aria-hidden': 'true' }), h('div', {},
        h('p', {}, foreign('span', { class: 'code' }, word(item.code || item.checklistItemId)), ' ', foreign('span', { class: `state ${state}` }, word(item.status))),
        item.value ? foreign('p', { class: 'value' }, item.value) : null,
        item.documentIds.length > 0 ? foreign('p', { class: 'value' }, item.documentIds.map((id) => this.filenameOf(id) ?? id).join(', ')) : null));
    });
    const sum = progress.all === 0 ? null : h('span', { class: 'sum' }, `${progress.done} of ${progress.all}`);
    return [this.title('checklist', 'Checklist', sum), progress.all === 0 ? h('p', { class: 'note' }, 'Nothing was asked for yet.') : bar.element, h('ul', { class: 'items' }, ...items)];
  }

  profile(lead) {
    const known = Object.entries(PROFILE).map(([field, name]) => [name, lead.profile?.[field] ?? '']).filter(([, value]) => value !== '');
    if (lead.externalId) known.push(['External id', lead.externalId]);
    const list = h('dl', {}, ...known.flatMap(([name, value]) => [h('dt', {}, name), foreign('dd', {}, value)]));
    return [this.title('profile', 'Profile'), known.length === 0 ? h('p', { class: 'note' }, 'Nothing is known yet: a lead.created or lead.updated event tells.') : list];
  }

  actions(lead) {
    const types = new Map();
    for (const { type, status, count: actions } of lead.activityCounts) {
      const of = types.get(type) ?? { all: 0, others: [] };
      of.all += actions;
      if (status !== 'COMPLETED') of.others.push(`${count(actions)} ${word(status).toLowerCase()}`);
      types.set(type, of);
    }
    const all = [...types.values()].reduce((sum, of) => sum + of.all, 0);
    const rows = [...types].sort((a, b) => b[1].all - a[1].all).map(([type, of]) => h('tr', {}, foreign('th', { scope: 'row' }, word(type)), h('td', { class: 'n' }, count(of.all)), foreign('td', { class: 'others' }, of.others.join(', '))));
    return [this.title('actions', 'Actions', h('span', { class: 'sum' }, count(all))), rows.length === 0 ? h('p', { class: 'note' }, 'None yet.') : h('table', { class: 'counts' }, h('tbody', {}, ...rows))];
  }

  filenameOf(documentId) {
    const document = this.lead?.documents.find((known) => known.documentId === documentId);
    return document?.filename || undefined;
  }

  /** A time that ticks. */
  time(time) {
    if (!time) return h('span', {});
    return h('time', { datetime: new Date(time).toISOString(), title: exact(time), 'data-time': time }, ago(time));
  }

  tick() {
    if (this.id === null) return;
    const now = Date.now();
    for (const element of this.body.querySelectorAll('time[data-time]')) say(element, ago(Number(element.dataset.time), now));
    this.timeline.tick();
  }

  /** What a screen reader is told of news. */
  newsOf(activities) {
    const [first] = activities;
    return activities.length === 1 ? `${first.type === '' ? 'Activity' : word(first.type)}: ${first.summary}` : plural(activities.length, 'new activity', 'new activities');
  }
}
