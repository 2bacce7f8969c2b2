//! A plain fold: everything in memory, every number counted from scratch at the end.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use leadfold::fold::merge;
use leadfold::lead::{Activity, Change, Detail, Lead};

/// Which of two tellings of one action is kept, in words of its own: a completed one, else a failed one; of these one that told
/// its time; of these the latest; of those that did not, the first received.
fn outranks(new: &Activity, old: &Activity) -> bool {
    let words = |activity: &Activity| {
        let status = ["COMPLETED", "FAILED"].iter().position(|status| *status == activity.status).map_or(0, |position| 2 - position);
        let time = activity.time.micros();
        (status, activity.timed, if activity.timed { time } else { -time })
    };
    match words(new).cmp(&words(old)) {
        // Which of two that differ in content alone is nowhere promised, but has to be the same for both stores.
        Ordering::Equal => merge::supersedes(new, old),
        order => order == Ordering::Greater,
    }
}

#[derive(Default)]
pub struct Reference {
    leads: BTreeMap<String, Parts>,
}

#[derive(Default)]
struct Parts {
    workspace_id: String,
    activities: BTreeMap<String, Activity>,
    details: Vec<Detail>,
}

impl Reference {
    pub fn of(changes: impl Iterator<Item = Change>) -> Self {
        let mut reference = Self::default();
        for change in changes {
            let parts = reference.leads.entry(change.lead_id).or_default();
            parts.workspace_id = change.workspace_id.unwrap_or(std::mem::take(&mut parts.workspace_id));
            if let Some(activity) = change.activity
                && parts.activities.get(&activity.action_id).is_none_or(|old| outranks(&activity, old))
            {
                parts.activities.insert(activity.action_id.clone(), activity);
            }
            for addition in change.additions {
                let old = parts.details.iter().position(|detail| detail.key() == addition.key());
                let Some(new) = merge::detail(old.map(|at| &parts.details[at]), &addition) else { continue };
                match old {
                    Some(at) => parts.details[at] = new,
                    None => parts.details.push(new),
                }
            }
        }
        reference
    }

    pub fn lead(&self, lead_id: &str) -> Option<Lead> {
        let parts = self.leads.get(lead_id)?;
        let mut lead = Lead { lead_id: lead_id.to_owned(), workspace_id: parts.workspace_id.clone(), ..Lead::default() };
        for activity in parts.activities.values() {
            *lead.activity_counts.entry((activity.kind.clone(), activity.status.clone())).or_default() += 1;
            lead.first_activity = Some(lead.first_activity.map_or(activity.time, |first| first.min(activity.time)));
            for tally in if activity.status == "COMPLETED" { &activity.messages[..] } else { &[] } {
                let count = lead.message_counts.entry((tally.channel.clone(), tally.direction.clone())).or_default();
                count.count += tally.count;
                count.latest = count.latest.max(activity.time);
            }
        }
        lead.latest_activity = parts.activities.values().max_by_key(|activity| (activity.time, activity.action_id.clone())).cloned();
        for detail in &parts.details {
            lead.insert(detail.clone());
        }
        lead.sort_documents();
        Some(lead)
    }

    pub fn activities(&self, lead_id: &str) -> Vec<Activity> {
        let mut activities: Vec<_> = self.leads.get(lead_id).into_iter().flat_map(|parts| parts.activities.values().cloned()).collect();
        activities.sort_by_key(|activity| Reverse((activity.time, activity.action_id.clone())));
        activities
    }

    /// The leads, latest activity first.
    pub fn listed(&self) -> Vec<String> {
        let mut leads: Vec<_> =
            self.leads.keys().map(|lead_id| (self.lead(lead_id).and_then(|lead| lead.latest_time()), lead_id.clone())).collect();
        leads.sort_by_key(|place| Reverse(place.clone()));
        leads.into_iter().map(|(_, lead_id)| lead_id).collect()
    }
}
