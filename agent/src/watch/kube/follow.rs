//! Follows all objects of one kind. In: the API server's lists and watches, by the client library, which resumes a watch
//! where it broke, takes bookmarks, and lists anew after 410 Gone; out: news in order, a list as one piece when it is
//! complete. Tries for ever, with pauses.

use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use kube::runtime::watcher::{Error, Event};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::SendError;

use super::client::CONNECT;
use super::fault::Fault;
use super::wire::{Watched, Wire};
use crate::table::object::{Key, Kind, Object};
use crate::table::{Place, Problem};

/// The first pause after a failure, and the longest. Chance cuts up to half of each, so that a cluster's agents do not
/// come back all at once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// An attempt that has not failed after this time goes well: connecting is given up sooner.
const WELL_AFTER: Duration = Duration::from_secs(CONNECT.as_secs() + 1);
/// A watch cannot go on where the API server's history was put back (etcd from a backup), and the client library would
/// try for ever: after this many refusals in a row, list anew.
const REFUSED_STARTS: u32 = 3;

/// What is known now and was not before.
#[derive(Debug)]
pub(super) enum News {
    /// All objects of the kind, and those that are there but cannot be read.
    Listed {
        kind: Kind,
        objects: Vec<Object>,
        unreadable: Vec<(Key, Problem)>,
    },
    Applied(Object),
    /// It has changed, and cannot be read as it is now.
    Unreadable(Key, Problem),
    Deleted(Key, Option<std::sync::Arc<str>>),
    /// The kind cannot be followed, since then.
    Down(Kind, Problem, Instant),
    /// It can again.
    Up(Kind),
}

/// Runs until nobody hears the news. `watch` makes a stream that begins with a list.
pub(super) async fn follow<T, S>(watch: impl Fn() -> S, news: Sender<News>)
where
    T: Watched,
    S: Stream<Item = Result<Event<Wire<T>>, Error>>,
{
    let mut follower =
        Follower { news, objects: Vec::new(), unreadable: Vec::new(), lost: None, down: false, listed: false };
    while follower.follow(watch()).await.is_ok() {}
}

struct Follower {
    news: Sender<News>,
    /// What has come so far of a list.
    objects: Vec<Object>,
    unreadable: Vec<(Key, Problem)>,
    /// When a watch broke or could not begin, unless one has gone well since.
    lost: Option<Instant>,
    /// It was said that the kind cannot be followed.
    down: bool,
    /// All of the kind were known once.
    listed: bool,
}

impl Follower {
    /// Ends well where it is to begin anew.
    async fn follow<T: Watched>(
        &mut self,
        events: impl Stream<Item = Result<Event<Wire<T>>, Error>>,
    ) -> Result<(), SendError<News>> {
        let mut events = std::pin::pin!(events);
        let mut pause = FIRST_PAUSE;
        let mut refused = 0;
        loop {
            let next = match self.lost {
                Some(_) => tokio::time::timeout(WELL_AFTER, events.next()).await,
                None => Ok(events.next().await),
            };
            let Ok(next) = next else {
                // A watch that was taken up again says nothing until something happens.
                self.up::<T>().await?;
                continue;
            };
            let Some(event) = next else { return Ok(()) };
            let error = match event {
                // Comes before the API server is asked, so it is no sign of health.
                Ok(Event::Init) => {
                    self.objects.clear();
                    self.unreadable.clear();
                    continue;
                }
                Ok(event) => {
                    (pause, refused) = (FIRST_PAUSE, 0);
                    self.take(event).await?;
                    continue;
                }
                Err(error) => error,
            };
            tracing::debug!(kind = %T::KIND, %error, "the watch has failed");
            let lost = *self.lost.get_or_insert_with(Instant::now);
            // One that breaks after it was well is taken up again, and only then it shows whether something is wrong.
            if !matches!(error, Error::WatchFailed(_)) {
                self.down = true;
                self.news.send(News::Down(T::KIND, cannot_follow(T::KIND, &error, self.listed), lost)).await?;
            }
            tokio::time::sleep(pause.mul_f32(0.5 + fastrand::f32() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            refused += u32::from(matches!(error, Error::WatchStartFailed(kube::Error::Api(_))));
            if refused == REFUSED_STARTS {
                return Ok(());
            }
        }
    }

    async fn up<T: Watched>(&mut self) -> Result<(), SendError<News>> {
        self.lost = None;
        if std::mem::take(&mut self.down) { self.news.send(News::Up(T::KIND)).await } else { Ok(()) }
    }

    async fn take<T: Watched>(&mut self, event: Event<Wire<T>>) -> Result<(), SendError<News>> {
        self.up::<T>().await?;
        match event {
            Event::Init => Ok(()),
            Event::InitApply(wire) => {
                match read(wire) {
                    Ok(object) => self.objects.push(object),
                    Err(unreadable) => self.unreadable.push(*unreadable),
                }
                Ok(())
            }
            Event::InitDone => {
                self.listed = true;
                let (objects, unreadable) = (std::mem::take(&mut self.objects), std::mem::take(&mut self.unreadable));
                self.news.send(News::Listed { kind: T::KIND, objects, unreadable }).await
            }
            Event::Apply(wire) => {
                let news = match read(wire) {
                    Ok(object) => News::Applied(object),
                    Err(unreadable) => News::Unreadable(unreadable.0, unreadable.1),
                };
                self.news.send(news).await
            }
            Event::Delete(wire) => self.news.send(News::Deleted(wire.key(), wire.uid())).await,
        }
    }
}

fn read<T: Watched>(wire: Wire<T>) -> Result<Object, Box<(Key, Problem)>> {
    let key = wire.key();
    wire.into_object().map_err(|(field, message)| {
        let problem = Problem {
            place: Place::Object(key.clone()),
            field,
            message: format!("{message}; what was known of the object before serves on"),
            cure: format!(
                "correct the field with `kubectl edit`, or use a sluice that knows it ({})",
                key.kind.api_version()
            ),
        };
        Box::new((key, problem))
    })
}

/// In words that stay the same while the trouble does.
fn cannot_follow(kind: Kind, error: &Error, listed: bool) -> Problem {
    let (what, cure) = match error {
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
            let fault = Fault::of(error, Some(kind));
            (fault.what, fault.cure)
        }
        Error::WatchError(status) => (status.message.clone(), "see the API server's log".to_owned()),
        Error::NoResourceVersion => {
            ("its answer has no resource version".to_owned(), "see what stands between agent and API server".to_owned())
        }
    };
    let meanwhile =
        if listed { "the last known objects serve on" } else { "nothing is known of them yet, and kube-proxy serves" };
    Problem {
        place: Place::Api(kind),
        field: String::new(),
        message: format!("cannot be watched, {meanwhile}: {what}"),
        cure,
    }
}
