//! The figures, from recordings made by hand.

use super::*;
use crate::scenarios::plan::Fleet;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// A run of ten seconds with five pods, of which `pod-0` is bad from the second second to the sixth. One call each
/// millisecond goes to the pod that `to` names for its number (none: nobody answers within a second), 2 ms each.
pub(crate) fn recording(to: impl Fn(u64) -> Option<usize>) -> Recording {
    let call = |number: u64| {
        let (due, pod) = (MS * number as u32, to(number));
        let (ended, code) = match pod {
            Some(_) => (due + 2 * MS, Code::OK),
            None => (due + SECOND, Code::DEADLINE_EXCEEDED),
        };
        Call { stream: false, due, head: pod.map(|_| due + MS), ended: Some(ended), code, pod }
    };
    Recording {
        calls: (0..10_000).map(call).collect(),
        pods: (0..5).map(|number| format!("pod-{number}")).collect(),
        bad_pod: Some("pod-0".to_owned()),
        bad_times: vec![(SECOND, 6 * SECOND)],
        bad_is_silent: true,
        ..Recording::default()
    }
}

pub(crate) fn measured(scenario: Scenario, recording: &Recording) -> Run {
    let plan = Plan::new(scenario, 10 * SECOND, Some(1000.0), Fleet::default());
    measure("via", "10.96.0.10:50051", &plan, recording, 5)
}

/// In turn; but within `without` (in calls) the first pod's turn is the second's.
pub(crate) fn turns(number: u64, without: std::ops::Range<u64>) -> Option<usize> {
    match number % 5 {
        0 if without.contains(&number) => Some(1),
        turn => Some(turn as usize),
    }
}

#[test]
fn a_pod_that_nobody_avoids_is_never_avoided_and_back_at_once() {
    let run = measured(Scenario::Slow, &recording(|number| turns(number, 0..0)));
    assert_eq!((run.caught, run.avoided_after_ms, run.back_after_ms), (Some(1000), None, Some(0)));
    assert!((run.bad_share.unwrap() - 0.2).abs() < 1e-9);
    assert_eq!((run.calls, run.failed, run.healthy_max_over_min), (10_000, 0, Some(1.0)));
    assert_eq!(run.pods["pod-0"], 2000);
}

#[test]
fn a_pod_is_avoided_from_the_call_after_its_last_one_and_back_with_the_first_of_many() {
    let run = measured(Scenario::Slow, &recording(|number| turns(number, 1501..7250)));
    // Its last calls were due at 1495 and 1500 ms, of which one is below a hundredth of a fifth; its next at 7250 ms.
    assert_eq!((run.avoided_after_ms, run.back_after_ms), (Some(495), Some(1250)));
    assert_eq!(run.caught, Some(101));
    assert_eq!(run.healthy_max_over_min.unwrap(), run.pods["pod-1"] as f64 / run.pods["pod-2"] as f64);
}

#[test]
fn a_pod_that_gets_its_share_late_in_the_first_second_is_not_back_at_once() {
    let run = measured(Scenario::Slow, &recording(|number| turns(number, 1501..6450)));
    assert_eq!(run.back_after_ms, Some(450));
}

#[test]
fn a_probe_now_and_then_is_still_avoidance_and_no_return() {
    let probing = |number: u64| match number % 5 {
        0 if (1500..9999).contains(&number) && !number.is_multiple_of(1000) => Some(1),
        turn => Some(turn as usize),
    };
    let run = measured(Scenario::Slow, &recording(probing));
    assert_eq!(run.avoided_after_ms, Some(495), "one of a thousand calls is below a hundredth of a fifth");
    assert_eq!(run.back_after_ms, None);
}

#[test]
fn calls_that_nobody_answers_are_the_bad_pods_while_it_is_bad_and_nobodys_otherwise() {
    let lost = |number: u64| match number {
        1000..2000 if number.is_multiple_of(5) => None,
        8000..8010 => None,
        _ => turns(number, 1000..7000),
    };
    let run = measured(Scenario::BlackHole, &recording(lost));
    assert_eq!((run.failed, run.caught), (210, Some(200)));
    assert_eq!(run.failed_by_code["DEADLINE_EXCEEDED"], 210);
    assert_eq!(run.avoided_after_ms, Some(990));
    let answering = Recording { bad_is_silent: false, ..recording(lost) };
    assert_eq!(measured(Scenario::Flapping, &answering).caught, Some(0), "a pod that answers at once loses none");
    assert_eq!(run.latency_us.max.map(|max| max / 100_000), Some(10), "a deadline is a latency");
    assert_eq!(run.series.bad_pod.as_ref().unwrap().iter().sum::<u64>(), 200 + 200 + 600 - 2);
}

#[test]
fn a_fast_failure_is_no_latency_and_is_counted_by_its_code_and_moment() {
    let mut recording = recording(|number| turns(number, 0..0));
    for call in
        recording.calls.iter_mut().filter(|call| call.pod == Some(0) && call.due >= SECOND && call.due < 6 * SECOND)
    {
        (call.code, call.ended) = (Code::UNAVAILABLE, Some(call.due + MS / 10));
    }
    let run = measured(Scenario::FailingTrailersOnly, &recording);
    assert_eq!((run.failed, run.failed_by_code["UNAVAILABLE"]), (1000, 1000));
    assert!((run.failed_share - 0.1).abs() < 1e-9);
    assert!(run.latency_us.p50.is_some_and(|p50| (1990..2010).contains(&p50)));
    let failed = &run.series.failed;
    assert_eq!((failed.len(), failed[9], failed[10], failed[59], failed[60]), (100, 0, 20, 20, 0));
    assert_eq!(run.series.calls, vec![100; 100]);
    assert_eq!(run.series.pods["pod-3"], vec![20; 100]);
}

#[test]
fn shares_of_open_streams_are_by_time_and_streams_that_outlast_the_run_have_not_failed() {
    let stream = |pod, head: u64, ended: Option<u64>| Call {
        stream: true,
        due: head as u32 * SECOND,
        head: Some(head as u32 * SECOND),
        ended: ended.map(|ended| ended as u32 * SECOND),
        code: Code::OK,
        pod: Some(pod),
    };
    let recording = Recording {
        calls: vec![stream(0, 0, Some(4)), stream(1, 2, None), stream(0, 6, None)],
        pods: vec!["a".to_owned(), "b".to_owned()],
        ..Recording::default()
    };
    let run = measured(Scenario::Streams, &recording);
    assert_eq!((run.calls, run.failed, run.latency_us), (1, 0, Latency::default()));
    assert_eq!((run.open_seconds["a"], run.open_seconds["b"]), (8.0, 8.0));
    assert_eq!(run.streams_max_over_min, Some(1.0));
    let open = |pod: &str, at: usize| run.series.open_streams[pod][at];
    assert_eq!([open("a", 0), open("a", 39), open("a", 40), open("b", 30), open("b", 99)], [1, 1, 0, 1, 1]);
}

#[test]
fn a_run_without_trouble_has_no_figures_of_trouble() {
    let recording = Recording { bad_pod: None, bad_times: Vec::new(), ..recording(|number| turns(number, 0..0)) };
    let run = measured(Scenario::Equal, &recording);
    assert_eq!((run.caught, run.bad_share, run.avoided_after_ms, run.back_after_ms), (None, None, None, None));
    assert_eq!((run.healthy_max_over_min, run.series.bad_pod), (Some(1.0), None));
}

#[test]
fn the_points_of_a_series_stand_for_a_tenth_or_a_quarter_of_a_second() {
    assert_eq!([4, 30, 60, 600].map(|seconds| bucket(SECOND * seconds).as_millis()), [100, 100, 250, 250]);
}
