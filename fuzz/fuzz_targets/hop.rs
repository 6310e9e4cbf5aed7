//! A header at the port for other agents, of whoever reaches it.
//!
//! What is read as a PROXY header is written again as the same bytes, with the length that its beginning tells; what is taken
//! for an introduction says the same when it is told again; and without a key of the cluster nothing is believed.

#![no_main]

use std::{
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use agent::hop::{
    State,
    introduction::{self, CODE, Introduction},
    proxy::{Header, MAX_LENGTH, length},
    seal::Keys,
};
use api::resource::hop_keys::{HopKey, HopKeys};
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<Keys> =
    LazyLock::new(|| Keys::new(&HopKeys { current: HopKey([1; 32]), accepted: vec![HopKey([2; 32])] }));
static STATE: LazyLock<State> = LazyLock::new(|| State::new(UNIX_EPOCH));

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = Header::parse(data) {
        assert!(data.len() <= MAX_LENGTH);
        assert_eq!(data.first_chunk().map(length), Some(Ok(data.len())));
        assert_eq!(header.encode().as_deref(), Ok(data));
    }
    let heard = Introduction::parse::<introduction::Error>(data, |covered, code| {
        assert_eq!((covered, &code[..]), data.split_at(data.len() - CODE));
        Ok(())
    });
    if let Ok((heard, stamp)) = heard {
        // Values that nobody knows are left out, so it may be shorter.
        let again = heard.encode(stamp, |_| [0; CODE]).expect("it was short enough");
        let again = Introduction::parse::<introduction::Error>(&again, |_, _| Ok(()));
        assert_eq!(again, Ok((heard, stamp)));
    }
    assert!(STATE.open(&KEYS, data, SystemTime::now()).is_err());
});
