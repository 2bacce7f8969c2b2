// What stands around the leads: the connection's state, the theme, what to do where there is nothing to see.
import { h, say, set, show } from './dom.js';
import { clockToTheSecond } from './format.js';
import { settings } from './settings.js';

const $ = (id) => document.getElementById(id);

/** Tells how fresh the page is. */
export class Connection {
  constructor(onRetry) {
    $('retry').addEventListener('click', onRetry);
  }

  update({ state, since, retryAt, error }) {
    const asOf = since > 0 ? ` · as of ${clockToTheSecond(since)}` : '';
    const seconds = Math.ceil(((retryAt ?? 0) - Date.now()) / 1000);
    const again = seconds > 0 ? ` · again in ${seconds} s` : '';
    const [text, title] = {
      connecting: ['Connecting…', ''],
      live: ['Live', 'Every change is shown as it comes'],
      stale: [`No word from the server${asOf}`, 'Connected, but the server does not vouch that this is all there is: its store may be away'],
      waiting: [`Reconnecting…${asOf}${again}`, error?.message ?? ''],
      paused: [`Paused${asOf}`, 'Nobody was looking'],
      refused: ['Not connected', error?.message ?? ''],
    }[state];
    show($('connection'), true);
    set($('connection'), 'data-state', state);
    set($('connection'), 'title', title || null);
    say($('connection-text'), text);
    show($('retry'), state === 'waiting');
  }

  hide() {
    show($('connection'), false);
  }
}

/** Tells screen readers what is new, and is quiet in between. */
export class Announcer {
  constructor() {
    this.last = new Map();
  }

  /** Says it unless something of its kind was said less than so many ms ago; `false` if it was. */
  say(kind, text, pause = 0) {
    const now = performance.now();
    if (now - (this.last.get(kind) ?? -Infinity) < pause) return false;
    this.last.set(kind, now);
    say($('announcer'), text);
    return true;
  }
}

const THEMES = ['auto', 'light', 'dark'];

export function setUpTheme() {
  const button = $('theme');
  const name = () => {
    const text = `Theme: ${{ auto: 'as the system', light: 'light', dark: 'dark' }[settings.theme]}`;
    set(button, 'aria-label', text);
    set(button, 'title', text);
  };
  button.addEventListener('click', () => {
    settings.theme = THEMES[(THEMES.indexOf(settings.theme) + 1) % THEMES.length];
    name();
  });
  name();
}

/** The command that makes a first lead. */
function firstEvent(workspace) {
  // A lead belongs to one workspace: each gets a first lead of its own.
  const own = Math.random().toString(36).slice(2, 6);
  const event = {
    event: 'action_log.completed',
    workspaceId: workspace,
    actionLog: {
      id: `first-action-${own}`, type: 'MESSAGE', status: 'COMPLETED', leadId: `first-lead-${own}`, summary: 'Hello from curl',
      messages: [{ id: `first-message-${own}`, channel: 'EMAIL', direction: 'INBOUND' }],
    },
  };
  const port = document.querySelector('meta[name="webhook-port"]').content;
  const quoted = JSON.stringify(event).replaceAll("'", "'\\''");
  return `curl http://${location.hostname}:${port}/webhooks/omniai \\\n  -H 'content-type: application/json' \\\n  -d '${quoted}'`;
}

function command(text, ...buttons) {
  const copy = h('button', { type: 'button', class: 'more' }, 'Copy');
  copy.addEventListener('click', async () => {
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    say(copy, done ? 'Copied' : 'Select it to copy');
  });
  return h('div', { class: 'command' }, h('pre', { tabindex: 0, role: 'group', 'aria-label': 'Command' }, h('code', {}, text)), h('p', { class: 'buttons' }, copy, ...buttons));
}

/** What stands in the place of the leads. */
export class Welcome {
  constructor() {
    this.shown = null;
  }

  hide() {
    this.shown = null;
    show($('welcome'), false);
  }

  /** Draws it, unless it is there already: what is being typed stays. */
  draw(name, make) {
    show($('welcome'), true);
    if (this.shown === name) return;
    this.shown = name;
    $('welcome').replaceChildren(...make().filter((child) => child !== null));
  }

  /** No workspace was named. */
  choose(onChoose, onCancel) {
    this.draw('choose', () => {
      const input = h('input', { id: 'choose', name: 'workspace', required: true, maxlength: 256, autocomplete: 'off', spellcheck: 'false' });
      const form = h('form', { class: 'ask' }, h('label', { for: 'choose' }, 'Workspace id'), input, h('button', { type: 'submit', class: 'primary' }, 'Watch'));
      form.addEventListener('submit', (event) => {
        event.preventDefault();
        if (input.value.trim() !== '') onChoose(input.value.trim());
      });
      const recent = settings.workspaces.map((id) => {
        const link = h('a', { href: `?workspace=${encodeURIComponent(id)}`, dir: 'auto' }, id);
        link.addEventListener('click', (event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return;
          event.preventDefault();
          onChoose(id);
        });
        return h('li', {}, link);
      });
      const demo = h('button', { type: 'button', class: 'more' }, 'Watch “demo”');
      demo.addEventListener('click', () => onChoose('demo'));
      const cancel = h('button', { type: 'button', class: 'more' }, 'Back');
      cancel.addEventListener('click', () => onCancel?.());
      setTimeout(() => input.focus());
      return [
        h('h2', {}, 'Which workspace?'),
        h('p', {}, 'The board shows the leads of one workspace as they change. Its id is the workspaceId of your events.'),
        form,
        recent.length > 0 ? h('div', { class: 'recent' }, h('h3', {}, 'Watched lately'), h('ul', {}, ...recent)) : null,
        recent.length === 0 ? h('div', {}, h('p', {}, 'No events yet? This makes a first lead, in the workspace “demo”:'), command(firstEvent('demo'), demo)) : null,
        onCancel ? cancel : null,
      ];
    });
  }

  /** The workspace has no leads. */
  empty(workspace) {
    this.draw(`empty ${workspace}`, () => [
      h('h2', {}, 'No leads yet'),
      h('p', {}, 'They appear here as soon as their first event comes. Point the sender’s webhook at leadfold, or post an event yourself:'),
      command(firstEvent(workspace)),
    ]);
  }

  /** Nothing matches the filter. */
  noMatch(filter, loaded, onLookUp) {
    this.draw(`no match ${filter} ${loaded}`, () => {
      const button = h('button', { type: 'button', class: 'more' }, 'Look it up as a lead id');
      button.addEventListener('click', () => onLookUp(filter.trim()));
      return [h('h2', {}, 'No match'), h('p', {}, `None of the ${loaded} leads here has “`, h('bdi', {}, filter), '” in its name or id.'), button];
    });
  }

  /** The server asks for a token. */
  token(error, onToken) {
    this.draw(`token ${error.message}`, () => {
      const input = h('input', { id: 'token', type: 'password', required: true, autocomplete: 'off', spellcheck: 'false', 'aria-describedby': 'token-note' });
      const form = h('form', { class: 'ask' }, h('label', { for: 'token' }, 'Token'), input, h('button', { type: 'submit', class: 'primary' }, 'Continue'));
      form.addEventListener('submit', (event) => {
        event.preventDefault();
        onToken(input.value.trim());
      });
      setTimeout(() => input.focus());
      return [
        h('h2', {}, 'A token, please'),
        settings.token === '' ? null : h('p', { class: 'problem', role: 'alert' }, `The server says: ${error.message}.`),
        form,
        h('p', { id: 'token-note', class: 'note' }, 'One from the server’s --tokens-file that sees this workspace. It is kept until this tab is closed, and sent nowhere else.'),
      ];
    });
  }

  /** The server refuses for good. */
  refused(error, onOther, onToken) {
    this.draw(`refused ${error.message}`, () => {
      const other = h('button', { type: 'button', class: 'primary' }, 'Choose another workspace');
      other.addEventListener('click', onOther);
      const token = h('button', { type: 'button', class: 'more' }, 'Use another token');
      token.addEventListener('click', onToken);
      return [h('h2', {}, 'The server refuses'), h('p', { class: 'problem' }, `${error.message}.`), h('p', { class: 'buttons' }, other, settings.token === '' ? null : token)];
    });
  }
}
