// What is known of a workspace's leads, and in which order they stand.
import { extractionOf, nameOf, progressOf } from './format.js';

/** One lead of the board. `stamp` grows with its changes, `changed` is when the last one came, `parts` what it changed. */
function entryOf(lead) {
  return { id: lead.leadId, lead, time: lead.latestActivityTime ?? -Infinity, stamp: 0, changed: 0, parts: new Set(), epoch: 0, haystack: '' };
}

export class Model {
  constructor(workspace) {
    this.workspace = workspace;
    this.entries = new Map();
    /** The greatest count of messages of one channel and direction: what bars are measured by. */
    this.greatest = 1;
    this.sorted = [];
    this.isSorted = true;
    this.stamps = 0;
    this.epoch = 0;
    this.listeners = new Set();
  }

  get size() {
    return this.entries.size;
  }

  get(id) {
    return this.entries.get(id);
  }

  /** Calls with every change: the entry, the update that brought it (if one did); or `null` for a lead that is gone. */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** From here on, what is not told of again is old. */
  begin() {
    this.epoch++;
  }

  /** Takes a lead as it is now. `update` is the message that told of it; `anew`: whatever was known before is void. */
  put(lead, { update = null, anew = false } = {}) {
    if (lead.workspaceId !== this.workspace) return;
    let entry = this.entries.get(lead.leadId);
    if (entry === undefined) {
      entry = entryOf(lead);
      this.entries.set(entry.id, entry);
      this.isSorted = false;
      // What was listed was there before; what came by itself is new.
      if (update !== null || anew) entry.parts.add('row');
    } else {
      entry.epoch = this.epoch;
      if (lead.version <= entry.lead.version && !anew) return;
      const time = lead.latestActivityTime ?? -Infinity;
      if (time !== entry.time) this.isSorted = false;
      entry.time = time;
      entry.parts = differences(entry.lead, lead);
      entry.lead = lead;
    }
    entry.epoch = this.epoch;
    entry.haystack = haystack(lead);
    entry.stamp = ++this.stamps;
    entry.changed = Date.now();
    for (const { count } of lead.messageCounts) if (count > this.greatest) this.greatest = 2 ** Math.ceil(Math.log2(count));
    for (const listener of this.listeners) listener(entry, update);
  }

  remove(id) {
    if (!this.entries.delete(id)) return;
    this.isSorted = false;
    for (const listener of this.listeners) listener(null, null, id);
  }

  /** Removes what was not told of since `begin`. */
  sweep() {
    for (const entry of [...this.entries.values()]) if (entry.epoch !== this.epoch) this.remove(entry.id);
  }

  /** The leads that match a filter, latest activity first: as ListLeads has them. */
  list(filter) {
    if (!this.isSorted) {
      this.sorted = [...this.entries.values()].sort((a, b) => b.time - a.time || (a.id < b.id ? 1 : -1));
      this.isSorted = true;
    }
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length === 0) return this.sorted;
    return this.sorted.filter((entry) => words.every((word) => entry.haystack.includes(word)));
  }
}

function haystack(lead) {
  const profile = lead.profile ?? {};
  return [nameOf(lead), profile.businessName, profile.email, profile.phoneNumber, lead.externalId, lead.leadId].join('\n').toLowerCase();
}

/** Which parts of a row show something else than before. */
function differences(before, after) {
  const parts = new Set();
  const [a, b] = [before.latestActivity, after.latestActivity];
  if (a?.actionId !== b?.actionId || a?.status !== b?.status || a?.version !== b?.version) parts.add('activity');
  if (before.messageCount !== after.messageCount) parts.add('messages');
  if (before.documentCount !== after.documentCount || extractions(before) !== extractions(after)) parts.add('documents');
  if (JSON.stringify(progressOf(before)) !== JSON.stringify(progressOf(after))) parts.add('checklist');
  if (nameOf(before) !== nameOf(after) || before.applicationCompleteTime !== after.applicationCompleteTime) parts.add('lead');
  return parts;
}

const extractions = (lead) => lead.documents.map(extractionOf).join();
