//! A plan as `kiln plan` shows it, for people and for programs.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::{Action, Plan, Step};
use crate::report::view::ShareView;
use crate::state::record::ShareRecord;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cluster {}: network {}",
            self.cluster.name,
            self.cluster.mode_text()
        )?;
        if let Some(subnet) = self.cluster.own_subnet() {
            write!(f, ", {subnet}")?;
        }
        writeln!(f)?;
        for what in &self.network {
            writeln!(f, "  {:<9} network: {what} (while it runs)", "change")?;
        }
        if let Some(group) = self.volume_group() {
            writeln!(f, "  disks are volumes of group {group}")?;
        }
        for step in &self.steps {
            write!(f, "  {:<9} {}", step.action.word(), step.name)?;
            if let Some(record) = &step.record {
                match self.cluster.mode.gives_addresses() {
                    true => write!(f, " ({}, {})", record.arch, record.ip)?,
                    false => write!(f, " ({}, {})", record.arch, record.mac)?,
                }
            }
            writeln!(f)?;
            let settled = step.action == Action::Keep && step.why.is_empty();
            for share in record_shares(step).filter(|_| !settled) {
                writeln!(f, "            share {share}")?;
            }
            for why in &step.why {
                writeln!(f, "            {why}")?;
            }
        }
        if self.is_settled() {
            writeln!(f, "nothing to do")?;
        }
        Ok(())
    }
}

fn record_shares(step: &Step) -> impl Iterator<Item = &ShareRecord> {
    step.record.iter().flat_map(|record| &record.shares)
}

impl fmt::Display for ShareRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readonly = if self.readonly { ", read-only" } else { "" };
        let (from, to, by) = (self.from.display(), &self.to, self.word());
        write!(f, "{from} on {to}{readonly}, by {by}")?;
        match self.reason.as_str() {
            "" => Ok(()),
            why => write!(f, " ({why})"),
        }
    }
}

/// A plan for programs: `kiln plan --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanView {
    pub cluster: String,
    /// Absent, as a machine's address, where another one gives addresses.
    pub subnet: Option<Ipv4Net>,
    pub changes: bool,
    /// What changes of what the machines are told of their network.
    pub network: Vec<&'static str>,
    /// Where disks are logical volumes: their group.
    pub volume_group: Option<String>,
    pub machines: Vec<StepView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepView {
    pub name: String,
    pub action: &'static str,
    pub why: Vec<String>,
    /// Absent, as what follows, for a machine that goes.
    pub arch: Option<String>,
    pub ip: Option<Ipv4Addr>,
    pub mac: Option<String>,
    pub shares: Vec<ShareView>,
}

impl Plan {
    fn volume_group(&self) -> Option<&str> {
        let records = self.steps.iter().filter_map(|step| step.record.as_ref());
        let mut volumes = records.flat_map(|record| record.volumes());
        volumes.next().map(|(_, volume)| volume.group.as_str())
    }

    pub fn view(&self) -> PlanView {
        PlanView {
            cluster: self.cluster.name.clone(),
            subnet: self.cluster.own_subnet(),
            changes: !self.is_settled(),
            network: self.network.clone(),
            volume_group: self.volume_group().map(str::to_owned),
            machines: self
                .steps
                .iter()
                .map(|step| {
                    let record = step.record.as_ref();
                    StepView {
                        name: step.name.clone(),
                        action: step.action.word(),
                        why: step.why.clone(),
                        arch: record.map(|record| record.arch.clone()),
                        ip: record
                            .filter(|_| self.cluster.mode.gives_addresses())
                            .map(|record| record.ip),
                        mac: record.map(|record| record.mac.clone()),
                        shares: record.map_or_else(Vec::new, ShareView::all),
                    }
                })
                .collect(),
        }
    }
}
