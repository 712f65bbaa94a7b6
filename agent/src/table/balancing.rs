//! What a Service's annotations say of how its calls are spread. In: the annotations as written; out: a [`Balancing`], with
//! the default in the place of what is unreadable, and a problem for each.

use std::sync::Arc;
use std::time::Duration;

use super::object::{EJECTION, LOAD_BALANCER, Object, SLOW_START, Service};
use super::problem::Problem;
use super::select::{annotation, place};
use super::{Balancing, Ejection, Policy};
use crate::duration;

const EJECTION_CURE: &str =
    "write \"off\", or some of failures=5, rate=20%, most=50%, back-off=1s, longest=8s with commas between";

pub(super) fn of(service: &Arc<Service>, problems: &mut Vec<Problem>) -> Balancing {
    let written = &service.metadata.annotations;
    let mut told = |key: &str, value: &str, why: Option<String>, cure: String| {
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        problems.push(Problem {
            place: place(&Object::Service(service.clone())),
            field: annotation(key),
            message: format!("\"{value}\" is unreadable, the default applies{why}"),
            cure,
        });
    };
    let policy = written.load_balancer.as_deref().map(|value| {
        Policy::ALL.into_iter().find(|policy| policy.name() == value.trim()).unwrap_or_else(|| {
            let names = Policy::ALL.map(Policy::name).map(|name| format!("\"{name}\"")).join(" or ");
            told(LOAD_BALANCER, value, None, format!("write {names}"));
            Policy::default()
        })
    });
    let ejection = written.ejection.as_deref().map(|value| {
        ejection(value).unwrap_or_else(|why| {
            told(EJECTION, value, Some(why), EJECTION_CURE.to_owned());
            Ejection::default()
        })
    });
    let slow_start = written.slow_start.as_deref().map(|value| {
        duration::parse(value).unwrap_or_else(|| {
            told(SLOW_START, value, None, "write a duration from 0s to 24h, such as \"30s\" or \"1m30s\"".to_owned());
            Duration::ZERO
        })
    });
    Balancing {
        policy: policy.unwrap_or_default(),
        ejection: ejection.unwrap_or_default(),
        slow_start: slow_start.unwrap_or_default(),
    }
}

/// `off`, or `NAME=VALUE,…` over the defaults; or what is wrong with it.
fn ejection(value: &str) -> Result<Ejection, String> {
    let mut ejection = Ejection::default();
    if value.trim() == "off" {
        return Ok(Ejection { failures: 0, rate: 0, ..ejection });
    }
    let mut said = Vec::new();
    for part in value.split(',') {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("\"{}\" has no \"=\"", part.trim()))?;
        let (name, value) = (name.trim(), value.trim());
        let bad = || format!("{name}={value}");
        if said.contains(&name) {
            return Err(format!("\"{name}\" is there twice"));
        }
        said.push(name);
        match name {
            "failures" => ejection.failures = value.parse().ok().filter(|n| *n <= 1_000_000).ok_or_else(bad)?,
            "rate" => ejection.rate = percent(value).ok_or_else(bad)?,
            "most" => ejection.most = percent(value).ok_or_else(bad)?,
            "back-off" => ejection.back_off = duration::parse(value).filter(|it| !it.is_zero()).ok_or_else(bad)?,
            "longest" => ejection.longest = duration::parse(value).filter(|it| !it.is_zero()).ok_or_else(bad)?,
            _ => return Err(format!("there is no \"{name}\"")),
        }
    }
    if ejection.longest < ejection.back_off {
        return Err("longest is below back-off".to_owned());
    }
    Ok(ejection)
}

/// `0%` to `100%`.
fn percent(text: &str) -> Option<u8> {
    text.strip_suffix('%')?.trim().parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_of_ejection_stays_as_it_is() {
        let default = Ejection::default();
        assert_eq!(ejection("failures=3"), Ok(Ejection { failures: 3, ..default }));
        let second = Duration::from_secs(1);
        let all = "failures=0, rate=50%, most=100%, back-off=500ms, longest=2m";
        let said = Ejection { failures: 0, rate: 50, most: 100, back_off: second / 2, longest: 120 * second };
        assert_eq!(ejection(all), Ok(said));
        assert_eq!(ejection("off"), Ok(Ejection { failures: 0, rate: 0, ..default }));
    }

    #[test]
    fn what_is_wrong_with_a_word_on_ejection_is_named() {
        for (value, named) in [
            ("", "no \"=\""),
            ("on", "\"on\" has no"),
            ("failures=-1", "failures=-1"),
            ("failures=5,failure=2", "there is no \"failure\""),
            ("rate=20", "rate=20"),
            ("most=101%", "most=101%"),
            ("back-off=0s", "back-off=0s"),
            ("back-off=1d", "back-off=1d"),
            ("back-off=10s", "longest is below"),
            ("failures=3, rate=20%, failures=4", "\"failures\" is there twice"),
        ] {
            let why = ejection(value).unwrap_err();
            assert!(why.contains(named), "{value}: {why}");
        }
    }
}
