//! Promises about one call's life: its sections stay as they are, each direction ends alone, resets and cancellations
//! cross unchanged, and every stream finds its own endpoint.

use std::time::Duration;

use sluice_agent::splitter::Limits;

use crate::script::{Peer, Script, and, in_all_chunks};
use crate::wire::*;
use crate::world::{Chunks, World, endpoint};

#[test]
fn a_response_of_trailers_only_stays_one_frame() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call();
        let answer = and(OK, &[("grpc-status", "5"), ("grpc-message", "no")]);
        s.send(&server, headers(1, END, &answer));
        assert_eq!(client.got(), [heard(1, END, &answer)]);
        s.send(&client, data(1, END, b""));
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn headers_data_and_trailers_stay_three() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, data(1, END, b"ask"));
        assert_eq!(server.got(), [bytes(1, END, b"ask")]);
        s.send(&server, [headers(1, MORE, OK), data(1, MORE, b"hello"), headers(1, END, DONE)].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, MORE, b"hello"), heard(1, END, DONE)]);
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn a_request_with_trailers_keeps_them() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call();
        s.send(&client, [data(1, MORE, b"ask"), headers(1, END, &[("x-sum", "1")])].concat());
        assert_eq!(server.got(), [bytes(1, MORE, b"ask"), heard(1, END, &[("x-sum", "1")])]);
    });
}

#[test]
fn a_whole_request_stays_one_frame() {
    in_all_chunks(1, |mut s| {
        let client = s.client();
        s.send(&client, headers(1, END, CALL));
        assert_eq!(s.server().got(), [heard(1, END, CALL)]);
    });
}

#[test]
fn an_empty_data_frame_that_ends_a_stream_passes() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, data(1, END, b""));
        assert_eq!(server.got(), [bytes(1, END, b"")]);
        s.send(&server, [headers(1, MORE, OK), data(1, END, b"")].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, END, b"")]);
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn an_empty_data_frame_passes_also_where_the_request_still_waits_for_its_endpoint() {
    in_all_chunks(1, |mut s| {
        let client = s.client();
        s.send(&client, [headers(1, MORE, CALL), data(1, END, b"")].concat());
        assert_eq!(s.server().got(), [heard(1, MORE, CALL), bytes(1, END, b"")]);
    });
}

#[test]
fn interim_responses_pass() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call();
        let hints: Fields<'_> = &[(":status", "103"), ("link", "</a>")];
        s.send(&server, [headers(1, MORE, &[(":status", "100")]), headers(1, MORE, hints)].concat());
        assert_eq!(client.got(), [heard(1, MORE, &[(":status", "100")]), heard(1, MORE, hints)]);
        s.send(&server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
    });
}

#[test]
fn the_client_may_end_first_and_the_endpoint_goes_on() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&client, data(1, END, b"all"));
        assert_eq!(server.got(), [bytes(1, END, b"all")]);
        s.send(&server, headers(1, MORE, OK));
        for part in [b"1", b"2", b"3"] {
            s.send(&server, data(1, MORE, part));
        }
        s.send(&server, headers(1, END, DONE));
        let parts = [bytes(1, MORE, b"1"), bytes(1, MORE, b"2"), bytes(1, MORE, b"3")];
        assert_eq!(client.got(), [&[heard(1, MORE, OK)][..], &parts, &[heard(1, END, DONE)]].concat());
    });
}

#[test]
fn the_endpoint_may_end_first_and_the_client_goes_on() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
        s.send(&client, data(1, MORE, b"more"));
        s.send(&client, data(1, END, b"last"));
        assert_eq!(server.got(), [bytes(1, MORE, b"more"), bytes(1, END, b"last")]);
        assert_eq!(s.open_streams(), 0);
        assert_eq!(client.got(), []);
    });
}

#[test]
fn a_server_that_finishes_early_is_heard_in_full_before_its_reset() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        let answer = [headers(1, MORE, OK), data(1, MORE, b"enough"), headers(1, END, DONE), reset(1, NO_ERROR)];
        s.send(&server, answer.concat());
        let all = [heard(1, MORE, OK), bytes(1, MORE, b"enough"), heard(1, END, DONE), was_reset(1, NO_ERROR)];
        assert_eq!(client.got(), all);
        assert_eq!(s.open_streams(), 0);
        // What the client sent before it heard of it harms nobody.
        s.send(&client, data(1, END, b"late"));
        assert_eq!((client.got(), server.got()), (vec![], vec![]));
    });
}

#[test]
fn a_server_that_finishes_early_is_heard_in_full_even_by_a_client_without_window() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 2)], &[]);
        let answer = [headers(1, MORE, OK), data(1, MORE, b"enough"), headers(1, END, DONE), reset(1, NO_ERROR)];
        s.send(&server, answer.concat());
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, MORE, b"en")]);
        client.grant(1, 100);
        s.run();
        assert_eq!(client.got(), [bytes(1, MORE, b"ough"), heard(1, END, DONE), was_reset(1, NO_ERROR)]);
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn a_whole_response_is_heard_in_full_even_if_the_endpoint_is_lost_right_after_it() {
    in_all_chunks(1, |mut s| {
        let (mut client, server) = s.call_with(&[(INITIAL_WINDOW_SIZE, 2)], &[]);
        s.send(&server, [headers(1, MORE, OK), data(1, MORE, b"enough"), headers(1, END, DONE)].concat());
        drop(server);
        s.run();
        assert_eq!(client.got(), [heard(1, MORE, OK), bytes(1, MORE, b"en")]);
        // It is no load on the endpoint any more.
        let next = s
            .world
            .service
            .pick(std::time::Instant::now(), &mut s.world.rng, |_| sluice_agent::balance::Standing::Good)
            .unwrap();
        assert_eq!(next.endpoint().open(), 1);
        client.grant(1, 100);
        s.run();
        assert_eq!(client.got(), [bytes(1, MORE, b"ough"), heard(1, END, DONE), was_reset(1, NO_ERROR)]);
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn reset_codes_cross_unchanged() {
    for code in [NO_ERROR, PROTOCOL_ERROR, CANCEL, ENHANCE_YOUR_CALM, 0xdead_beef] {
        in_all_chunks(1, |mut s| {
            let (client, mut server) = s.call();
            s.send(&client, reset(1, code));
            assert_eq!(server.got(), [was_reset(1, code)]);
            assert_eq!(s.open_streams(), 0);
        });
        for answered in [false, true] {
            in_all_chunks(1, |mut s| {
                let (mut client, server) = s.call();
                if answered {
                    s.send(&server, headers(1, MORE, OK));
                    assert_eq!(client.got(), [heard(1, MORE, OK)]);
                }
                s.send(&server, reset(1, code));
                assert_eq!(client.got(), [was_reset(1, code)]);
                assert_eq!(s.open_streams(), 0);
            });
        }
    }
}

#[test]
fn a_cancelled_call_frees_its_endpoint_at_once() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call_with(&[], &[(MAX_CONCURRENT_STREAMS, 1), (INITIAL_WINDOW_SIZE, 0)]);
        s.send(&client, data(1, MORE, b"this waits for a window"));
        s.send(&client, [reset(1, CANCEL), headers(3, END, CALL)].concat());
        // The only place is free again: no second connection.
        assert_eq!(server.got(), [was_reset(1, CANCEL), heard(3, END, CALL)]);
        assert!(s.accept_any().is_none());
    });
}

#[test]
fn a_client_that_hangs_up_cancels_its_calls() {
    in_all_chunks(1, |mut s| {
        let (client, mut server) = s.call();
        s.send(&client, headers(3, END, CALL));
        drop(client);
        s.run();
        assert_eq!(server.got(), [heard(3, END, CALL), was_reset(1, CANCEL), was_reset(3, CANCEL)]);
        assert_eq!(s.open_streams(), 0);
    });
}

/// A call that is over for its client, which has left: the endpoint has taken two bytes of "ask" and no more.
fn a_client_that_left_after_its_last_word(mut s: Script) -> (Script, Peer) {
    let (mut client, mut server) = s.call_with(&[], &[(INITIAL_WINDOW_SIZE, 2)]);
    s.send(&server, headers(1, END, &and(OK, &[("grpc-status", "0")])));
    assert_eq!(client.got(), [heard(1, END, &and(OK, &[("grpc-status", "0")]))]);
    s.send(&client, data(1, END, b"ask"));
    drop(client);
    s.run();
    assert_eq!(server.got(), [bytes(1, MORE, b"as")]);
    (s, server)
}

#[test]
fn what_a_client_said_before_it_left_still_reaches_the_endpoint_of_a_call_that_was_over_for_it() {
    in_all_chunks(1, |s| {
        let (mut s, mut server) = a_client_that_left_after_its_last_word(s);
        server.grant(1, 100);
        s.run();
        assert_eq!(server.got(), [bytes(1, END, b"k")]);
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn what_a_client_said_before_it_left_is_not_kept_for_ever() {
    in_all_chunks(1, |s| {
        let (mut s, mut server) = a_client_that_left_after_its_last_word(s);
        s.pass(Duration::from_secs(29));
        assert!(server.got().is_empty());
        s.pass(Duration::from_secs(2));
        assert_eq!(server.got(), [was_reset(1, CANCEL)]);
        assert_eq!(s.open_streams(), 0);
    });
}

#[test]
fn an_endpoint_may_end_what_a_client_said_before_it_left() {
    let ends: [fn(&mut Script, Peer); 3] = [
        |s, server| s.send(&server, reset(1, NO_ERROR)),
        |_, server| drop(server),
        |s, mut server| {
            s.send(&server, headers(1, END, DONE));
            assert_eq!(server.got(), [was_reset(1, STREAM_CLOSED)]);
        },
    ];
    for end in ends {
        in_all_chunks(1, |s| {
            let (mut s, server) = a_client_that_left_after_its_last_word(s);
            end(&mut s, server);
            s.run();
            assert_eq!(s.open_streams(), 0);
        });
    }
}

#[test]
fn the_streams_of_one_connection_go_to_the_endpoints_in_turn() {
    in_all_chunks(3, |mut s| {
        let client = s.client();
        for n in 0..9 {
            s.send(&client, headers(1 + 2 * n, END, CALL));
        }
        let mut servers: Vec<_> = (0..3).map(|_| s.server_with(&[])).collect();
        assert!(s.accept_any().is_none(), "one connection per endpoint");
        for (_, server) in &mut servers {
            assert_eq!(server.got(), [heard(1, END, CALL), heard(3, END, CALL), heard(5, END, CALL)]);
        }
    });
}

#[test]
fn two_clients_of_one_pod_share_a_connection_and_one_s_breach_leaves_the_other_alone() {
    in_all_chunks(1, |mut s| {
        let (mut good, mut server) = s.call();
        let mut bad = s.client();
        s.send(&bad, headers(1, MORE, CALL));
        assert_eq!(server.got(), [heard(3, MORE, CALL)]);
        s.send(&bad, frame(DATA, 0, 0, b"on stream 0"));
        assert_eq!(bad.got(), [bye(1, PROTOCOL_ERROR), Got::Closed]);
        assert_eq!(server.got(), [was_reset(3, CANCEL)]);
        s.send(&server, [headers(1, MORE, OK), headers(1, END, DONE)].concat());
        assert_eq!(good.got(), [heard(1, MORE, OK), heard(1, END, DONE)]);
    });
}

#[test]
fn a_stream_on_which_nothing_moves_for_days_lives() {
    in_all_chunks(1, |mut s| {
        let (mut client, mut server) = s.call();
        s.send(&server, headers(1, MORE, OK));
        assert_eq!(client.got(), [heard(1, MORE, OK)]);
        s.pass(Duration::from_secs(3 * 24 * 3600));
        assert!(client.got().is_empty() && server.got().is_empty(), "no ping, no end: it costs nobody a packet");
        s.send(&client, data(1, END, b"still there?"));
        assert_eq!(server.got(), [bytes(1, END, b"still there?")]);
        s.send(&server, [data(1, MORE, b"yes"), headers(1, END, DONE)].concat());
        assert_eq!(client.got(), [bytes(1, MORE, b"yes"), heard(1, END, DONE)]);
    });
}

#[test]
fn a_client_s_connection_without_streams_is_kept_for_days() {
    in_all_chunks(1, |mut s| {
        let mut client = s.client();
        s.pass(Duration::from_secs(3 * 24 * 3600));
        assert!(client.got().is_empty());
        s.send(&client, headers(1, END, CALL));
        assert_eq!(s.server().got(), [heard(1, END, CALL)]);
    });
}

#[test]
fn a_connection_s_number_is_not_given_again_before_its_close_was_taken() {
    let mut world = World::new(1, Chunks::Whole, Limits::default(), &[endpoint(1)]);
    let (splitter, now, service) = (&mut world.splitter, world.now, &world.service);
    let first = splitter.handle_accepted(now, service);
    splitter.handle_eof(now, first);
    let second = splitter.handle_accepted(now, service);
    assert_ne!(first.index(), second.index());
    assert!(splitter.output(first).is_empty());
    while splitter.poll_effect().is_some() {}
    assert_eq!(splitter.handle_accepted(now, service).index(), first.index());
}
