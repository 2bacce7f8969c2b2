// What the page remembers: the theme and the workspaces for good, the token until the tab is closed.

const RECENT = 5;

function read(storage, key) {
  try {
    return storage().getItem(`leadfold.${key}`);
  } catch {
    return null; // Storage is forbidden: nothing is remembered.
  }
}

function write(storage, key, value) {
  try {
    if (value === null) storage().removeItem(`leadfold.${key}`);
    else storage().setItem(`leadfold.${key}`, value);
  } catch {
    // See above.
  }
}

const forGood = () => localStorage;
const forTheTab = () => sessionStorage;

let token = read(forTheTab, 'token') ?? '';

export const settings = {
  get token() {
    return token;
  },
  set token(value) {
    token = value;
    write(forTheTab, 'token', value || null);
  },

  /** Workspaces that were watched, the last one first. */
  get workspaces() {
    try {
      const ids = JSON.parse(read(forGood, 'workspaces') ?? '[]');
      return Array.isArray(ids) ? ids.filter((id) => typeof id === 'string' && id !== '').slice(0, RECENT) : [];
    } catch {
      return [];
    }
  },
  remember(workspace) {
    const others = this.workspaces.filter((id) => id !== workspace);
    write(forGood, 'workspaces', JSON.stringify([workspace, ...others].slice(0, RECENT)));
  },

  /** `light`, `dark`, or `auto`: as the system. */
  get theme() {
    return document.documentElement.dataset.theme ?? 'auto';
  },
  set theme(theme) {
    if (theme === 'auto') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    write(forGood, 'theme', theme === 'auto' ? null : theme);
  },
};
