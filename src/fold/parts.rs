//! The parts of one event, each identity once, and none looked for one by one: a body holds a hundred thousand of them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use super::limits::at_most;
use super::merge;
use crate::event::Refusal;
use crate::lead::{Addition, ChecklistItem, Document, Mention, MessageTally};

/// Fewer keys are found faster by looking at each.
const FEW: usize = 16;

/// Numbers keys in the order in which they come.
#[derive(Debug)]
pub(super) struct Index<K> {
    keys: Vec<K>,
    /// Empty while the keys are few.
    positions: HashMap<K, usize>,
}

impl<K: Hash + Eq + Clone> Index<K> {
    pub(super) fn new() -> Self {
        Self { keys: Vec::new(), positions: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn position<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        if self.keys.len() <= FEW { self.keys.iter().position(|known| known.borrow() == key) } else { self.positions.get(key).copied() }
    }

    /// Adds a key that is not there yet.
    pub(super) fn push(&mut self, key: K) {
        self.keys.push(key);
        if self.keys.len() > FEW {
            let known = self.positions.len();
            self.positions.extend(self.keys.iter().cloned().enumerate().skip(known).map(|(at, key)| (key, at)));
        }
    }

    pub(super) fn into_keys(self) -> Vec<K> {
        self.keys
    }
}

/// The messages of an action, by channel and direction.
#[derive(Debug)]
pub(super) struct Tallies<'a>(Index<(&'a str, &'a str)>, Vec<u64>);

impl<'a> Tallies<'a> {
    pub(super) fn new() -> Self {
        Self(Index::new(), Vec::new())
    }

    pub(super) fn add(&mut self, channel: &'a str, direction: &'a str, path: impl FnOnce() -> String) -> Result<(), Refusal> {
        match self.0.position(&(channel, direction)) {
            Some(at) => self.1[at] += 1,
            None => {
                at_most(self.0.len(), path)?;
                self.0.push((channel, direction));
                self.1.push(1);
            }
        }
        Ok(())
    }

    pub(super) fn sorted(self) -> Vec<MessageTally> {
        let pairs = self.0.into_keys().into_iter().zip(self.1);
        let tally = |((channel, direction), count): ((&str, &str), u64)| MessageTally {
            channel: channel.to_owned(),
            direction: direction.to_owned(),
            count,
        };
        let mut tallies: Vec<_> = pairs.map(tally).collect();
        tallies.sort();
        tallies
    }
}

/// The documents that one event speaks of.
#[derive(Debug)]
pub(super) struct Documents(Index<String>, Vec<Vec<Mention>>);

impl Documents {
    pub(super) fn new() -> Self {
        Self(Index::new(), Vec::new())
    }

    /// Adds what was said of a document; without an id it is none.
    pub(super) fn add(
        &mut self,
        document_id: &str,
        mention: impl FnOnce() -> Mention,
        path: impl FnOnce() -> String,
    ) -> Result<(), Refusal> {
        if document_id.is_empty() {
            return Ok(());
        }
        match self.0.position(document_id) {
            Some(at) => self.1[at].push(mention()),
            None => {
                at_most(self.0.len(), path)?;
                self.0.push(document_id.to_owned());
                self.1.push(vec![mention()]);
            }
        }
        Ok(())
    }

    /// Their ids, in the order in which they came.
    pub(super) fn ids(&self) -> Vec<String> {
        self.0.keys.clone()
    }

    pub(super) fn additions(self) -> impl Iterator<Item = Addition> {
        let documents = self.0.into_keys().into_iter().zip(self.1);
        documents.map(|(document_id, mentions)| {
            Addition::Document(Document { document_id, mentions: merge::mentions(mentions), extraction: None, version: 0 })
        })
    }
}

/// The items of a checklist, of each the one that stands.
#[derive(Debug)]
pub(super) struct Items(Index<String>, Vec<ChecklistItem>);

impl Items {
    pub(super) fn new() -> Self {
        Self(Index::new(), Vec::new())
    }

    pub(super) fn add(&mut self, item: ChecklistItem, path: impl FnOnce() -> String) -> Result<(), Refusal> {
        match self.0.position(&item.item_id) {
            Some(at) if merge::item_stands_over(&item, &self.1[at]) => self.1[at] = item,
            Some(_) => {}
            None => {
                at_most(self.0.len(), path)?;
                self.0.push(item.item_id.clone());
                self.1.push(item);
            }
        }
        Ok(())
    }

    pub(super) fn additions(self) -> impl Iterator<Item = Addition> {
        self.1.into_iter().map(Addition::ChecklistItem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_however_many_there_are() {
        let mut index = Index::new();
        for key in 0..100_u32 {
            assert_eq!(index.position(&key), None);
            index.push(key);
            for known in 0..=key {
                assert_eq!(index.position(&known), Some(known as usize));
            }
        }
        assert_eq!((index.len(), index.into_keys()), (100, (0..100).collect()));
    }
}
