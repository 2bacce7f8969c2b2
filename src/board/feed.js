// Keeps a model like the server: watches first, then lists, so that nothing falls between the two; and comes back
// whenever the connection is lost.
import { Code, RpcError, call, stream } from './rpc.js';

const HEARTBEAT_S = 5;
/** Without a word for so long, the server is not sure any more of what it has; later on the connection is dead. */
const DOUBT_MS = 12_000;
const DEAD_MS = 40_000;
/** Waits before coming back: the first at once, since streams also end when all is well. */
const BACKOFF_MS = [0, 500, 1000, 2000, 4000, 8000];
/** Leads that are loaded at once. The first page is small: it is on the screen sooner. */
const PAGES = [60, 200, 200, 200, 200, 140];
/** Unseen for so long, a tab gives its connection back. */
const HIDDEN_MS = 60_000;

const REASON_INITIAL = 1;

/**
 * `onState` is told `{state, since, retryAt, error}`: `connecting`, `live`, `stale` (connected, but the server is
 * silent), `waiting` (for the next attempt), `paused` (nobody looks), `refused` (for good).
 */
export class Feed {
  constructor(model, onState) {
    this.model = model;
    this.onState = onState;
    this.keep = null; // The id of a lead that is shown, listed or not.
    this.nextPage = '';
    this.heard = 0; // When the server last said something.
    this.state = { state: 'connecting' };
    this.stopped = new AbortController();
    this.session = null;
    this.failed = null; // Why the session was given up, where it was not the stream's fault.
    this.hidden = null;
    this.wake = () => {};
    document.addEventListener('visibilitychange', () => this.look(), { signal: this.stopped.signal });
    addEventListener('online', () => this.retry(), { signal: this.stopped.signal });
    this.watchdog = setInterval(() => this.check(), 1000);
    this.run();
  }

  stop() {
    this.stopped.abort();
    this.session?.abort();
    clearInterval(this.watchdog);
    clearTimeout(this.hidden);
    this.wake();
  }

  /** Tries again at once. */
  retry() {
    this.wake();
  }

  set(state, more = {}) {
    if (this.stopped.signal.aborted) return;
    this.state = { state, since: this.heard, ...more };
    this.onState(this.state);
  }

  async run() {
    for (let failures = 0; !this.stopped.signal.aborted;) {
      let error;
      try {
        this.session = new AbortController();
        await this.watch(this.session.signal, () => { failures = 0; });
      } catch (caught) {
        error = this.failed ?? caught;
      }
      this.failed = null;
      this.session.abort();
      if (this.stopped.signal.aborted) return;
      if (document.hidden && this.hidden === 'over') {
        this.set('paused');
        await this.sleep(2 ** 31 - 1);
        failures = 0;
        this.set('connecting');
        continue;
      }
      if (error instanceof RpcError && error.isFinal) {
        this.set('refused', { error });
        await this.sleep(2 ** 31 - 1);
        this.set('connecting');
        continue;
      }
      if (!(error instanceof RpcError) && error?.name !== 'AbortError' && error !== undefined) console.error(error);
      const wait = BACKOFF_MS[Math.min(failures, BACKOFF_MS.length - 1)] * (0.5 + Math.random());
      if (failures++ > 0) this.set('waiting', { error, retryAt: Date.now() + wait });
      await this.sleep(wait);
    }
  }

  sleep(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wake = () => { clearTimeout(timer); resolve(); };
    });
  }

  /** One connection, to its end. */
  async watch(signal, onLive) {
    const request = { workspaceId: this.model.workspace, skipInitial: true, heartbeatInterval: HEARTBEAT_S };
    for await (const message of stream('WatchLeads', request, signal)) {
      this.heard = Date.now();
      if (message.synced) {
        this.model.begin();
        this.load(signal).then(() => { onLive(); this.set('live'); }, (error) => this.fail(error));
      } else if (message.snapshot) {
        const { lead, reason } = message.snapshot;
        if (lead.version === 0) this.model.remove(lead.leadId);
        else this.model.put(lead, { anew: reason !== REASON_INITIAL, update: { changes: [], changesTruncated: true } });
      } else if (message.update) {
        this.model.put(message.update.lead, { update: message.update });
      }
      if (this.state.state === 'stale') this.set('live');
    }
  }

  fail(error) {
    this.failed = error;
    this.session?.abort();
  }

  /** Lists the leads anew, and forgets those that are not there any more. */
  async load(signal) {
    this.nextPage = '';
    await this.pages(signal);
    const kept = this.keep !== null && this.model.get(this.keep);
    if (kept && kept.epoch !== this.model.epoch) await this.fetch(this.keep, signal);
    this.model.sweep();
  }

  /** Lists the leads after those that are known. */
  async pages(signal = this.session?.signal) {
    for (const pageSize of PAGES) {
      const request = { workspaceId: this.model.workspace, pageSize, pageToken: this.nextPage };
      const page = await call('ListLeads', request, signal);
      for (const lead of page.leads) this.model.put(lead);
      this.nextPage = page.nextPageToken;
      if (this.nextPage === '') return;
    }
  }

  /** Reads one lead, listed or not; `null` if there is none. */
  async fetch(id, signal = this.session?.signal) {
    try {
      const { lead } = await call('GetLead', { leadId: id }, signal);
      this.model.put(lead);
      return lead;
    } catch (error) {
      if (error instanceof RpcError && error.isFinal && error.code === Code.NOT_FOUND) return null;
      throw error;
    }
  }

  check() {
    const silent = Date.now() - this.heard;
    if (this.state.state === 'live' && silent > DOUBT_MS) this.set('stale');
    // Connecting counts from here on too: a peer that does not answer is no better than none.
    if (this.state.state === 'stale' && silent > DEAD_MS) this.session?.abort();
    if (this.state.state === 'stale' || this.state.state === 'waiting') this.onState(this.state);
  }

  /** The tab was hidden, or is seen again. */
  look() {
    if (document.hidden) {
      this.hidden = setTimeout(() => {
        this.hidden = 'over';
        this.session?.abort();
      }, HIDDEN_MS);
      return;
    }
    const wasOver = this.hidden === 'over';
    clearTimeout(this.hidden);
    this.hidden = null;
    if (wasOver || this.state.state === 'waiting') this.retry();
  }
}
