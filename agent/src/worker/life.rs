//! Whether a socket's peer still lives, as the kernel's account of the connection (TCP_INFO) tells. In: sockets; out: the
//! connections whose peer has left repeated tries unanswered for too long, closed. A peer that does not read is not gone:
//! its kernel answers, and it may pause for as long as it likes. Idle connections are left to TCP keepalive.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::event_loop::{Conn, Io, Kind, Worker};
use super::tcp_info;

/// Fewer lost packets in a row than this prove nothing.
const TRIES: u32 = 3;
/// An endpoint gets no new calls that was sent something again and has acknowledged nothing for so long and `STALLED_TRIPS`
/// ways there and back; it may still come back, and the calls that it has wait on. The first retransmission is due 0.2 s and
/// one way after the packet, or after a tail loss probe, which is due 0.2 s and two ways after it (Linux,
/// tcp_schedule_loss_probe): by then it had 0.2 s to be answered.
const STALLED_AFTER: Duration = Duration::from_millis(600);
const STALLED_TRIPS: u32 = 4;
const LOOK_FOR_STALLS: Duration = Duration::from_millis(100);
/// Keepalive probes that go unanswered before an idle connection breaks.
const IDLE_TRIES: u32 = 3;
/// TCP_RTO_MAX_MS, which the libc crate does not name.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// What the sweeps remember of a socket.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// Something was written that may not be acknowledged yet.
    owed: bool,
    /// Tries have been unanswered since.
    silent_since: Option<Instant>,
    /// An ACK was owed at each look for a stall since, and none came beyond so many bytes.
    owed_since: Option<(Instant, u64)>,
}

/// The kernel's account of one connection. Measured on Linux 6.18 with the first packet lost at 0 s:
///
/// | peer | unacked | retransmits | probes | last ACK |
/// | --- | --- | --- | --- | --- |
/// | does not read, window full, 70 s | 0 | 0 | 0 | up to 120 s ago: the next probe is that far away |
/// | gone with data on the way, 30 s | > 0 | 7 | 0 | before the last transmission |
/// | gone with its window full, 30 s | 0 | 0 | 2 | before the last probe |
/// | idle for an hour, then written to | > 0 | 0 | 0 | an hour ago |
///
/// So neither a zero window nor an old ACK tells that a peer is gone; a try without an answer does.
struct Account {
    /// Bytes or segments that the peer has not acknowledged, or was not sent for lack of window.
    owed: bool,
    /// Retransmissions and window probes since the peer was last heard.
    unanswered: u32,
    /// How long ago it was heard: an ACK or data.
    heard: Duration,
    /// It was sent something again of which it has acknowledged nothing. What it sends itself, again at that, is no answer:
    /// the way from it may be open while the way to it is not.
    sent_again: bool,
    acknowledged_bytes: u64,
    /// The smoothed time of a way there and back.
    rtt: Duration,
}

impl Life {
    pub(super) fn wrote(&mut self) {
        self.owed = true;
    }

    /// All that mattered has arrived.
    pub(super) fn answered(&mut self) {
        self.owed_since = None;
    }

    pub(super) fn is_owed(&self) -> bool {
        self.owed
    }

    /// Looks, if there is anything to look for. True: the peer has answered nothing for `gone_after`.
    pub(super) fn is_gone(&mut self, socket: &impl AsFd, now: Instant, gone_after: Duration) -> bool {
        // A socket without an account is broken; its readiness tells.
        self.owed && account(socket).is_ok_and(|account| self.judge(&account, now, gone_after))
    }

    /// Looks, if there is anything to look for. True: the peer has lately left a try unanswered.
    pub(super) fn is_stalled(&mut self, socket: &impl AsFd, now: Instant) -> bool {
        self.owed && account(socket).is_ok_and(|account| self.judge_stall(&account, now))
    }

    fn judge(&mut self, account: &Account, now: Instant, gone_after: Duration) -> bool {
        if !self.owes(account) || account.unanswered == 0 {
            self.silent_since = None;
            return false;
        }
        let since = *self.silent_since.get_or_insert(now);
        // It may have been idle before, or been heard between two looks: the shorter one counts.
        account.unanswered >= TRIES && now.duration_since(since).min(account.heard) >= gone_after
    }

    fn judge_stall(&mut self, account: &Account, now: Instant) -> bool {
        if !self.owes(account) {
            return false;
        }
        let known = self.owed_since.filter(|(_, acknowledged)| *acknowledged == account.acknowledged_bytes);
        let (since, _) = *self.owed_since.insert(known.unwrap_or((now, account.acknowledged_bytes)));
        account.sent_again && now.duration_since(since) >= STALLED_AFTER + STALLED_TRIPS * account.rtt
    }

    fn owes(&mut self, account: &Account) -> bool {
        if !account.owed {
            *self = Self::default();
        }
        account.owed
    }
}

impl Worker {
    /// Breaks the connections whose peer is gone. Costs one system call for each socket that waits for an ACK.
    pub(super) fn sweep(&mut self) {
        let (now, gone_after) = (self.io.now, self.io.settings.gone_after);
        if now.duration_since(self.swept) < gone_after / 6 {
            return;
        }
        self.swept = now;
        for key in self.io.conns.keys_mut(|conn| conn.lost_its_peer(now, gone_after)) {
            let Some(conn) = self.io.conns.get(key) else { continue };
            if let Some(pod) = self.pods.get(conn.pod) {
                tracing::debug!(pod = &*pod.name, "a peer has answered nothing for {gone_after:?}");
            }
            match conn.kind {
                Kind::Http2(_) => self.lose_link(key),
                Kind::Relay(_) => self.reset_relay(key),
            }
        }
    }
}

impl Worker {
    /// Lets splitters know of endpoints that do not answer. Costs one system call for each of their connections that was
    /// written to and has not answered its last request.
    pub(super) fn look_for_stalls(&mut self) {
        let now = self.io.now;
        if now.duration_since(self.looked_for_stalls) < LOOK_FOR_STALLS {
            return;
        }
        self.looked_for_stalls = now;
        let Io { watched, conns, turns, .. } = &mut self.io;
        watched.retain(|&key| {
            let Some(conn) = conns.get_mut(key) else { return false };
            let Kind::Http2(link) = &mut conn.kind else { return false };
            let Some(splitter) = self.pods.get_mut(conn.pod).and_then(|pod| pod.splitter.as_mut()) else {
                return false;
            };
            if splitter.has_answered(link.id) {
                conn.socket.answered();
                link.watched = false;
            } else if conn.socket.has_stalled(now) {
                link.stalled = true;
                link.watched = false;
                splitter.handle_stalled(now, link.id);
                turns.wake(conn.pod);
            } else {
                link.watched = conn.socket.is_owed();
            }
            link.watched
        });
    }
}

impl Conn {
    fn lost_its_peer(&mut self, now: Instant, gone_after: Duration) -> bool {
        let endpoint = match &mut self.kind {
            Kind::Http2(_) => false,
            Kind::Relay(pair) => pair.lost_its_peer(now, gone_after),
        };
        self.socket.lost_its_peer(now, gone_after) || endpoint
    }
}

/// What every connection gets so that a peer that is gone is noticed. Set on a listener, its accepted sockets inherit it.
/// No TCP_USER_TIMEOUT: it counts the time with a full window too (Linux 5.11 and later).
pub(super) fn set_options(socket: &SockRef<'_>, gone_after: Duration) -> io::Result<()> {
    let second = Duration::from_secs(1);
    let interval = (gone_after * 2 / 3).max(second);
    let keepalive = TcpKeepalive::new().with_time((gone_after * 2).max(second));
    socket.set_tcp_keepalive(&keepalive.with_interval(interval).with_retries(IDLE_TRIES))?;
    // So that there are enough tries in that time; a kernel before 6.15 has no such option, waits up to two minutes
    // between two probes of a full window, and takes that much longer to notice.
    let longest = (gone_after / TRIES).clamp(second, Duration::from_secs(120)).as_millis() as libc::c_int;
    // SAFETY: the pointer is to a local that outlives the call, and the size is its own.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const longest).cast(),
            size_of_val(&longest) as libc::socklen_t,
        )
    };
    Ok(())
}

fn account(socket: &impl AsFd) -> io::Result<Account> {
    let info = tcp_info::of(socket)?;
    // A peer that shrinks its window answers retransmissions without taking them.
    let repeated = info.unacknowledged > 0 && info.sent_before < info.heard_before;
    Ok(Account {
        owed: info.unacknowledged > 0 || info.unsent_bytes > 0,
        unanswered: if repeated { info.retransmits } else { 0 } + info.probes,
        heard: info.heard_before,
        // The first probe's answer may be on its way.
        sent_again: info.unacknowledged > 0 && info.retransmits > 0 || info.probes > 1,
        acknowledged_bytes: info.acknowledged_bytes,
        rtt: info.rtt,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks every second at a peer with the given (unanswered tries, seconds since it was heard), and says in which
    /// second it was given up; the bound is 10 s.
    fn given_up(accounts: impl IntoIterator<Item = (u32, u32)>) -> Option<usize> {
        let (mut life, begin) = (Life::default(), Instant::now() + 10_000 * SECOND);
        life.wrote();
        accounts.into_iter().enumerate().position(|(second, (unanswered, heard))| {
            let account = Account { unanswered, heard: heard * SECOND, ..quiet() };
            life.judge(&account, begin + second as u32 * SECOND, 10 * SECOND)
        })
    }

    #[test]
    fn a_peer_that_answers_nothing_is_given_up_after_the_bound() {
        assert_eq!(given_up((0..20).map(|second| (second, second))), Some(11), "the first second had no second try");
    }

    #[test]
    fn a_peer_that_was_idle_for_long_has_as_much_time_as_any() {
        assert_eq!(given_up((0..20).map(|second| (second, 3_600 + second))), Some(11));
    }

    #[test]
    fn a_peer_that_answers_probes_is_never_given_up_however_rare_they_are() {
        assert_eq!(given_up((0..1_000).map(|second| (0, second % 120))), None);
    }

    #[test]
    fn a_peer_that_is_heard_now_and_then_lives() {
        assert_eq!(given_up((0..1_000).map(|second| (1 + second % 9, second % 9))), None);
    }

    #[test]
    fn one_lost_probe_proves_nothing() {
        assert_eq!(given_up((0..100).map(|second| (1 + second / 40, second))), Some(80));
    }

    /// It owes an ACK, and that is all.
    fn quiet() -> Account {
        Account {
            owed: true,
            unanswered: 0,
            heard: Duration::ZERO,
            sent_again: false,
            acknowledged_bytes: 0,
            rtt: Duration::from_millis(1),
        }
    }

    /// Looks every 100 ms at a peer with the given accounts (it was sent something again, bytes acknowledged), and says in
    /// which millisecond it was found to be stalled.
    fn stalled(rtt: u64, accounts: impl IntoIterator<Item = (bool, u64)>) -> Option<usize> {
        let (mut life, begin) = (Life::default(), Instant::now());
        let nth = accounts.into_iter().enumerate().position(|(nth, (sent_again, acknowledged_bytes))| {
            let account = Account { sent_again, acknowledged_bytes, rtt: Duration::from_millis(rtt), ..quiet() };
            life.judge_stall(&account, begin + nth as u32 * LOOK_FOR_STALLS)
        });
        nth.map(|nth| nth * LOOK_FOR_STALLS.as_millis() as usize)
    }

    #[test]
    fn an_endpoint_is_stalled_600_ms_after_its_last_acknowledgement_whatever_it_sends() {
        assert_eq!(stalled(1, (0..30).map(|nth| (nth >= 15, nth.min(10)))), Some(1_700));
        assert_eq!(stalled(1, (0..30).map(|nth| (nth >= 3, 0))), Some(700), "that was idle");
    }

    #[test]
    fn an_endpoint_far_away_has_the_time_that_its_answers_take() {
        assert_eq!(stalled(150, (0..30).map(|nth| (nth >= 8, 0))), Some(1_200));
    }

    #[test]
    fn an_endpoint_that_acknowledges_now_and_then_is_not_stalled() {
        assert_eq!(stalled(1, (0..1_000).map(|nth| (true, nth / 6))), None);
        assert_eq!(stalled(1, (0..1_000).map(|_| (false, 0))), None, "nothing was sent again");
    }

    #[test]
    fn what_was_owed_before_an_idle_time_says_nothing_after_it() {
        let (mut life, begin) = (Life::default(), Instant::now());
        let again = Account { sent_again: true, ..quiet() };
        assert!(!life.judge_stall(&again, begin));
        // Whoever looks.
        assert!(!life.judge(&Account { owed: false, ..quiet() }, begin + SECOND, 30 * SECOND));
        assert!(!life.judge_stall(&again, begin + 60 * SECOND));
        assert!(life.judge_stall(&again, begin + 61 * SECOND));
    }

    #[test]
    fn a_socket_is_not_looked_at_when_all_is_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut life = Life::default();
        socket.write_all(b"x").unwrap();
        life.wrote();
        assert!(!life.is_gone(&socket, Instant::now(), SECOND));
        assert!(!life.owed, "loopback acknowledges at once");
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 65536]).is_ok() {}
        life.wrote();
        assert!(!life.is_gone(&socket, Instant::now(), SECOND));
        assert!(life.owed, "the window is full");
    }

    #[test]
    fn accepted_sockets_inherit_what_was_set_on_the_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_options(&SockRef::from(&listener), 30 * SECOND).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), 60 * SECOND);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), 20 * SECOND);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), None);
    }
}
