//! The readers of the kernel's answers, by a socket that is none of the kernel's.

use std::os::unix::net::UnixDatagram;

use kiln_netsetup::netlink::nft::Rules;
use kiln_netsetup::netlink::route::Route;

use crate::switch::pieces;

const DONE: u16 = 3;

pub fn netlink(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    for (shape, piece) in pieces(bytes).take(8) {
        let mut piece = piece.to_vec();
        if shape & 1 == 0
            && let Some(header) = piece.first_chunk_mut::<16>()
        {
            header[2..4].fill(0);
            header[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        }
        // An empty datagram is none of netlink's.
        if !piece.is_empty() {
            ours.send(&piece).unwrap();
        }
    }
    let mut end = [16_u32.to_ne_bytes(), [0; 4], 1_u32.to_ne_bytes(), [0; 4]].concat();
    end[4..6].copy_from_slice(&DONE.to_ne_bytes());
    ours.send(&end).unwrap();
    // Whether it is understood is its own business.
    match choice % 3 {
        0 => drop(Route::new(theirs.into()).unwrap().links()),
        1 => drop(Route::new(theirs.into()).unwrap().default_links()),
        _ => drop(Rules::new(theirs.into()).unwrap().tables()),
    }
}
