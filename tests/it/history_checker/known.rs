//! What a reader was told of one lead, and what is true of it.

use std::collections::{HashMap, HashSet};

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::{Activity, GetLeadRequest, Lead, LeadSnapshot, LeadUpdate, ListActivitiesRequest, SnapshotReason, lead_change::Change};
use tonic::transport::Channel;

use super::writers::Written;

/// What was told of one lead by a chain of streams, each resumed where the one before had ended.
#[derive(Default)]
pub struct Known {
    pub lead: Lead,
    /// Where the chain began; `None`: with changes only.
    base: Option<Lead>,
    /// Each activity that changes told, with its version.
    told: Vec<(String, u64)>,
    /// After and up to which versions changes did not tell all.
    truncated: Vec<(u64, u64)>,
    /// Version, and how many activities the lead counted then.
    counts: Vec<(u64, u64)>,
}

impl Known {
    pub fn version(&self) -> u64 {
        self.lead.version
    }

    pub fn take(&mut self, snapshot: LeadSnapshot) {
        assert_eq!(snapshot.reason(), SnapshotReason::Initial, "{snapshot:?}");
        let lead = snapshot.lead.expect("the lead");
        assert!(self.version() == 0, "a snapshot of {} after version {}", lead.version, self.version());
        self.base = Some(lead.clone());
        self.set(lead);
    }

    pub fn update(&mut self, update: LeadUpdate) {
        let lead = update.lead.expect("the lead");
        assert!(lead.version > self.version(), "{} after {}", lead.version, self.version());
        let mut documents = HashSet::new();
        let mut expected = HashSet::new();
        for change in update.changes {
            assert!(
                change.version > self.version() && change.version <= lead.version,
                "{change:?} between {} and {}",
                self.version(),
                lead.version
            );
            match change.change.expect("a change of a known kind") {
                Change::Activity(activity) => {
                    assert_eq!(activity.version, change.version);
                    expected.extend(activity.document_ids);
                    self.told.push((activity.action_id, activity.version));
                }
                Change::Document(document) => assert!(documents.insert(document.document_id), "a document twice in one message"),
                other => panic!("nobody has written {other:?}"),
            }
        }
        assert!(update.changes_truncated || documents == expected, "documents of activities: {expected:?}, told: {documents:?}");
        if update.changes_truncated {
            self.truncated.push((self.version(), lead.version));
        }
        self.set(lead);
    }

    fn set(&mut self, lead: Lead) {
        self.counts.push((lead.version, counted(&lead)));
        self.lead = lead;
    }
}

fn counted(lead: &Lead) -> u64 {
    lead.activity_counts.iter().map(|counts| counts.count).sum()
}

/// All leads as they are in the end.
pub struct Truth(HashMap<String, (Lead, HashMap<String, Activity>)>);

impl Truth {
    /// `None` if it cannot be read now.
    pub async fn read(mut client: LeadServiceClient<Channel>, leads: &[String]) -> Option<Self> {
        let mut truth = HashMap::new();
        for lead_id in leads {
            let lead = client.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead?;
            let mut activities = HashMap::new();
            let mut request = ListActivitiesRequest { lead_id: lead_id.clone(), page_size: 1000, page_token: String::new() };
            loop {
                let page = client.list_activities(request.clone()).await.ok()?.into_inner();
                activities.extend(page.activities.into_iter().map(|activity| (activity.action_id.clone(), activity)));
                request.page_token = page.next_page_token;
                if request.page_token.is_empty() {
                    break;
                }
            }
            truth.insert(lead_id.clone(), (lead, activities));
        }
        Some(Self(truth))
    }

    pub fn has_all(&self, written: &Written) -> bool {
        written.activities.iter().all(|(lead_id, ids)| ids.iter().all(|id| self.0[lead_id].1.contains_key(id)))
    }

    pub fn leads(&self) -> impl Iterator<Item = &Lead> {
        self.0.values().map(|(lead, _)| lead)
    }

    /// What was told is true, told once, and all there is from the beginning of the chain to its end.
    pub fn check(&self, known: &Known) {
        let Some((lead, activities)) = self.0.get(&known.lead.lead_id) else { panic!("nobody has written {:?}", known.lead) };
        assert_eq!(counted(lead), activities.len() as u64);
        let mut told = HashSet::new();
        for (id, version) in &known.told {
            assert!(told.insert((id.as_str(), *version)), "{id} of version {version} was told twice");
            let activity = &activities[id];
            // A tool call that was tried again has a version of each attempt.
            assert!(
                activity.version == *version || activity.version > *version && activity.r#type == "TOOL_CALL",
                "{version} of {activity:?}"
            );
        }
        if let Some(base) = &known.base {
            for activity in activities.values().filter(|activity| activity.version > base.version && activity.version <= known.version()) {
                let of = (activity.action_id.as_str(), activity.version);
                let excused = known.truncated.iter().any(|(after, upto)| (after + 1..=*upto).contains(&activity.version));
                assert!(excused || told.contains(&of), "{of:?} was not told between {} and {} of {lead:?}", base.version, known.version());
            }
            let ids: HashSet<&str> = told.iter().map(|(id, _)| *id).collect();
            // An activity whose second attempt was told may have been in the snapshot with its first.
            let repeated = ids.iter().filter(|id| activities[**id].r#type == "TOOL_CALL").count() as u64;
            let whole = counted(&known.lead);
            let sum = counted(base) + ids.len() as u64;
            assert!(
                !known.truncated.is_empty() || sum >= whole && sum - repeated <= whole,
                "{} and {} do not make {whole}",
                counted(base),
                ids.len()
            );
        }
        for (version, count) in &known.counts {
            let mail = activities.values().filter(|activity| activity.r#type == "MESSAGE" && activity.version <= *version).count() as u64;
            let tools = activities.values().filter(|activity| activity.r#type == "TOOL_CALL").count() as u64;
            assert!((mail..=mail + tools).contains(count), "{count} activities at {version}, of {mail} messages and {tools} tool calls");
        }
    }
}
