//! Durations as command lines and annotations write them: `500ms`, `30s`, `1.5s`, `1h30m`, as Go and Kubernetes do.

use std::time::Duration;

use jiff::SignedDuration;

/// Longer than any sane one, so a slip of the unit; and far from what a clock cannot hold.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// `None`: it is not written so, negative, or longer than 24 h.
pub fn parse(text: &str) -> Option<Duration> {
    // ISO 8601 has no place here, and Go has no spaces, commas or words in it.
    let plain = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'h' | 'm' | 's' | 'u' | 'µ' | 'n');
    let text = text.trim();
    let parsed = text.parse::<SignedDuration>().ok().filter(|_| text.chars().all(plain))?;
    Duration::try_from(parsed).ok().filter(|it| *it <= LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_numbers_with_units() {
        let ms = Duration::from_millis;
        for (text, meant) in [
            ("30s", ms(30_000)),
            ("250ms", ms(250)),
            ("0s", ms(0)),
            ("1.5s", ms(1_500)),
            ("1m30s", ms(90_000)),
            (" 1h30m ", ms(5_400_000)),
            ("24h", ms(86_400_000)),
        ] {
            assert_eq!(parse(text), Some(meant), "{text}");
        }
    }

    #[test]
    fn anything_else_is_none() {
        let bad = ["", "s", "30", "-1s", "25h", "1d", "30é", "PT30S", "30 s", "1m, 30s", "30s ago", "1h1h", "1.2.3s"];
        for text in bad.into_iter().chain(["99999999999999999999s"]) {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
