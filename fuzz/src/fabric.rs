//! The fabric's sockets: any bytes from a machine's NIC and from the uplink, cut anywhere.

use std::cell::LazyCell;
use std::time::Duration;

use kiln_netsetup::fabric::{Fabric, FabricConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::frames::{gateway, machine, subnet};
use crate::switch::pieces;

thread_local! {
    pub static RUNTIME: LazyCell<Runtime> =
        LazyCell::new(|| Builder::new_current_thread().enable_all().build().unwrap());
}

pub fn config() -> FabricConfig {
    FabricConfig {
        subnet: subnet(),
        gateway_mac: gateway(),
        domain: "demo.internal".to_owned(),
        mtu: None,
        resolvers: Vec::new(),
        machines: (10..13).map(machine).collect(),
    }
}

pub fn fabric(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (fabric, _events) = Fabric::start(config());
            let mut nics = Vec::new();
            for last in 10..13 {
                let (ours, theirs) = UnixStream::pair().unwrap();
                fabric.attach(&machine(last).name, theirs);
                nics.push(ours);
            }
            let (mut uplink, theirs) = UnixStream::pair().unwrap();
            fabric.attach_uplink(theirs);
            for (choice, piece) in pieces(bytes) {
                let nic = match usize::from(choice % 4) {
                    3 => &mut uplink,
                    index => &mut nics[index],
                };
                // A bit says whether the length in front is right.
                let length = u32::try_from(piece.len()).unwrap().to_be_bytes();
                let framed = [&length, piece].concat();
                let said = if choice & 4 == 0 { &framed } else { piece };
                // A stream out of step is closed; the others go on.
                let _ = nic.write_all(said).await;
                tokio::task::yield_now().await;
                let mut back = [0; 4096];
                while let Ok(Ok(1..)) =
                    tokio::time::timeout(Duration::ZERO, nic.read(&mut back)).await
                {
                }
            }
            fabric.counters().await.expect("the fabric has ended");
            fabric.stop().await;
        });
    });
}
