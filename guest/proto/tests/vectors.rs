//! The golden frames that the host's end is tested with too.

use hutch_proto::{encode, Decoder, Frame};
use serde_json::Value;

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors.json")).unwrap()
}

#[test]
fn frames_are_written_and_read_as_the_vectors_say() {
    for vector in vectors()["frames"].as_array().unwrap() {
        let frame = Frame {
            kind: vector["kind"].as_u64().unwrap() as u8,
            channel: vector["channel"].as_u64().unwrap() as u32,
            payload: bytes(&vector["payload"]),
        };
        let wire = bytes(&vector["wire"]);
        // A block of 254 bytes that ends the data may be followed by an empty one or not: both are right, ours is read.
        let mut written = Vec::new();
        encode(&frame, &mut written);
        for stream in [wire, written] {
            let mut decoder = Decoder::default();
            assert_eq!(decoder.feed(&stream), vec![frame.clone()], "{}", vector["name"]);
            assert_eq!(decoder.dropped, 0);
        }
    }
}

#[test]
fn what_the_vectors_reject_is_dropped_and_counted() {
    for vector in vectors()["rejected"].as_array().unwrap() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(&bytes(&vector["wire"])), vec![], "{}", vector["name"]);
        assert_eq!(decoder.dropped, 1, "{}", vector["name"]);
    }
}
