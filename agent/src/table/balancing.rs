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

/// More are a slip, not a wish.
const MOST_FAILURES: u32 = 1_000_000;

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
        let part = part.trim();
        let (name, value) = part.split_once('=').ok_or_else(|| match part {
            "off" => "\"off\" stands alone".to_owned(),
            _ => format!("\"{part}\" has no \"=\""),
        })?;
        let (name, value) = (name.trim(), value.trim());
        if said.contains(&name) {
            return Err(format!("\"{name}\" is there twice"));
        }
        said.push(name);
        let out_of = |range: &str| format!("{name}={value} is not {range}");
        let percent = |least: u8| {
            let percent = value.strip_suffix('%').and_then(|number| number.trim().parse().ok());
            percent
                .filter(|percent| (least..=100).contains(percent))
                .ok_or_else(|| out_of(&format!("a whole number of percent from {least}% to 100%")))
        };
        let time = || {
            let time = duration::parse(value).filter(|time| !time.is_zero());
            time.ok_or_else(|| out_of("a duration above 0s, up to 24h"))
        };
        match name {
            "failures" => {
                let count = value.parse().ok().filter(|count| *count <= MOST_FAILURES);
                ejection.failures = count.ok_or_else(|| out_of(&format!("a number from 0 to {MOST_FAILURES}")))?;
            }
            "rate" => ejection.rate = percent(0)?,
            "most" => ejection.most = percent(1)?,
            "back-off" => ejection.back_off = time()?,
            "longest" => ejection.longest = time()?,
            _ => return Err(format!("there is no \"{name}\"")),
        }
    }
    if ejection.longest < ejection.back_off {
        let whose = if said.contains(&"longest") { "" } else { " by default" };
        return Err(format!("back-off is above longest, which is {:?}{whose}", ejection.longest));
    }
    Ok(ejection)
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
            ("off, failures=3", "\"off\" stands alone"),
            ("failures=-1", "failures=-1 is not a number from 0 to 1000000"),
            ("failures=5,failure=2", "there is no \"failure\""),
            ("rate=20", "rate=20 is not a whole number of percent from 0% to 100%"),
            ("rate=2.5%", "rate=2.5%"),
            ("most=0%", "most=0% is not a whole number of percent from 1%"),
            ("most=101%", "most=101%"),
            ("back-off=0s", "back-off=0s is not a duration above 0s"),
            ("back-off=1d", "back-off=1d"),
            ("back-off=10s", "above longest, which is 8s by default"),
            ("back-off=10s, longest=5s", "above longest, which is 5s"),
            ("failures=3, rate=20%, failures=4", "\"failures\" is there twice"),
        ] {
            let why = ejection(value).unwrap_err();
            assert!(why.contains(named), "{value}: {why}");
        }
    }
}
