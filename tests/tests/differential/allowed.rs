//! The differences between a direct connection and one through sluice that are right, each with its reason. In: what one
//! side heard of one call in both runs; out: whether that is the same. Everything not listed here is a difference.

use serde_json::Value;

/// What became of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    Allowed(&'static str),
    Different,
}

/// One side never gives a call up before the other's words are out, so it takes a race, of which HTTP/2 says nothing: a
/// reset ends a stream at once (RFC 9113 §5.4.2), and what an intermediary still holds of it by then is dropped.
const OVERTAKEN: &str = "a reset that raced with what was sent before it has overtaken some of that";

/// As before; the request itself had not gone on when its reset came, and so it never need.
const NEVER_BEGUN: &str = "a call given up at once has reached no endpoint";

/// An endpoint that refuses a stream has not looked at it, so the call goes to another one (RFC 9113 §8.7).
const TRIED_AGAIN: &str = "a refused call was tried again";

/// Compares what `side` heard in a direct run with what it heard through sluice.
pub fn difference(side: &str, direct: &Value, through: &[Value]) -> Verdict {
    let racing = direct["racing"] == true;
    let events = |record: &Value| record["events"].as_array().cloned().unwrap_or_default();
    let expected = events(direct);
    match through {
        [one] if events(one) == expected => Verdict::Same,
        [] if side == "server" && racing => Verdict::Allowed(NEVER_BEGUN),
        [one] if racing && is_overtaken(&expected, &events(one)) => Verdict::Allowed(OVERTAKEN),
        [_, _, ..]
            if side == "server" && direct["refused"] == true && through.iter().all(|it| events(it) == expected) =>
        {
            Verdict::Allowed(TRIED_AGAIN)
        }
        _ => Verdict::Different,
    }
}

/// Both end with the same reset, and what is before it is the beginning of what was sent: sections in full, and bytes of
/// the body as they were.
fn is_overtaken(direct: &[Value], through: &[Value]) -> bool {
    let (Some((direct_end, direct)), Some((through_end, through))) = (direct.split_last(), through.split_last()) else {
        return false;
    };
    let fits = |(direct, through): (&Value, &Value)| {
        let shorter = through["intact"] == true && through["body"].as_u64() <= direct["body"].as_u64();
        direct == through || shorter && direct["body"].is_u64()
    };
    !direct_end["reset"].is_null()
        && direct_end == through_end
        && through.len() <= direct.len()
        && direct.iter().zip(through).all(fits)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(racing: bool, events: &[Value]) -> Value {
        json!({ "racing": racing, "refused": false, "events": events })
    }

    #[test]
    fn only_a_race_may_lose_the_end_of_a_body_and_nothing_else() {
        let [head, full, part, reset] = [
            json!({ "headers": ["a: b"] }),
            json!({ "body": 9, "intact": true }),
            json!({ "body": 5, "intact": true }),
            json!({ "reset": 8 }),
        ];
        let all = [head.clone(), full.clone(), reset.clone()];
        let lost = |racing, events: &[Value]| difference("server", &record(racing, &all), &[record(racing, events)]);
        assert_eq!(lost(false, &all), Verdict::Same);
        assert_eq!(lost(true, &[head.clone(), part.clone(), reset.clone()]), Verdict::Allowed(OVERTAKEN));
        assert_eq!(lost(true, &[head.clone(), reset.clone()]), Verdict::Allowed(OVERTAKEN));
        assert_eq!(lost(false, &[head.clone(), part.clone(), reset]), Verdict::Different);
        assert_eq!(lost(true, &[head.clone(), part.clone(), json!({ "reset": 2 })]), Verdict::Different);
        assert_eq!(lost(true, &[head.clone(), full]), Verdict::Different);
        let other = json!({ "headers": ["a: c"] });
        assert_eq!(lost(true, &[other, part, json!({ "reset": 8 })]), Verdict::Different);
    }

    #[test]
    fn a_call_that_is_missing_or_doubled_is_a_difference() {
        let one = record(false, &[json!({ "headers": [] })]);
        assert_eq!(difference("server", &one, &[]), Verdict::Different);
        assert_eq!(difference("server", &one, &[one.clone(), one.clone()]), Verdict::Different);
    }
}
