//! Telling switches where a machine is now.
//!
//! Bridges and switches send frames for a machine where its last frame came from. A machine that has moved may say nothing for a long
//! time, so its new monitor says it: a reverse ARP request, as other monitors send it, which nobody answers.

use std::fs::File;
use std::io::Write;
use std::time::Duration;
use wire::ids::Mac;

/// Length of the header in front of each frame on a tap.
const HEADER: usize = 12;
/// Shortest frame on an Ethernet.
const FRAME: usize = 60;

/// When to say it, counted from the start: a frame may get lost.
pub const TIMES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500)];

/// The frame, with the tap's header in front.
#[must_use]
pub fn frame(mac: Mac) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend([0xff; 6]);
    bytes.extend(mac.0);
    // Ethernet type reverse ARP; hardware Ethernet, protocol IPv4, lengths 6 and 4, operation "request reverse".
    bytes.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    // Sender and target: the hardware address, and no IP address.
    for _ in 0..2 {
        bytes.extend(mac.0);
        bytes.extend([0; 4]);
    }
    bytes.resize(HEADER + FRAME, 0);
    bytes
}

/// Says it once on each interface. Whether it went does not matter: the guest's next frame says the same.
pub fn say(interfaces: &[(File, Mac)]) {
    for (tap, mac) in interfaces {
        let _ = (&*tap).write(&frame(*mac));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_one() {
        let bytes = frame(Mac([2, 0, 0, 0, 0, 7]));
        assert_eq!(bytes.len(), 72);
        assert_eq!(&bytes[12..24], &[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7]);
        assert_eq!(&bytes[24..34], &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(&bytes[34..40], &bytes[44..50]);
    }
}
