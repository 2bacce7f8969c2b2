//! The keys of the Redis store, and what they hold.
//!
//! Leads hash into a fixed number of partitions. All keys of a partition carry its number as their hash tag,
//! so that one script changes a lead, its workspace's index and the change feed in one atomic step, in a
//! cluster too. With the default prefix and lead `L` in partition 12:
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `leadfold:{12}:lead:L` | hash | `v` version, `w` workspace, `f` first and `l` latest time (µs), `i` latest action, `n` activities kept and, once some were trimmed, behind a blank the greatest time of these, `o` version of the last activity that came late, `a\|TYPE\|STATUS` and `m\|CHANNEL\|DIRECTION` counts, `t\|CHANNEL\|DIRECTION` latest message times. A deleted lead has only `v`=`x`, and in `x` the time in ms |
//! | `leadfold:{12}:history:L` | hash | `0`+action id: an activity's record; of one longer than 64 bytes the first piece, the others under `1`, `2`, `3` |
//! | `leadfold:{12}:timeline:L` | sorted set | action id by time (µs); only for leads with more than 128 activities |
//! | `leadfold:{12}:details:L` | hash | `d`+document id, `p`+profile field, `c`+checklist item id, `k` completion: their records |
//! | `leadfold:{12}:index:W` | sorted set | leads of workspace `W` by latest activity (µs), 0 if there is none |
//! | `leadfold:{12}:feed` | stream | an entry for each change; `c` is `VERSION BEFORE N WORKSPACE LEAD`: the new version (0: deleted), the one before (0: new), how many bytes the workspace has, the workspace, the lead |
//! | `leadfold:config` | hash | `layout` and `partitions`, written where it is missing |
//! | `leadfold:{12}:config` | hash | the same, in a cluster: for each partition, so that no shard has to be asked about another one's |
//!
//! Measured by `cargo bench --bench throughput`, Redis 7.0 on two virtual cores that it shares with its clients: a lead with 20
//! activities and 3 documents takes 2.5 KB; an event takes 24 to 28 µs of script time under load, of which its six commands are
//! a third.
//!
//! Ids within a lead are packed: a UUID is 16 bytes. `store/record.rs` has the records.

use xxhash_rust::xxh3::xxh3_64;

use super::route;

/// Changes when the keys or records change so that older versions cannot read them.
pub(super) const LAYOUT: &str = "1";

/// Names the keys of one deployment.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    partitions: u16,
}

impl Keys {
    pub(super) fn new(prefix: &str, partitions: u16) -> Self {
        Self { prefix: prefix.to_owned(), partitions: partitions.max(1) }
    }

    pub(super) const fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The partition of a lead. Stable for ever: stored data depends on it.
    pub(super) fn partition(&self, lead_id: &str) -> u16 {
        u16::try_from(xxh3_64(lead_id.as_bytes()) % u64::from(self.partitions)).unwrap_or(0)
    }

    /// The slot of everything in a partition.
    pub(super) fn slot(&self, partition: u16) -> u16 {
        route::slot(&format!("{{{partition}}}"))
    }

    pub(super) fn config(&self) -> String {
        format!("{}:config", self.prefix)
    }

    /// In a cluster.
    pub(super) fn config_of(&self, partition: u16) -> String {
        format!("{}:{{{partition}}}:config", self.prefix)
    }

    pub(super) fn feed(&self, partition: u16) -> String {
        format!("{}:{{{partition}}}:feed", self.prefix)
    }

    pub(super) fn index(&self, partition: u16, workspace_id: &str) -> String {
        format!("{}:{{{partition}}}:index:{workspace_id}", self.prefix)
    }

    /// The first of a lead's keys.
    pub(super) fn lead_key(&self, lead_id: &str) -> String {
        self.key(self.partition(lead_id), "lead", lead_id)
    }

    fn key(&self, partition: u16, kind: &str, lead_id: &str) -> String {
        format!("{}:{{{partition}}}:{kind}:{lead_id}", self.prefix)
    }

    pub(super) fn lead(&self, lead_id: &str) -> LeadKeys {
        let partition = self.partition(lead_id);
        let key = |kind: &str| self.key(partition, kind, lead_id);
        LeadKeys { partition, lead: key("lead"), history: key("history"), timeline: key("timeline"), details: key("details") }
    }
}

/// The keys of one lead.
#[derive(Debug)]
pub(super) struct LeadKeys {
    pub(super) partition: u16,
    pub(super) lead: String,
    pub(super) history: String,
    pub(super) timeline: String,
    pub(super) details: String,
}

/// A field of a lead's hash that is named by two words.
pub(super) fn pair_field(kind: char, pair: (&str, &str)) -> String {
    // Words are the sender's: a `|` of theirs must not part them elsewhere.
    let escaped = |word: &str| word.replace('%', "%25").replace('|', "%7C");
    format!("{kind}|{}|{}", escaped(pair.0), escaped(pair.1))
}

/// The kind and the two words of a field, if it is named so.
pub(super) fn split_pair_field(field: &str) -> Option<(char, (String, String))> {
    let mut parts = field.split('|');
    let (kind, first, second) = (parts.next()?, parts.next()?, parts.next()?);
    let plain = |word: &str| word.replace("%7C", "|").replace("%25", "%");
    Some((kind.chars().next()?, (plain(first), plain(second))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_sender_do_not_part_a_field() {
        for pair in [("MESSAGE", "COMPLETED"), ("A|B", "C"), ("A", "B|C"), ("%7C", "%"), ("", "")] {
            let (kind, words) = split_pair_field(&pair_field('a', pair)).expect("a pair");
            assert_eq!((kind, words.0.as_str(), words.1.as_str()), ('a', pair.0, pair.1));
        }
        assert_ne!(pair_field('a', ("A|B", "C")), pair_field('a', ("A", "B|C")));
    }

    #[test]
    fn partitions_are_stable() {
        let keys = Keys::new("leadfold", 64);
        assert_eq!(keys.partition("4cc8af99-b313-4c1f-b98b-009f38a4721a"), keys.partition("4cc8af99-b313-4c1f-b98b-009f38a4721a"));
        assert_eq!(keys.lead("L{9}").lead, format!("leadfold:{{{}}}:lead:L{{9}}", keys.partition("L{9}")));
    }
}
