//! A shape in the making: what the patterns of generated calls have in common. In: a random source; out: the steps of both
//! sides, each addition fit to what is there already.

use fastrand::Rng;

use crate::metadata::{grpc_request, grpc_response, status};
use crate::shape::Step;
use crate::wire::choose;

const CANCEL: u32 = 8;
/// Every code of RFC 9113 §7 but REFUSED_STREAM, which says more than that the call has failed; and one that nobody knows.
pub const CODES: &[u32] = &[0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 0xdead];

/// A shape in the making.
pub struct Draft {
    pub rng: Rng,
    pub number: u32,
    pub client: Vec<Step>,
    pub server: Vec<Step>,
    pub racing: bool,
    pub refused: bool,
}

/// A message as most are.
pub fn message(size: usize) -> Step {
    Step::Message { size, compressed: false, end: false }
}

impl Draft {
    pub fn open(&mut self) {
        let fields = grpc_request(&mut self.rng, self.number);
        self.client.push(Step::Headers { fields, end: false });
    }

    pub fn respond(&mut self) {
        let fields = grpc_response(&mut self.rng);
        self.server.push(Step::Headers { fields, end: false });
    }

    pub fn trailers(&mut self) {
        let fields = status(&mut self.rng);
        self.server.push(Step::Headers { fields, end: true });
    }

    pub fn only_trailers(&mut self) {
        let mut fields = grpc_response(&mut self.rng);
        fields.extend(status(&mut self.rng));
        self.server.push(Step::Headers { fields, end: true });
    }

    /// All of a response.
    pub fn respond_in_any_way(&mut self) {
        match self.rng.u8(..3) {
            0 => self.only_trailers(),
            1 => {
                self.respond();
                self.trailers();
            }
            _ => {
                self.respond();
                self.server_messages(4);
                self.trailers();
            }
        }
    }

    /// With the last message, if that is possible, or on its own.
    pub fn half_close(&mut self) {
        match self.client.last_mut() {
            Some(Step::Message { end, .. }) if self.rng.bool() => *end = true,
            _ => self.client.push(Step::Raw { size: 0, end: true }),
        }
    }

    pub fn client_messages(&mut self, at_most: usize) {
        let steps = self.messages(at_most);
        self.client.extend(steps);
    }

    pub fn server_messages(&mut self, at_most: usize) {
        let steps = self.messages(at_most);
        self.server.extend(steps);
    }

    /// One at least.
    pub fn messages(&mut self, at_most: usize) -> Vec<Step> {
        let count = self.rng.usize(1..=at_most);
        let sizes = [0, 0, 1, 5, 100, 1_000, 4_096, 16_379, 16_384, 30_000, 65_530, 65_536, 100_000];
        // Small ones more often.
        let upto = if self.rng.bool() { 6 } else { sizes.len() };
        let one = |rng: &mut Rng| Step::Message {
            size: *choose(rng, &sizes[..upto]),
            compressed: rng.u8(..6) == 0,
            end: false,
        };
        (0..count).map(|_| one(&mut self.rng)).collect()
    }

    /// Of a message on its own: 4 MiB at most.
    pub fn large(&mut self) -> usize {
        match self.rng.u8(..40) {
            0 => 4 << 20,
            1 => self.rng.usize(1 << 18..1 << 21),
            2..6 => self.rng.usize(60_000..300_000),
            _ => *choose(&mut self.rng, &[0, 0, 1, 7, 300, 16_379, 16_380, 65_530, 65_531]),
        }
    }

    /// The server awaits all that the client sends up to here.
    pub fn await_client(&mut self) {
        let bytes = self.client.iter().map(Step::bytes).sum();
        self.server.push(Step::AwaitBytes(bytes));
    }

    pub fn await_server(&mut self) {
        let bytes = self.server.iter().map(Step::bytes).sum();
        self.client.push(Step::AwaitBytes(bytes));
    }

    pub fn cancel_code(&mut self) -> u32 {
        if self.rng.bool() { CANCEL } else { *choose(&mut self.rng, CODES) }
    }
}
