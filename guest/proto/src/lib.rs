//! Frames of the guest protocol: COBS-encoded, ended by a zero byte, with a CRC. See docs/design/guest-protocol.md.

#![forbid(unsafe_code)]

/// The longest decoded frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// Frame type of control documents.
pub const CONTROL: u8 = 1;
/// Frame type of container output.
pub const LOG: u8 = 2;
/// Frame type of the bytes of an exec'ed process's stream.
pub const STREAM_DATA: u8 = 3;
/// Frame type of a stream's credit: how many more bytes its sender may send.
pub const STREAM_CREDIT: u8 = 4;
/// How many bytes of each direction of a stream may be on their way at first.
pub const STREAM_WINDOW: usize = 64 * 1024;

/// A decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub channel: u32,
    pub payload: Vec<u8>,
}

/// CRC-32 (IEEE 802.3), as zlib's.
pub fn crc32(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let mask = (crc & 1).wrapping_neg();
            crc = (crc >> 1) ^ (0xEDB8_8320 & mask);
        }
    }
    !crc
}

/// Appends a frame, ready to be written, to `out`.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) {
    let mut raw = Vec::with_capacity(frame.payload.len() + 9);
    raw.push(frame.kind);
    raw.extend_from_slice(&frame.channel.to_be_bytes());
    raw.extend_from_slice(&frame.payload);
    let crc = crc32(&raw);
    raw.extend_from_slice(&crc.to_be_bytes());
    cobs_encode(&raw, out);
    out.push(0);
}

/// Consistent overhead byte stuffing: `data` without zero bytes.
fn cobs_encode(data: &[u8], out: &mut Vec<u8>) {
    let mut code_at = out.len();
    out.push(0);
    let mut code: u8 = 1;
    for byte in data {
        if *byte == 0 {
            out[code_at] = code;
            code_at = out.len();
            out.push(0);
            code = 1;
            continue;
        }
        out.push(*byte);
        code += 1;
        if code == 0xFF {
            out[code_at] = code;
            code_at = out.len();
            out.push(0);
            code = 1;
        }
    }
    out[code_at] = code;
}

fn cobs_decode(data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len());
    let mut at = 0;
    while at < data.len() {
        let code = usize::from(data[at]);
        let end = at + code;
        if code == 0 || end > data.len() {
            return None;
        }
        out.extend_from_slice(&data[at + 1..end]);
        at = end;
        if code < 0xFF && at < data.len() {
            out.push(0);
        }
    }
    Some(out)
}

/// Takes bytes in any pieces and gives whole, intact frames; everything else is dropped and counted.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    overlong: bool,
    /// Frames that were too long, not decodable, or wrongly checksummed.
    pub dropped: u64,
}

impl Decoder {
    /// Decodes what `data` completes.
    pub fn feed(&mut self, data: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for byte in data {
            if *byte != 0 {
                if self.buffer.len() > MAX_FRAME + MAX_FRAME / 254 + 16 {
                    self.overlong = true;
                } else {
                    self.buffer.push(*byte);
                }
                continue;
            }
            let encoded = std::mem::take(&mut self.buffer);
            let overlong = std::mem::take(&mut self.overlong);
            if encoded.is_empty() {
                continue;
            }
            match (overlong, parse(&encoded)) {
                (false, Some(frame)) => frames.push(frame),
                _ => self.dropped += 1,
            }
        }
        frames
    }
}

fn parse(encoded: &[u8]) -> Option<Frame> {
    let raw = cobs_decode(encoded)?;
    if raw.len() < 9 || raw.len() > MAX_FRAME {
        return None;
    }
    let (body, crc) = raw.split_at(raw.len() - 4);
    if crc32(body).to_be_bytes() != crc {
        return None;
    }
    Some(Frame {
        kind: body[0],
        channel: u32::from_be_bytes([body[1], body[2], body[3], body[4]]),
        payload: body[5..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_payload_and_any_cut() {
        for length in [0usize, 1, 253, 254, 255, 256, 1000, MAX_FRAME - 9] {
            let payload: Vec<u8> = (0..length).map(|i| (i * 7 % 256) as u8).collect();
            let frame = Frame { kind: LOG, channel: 3, payload };
            let mut wire = Vec::new();
            encode(&frame, &mut wire);
            assert_eq!(wire.iter().filter(|b| **b == 0).count(), 1);
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in wire.chunks(7) {
                found.extend(decoder.feed(piece));
            }
            assert_eq!(found, vec![frame]);
        }
    }

    #[test]
    fn a_half_written_frame_costs_only_itself() {
        let frame = Frame { kind: CONTROL, channel: 0, payload: b"{}".to_vec() };
        let mut wire = Vec::new();
        encode(&frame, &mut wire);
        let mut stream = wire[..wire.len() / 2].to_vec();
        stream.push(0);
        stream.extend_from_slice(&wire);
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(&stream), vec![frame]);
        assert_eq!(decoder.dropped, 1);
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let frame = Frame { kind: CONTROL, channel: 9, payload: b"hello".to_vec() };
        let mut wire = Vec::new();
        encode(&frame, &mut wire);
        wire[4] ^= 0x10;
        let mut decoder = Decoder::default();
        assert!(decoder.feed(&wire).is_empty());
        assert_eq!(decoder.dropped, 1);
    }

    #[test]
    fn crc_is_zlibs() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }
}
