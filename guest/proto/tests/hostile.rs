//! Whatever comes through the channel: nothing panics, memory is bounded, and only frames that somebody encoded come out.
//! Pseudo-random and the same in every run; stable Rust has no coverage-guided fuzzer. The host's decoder, which is the
//! one with an enemy, has one (tests/security/test_fuzz.py).

use hutch_proto::{encode, Decoder, Frame, CONTROL, LOG, MAX_FRAME};

/// Xorshift: enough chance for a test, and no dependency.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }

    fn frame(&mut self) -> Frame {
        let length = [0, 1, 9, 253, 254, 255, 300, 2000][self.next(8)];
        let zeros = self.next(3);
        let payload = (0..length).map(|_| if self.next(3) < zeros { 0 } else { self.next(256) as u8 }).collect();
        Frame { kind: [CONTROL, LOG, 0, 255][self.next(4)], channel: self.next(1 << 32) as u32, payload }
    }
}

#[test]
fn only_what_was_sent_comes_out_of_a_damaged_stream() {
    let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
    for _ in 0..1500 {
        let sent: Vec<Frame> = (0..1 + chance.next(4)).map(|_| chance.frame()).collect();
        let mut wire = Vec::new();
        for frame in &sent {
            encode(frame, &mut wire);
        }
        for _ in 0..chance.next(4) {
            let at = chance.next(wire.len());
            match chance.next(4) {
                0 => wire[at] = chance.next(256) as u8,
                1 => wire[at] ^= 1 << chance.next(8),
                2 => {
                    wire.remove(at);
                }
                _ => wire.insert(at, [0, 1, 255, 7][chance.next(4)]),
            }
            if wire.is_empty() {
                break;
            }
        }
        let mut decoder = Decoder::default();
        let step = 1 + chance.next(400);
        let got: Vec<Frame> = wire.chunks(step).flat_map(|piece| decoder.feed(piece)).collect();
        for frame in &got {
            assert!(sent.contains(frame), "a frame that nobody sent: {:?}", frame);
        }
        assert!(got.len() <= sent.len());
    }
}

#[test]
fn noise_is_survived_and_a_frame_after_it_arrives() {
    let mut chance = Chance(42);
    let last = Frame { kind: CONTROL, channel: 0, payload: b"{}".to_vec() };
    for _ in 0..300 {
        let mut decoder = Decoder::default();
        let noise: Vec<u8> = (0..chance.next(5000)).map(|_| chance.next(256) as u8).collect();
        assert!(decoder.feed(&noise).is_empty());
        let mut wire = vec![0];
        encode(&last, &mut wire);
        assert_eq!(decoder.feed(&wire), vec![last.clone()]);
    }
}

#[test]
fn an_endless_frame_is_dropped_once() {
    let mut decoder = Decoder::default();
    for _ in 0..20 {
        assert!(decoder.feed(&[7; MAX_FRAME]).is_empty());
    }
    let mut wire = vec![0];
    encode(&Frame { kind: LOG, channel: 1, payload: vec![0; 10] }, &mut wire);
    assert_eq!(decoder.feed(&wire).len(), 1);
    assert_eq!(decoder.dropped, 1);
}
