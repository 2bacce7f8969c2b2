// The board: puts the parts together. The address names what is shown, so that it can be kept, shared and gone back to.
import { isTyping, say, show } from './dom.js';
import { Feed } from './feed.js';
import { count, nameOf, plural } from './format.js';
import { LeadList } from './list.js';
import { LeadView } from './lead.js';
import { Model } from './model.js';
import { Code } from './rpc.js';
import { settings } from './settings.js';
import { Announcer, Connection, Welcome, setUpTheme } from './shell.js';

/** At most so often the page is drawn anew, however often the leads change. */
const DRAW_MS = 100;
/** How long screen readers are left alone between two summaries. */
const SUMMARY_MS = 30_000;
const NEWS_MS = 5000;

const $ = (id) => document.getElementById(id);
const narrow = matchMedia('(max-width: 899px)');

const announcer = new Announcer();
const welcome = new Welcome();
const connection = new Connection(() => board.feed?.retry());
const list = new LeadList($('scroller'), $('rows'), { href: (id) => address(board.workspace, id), open: (id) => open(id) });
const view = new LeadView($('lead'), { onClose: () => navigate(null) });

/** What is shown now. */
const board = { workspace: null, model: null, feed: null, filter: '', state: 'idle', changed: new Set(), updates: [], timer: 0, drawn: 0, choosing: false };

function address(workspace, lead = null) {
  const query = new URLSearchParams({ workspace });
  if (lead !== null) query.set('lead', lead);
  return `?${query}`;
}

/** Shows what the address names. */
function arrive() {
  const query = new URLSearchParams(location.search);
  const workspace = query.get('workspace') || settings.workspaces[0] || null;
  if (workspace !== null && !query.get('workspace')) history.replaceState(null, '', address(workspace));
  if (workspace !== board.workspace || board.feed === null) watch(workspace);
  const lead = query.get('lead') || null;
  if (lead !== view.id) display(lead);
}

/** Watches another workspace. */
function watch(workspace) {
  board.feed?.stop();
  clearTimeout(board.timer);
  Object.assign(board, { workspace, feed: null, model: null, state: 'idle', choosing: workspace === null, updates: [], timer: 0 });
  board.changed.clear();
  list.show([], 1);
  show($('workspace'), workspace !== null);
  show($('searching'), workspace !== null);
  if (workspace === null) {
    connection.hide();
    draw();
    return;
  }
  say($('workspace-id'), workspace);
  const model = new Model(workspace);
  model.listen((entry, update, gone) => {
    if (entry !== null && update !== null) board.changed.add(entry.id);
    if ((entry?.id ?? gone) === view.id) board.updates.push({ entry, update });
    schedule();
  });
  board.model = model;
  board.feed = new Feed(model, onState);
  onState(board.feed.state);
}

function onState(state) {
  const before = board.state;
  board.state = state.state;
  board.error = state.error;
  connection.update(state);
  if (before !== state.state) {
    if (state.state === 'live') settings.remember(board.workspace);
    const words = { live: 'Live', stale: 'The server is silent: what you see may be old', waiting: 'The connection is lost, reconnecting', refused: state.error?.message };
    if (words[state.state] && !(before === 'connecting' && state.state === 'live')) announcer.say('connection', words[state.state]);
    // The lead that is open may not be among those that are listed.
    if (state.state === 'live' && view.id !== null && view.lead === null) look(view.id);
    schedule();
  }
}

/** Draws soon, but not too often; in a tab that nobody sees, later. */
function schedule(wait = 0) {
  if (board.timer !== 0) return;
  const pause = Math.max(wait, board.drawn + DRAW_MS - performance.now(), 0);
  board.timer = setTimeout(() => requestAnimationFrame(() => {
    board.timer = 0;
    draw();
  }), pause);
}

function draw() {
  board.drawn = performance.now();
  const { model } = board;
  const everything = model?.list('') ?? [];
  let shown = model?.list(board.filter) ?? [];
  if (list.held > 0 && shown.length >= list.entries.length && list.filter === board.filter) {
    // Somebody is about to click: what is there stays in its place, what is new comes a little later.
    shown = list.entries.filter((entry) => model.get(entry.id) === entry);
    schedule(list.held + 50);
  }
  list.filter = board.filter;
  const bare = board.choosing || board.state === 'refused' || everything.length === 0 || shown.length === 0;
  show($('columns'), !bare);
  show($('scroller'), !bare);
  list.show(shown, model?.greatest ?? 1);
  invite(everything.length, shown.length);
  const more = board.feed?.nextPage ? ' loaded' : '';
  const text = board.filter ? `${count(shown.length)} of ${plural(everything.length, 'lead')}${more}` : `${plural(everything.length, 'lead')}${more}`;
  say($('count'), text);
  show($('end'), Boolean(board.feed?.nextPage) && !board.filter);
  document.title = `${{ live: '', connecting: '', idle: '' }[board.state] ?? '⚠ '}${everything.length > 0 ? `${plural(everything.length, 'lead')} · ` : ''}leadfold`;
  drawLead();
  if (board.changed.size > 0) {
    const [first] = board.changed;
    const words = board.changed.size === 1 && model.get(first) ? `${nameOf(model.get(first).lead)} has changed` : `${board.changed.size} leads have changed`;
    if (view.id !== null || announcer.say('summary', words, SUMMARY_MS)) board.changed.clear();
  }
}

function drawLead() {
  const updates = board.updates.splice(0);
  if (updates.length === 0) return;
  const { entry } = updates.at(-1);
  if (entry === null) {
    view.end('This lead is not here any more: it was deleted.');
    return;
  }
  const news = view.follow(entry.lead, updates.map(({ update }) => update));
  if (news.length > 0) announcer.say('news', `${nameOf(entry.lead)}: ${view.newsOf(news)}`, NEWS_MS);
}

/** What to do, where there is nothing to see. */
function invite(all, shown) {
  if (board.choosing) welcome.choose((workspace) => go(address(workspace)), board.workspace === null ? null : () => choose(false));
  else if (board.state === 'refused' && board.error.code === Code.UNAUTHENTICATED) welcome.token(board.error, useToken);
  else if (board.state === 'refused') welcome.refused(board.error, () => choose(true), () => useToken(''));
  else if (all === 0 && board.state === 'live') welcome.empty(board.workspace);
  else if (all > 0 && shown === 0) welcome.noMatch(board.filter, count(all), open);
  else welcome.hide();
}

function useToken(token) {
  settings.token = token;
  board.feed?.retry();
}

function choose(choosing) {
  // On a phone an open lead would cover the question.
  if (choosing && narrow.matches && view.id !== null) navigate(null);
  board.choosing = choosing;
  draw();
}

function go(to) {
  history.pushState(null, '', to);
  board.choosing = false;
  arrive();
  draw();
}

/** Opens a lead, or closes the one that is open. */
function navigate(lead) {
  if (lead === view.id) return;
  history.pushState(null, '', address(board.workspace, lead));
  display(lead);
}

function open(id) {
  navigate(id);
  view.focus();
}

function display(id) {
  const before = view.id;
  board.updates = [];
  if (board.feed !== null) board.feed.keep = id;
  list.mark(id);
  if (id === null) {
    view.close();
  } else {
    const lead = board.model?.get(id)?.lead ?? null;
    view.open(id, lead);
    if (lead === null && board.state === 'live') look(id);
  }
  cover();
  if (id === null && before !== null && !list.focusId(before)) $('leads').focus();
}

/** Asks for a lead that is not listed. */
async function look(id) {
  let problem;
  try {
    const lead = await board.feed.fetch(id);
    if (lead === null) problem = 'There is no such lead, or its events have not come yet. It appears here once they do.';
    else if (lead.workspaceId !== board.workspace) problem = `This lead belongs to ${lead.workspaceId ? `the workspace ${lead.workspaceId}` : 'no workspace yet'}.`;
  } catch (error) {
    problem = `The lead could not be read: ${error.message}`;
  }
  if (problem && view.id === id) view.say(problem);
}

/** On a phone an open lead covers the list. */
function cover() {
  const covered = narrow.matches && view.id !== null;
  $('leads').inert = covered;
  document.body.classList.toggle('covered', covered);
  document.body.classList.toggle('split', view.id !== null);
  list.measure();
}

$('end').append(Object.assign(document.createElement('button'), {
  type: 'button',
  className: 'more',
  textContent: 'Load more leads',
  async onclick() {
    this.disabled = true;
    await board.feed.pages().catch(() => {});
    this.disabled = false;
    schedule();
  },
}));

$('search').addEventListener('input', () => {
  board.filter = $('search').value;
  $('scroller').scrollTop = 0;
  list.heldUntil = 0;
  draw();
  if (board.filter) announcer.say('filter', `${plural(list.entries.length, 'lead')} found`);
});
$('search').addEventListener('keydown', (event) => {
  if (event.key === 'ArrowDown' && list.entries.length > 0) list.focus(0);
  else if (event.key === 'Enter' && list.entries.length > 0) open(list.entries[0].id);
  else if (event.key === 'Escape' && $('search').value === '') list.focusId(list.active);
  else return;
  event.preventDefault();
  event.stopPropagation();
});
$('workspace').addEventListener('click', () => choose(true));

document.addEventListener('keydown', (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || isTyping(event.target)) return;
  if (event.key === 'Escape' && view.id !== null) {
    navigate(null);
  } else if (event.key === 'Escape' && board.choosing && board.workspace !== null) {
    choose(false);
  } else if (event.key === '/' && !$('searching').hidden && !$('leads').inert) {
    event.preventDefault();
    $('search').select();
  } else if ((event.key === 'j' || event.key === 'k') && !board.choosing && list.entries.length > 0) {
    const step = event.key === 'j' ? 1 : -1;
    if (view.id === null) list.focusId(list.active);
    else if (list.neighbour(view.id, step) !== view.id) open(list.neighbour(view.id, step));
  }
});
addEventListener('popstate', arrive);
narrow.addEventListener('change', cover);
setInterval(() => {
  if (document.hidden) return;
  list.tick();
  view.tick();
}, 1000);
document.addEventListener('visibilitychange', () => { if (!document.hidden) draw(); });

setUpTheme();
arrive();
draw();
