//! A machine's port as smoltcp's network device: IP packets, with the Ethernet header put on here.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as StackInstant;

use super::port::Queue;
use crate::ether::ETHERNET_HEADER;

/// The way out to the machine: its queue, and the header that its frames get.
pub(super) struct Wire<'a> {
    pub(super) queue: &'a mut Queue,
    pub(super) spare: &'a mut Vec<u8>,
    pub(super) header: [u8; ETHERNET_HEADER],
}

impl Wire<'_> {
    fn again(&mut self) -> Wire<'_> {
        Wire {
            queue: self.queue,
            spare: self.spare,
            header: self.header,
        }
    }
}

/// The wire as smoltcp sees it for one call: at most one packet in, and the machine's queue out.
pub(super) struct Joined<'a> {
    pub(super) packet: Option<&'a [u8]>,
    pub(super) wire: Wire<'a>,
    /// Bytes of an IP packet.
    pub(super) mtu: usize,
}

/// A packet from the machine.
pub(super) struct Inbound<'a>(&'a [u8]);

/// Leave to send one.
pub(super) struct Outbound<'a>(Wire<'a>);

impl Device for Joined<'_> {
    type RxToken<'a>
        = Inbound<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outbound<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: StackInstant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        let packet = self.packet.take()?;
        Some((Inbound(packet), Outbound(self.wire.again())))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outbound<'_>> {
        match self.wire.queue.has_room() {
            true => Some(Outbound(self.wire.again())),
            false => None,
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // A unix socket changes no bits, so checksums are made for the machine and not looked at here.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

impl RxToken for Inbound<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let Wire {
            queue,
            spare,
            header,
        } = self.0;
        queue.push_with(&header, length, spare, f)
    }
}
