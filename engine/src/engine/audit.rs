//! A naive recount of everything that is kept up to date in passing.
//!
//! Tests and the simulator call it after every step; it is slow and changes nothing.

use super::items::{ItemRef, State};
use super::stable::NodeId;
use super::{Domain, Engine};
use crate::page::{DomainId, PageRun, UserId};
use crate::store::SlotStore;
use std::collections::BTreeMap;

impl<S: SlotStore> Engine<S> {
    /// Recounts all items, lists and slots.
    ///
    /// # Errors
    /// Says what does not agree.
    pub fn audit(&self) -> Result<(), String> {
        let (mut attached, mut unshared) = (0, 0);
        let mut digests: BTreeMap<DomainId, u64> = BTreeMap::new();
        let mut listed: BTreeMap<DomainId, u64> = BTreeMap::new();
        for (id, mm) in self.mms.iter() {
            let mut merging = 0;
            let mut items = 0;
            for (page, item) in mm.items.within(PageRun::EVERYTHING) {
                items += 1;
                if matches!(item.state, State::Known | State::Unstable) {
                    self.audit_digest(ItemRef::new(id, page), item.link)?;
                    *digests.entry(mm.domain).or_default() += 1;
                }
                if item.is_listed() {
                    let numa = mm.items.node(page);
                    let domain = self.domains.get(&mm.domain).ok_or("mm of no domain")?;
                    if !domain.unstable.is_listed(numa, item.link) {
                        return Err(format!("page {page:#x} of mm {id:?} is not listed"));
                    }
                    *listed.entry(mm.domain).or_default() += 1;
                }
                match item.state {
                    State::Absent | State::Volatile | State::Known => {}
                    State::Unstable => unshared += 1,
                    State::Stable => {
                        merging += u64::from(item.is_mapped());
                        self.audit_attached(
                            ItemRef::new(id, page),
                            NodeId(item.link),
                            item.position,
                        )?;
                    }
                }
            }
            agree("items", mm.items.len(), items)?;
            agree("merging pages", mm.merging, merging)?;
            attached += merging;
        }
        agree("attached items", self.tally.attached, attached)?;
        agree("pages_unshared", self.tally.unshared, unshared)?;
        for (id, domain) in &self.domains {
            let counted = digests.get(id).copied().unwrap_or_default();
            agree("digests", domain.unstable.len(), counted)?;
            let counted = listed.get(id).copied().unwrap_or_default();
            agree("listed digests", domain.unstable.listed(), counted)?;
        }
        self.audit_rest()?;
        self.audit_filled()?;
        self.audit_nodes()
    }

    fn audit_digest(&self, item: ItemRef, entry: u32) -> Result<(), String> {
        let mm = self.mms.get(item.mm()).ok_or("item of no mm")?;
        let domain = self.domains.get(&mm.domain).ok_or("mm of no domain")?;
        if domain.unstable.item(entry) == item {
            Ok(())
        } else {
            Err(format!("digest {entry} is not of {item:?}"))
        }
    }

    /// Between two batches nothing is in the making.
    fn audit_rest(&self) -> Result<(), String> {
        if self.ksmd.is_working() {
            return Ok(());
        }
        let foundings = |domain: &Domain| domain.foundings.len() as u64;
        agree("foundings", self.domains.values().map(foundings).sum(), 0)?;
        agree("plans", self.plans.len() as u64, 0)?;
        agree("donations", self.donated.len() as u64, 0)?;
        agree("pages being refiled", self.refiling.under_way(), 0)?;
        agree("orders", self.outbox.has_work().into(), 0)?;
        agree("steps", self.steps.len() as u64, 0)
    }

    /// What each user's quota is charged with.
    fn audit_filled(&self) -> Result<(), String> {
        let mut counted: BTreeMap<UserId, u64> = BTreeMap::new();
        for arena in self
            .domains
            .values()
            .flat_map(|domain| domain.arenas.iter())
        {
            *counted.entry(arena.user()).or_default() += arena.filled();
        }
        counted.retain(|_, slots| *slots > 0);
        if counted == *self.filled.all() {
            Ok(())
        } else {
            Err(format!(
                "filled slots: kept {:?}, counted {counted:?}",
                self.filled.all()
            ))
        }
    }

    fn audit_attached(&self, item: ItemRef, node: NodeId, position: u32) -> Result<(), String> {
        let mm = self.mms.get(item.mm()).ok_or("item of no mm")?;
        let domain = self.domains.get(&mm.domain).ok_or("mm of no domain")?;
        let listed = domain.stable.node(node).items().get(position as usize);
        if listed == Some(&item) {
            Ok(())
        } else {
            Err(format!("{item:?} is not where node {node:?} lists it"))
        }
    }

    fn audit_nodes(&self) -> Result<(), String> {
        let (mut shared, mut listed) = (0, 0);
        for (domain_id, domain) in &self.domains {
            let mut slots = 0;
            domain.stable.audit()?;
            for (id, node) in domain.stable.iter() {
                let founding = domain.foundings.contains_key(&id);
                if node.items().is_empty() && !founding {
                    return Err(format!("stable node {id:?} has no items"));
                }
                shared += u64::from(node.mapped > 0);
                listed += u64::from(node.mapped);
                if let Some(slot) = node.slot {
                    slots += 1;
                    if domain.arenas.node_at(slot) != Some(id) {
                        return Err(format!("{slot:?} is not known to be of node {id:?}"));
                    }
                } else if !founding {
                    return Err(format!("stable node {id:?} has no slot"));
                }
                let (mut mapped, mut living) = (0, 0);
                for item in node.items() {
                    let mm = self
                        .mms
                        .get(item.mm())
                        .ok_or("a node lists an item of no mm")?;
                    if mm.domain != *domain_id {
                        return Err(format!("node {id:?} has an item of another domain"));
                    }
                    let kept = mm.items.get(item.page());
                    mapped += u32::from(kept.is_mapped());
                    living += u64::from(!mm.exiting);
                    if mm.items.node(item.page()) != node.numa && !mm.exiting {
                        return Err(format!("node {id:?} has {item:?} of another NUMA node"));
                    }
                    if kept.state != State::Stable || kept.link != id.0 {
                        return Err(format!("node {id:?} lists {item:?}, which is elsewhere"));
                    }
                }
                agree("mapped items", node.mapped.into(), mapped.into())?;
                agree("living items", node.living().into(), living)?;
                if !founding && !self.ksmd.is_working() {
                    agree("items at rest", node.items().len() as u64, mapped.into())?;
                }
            }
            agree("slots in use", domain.arenas.used(), slots)?;
        }
        agree("pages_shared", self.tally.shared, shared)?;
        agree("listed items", self.tally.attached, listed)
    }
}

fn agree(what: &str, kept: u64, counted: u64) -> Result<(), String> {
    if kept == counted {
        Ok(())
    } else {
        Err(format!("{what}: kept {kept}, counted {counted}"))
    }
}
