//! The fuzzer's targets, compiled with the tests and fed a little, so that they go on working between two `just fuzz`.

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

/// For each target; those that make sockets and wait are slow.
const INPUTS: usize = 300;
const SLOW: [(&str, usize); 2] = [("fabric", 10), ("stack", 5)];

#[test]
fn the_fuzzer_s_targets_take_what_comes() {
    // Xorshift: the same numbers each time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    for (name, target) in targets::TARGETS {
        let slow = SLOW.iter().find(|(slow, _)| *slow == name);
        for _ in 0..slow.map_or(INPUTS, |(_, inputs)| *inputs) {
            let length = usize::from(byte()) * 2;
            let bytes: Vec<u8> = (0..length).map(|_| byte()).collect();
            target(&bytes);
        }
    }
}
