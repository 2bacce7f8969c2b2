//! What a caller sees of a watched lead. Another workspace's lead looks like one that was never heard of, whatever
//! becomes of it.

use std::sync::Arc;

use crate::auth::Caller;
use crate::watch::State;

/// Whether there is a lead that is not for this caller.
pub(super) fn is_hidden(caller: &Caller, state: &State) -> bool {
    state.lead.version > 0 && !caller.sees(&state.lead.workspace_id)
}

/// Whether it will not be for this caller ever: of a lead whose workspace is not known, more may become known.
pub(super) fn is_foreign(caller: &Caller, state: &State) -> bool {
    !state.lead.workspace_id.is_empty() && is_hidden(caller, state)
}

/// What to show first of a lead.
pub(super) fn first(caller: &Caller, state: Arc<State>) -> Arc<State> {
    if is_hidden(caller, &state) { Arc::new(State::never_heard_of(&state.lead.lead_id)) } else { state }
}

/// What to show next, if anything, to one who was shown the version `sent` last.
pub(super) fn next(caller: &Caller, state: Arc<State>, sent: u64) -> Option<Arc<State>> {
    if caller.sees_all() {
        return Some(state);
    }
    if is_hidden(caller, &state) {
        return (sent > 0).then(|| Arc::new(State::gone(&state.lead.lead_id)));
    }
    // The end of a lead is told to those who knew it.
    (state.lead.version > 0 || sent > 0).then_some(state)
}
