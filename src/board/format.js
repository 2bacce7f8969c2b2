// Words and numbers for people.

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

const full = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const clockTime = new Intl.DateTimeFormat(undefined, { hour: 'numeric', minute: '2-digit' });
const secondTime = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium' });
const dayOfYear = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const dayAndYear = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short', year: 'numeric' });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long', year: 'numeric' });
const number = new Intl.NumberFormat();

/** How long ago: short, and the same for as long as possible. */
export function ago(time, now = Date.now()) {
  const age = now - time;
  if (age < -MINUTE) return `in ${span(-age)}`;
  if (age < 5 * SECOND) return 'now';
  if (age < 14 * DAY) return span(age);
  return (now - time < 300 * DAY ? dayOfYear : dayAndYear).format(time);
}

function span(age) {
  if (age < MINUTE) return `${Math.floor(age / SECOND)} s`;
  if (age < HOUR) return `${Math.floor(age / MINUTE)} min`;
  if (age < DAY) return `${Math.floor(age / HOUR)} h`;
  return `${Math.floor(age / DAY)} d`;
}

export const exact = (time) => full.format(time);
export const clock = (time) => clockTime.format(time);
export const clockToTheSecond = (time) => secondTime.format(time);
export const count = (value) => number.format(value);
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A heading for the day of a time. */
export function day(time, now = Date.now()) {
  const start = new Date(now).setHours(0, 0, 0, 0);
  if (time >= start && time < start + DAY) return 'Today';
  if (time >= start - DAY && time < start) return 'Yesterday';
  return weekday.format(time);
}

export function size(bytes) {
  if (bytes === undefined) return '';
  if (bytes < 1000) return `${bytes} B`;
  const power = Math.min(Math.floor(Math.log10(bytes) / 3), 4);
  const value = bytes / 1000 ** power;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${['B', 'kB', 'MB', 'GB', 'TB'][power]}`;
}

const SPECIAL = { SMS: 'SMS', WHATSAPP: 'WhatsApp', FOLLOW_UP_MESSAGE: 'Follow-up message', UNKNOWN: 'Unknown', API: 'API' };

/** A word of the sender's vocabulary, as one would say it. What is not in its style stays as it is. */
export function word(text) {
  if (Object.hasOwn(SPECIAL, text)) return SPECIAL[text];
  if (!/^[A-Z][A-Z0-9_]*$/.test(text)) return text;
  return text[0] + text.slice(1).toLowerCase().replaceAll('_', ' ');
}

/** What to call a lead. */
export function nameOf(lead) {
  const { firstName, middleName, lastName, businessName, email, phoneNumber } = lead.profile ?? {};
  const person = [firstName, middleName, lastName].filter(Boolean).join(' ');
  return person || businessName || email || phoneNumber || lead.externalId || lead.leadId;
}

/** Who else it is: what stands under the name. */
export function bylineOf(lead) {
  const { businessName, email, phoneNumber } = lead.profile ?? {};
  const name = nameOf(lead);
  return [businessName, email, phoneNumber, lead.externalId].find((text) => text && text !== name) ?? (name === lead.leadId ? '' : lead.leadId);
}

/** What an activity was, in a few words: “Message, Email in”. */
export function titleOf(activity) {
  const way = { INBOUND: 'in', OUTBOUND: 'out' }[activity.direction] ?? word(activity.direction);
  const by = [activity.channel && word(activity.channel), way].filter(Boolean).join(' ');
  return [word(activity.type), activity.toolName, by].filter(Boolean).join(' · ');
}

/** Whether an activity went wrong. */
export const isFailed = (activity) => activity.status === 'FAILED';

/** The state of a document's extraction: `done`, `failed`, `waiting`, or what else the sender calls it. */
export function extractionOf(document) {
  const status = document.extraction?.status ?? '';
  return { '': 'waiting', completed: 'done', failed: 'failed' }[status.toLowerCase()] ?? 'other';
}

export const extractionWords = { waiting: 'Not extracted yet', done: 'Extracted', failed: 'Extraction failed', other: 'Extraction' };

/** Checklist items that need nobody any more, and all of them. */
export function progressOf(lead) {
  const done = lead.checklistItems.filter((item) => item.status === 'COMPLETED' || item.status === 'SKIPPED').length;
  return { done, all: lead.checklistItems.length };
}
