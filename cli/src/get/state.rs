//! What a watch has told so far, and what each of its events means for what is shown.
//!
//! Pure. An event of the wire concerns one item; a row may stand for several (the endpoints of a Service), so this
//! keeps items by group and says which group changed and how.

use super::show::{Item, Key};
use std::collections::{BTreeMap, HashMap, HashSet};

/// One event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The item is new or different.
    Updated(Item),
    /// The item of this name is gone.
    Removed(Key),
    /// All that existed at the start, or since the last reset, has been told.
    Synced,
    /// What follows is told from the start again.
    Reset,
}

/// What happened to a group; the words are those of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is new.
    Added,
    /// It is different.
    Modified,
    /// It is gone.
    Deleted,
}

/// The items of a watch by group.
#[derive(Debug, Default)]
pub struct State {
    groups: BTreeMap<Key, BTreeMap<Key, Item>>,
    group_of: HashMap<Key, Key>,
    /// After a reset: what has not been told again.
    stale: HashSet<Key>,
}

/// A group that changed, with the items it has, or had if it was deleted.
#[derive(Debug, PartialEq)]
pub struct Changed {
    /// How.
    pub event: Event,
    /// Which.
    pub group: Key,
    /// Its items.
    pub items: Vec<Item>,
}

impl Event {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Event::Added => "ADDED",
            Event::Modified => "MODIFIED",
            Event::Deleted => "DELETED",
        }
    }
}

impl State {
    /// Takes in one event. Events that change nothing, such as an item told again, give nothing.
    pub fn apply(&mut self, change: Change) -> Vec<Changed> {
        match change {
            Change::Updated(item) => self.update(item).into_iter().collect(),
            Change::Removed(key) => self.remove(&key).into_iter().collect(),
            Change::Reset => {
                self.stale = self.group_of.keys().cloned().collect();
                Vec::new()
            }
            Change::Synced => {
                let mut stale: Vec<Key> = self.stale.drain().collect();
                stale.sort();
                stale.iter().filter_map(|key| self.remove(key)).collect()
            }
        }
    }

    /// Everything, by group.
    pub fn groups(&self) -> impl Iterator<Item = (&Key, impl Iterator<Item = &Item> + Clone)> {
        self.groups.iter().map(|(key, items)| (key, items.values()))
    }

    fn update(&mut self, item: Item) -> Option<Changed> {
        let (key, group) = (item.key(), item.group());
        self.stale.remove(&key);
        self.group_of.insert(key.clone(), group.clone());
        let is_new = !self.groups.contains_key(&group);
        let items = self.groups.entry(group.clone()).or_default();
        if items.get(&key) == Some(&item) {
            return None;
        }
        items.insert(key, item);
        let event = if is_new { Event::Added } else { Event::Modified };
        Some(Changed { event, group, items: items.values().cloned().collect() })
    }

    fn remove(&mut self, key: &Key) -> Option<Changed> {
        self.stale.remove(key);
        let group = self.group_of.remove(key)?;
        let items = self.groups.get_mut(&group)?;
        let removed = items.remove(key)?;
        if items.is_empty() {
            self.groups.remove(&group);
            return Some(Changed { event: Event::Deleted, group, items: vec![removed] });
        }
        Some(Changed { event: Event::Modified, items: items.values().cloned().collect(), group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::proto::discovery::Endpoint;
    use api::proto::inspect::{Object, ObjectKey, object};

    fn endpoint(service: &str, address: &str, ready: bool) -> Item {
        let name = format!("{service}/{address}");
        let endpoint = Endpoint {
            namespace: "shop".into(),
            service: service.into(),
            address: address.into(),
            ready,
            ..Default::default()
        };
        Item::Object(Box::new(Object {
            key: Some(ObjectKey { namespace: "shop".into(), name }),
            kind: Some(object::Kind::Endpoint(endpoint)),
            ..Default::default()
        }))
    }

    /// Applies one change; says what happened to which group and how many items it has.
    fn apply(state: &mut State, change: Change) -> Vec<(Event, String, usize)> {
        let changed = state.apply(change).into_iter();
        changed.map(|changed| (changed.event, changed.group.name, changed.items.len())).collect()
    }

    #[test]
    fn a_group_is_added_with_its_first_item_and_deleted_with_its_last() {
        let mut state = State::default();
        let (one, two) = (endpoint("web", "10.0.0.1", true), endpoint("web", "10.0.0.2", true));
        let not_ready = endpoint("web", "10.0.0.1", false);
        let steps = [
            (Change::Updated(one.clone()), vec![(Event::Added, "web".to_owned(), 1)]),
            (Change::Updated(two.clone()), vec![(Event::Modified, "web".into(), 2)]),
            (Change::Updated(two.clone()), vec![]),
            (Change::Updated(not_ready), vec![(Event::Modified, "web".into(), 2)]),
            (Change::Synced, vec![]),
            (Change::Removed(one.key()), vec![(Event::Modified, "web".into(), 1)]),
            (Change::Removed(one.key()), vec![]),
            (Change::Removed(two.key()), vec![(Event::Deleted, "web".into(), 1)]),
        ];
        for (at, (change, expected)) in steps.into_iter().enumerate() {
            assert_eq!(apply(&mut state, change), expected, "step {at}");
        }
        assert_eq!(state.groups().count(), 0);
    }

    #[test]
    fn after_a_reset_only_differences_show() {
        let mut state = State::default();
        for name in ["a", "b", "c"] {
            state.apply(Change::Updated(endpoint(name, "10.0.0.1", true)));
        }
        assert_eq!(apply(&mut state, Change::Reset), []);
        assert_eq!(apply(&mut state, Change::Updated(endpoint("a", "10.0.0.1", true))), []);
        let changed = apply(&mut state, Change::Updated(endpoint("b", "10.0.0.1", false)));
        assert_eq!(changed, [(Event::Modified, "b".to_owned(), 1)]);
        assert_eq!(apply(&mut state, Change::Synced), [(Event::Deleted, "c".to_owned(), 1)]);
        assert_eq!(apply(&mut state, Change::Synced), []);
    }
}
