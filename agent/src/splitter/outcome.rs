//! How calls end and how long they take, told to the balancer. In: a pair at the moment when its endpoint answered, failed,
//! or was not waited for any longer. Out: samples and outcomes. What they mean is decided in `balance`.

use std::time::{Duration, Instant};

use super::Splitter;
use super::hpack::{HeaderList, Name};
use super::pair::{Pair, PairKey, Phase};
use crate::balance::Outcome;
use crate::calls::Ended;

impl Splitter {
    /// The head of the response came. How long that took is the endpoint's doing only if it had the whole request.
    pub(super) fn answer_came(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.pairs.get(key) else { return };
        if pair.client.recv_ended
            && let Some(picked) = &pair.picked
        {
            pair.service.answered(now, picked.endpoint(), pair.waited(now), Outcome::Answered);
        }
    }

    /// The response is whole. `by_fields`: the header list in hand is its trailers, or its head where that was all.
    pub(super) fn call_answered(&mut self, now: Instant, key: PairKey, by_fields: bool) -> Outcome {
        let Some(pair) = self.pairs.get(key) else { return Outcome::Unknown };
        let said = grpc_status(&self.list).filter(|_| by_fields && pair.grpc);
        let outcome = said.map_or_else(|| Outcome::of_http(pair.status, pair.grpc), Outcome::of_grpc);
        pair.call.ends(match said {
            Some(value) => Ended::of_grpc(value),
            None if pair.grpc => Ended::of_http(pair.status),
            None => Ended::Http(pair.status),
        });
        self.call_ended(now, key, outcome);
        outcome
    }

    /// The call has ended at its endpoint. Told once.
    pub(super) fn call_ended(&mut self, now: Instant, key: PairKey, outcome: Outcome) {
        let Some(pair) = self.pairs.get(key) else { return };
        if std::mem::replace(&mut pair.told, true) {
            return;
        }
        let Some(picked) = &pair.picked else { return };
        if outcome.is_failure() {
            pair.service.answered(now, picked.endpoint(), pair.waited(now), outcome);
        }
        self.ways.reach.ended(now, &pair.service, picked.endpoint(), pair.opened, outcome, &mut self.rng);
    }

    /// The client waits no longer. If it has waited as long as it said, that is the endpoint's failure.
    pub(super) fn call_given_up(&mut self, now: Instant, key: PairKey) {
        let Some(pair) = self.pairs.get(key) else { return };
        let waited = now.saturating_duration_since(pair.opened);
        // Some of its time was over before it came here.
        let late = deadline(&pair.request).is_some_and(|deadline| waited >= deadline.mul_f32(0.9));
        if pair.grpc {
            pair.call.ends(if late { Ended::DEADLINE_EXCEEDED } else { Ended::CANCELLED });
        }
        if pair.phase >= Phase::Answered || !pair.endpoint.is_open() {
            return;
        }
        if !late
            && pair.client.recv_ended
            && let Some(picked) = &pair.picked
        {
            pair.service.waited(now, picked.endpoint(), pair.waited(now));
        }
        self.call_ended(now, key, if late { Outcome::Error } else { Outcome::Unknown });
    }
}

impl Pair {
    /// Since the endpoint had all that it needs to answer.
    fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened.max(self.asked))
    }
}

/// The value of grpc-status, if there is one.
fn grpc_status(list: &HeaderList) -> Option<&[u8]> {
    list.iter().find(|field| field.kind() == Name::GrpcStatus).map(|field| field.value())
}

/// The value of grpc-timeout (gRPC: PROTOCOL-HTTP2.md): at most 8 digits and a unit.
fn deadline(request: &HeaderList) -> Option<Duration> {
    let value = request.iter().find(|field| field.kind() == Name::GrpcTimeout)?.value();
    let (unit, digits) = value.split_last()?;
    let number: u64 = std::str::from_utf8(digits).ok().filter(|digits| digits.len() <= 8)?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splitter::hpack::Indexing;

    #[test]
    fn a_deadline_is_read_in_every_unit_and_nothing_else_is() {
        let read = |value: &str| {
            let mut list = HeaderList::new();
            list.push(b"grpc-timeout", value.as_bytes(), Indexing::WithoutIndexing);
            deadline(&list)
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("1S"), Some(Duration::from_secs(1)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "-1S", "123456789S", "1x"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
