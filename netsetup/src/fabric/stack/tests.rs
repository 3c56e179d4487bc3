//! A machine that speaks any TCP it likes: nothing it sends may stop kiln, and no stack may ask to be called for ever.

use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_oneof, proptest};

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 80, 1, 1);
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 80, 1, 10);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[derive(Debug, Clone)]
enum Step {
    /// A segment: flags, distance from the numbers that would be right, window, options in words, data.
    Segment {
        flags: u8,
        ahead: i32,
        acked: i32,
        window: u16,
        options: Vec<u8>,
        length: usize,
    },
    Read(usize),
    Write(usize),
    ShutDown,
    Release,
    Send,
    Wait(u64),
    /// The machine takes all that is in its queue.
    Drain,
}

/// A stack with one connection, and the machine's side of it.
struct Peer {
    stack: Shared,
    number: u64,
    queue: Queue,
    spare: Vec<u8>,
    now: Instant,
    port: u16,
    /// The next number that the machine may send, and the next that it expects.
    next: u32,
    expected: u32,
}

impl Peer {
    fn new() -> Peer {
        let stack = Stack::shared(GATEWAY, MACHINE, 1500, Waker::noop().clone());
        let number = stack.lock().connect(22).unwrap();
        let mut peer = Peer {
            stack,
            number,
            queue: Queue::default(),
            spare: Vec::new(),
            now: Instant::now(),
            port: 0,
            next: 1000,
            expected: 0,
        };
        peer.send();
        peer.drain();
        peer
    }

    fn send(&mut self) {
        // What wants to be called again and again would keep the driver busy for ever.
        for _ in 0..1000 {
            let wire = Wire {
                queue: &mut self.queue,
                spare: &mut self.spare,
                header: [0; ETHERNET_HEADER],
            };
            if !self.stack.lock().send(self.now, wire) {
                return;
            }
        }
        panic!("the stack never rests");
    }

    /// Reads the frames that went out, and learns the numbers from them.
    fn drain(&mut self) {
        let bytes = self.queue.take();
        let mut rest = &bytes[..];
        while let [a, b, c, d, more @ ..] = rest {
            let (frame, more) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            let segment = &frame[ETHERNET_HEADER + 20..];
            let header = usize::from(segment[12] >> 4) * 4;
            let flags = segment[13];
            let length = segment.len() - header + usize::from(flags & (SYN | FIN) != 0);
            let seq = u32::from_be_bytes(*segment[4..].first_chunk().unwrap());
            self.port = u16::from_be_bytes(*segment.first_chunk().unwrap());
            self.expected = seq.wrapping_add(u32::try_from(length).unwrap());
            rest = more;
        }
    }

    fn segment(
        &mut self,
        flags: u8,
        ahead: i32,
        acked: i32,
        window: u16,
        options: &[u8],
        length: usize,
    ) {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(MACHINE.octets());
        packet.extend(GATEWAY.octets());
        packet.extend(22u16.to_be_bytes());
        packet.extend(self.port.to_be_bytes());
        packet.extend(self.next.wrapping_add_signed(ahead).to_be_bytes());
        packet.extend(self.expected.wrapping_add_signed(acked).to_be_bytes());
        let words = options.len() / 4;
        packet.push(u8::try_from(5 + words).unwrap() << 4);
        packet.push(flags);
        packet.extend(window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(&options[..words * 4]);
        packet.resize(packet.len() + length, 7);
        let total = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        if ahead == 0 {
            let taken = length + usize::from(flags & (SYN | FIN) != 0);
            self.next = self.next.wrapping_add(u32::try_from(taken).unwrap());
        }
        let wire = Wire {
            queue: &mut self.queue,
            spare: &mut self.spare,
            header: [0; ETHERNET_HEADER],
        };
        self.stack.lock().receive(self.now, &packet, wire);
    }

    fn step(&mut self, step: Step) {
        let cx = Context::from_waker(Waker::noop());
        match step {
            Step::Segment {
                flags,
                ahead,
                acked,
                window,
                options,
                length,
            } => {
                self.segment(flags, ahead, acked, window, &options, length);
            }
            Step::Read(length) => {
                let mut space = vec![0; length];
                let mut space = ReadBuf::new(&mut space);
                let _ = self.stack.lock().poll_read(self.number, &cx, &mut space);
            }
            Step::Write(length) => {
                let _ = self
                    .stack
                    .lock()
                    .poll_write(self.number, &cx, &vec![1; length]);
            }
            Step::ShutDown => self.stack.lock().shut_down(self.number),
            Step::Release => self.stack.lock().release(self.number),
            Step::Send => self.send(),
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
            Step::Drain => self.drain(),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = prop_oneof![
        12 => Just(ACK),
        2 => Just(ACK | FIN),
        1 => Just(ACK | SYN),
        1 => Just(SYN),
        1 => Just(RST),
        1 => any::<u8>(),
    ];
    let off = || prop_oneof![8 => Just(0), 3 => -3000i32..3000, 1 => -300_000i32..300_000, 1 => any::<i32>()];
    let window = prop_oneof![Just(65535u16), Just(0), 0u16..4, any::<u16>()];
    let options =
        prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 0..40)];
    let length = prop_oneof![2 => Just(0usize), 4 => Just(1460), 1 => 0usize..60000];
    let segment = (flags, off(), off(), window, options, length).prop_map(
        |(flags, ahead, acked, window, options, length)| Step::Segment {
            flags,
            ahead,
            acked,
            window,
            options,
            length,
        },
    );
    let step = prop_oneof![
        10 => segment,
        3 => prop_oneof![Just(1usize), Just(100_000), Just(1_000_000)].prop_map(Step::Read),
        2 => prop_oneof![Just(1usize), Just(100_000), Just(1_000_000)].prop_map(Step::Write),
        1 => prop_oneof![8 => Just(Step::Send), 1 => Just(Step::ShutDown), 1 => Just(Step::Release)],
        4 => Just(Step::Send),
        4 => Just(Step::Drain),
        2 => prop_oneof![0u64..20, 0u64..100_000].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn no_segments_stop_it(steps in steps(), scale in prop::option::of(0u8..20), polite in any::<bool>()) {
        let mut peer = Peer::new();
        if polite {
            let scale = scale.map_or(Vec::new(), |scale| vec![3, 3, scale, 1, 4, 2, 1, 1]);
            peer.segment(SYN | ACK, 0, 0, 65535, &scale, 0);
        }
        for step in steps {
            peer.step(step);
        }
        // Nothing may be left of a connection that nobody holds.
        peer.step(Step::Release);
        for _ in 0..10 {
            peer.step(Step::Drain);
            peer.step(Step::Send);
            peer.step(Step::Wait(61_000));
        }
        prop_assert!(peer.stack.lock().connections.is_empty());
        prop_assert!(peer.stack.lock().sockets.iter().next().is_none());
    }
}

#[test]
fn a_machine_that_sends_past_its_window_while_its_queue_is_full() {
    let mut peer = Peer::new();
    peer.segment(SYN | ACK, 0, 0, 65535, &[3, 3, 7, 1], 0);
    for _ in 0..4 {
        peer.segment(ACK, 0, 0, 65535, &[], 60_000);
    }
    peer.segment(ACK, 0, 0, 65535, &[], BUFFER - 240_000);
    peer.send();
    peer.drain();
    while peer.queue.has_room() {
        peer.queue.push(&[0; 1500], &mut peer.spare);
    }
    // There is room again, of which the machine was not told, and it sends as if it had been.
    peer.step(Step::Read(10_000));
    peer.segment(ACK, 0, 0, 65535, &[], 1460);
    peer.send();
    assert_eq!(peer.stack.lock().due(), None);
    peer.queue.take();
    peer.send();
    peer.drain();
    assert!(peer.stack.lock().due().is_some());
}
