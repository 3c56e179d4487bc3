//! Who is how a member of the cluster's etcd.
//!
//! A machine whose data begins either is among the first members, or joins those that are there,
//! one after the other. What was chosen stays with its data, since it may have been written down and
//! not been read yet when an `up` broke off.

use std::collections::BTreeSet;

use super::{Action, Inventory, Known, Plan, Step};
use crate::cluster::{Cluster, Discovery, Profile};
use crate::etcd;
use crate::state::record::{AccelRecord, EtcdRecord};

impl Plan {
    /// Chooses for all machines whose data begins. What is to become of each is final by now.
    pub fn choose_members(&mut self, cluster: &Cluster, inventory: &Inventory) {
        let names: Vec<&str> = etcd::members(cluster).collect();
        for step in &mut self.steps {
            if let Some(record) = &mut step.record
                && !names.contains(&step.name.as_str())
            {
                record.etcd = None;
            }
        }
        if names.is_empty() {
            return;
        }
        let fresh: BTreeSet<String> = self
            .steps
            .iter()
            .filter(|step| names.contains(&step.name.as_str()) && is_fresh(step))
            .map(|step| step.name.clone())
            .collect();
        // Those whose data is there.
        let mut members: Vec<String> = names
            .iter()
            .filter(|name| !fresh.contains(**name) && is_member(name, inventory))
            .map(|name| (*name).to_owned())
            .collect();
        let joins = !members.is_empty();
        let founders: Vec<String> = names
            .iter()
            .filter(|name| fresh.contains(**name))
            .map(|name| (*name).to_owned())
            .collect();
        let slow = self.any_emulated(&names, inventory);
        let token = self.token.clone();
        for name in &founders {
            members = match joins {
                true => members.into_iter().chain([name.clone()]).collect(),
                false => founders.clone(),
            };
            let record = EtcdRecord {
                token: token.clone(),
                joins,
                members: members.clone(),
                slow,
                discovery: discovery(cluster).and_then(|discovery| match discovery {
                    Discovery::At(url) if !joins => Some(url.clone()),
                    Discovery::At(_) | Discovery::New(_) => None,
                }),
                joined: false,
            };
            let step = self.steps.iter_mut().find(|step| step.name == *name);
            if let Some(chosen) = step.and_then(|step| step.record.as_mut()) {
                chosen.etcd = Some(record);
            }
        }
        if joins {
            self.joiners = founders;
        }
    }

    /// The first members that a discovery server has to give a token for, and its address.
    pub fn to_discover<'a>(&self, cluster: &'a Cluster) -> Option<(&'a str, usize)> {
        let Some(Discovery::New(url)) = discovery(cluster) else {
            return None;
        };
        let founders = self.founders().count();
        (founders > 0).then_some((url, founders))
    }

    /// The first members find each other there.
    pub fn discovered(&mut self, url: &str) {
        for step in &mut self.steps {
            if let Some(record) = &mut step.record
                && is_started(step.action)
                && let Some(etcd) = &mut record.etcd
                && !etcd.joins
                && etcd.discovery.is_none()
            {
                etcd.discovery = Some(url.to_owned());
            }
        }
    }

    fn founders(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| {
            let etcd = step.record.as_ref().and_then(|record| record.etcd.as_ref());
            let is_new = matches!(step.action, Action::Create | Action::Recreate);
            is_new && etcd.is_some_and(|etcd| !etcd.joins && etcd.discovery.is_none())
        })
    }

    fn any_emulated(&self, names: &[&str], inventory: &Inventory) -> bool {
        names.iter().any(|name| {
            let step = self.steps.iter().find(|step| step.name == *name);
            let chosen = step.and_then(|step| step.record.as_ref());
            let known = match inventory.machines.get(*name) {
                Some(Known::Whole { record, .. }) => Some(record.as_ref()),
                Some(Known::Damaged { .. }) | None => None,
            };
            chosen
                .or(known)
                .is_some_and(|record| record.accel == AccelRecord::Tcg)
        })
    }
}

fn discovery(cluster: &Cluster) -> Option<&Discovery> {
    cluster
        .machines
        .iter()
        .find_map(|machine| match &machine.profile {
            Profile::Etcd { discovery } => discovery.as_ref(),
            Profile::Basic | Profile::Own(_) | Profile::None => None,
        })
}

fn is_started(action: Action) -> bool {
    match action {
        Action::Create | Action::Recreate | Action::Start | Action::Restart => true,
        Action::Keep | Action::Change | Action::Remove => false,
    }
}

/// Whether the machine begins without data: what is in memory alone is gone with the process. So
/// begins one that was to join and has not come so far.
fn is_fresh(step: &Step) -> bool {
    match step.action {
        Action::Create | Action::Recreate => true,
        Action::Start | Action::Restart => step.record.as_ref().is_some_and(|record| {
            let is_out = |etcd: &EtcdRecord| etcd.joins && !etcd.joined;
            record.disk.is_none() || record.etcd.as_ref().is_none_or(is_out)
        }),
        Action::Keep | Action::Change | Action::Remove => false,
    }
}

/// Whether the machine is there, as a member.
fn is_member(name: &str, inventory: &Inventory) -> bool {
    match inventory.machines.get(name) {
        Some(Known::Whole { record, .. }) => record.etcd.is_some(),
        Some(Known::Damaged { .. }) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::spec::{Context, Scale, load};
    use crate::state::record::{MachineRecord, StateRecord};

    /// A cluster of so many members.
    fn cluster(count: u32) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let spec = folder.path().join("kiln.yaml");
        let text = format!(
            "cluster: demo\nimage: {{kernel: kiln.yaml}}\nmachines: {{node: {{count: {count}, profile: etcd}}}}\n"
        );
        std::fs::write(&spec, text).unwrap();
        let context = Context {
            host_arch: kiln_arch::Arch::X86_64,
            home: None,
            config: None,
            scale: Scale::NONE,
            set: &crate::spec::Vars::new(),
        };
        load(&spec, context).unwrap().cluster
    }

    fn record(name: &str, etcd: Option<&EtcdRecord>) -> MachineRecord {
        let value = json!({
            "schema": 1, "name": name, "group": "node", "index": 1, "arch": "x86_64",
            "accel": "kvm", "accel_reason": "", "uuid": "u", "board": null, "qemu": "/qemu",
            "cpus": 1, "memory_mib": 256, "kernel": null, "ignition": true,
            "disk": {"size": 512, "base": {
                "path": "/d", "format": "raw", "length": 512, "file": null, "virtual_size": 512,
                "sha256": null,
            }},
            "mac": "m", "ip": "10.0.0.1", "ports": [], "restart": "no", "image": "i",
            "identity": "i", "reports": true, "etcd": etcd,
        });
        serde_json::from_value(value).unwrap()
    }

    /// `NAME ROLE: MEMBERS` of each machine of a step, after `actions` on machines of which those in
    /// `there` are members already.
    fn chosen(count: u32, actions: &[(u32, Action)], there: &[u32]) -> (Vec<String>, Vec<String>) {
        let old = EtcdRecord {
            token: "t".to_owned(),
            joins: false,
            members: Vec::new(),
            slow: false,
            discovery: None,
            joined: false,
        };
        let name = |index: &u32| format!("node-{index}");
        let known = there.iter().map(|index| {
            let record = record(&name(index), Some(&old));
            let whole = Known::Whole {
                record: Box::new(record),
                run: None,
                state: StateRecord::Ready,
            };
            (name(index), whole)
        });
        let inventory = Inventory {
            machines: known.collect::<BTreeMap<_, _>>(),
            ..Inventory::default()
        };
        let steps = actions.iter().map(|(index, action)| Step {
            name: name(index),
            action: *action,
            why: Vec::new(),
            record: Some(record(&name(index), there.contains(index).then_some(&old))),
            grown: Vec::new(),
            gone: Vec::new(),
        });
        let mut plan = Plan {
            cluster: serde_json::from_value(json!({
                "schema": 1, "name": "demo", "spec": "/s", "mode": "fabric", "mode_reason": "",
                "subnet": "10.0.0.0/24", "domain": "d", "qemu_uid": null, "machines": [],
                "reservations": {},
            }))
            .unwrap(),
            is_new: false,
            network: Vec::new(),
            places_before: BTreeMap::new(),
            steps: steps.collect(),
            disks_before: None,
            joiners: Vec::new(),
            token: "token".to_owned(),
        };
        plan.choose_members(&cluster(count), &inventory);
        let told = plan.steps.iter().map(|step| {
            let etcd = step.record.as_ref().unwrap().etcd.as_ref().unwrap();
            let role = if etcd.joins { "joins" } else { "new" };
            format!("{} {role}: {}", step.name, etcd.members.join(" "))
        });
        (told.collect(), plan.joiners)
    }

    #[test]
    fn the_first_members_know_each_other() {
        let create = [(1, Action::Create), (2, Action::Create)];
        let (told, joiners) = chosen(2, &create, &[]);
        let both = ["node-1 new: node-1 node-2", "node-2 new: node-1 node-2"];
        assert_eq!(told, both);
        assert!(joiners.is_empty());
    }

    #[test]
    fn later_ones_join_one_after_the_other() {
        let actions = [(1, Action::Keep), (2, Action::Create), (3, Action::Create)];
        let (told, joiners) = chosen(3, &actions, &[1]);
        assert_eq!(told[1], "node-2 joins: node-1 node-2");
        assert_eq!(told[2], "node-3 joins: node-1 node-2 node-3");
        assert_eq!(joiners, ["node-2", "node-3"]);
        // One that is made anew joins those that are not in the plan's steps.
        let (told, joiners) = chosen(3, &[(1, Action::Recreate)], &[1, 2, 3]);
        assert_eq!(told, ["node-1 joins: node-2 node-3 node-1"]);
        assert_eq!(joiners, ["node-1"]);
    }

    #[test]
    fn data_that_is_there_keeps_its_choice() {
        let actions = [(1, Action::Start), (2, Action::Restart), (3, Action::Keep)];
        let (told, joiners) = chosen(3, &actions, &[1, 2, 3]);
        assert_eq!(told, ["node-1 new: ", "node-2 new: ", "node-3 new: "]);
        assert!(joiners.is_empty());
    }
}
